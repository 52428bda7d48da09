"""Whether rounding explains the error of a quantized denoiser, and where to look if it does not.

    expected = quantize(calibrate(denoiser, steps, key), "W8A8")      what is claimed
    verdict(expected, suspect, steps, other_key)                      what was built

The error of the suspect's samples stands beside its forecast from the full-precision run, and what
it commits at every step, and at every site if it shows them, beside what the formats commit there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import measures
from qdiffjax._checks import check_callable, check_number, check_type, require
from qdiffjax._conditions import as_arguments
from qdiffjax._tables import Table, number
from qdiffjax._typing import EpsFn, Key
from qdiffjax.analysis.errors.evidence import Evidence, forecast_evidence, measured_evidence
from qdiffjax.diffusion import Steps
from qdiffjax.diffusion import sample as run_sampler
from qdiffjax.precision import Quantized, full_call
from qdiffjax.precision.refusals import check_steps

FLOOR = 1e-3  # of the median local error of all cells: less is as good as none
NUM_SHOWN = 5


class Limits(NamedTuple):
    """Most that measured over forecast may be where rounding explains an error.

    total: of the samples' error, see `Verdict.ratio`; step: of what any step commits; site: of the
    local error of any site at any step; low: least of the total, for the interval of the forecast.
    """

    total: float
    step: float
    site: float
    low: float


# The most that 60 honest recipes of the shipped UNet had, with a margin: experiments.faults.
LIMITS = Limits(total=3.63, step=1.69, site=2.71, low=0.04)


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict:
    """Whether rounding explains an error; prints as a table and a sentence.

    expected: what rounding explains; suspect: what was measured; limits: of their ratios. Leaves of
    both are NumPy arrays.

    Example:
      >>> import numpy as np
      >>> from qdiffjax.analysis.errors import Evidence
      >>> from qdiffjax.verdicts import Verdict
      >>> sizes = {"in": np.ones(2), "out": np.ones(2)}
      >>> honest = Evidence(np.ones(4), np.ones(2), sizes)
      >>> faulty = Evidence(9 * np.ones(4), 81 * np.ones(2), sizes | {"out": np.array([1.0, 99.0])})
      >>> Verdict(honest, honest).is_bug, Verdict(honest, faulty).sentence
      (False, 'a bug: look at out (step 1) first')
    """

    expected: Evidence
    suspect: Evidence
    limits: Limits = LIMITS

    @property
    def ratio(self) -> float:
        """Measured over forecast; infinity where samples are not finite."""
        ratio = self.measured / self.forecast[0]
        return ratio if math.isfinite(ratio) else math.inf

    @property
    def measured(self) -> float:
        """RMSE of the suspect's samples, the geometric mean over them.

        A few samples that end in another mode then count as what they are, a few.
        """
        return _typical(self.suspect.errors)

    @property
    def forecast(self) -> tuple[float, float, float]:
        """The same as far as rounding explains it, and the ends of its interval."""
        value = _typical(self.expected.errors)
        return value, value * self.limits.low, value * self.limits.total

    @property
    def steps(self) -> np.ndarray:
        """Local error of each step over what rounding commits there [N]."""
        return _ratios(self.suspect.steps, self.expected.steps, self.expected.steps)

    @functools.cached_property
    def sites(self) -> dict[str, np.ndarray]:
        """Local error of each site over what rounding commits there {site: [N]}; empty without."""
        known = self.expected.sites
        everything = np.concatenate([np.zeros(0), *map(np.asarray, known.values())])
        none = np.zeros(len(self.suspect.steps))
        return {name: _ratios(own, known.get(name, none), everything)
                for name, own in self.suspect.sites.items()}  # fmt: skip

    @property
    def worst(self) -> tuple[str | None, int, float]:
        """The (site, step) of the largest ratio, and that; (None, 0, 0.0) without sites."""
        if not self.sites:
            return None, 0, 0.0
        name = max(self.sites, key=lambda name: self.sites[name].max())
        step = int(self.sites[name].argmax())
        return name, step, float(self.sites[name][step])

    @property
    def stands_out(self) -> tuple[bool, bool, bool]:
        """Whether the samples, some step, some site are off by more than rounding explains."""
        return (self.ratio > self.limits.total, float(self.steps.max()) > self.limits.step,
                self.worst[2] > self.limits.site)  # fmt: skip

    @property
    def is_bug(self) -> bool:
        """Whether rounding does not explain it."""
        return any(self.stands_out)

    @property
    def site(self) -> str | None:
        """Site to look at first; None if no site stands out, or none is seen."""
        return self.worst[0] if self.stands_out[2] else None

    @property
    def step(self) -> int | None:
        """Step to look at first; None if none stands out."""
        if self.site is not None:
            return self.worst[1]
        return int(self.steps.argmax()) if self.stands_out[1] else None

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if not self.is_bug:
            return "within what rounding explains"
        if self.site is not None:
            return f"a bug: look at {self.site} (step {self.step}) first"
        if self.step is None:
            return "a bug: no step stands out alone, look at what is carried from step to step"
        where = ("between the sites: at the time, the condition, the coefficients" if self.sites
                 else "no site is seen")  # fmt: skip
        return f"a bug: look at step {self.step} first, {where}"

    def table(self) -> Table:
        """Return measured beside forecast, and the steps and sites that are furthest apart."""
        value, low, high = self.forecast
        rows: list[tuple] = [
            ("samples (RMSE, geometric mean)", number(self.measured), number(value),
             f"{number(low)} .. {number(high)}", number(self.ratio), number(self.limits.total)),
            self._row(f"step {self.steps.argmax()}", self.suspect.steps, self.expected.steps,
                      self.steps, self.limits.step),
        ]  # fmt: skip
        none = np.zeros(len(self.suspect.steps))
        ranked = sorted(self.sites, key=lambda name: -self.sites[name].max())
        rows += [
            self._row(f"{name} (step {self.sites[name].argmax()})", self.suspect.sites[name],
                      self.expected.sites.get(name, none), self.sites[name], self.limits.site)
            for name in ranked[:NUM_SHOWN]
        ]  # fmt: skip
        columns = ("error of", "measured", "forecast", "interval", "ratio", "at most")
        return Table(f"Verdict: {self.sentence}", columns, tuple(rows), (
            "Steps and sites: local errors along the full-precision run, the largest ratios.",
        ))  # fmt: skip

    @staticmethod
    def _row(name, own, known, ratios, limit) -> tuple:
        step = int(ratios.argmax())
        sizes = (number(math.sqrt(float(squares[step]))) for squares in (own, known))
        return (name, *sizes, "", number(float(ratios[step])), number(limit))

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _typical(errors) -> float:
    errors = np.maximum(np.asarray(errors, np.float64), np.finfo(np.float32).tiny)
    return float(np.exp(np.mean(np.log(errors))))


def _ratios(own, known, everything) -> np.ndarray:
    """Return the roots of own / known, both at least the floor of everything that is known."""
    own, known, everything = (np.asarray(a, np.float64) for a in (own, known, everything))
    least = FLOOR**2 * np.median(everything) if everything.size else 0.0
    tiny = np.finfo(np.float32).tiny
    ratios = np.sqrt(np.maximum(own, max(least, tiny)) / np.maximum(known, max(least, tiny)))
    return np.where(np.isfinite(ratios), ratios, np.inf)


def verdict(
    expected: Quantized,
    suspect: Quantized | EpsFn,
    steps: Steps,
    key: Key,
    num_samples: int = 16,
    *,
    own_steps: Steps | None = None,
    limits: Limits = LIMITS,
    batch_size: int | None = None,
    progress: bool = False,
) -> Verdict:
    """Return whether rounding explains the error of a quantized denoiser, and where to look.

    The forecast is that of `predict`, from the full-precision run alone; its interval and the
    limits hold for 16 samples or more. A site is named if its local error, at the operands that
    full precision has, is too large for its format: the one of the largest ratio. If none is, but
    a step is, what lies between the sites is at fault. Faults that leave an error within the
    limits are not seen. Costs about 20 sampling runs.

    Args:
      expected: the recipe that is claimed, `quantize(calibration, recipe)`; another calibration
        than the suspect's will do.
      suspect: what was built: a `Quantized` of `quantize` or `lower`, of your own site inputs, rule
        or network; or any (x [batch, *shape], t []) -> eps that JAX traces, (x, t, cond) if the
        denoiser has conditions, whose sites are not seen.
      steps: the sampler.
      key: of the noise, as in `sample`; other noise than both were calibrated on.
      num_samples: how many.
      own_steps: the sampler as the suspect runs it, if that is what may be wrong; of as many steps.
      limits: most that measured over forecast may be.
      batch_size, progress: as in `sample`.

    Raises:
      ValueError: full-precision samples that are not finite, a sampler of another length, a
        function whose result is no prediction of x.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
      >>> expected, built = (qd.quantize(calibration, words) for words in ("W8A8", "W8A2"))
      >>> qd.verdict(expected, expected, steps, jax.random.key(1)).sentence
      'within what rounding explains'
      >>> qd.verdict(expected, built, steps, jax.random.key(1)).site
      'in'
    """
    check_type("expected", expected, Quantized,
               remedy="quantize(calibrate(denoiser, steps, key), 'W8A8')")  # fmt: skip
    if not isinstance(suspect, Quantized):
        check_callable("suspect", suspect, "(x, t) -> eps")
    check_steps(expected.denoiser, steps)
    own_steps = steps if own_steps is None else own_steps
    check_steps(expected.denoiser, own_steps, "own_steps")
    require(len(own_steps.t) == len(steps.t), "own_steps", got=f"{len(own_steps.t)} steps",
            expected=f"{len(steps.t)}, those of steps", remedy="compare step by step")  # fmt: skip
    for name, limit in limits._asdict().items():
        check_number(f"limits, {name}", limit, above=0)
    parts: list[tuple[Evidence, Evidence]] = []
    sizes: list[int] = []
    for q, x_T, noise in measures.starts(
        expected, steps, key, num_samples, None, batch_size, progress
    ):
        if not isinstance(suspect, Quantized):
            _check_shape(suspect, q, x_T, steps)
        xs = measures.program(_full_states)(q, x_T, noise, steps)
        require(bool(jnp.isfinite(xs).all()), "verdict", got="full-precision samples with NaN",
                expected="finite samples",
                remedy="check the parameters and the sampler")  # fmt: skip
        parts.append((measures.program(forecast_evidence)(q, xs, steps),
                      _measured(q, suspect, xs, steps, own_steps, noise)))  # fmt: skip
        sizes.append(len(x_T))
    known, found = (joined([part[i] for part in parts], sizes) for i in (0, 1))
    return Verdict(known, found, limits)


def _check_shape(suspect: EpsFn, q: Quantized, x_T, steps: Steps) -> None:
    """Refuse a function whose result has another shape than x, which would be spread over it."""
    out = jax.eval_shape(suspect, x_T, steps.times(x_T)[0], *as_arguments(q.cond))
    shape = getattr(out, "shape", None)
    require(shape == x_T.shape, "suspect",
            got=f"a {type(out).__name__}" if shape is None else f"a result {list(shape)}",
            expected=f"eps {list(x_T.shape)}, as x",
            remedy="let it return the prediction of eps alone")  # fmt: skip


def _full_states(q: Quantized, x_T, key, steps: Steps):
    return run_sampler(full_call(q), x_T, steps, key=key).states


def _measured(q, suspect, xs, steps, own_steps, key) -> Evidence:
    if isinstance(suspect, Quantized):
        return measures.program(_of_quantized)(q, suspect.given(q.cond), xs, steps, own_steps, key)
    return measures.program(_of_function, suspect)(q, xs, steps, own_steps, key)


def _of_quantized(q, suspect, xs, steps, own_steps, key) -> Evidence:
    return measured_evidence(q, suspect, xs, steps, own_steps, key)


def _of_function(suspect: Callable, q, xs, steps, own_steps, key) -> Evidence:
    return measured_evidence(q, suspect, xs, steps, own_steps, key)


def joined(parts: list[Evidence], sizes: list[int]) -> Evidence:
    """Return the evidence of several batches, of so many samples each, as one, in NumPy."""
    shares = np.asarray(sizes, np.float64) / sum(sizes)
    errors = np.concatenate([np.asarray(part.errors) for part in parts])

    def mean(*leaves) -> np.ndarray:
        return np.sum([w * np.asarray(leaf) for w, leaf in zip(shares, leaves, strict=True)], 0)

    sites = jax.tree.map(mean, *(part.sites for part in parts))
    return Evidence(errors, mean(*(part.steps for part in parts)), sites)  # type: ignore[arg-type]

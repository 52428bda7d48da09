"""The measurements behind `experiments.propagation_laws`, and the laws fitted to them."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import store, subject
from qdiffjax import compiling, diffusion, precision
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import coherence, prediction, propagation
from qdiffjax.analysis.errors import laws as scaling
from qdiffjax.analysis.errors import runs as probes
from qdiffjax.analysis.errors import runs as trajectories
from qdiffjax.analysis.gains import step_gains
from qdiffjax.precision import Quantized, calibration, full_call, quantized_call

NUM_PROBES = 4
FIT_FROM = 20  # steps; shorter samplers are far from their limit


class Case(NamedTuple):
    """One measurement: sampler, number of network calls, what is rounded, and to how many bits.

    `draws` of stochastic rounding: samples share the rounding of what they share, such as the time
    embedding, so that one draw is one realization however many samples it has.
    """

    sampler: str
    num_calls: int
    part: str
    bits: int
    draws: int = 1

    @property
    def name(self) -> str:
        """A name for files and arrays."""
        draws = f"x{self.draws}" if self.draws > 1 else ""
        return f"{self.sampler}_{self.num_calls}_{self.part}{self.bits}{draws}"


def rounding_keys(q: Quantized, num_calls: int, key) -> dict[str, Any]:
    """Inputs of every call that make the rounding of activations stochastic, leaves [calls, ...].

    Every operand has its own key in every call.
    """
    found = {}
    for i, (name, how) in enumerate(q.site_inputs.items()):
        keys = jax.random.split(jax.random.fold_in(key, i), (len(how.activations), num_calls))
        grids = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_calls, *leaf.shape)),
            tuple(dataclasses.replace(grid, key=None) for grid in how.activations),
        )
        found[name] = precision.SiteQuant(None, tuple(
            dataclasses.replace(grid, key=k) for grid, k in zip(grids, keys, strict=True)
        ))  # fmt: skip
    return found


@dataclasses.dataclass(frozen=True)
class Runs:
    """A sampler's full-precision run, the ranges it was calibrated with, and compiled functions."""

    steps: diffusion.Steps
    ranges: Any
    key: Any
    xs: jax.Array
    gains: jax.Array
    measure: Any


class Study:
    """One denoiser; what is shared between cases is computed once."""

    def __init__(self, config):
        self.config = config
        make = subject.SAMPLERS["ddim"]
        self.subject = subject.prepare(
            config.checkpoint, lambda s: make(s, config.middle), config.sites, config.seed
        )
        self.x_T = subject.noise(self.subject.denoiser, config.num_samples, config.seed)
        self.runs = functools.lru_cache(maxsize=1)(self._runs)  # cases come sampler by sampler

    def mark(self) -> str:
        """Fingerprint of what a case depends on besides itself."""
        c = self.config
        return store.fingerprint(
            [c.num_samples, c.num_checked, list(c.sites), c.edge_margin, c.seed],
            self.subject.mark(),
        )

    def _runs(self, sampler: str, num_calls: int) -> Runs:
        denoiser, config = self.subject.denoiser, self.config
        make = subject.SAMPLERS[sampler]
        steps = make(denoiser.schedule, num_calls)
        if diffusion.nfe(steps) > num_calls:  # two calls a step
            steps = make(denoiser.schedule, num_calls // 2)
        is_noisy = bool(np.any(np.asarray(steps.coeffs.noise) != 0))
        key = jax.random.key(config.seed + 1) if is_noisy else None
        full = diffusion.bind(denoiser.eps_fn, denoiser.params)
        sample = compiling.compiled(lambda x: diffusion.sample(full, x, steps, key=key).states)
        xs = sample(self.x_T)
        gains = compiling.compiled(lambda xs: step_gains(
            full, xs, steps,
            key=jax.random.key(config.seed + 2), num_iterations=4,
        ).norms)  # fmt: skip
        measure = compiling.compiled(
            lambda q, xs, gains, calls: self._measure(q, xs, gains, calls, steps, key)
        )
        observed = subject.observe(denoiser, steps, config.seed)
        ranges = calibration.widened(observed, ("input", "output"), config.edge_margin)
        return Runs(steps, ranges, key, xs, gains(xs[:, : config.num_checked]), measure)

    def _measure(self, q, xs, gains, calls, steps, key) -> dict[str, jax.Array]:
        full, quantized = full_call(q), quantized_call(q)
        xs_hat = diffusion.sample(quantized, self.x_T, steps, key=key, per_call=calls).states
        at_end = steps.coeffs.current
        predicted = prediction.predict_errors(q, xs, steps, per_call=calls)[-1]
        # Coherence and bound on a few samples: their own runs, since stochastic bits depend on
        # the size of the batch.
        n = self.config.num_checked
        x, x_hat = xs[:, :n], xs_hat[:, :n]
        if calls is not None:
            x_hat = diffusion.sample(quantized, self.x_T[:n], steps, key=key, per_call=calls).states
        e = trajectories.local_errors(full, quantized, x_hat, steps, per_call=calls)
        first, rho = propagation.propagate_with_remainders(full, x, x_hat, steps, e)
        bound, _ = pathwise.remainder_bound(gains, trajectories.norms(rho), first)
        error = trajectories.norms((x_hat - x)[-1:])[0]
        vs = probes.signs(jax.random.key(7), NUM_PROBES, at_end(x[-1]))
        return {
            "errors": prediction.root_mean_square(at_end(xs_hat[-1]) - at_end(xs[-1])),
            "predicted": prediction.root_mean_square(at_end(predicted)),
            "kappa": coherence.coherence_factor(coherence.probed_gram(full, x, steps, e, vs)),
            "bound_over_measured": bound[-1] / error,
        }

    def measure(self, case: Case) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, row) of one case."""
        runs = self.runs(case.sampler, case.num_calls)
        weight_bits = case.bits if "W" in case.part else None
        activation_bits = None if case.part == "W" else case.bits
        here = dataclasses.replace(self.subject, ranges=runs.ranges)
        q = here.quantized(weight_bits, activation_bits)
        used = {n: v for n, v in q.site_inputs.items() if v.weight is not None or v.activations}
        if case.part == "A":  # its own weights, so that it shares the compilation of "WA"
            weights = self.subject.weights
            used = {n: v._replace(weight=weights.get(n)) for n, v in used.items()}
        q = dataclasses.replace(q, site_inputs=used)
        found = []
        for draw in range(case.draws):
            calls = None
            if case.part == "SR":
                key = jax.random.fold_in(jax.random.key(self.config.seed + 3), draw)
                calls = rounding_keys(q, runs.steps.t.shape[0], key)
            found.append(jax.device_get(runs.measure(q, runs.xs, runs.gains, calls)))
        arrays = {name: np.concatenate([f[name] for f in found]) for name in found[0]}
        medians = [float(np.median(f["errors"])) for f in found]
        ratio = arrays["bound_over_measured"]
        row = {
            "kind": "case", **case._asdict(),
            "rms": over_samples(arrays["errors"]), "median": float(np.median(arrays["errors"])),
            "median_of_draws_min": min(medians), "median_of_draws_max": max(medians),
            "predicted_rms": over_samples(arrays["predicted"]),
            "predicted_median": float(np.median(arrays["predicted"])),
            "kappa": float(np.median(arrays["kappa"])),
            "bound_over_measured_min": float(ratio.min()),
            "bound_over_measured_median": float(np.median(ratio)),
        }  # fmt: skip
        return arrays, row


def over_samples(rms: np.ndarray) -> float:
    """RMS of all samples from the RMS of each [batch], in float64."""
    return float(np.sqrt(np.mean(np.asarray(rms, np.float64) ** 2)))


def laws(rows: list[dict], config) -> list[dict]:
    """Exponents in the number of steps and in the bits, and where stochastic rounding overtakes."""
    return [*steps_laws(rows, config), *bits_laws(rows, config), *crossovers(rows, config)]


def _series(rows, part: str, of: str, fixed: dict) -> dict[int, dict]:
    chosen = [r for r in rows if r["sampler"] == "ddim" and r["part"] == part]
    return {r[of]: r for r in chosen if all(r[k] == v for k, v in fixed.items())}


def steps_laws(rows: list[dict], config) -> list[dict]:
    """Fit error ~ N^p, from FIT_FROM steps on."""
    theory = {"W": 0.0, "SR": -0.5}
    found = []
    for part in ("W", "A", "SR", "WA"):
        series = _series(rows, part, "num_calls", {"bits": config.width})
        sizes = [n for n in sorted(set(config.num_steps)) if n >= FIT_FROM and n in series]
        if len(sizes) >= 3:
            fit = scaling.fit_exponent(sizes, [series[n]["median"] for n in sizes])
            found.append(_law(f"{part}{config.width} against steps", fit, theory.get(part)))
    return found


def bits_laws(rows: list[dict], config) -> list[dict]:
    """Fit error ~ 2^pb, over the widths whose median error is below a tenth of the signal."""
    found = []
    for part in ("W", "A", "SR", "WA"):
        series = _series(rows, part, "bits", {"num_calls": config.middle})
        bits = [b for b in sorted(set(config.bits)) if b in series and series[b]["median"] < 0.1]
        if len(bits) >= 3:
            fit = scaling.fit_exponent(2.0 ** np.array(bits), [series[b]["median"] for b in bits])
            found.append(_law(f"{part} against bits {bits[0]} to {bits[-1]}", fit, -1.0))
    return found


def _law(name: str, fit: scaling.Exponent, theory: float | None) -> dict:
    return {
        "kind": "law", "law": name, "exponent": float(fit.exponent),
        "standard_error": float(fit.standard_error), "theory": theory,
    }  # fmt: skip


def crossovers(rows: list[dict], config) -> list[dict]:
    """The number of steps beyond which stochastic rounding of activations is better: measured
    (between which two grids), and of the model fitted to both (N* = (2 - tau) v G_i / (B^2 G_c)).
    """
    series = [_series(rows, p, "num_calls", {"bits": config.width}) for p in ("A", "SR")]
    sizes = [n for n in sorted(set(config.num_steps)) if all(n in s for s in series)]
    if len(sizes) < 3:
        return []
    nearest, stochastic = (np.array([s[n]["median"] for n in sizes]) for s in series)
    better = stochastic < nearest
    first = int(np.argmax(better)) if better.any() else None
    long = np.array(sizes) >= min(FIT_FROM, sizes[-3])
    fits = [scaling.fit_floor(np.array(sizes)[long], v[long] ** 2) for v in (nearest, stochastic)]
    return [{
        "kind": "crossover", "better_from": None if first is None else sizes[first],
        "worse_until": None if not first else sizes[first - 1],
        "nearest_floor": float(fits[0].floor), "nearest_floor_error": float(fits[0].floor_error),
        "stochastic_floor": float(fits[1].floor),
        "stochastic_floor_error": float(fits[1].floor_error),
        "model": _meeting(*fits),
    }]  # fmt: skip


def _meeting(nearest: scaling.Floor, stochastic: scaling.Floor) -> float | None:
    """N at which the two fits floor + slope / N are equal; None if they are not for any N > 0."""
    gap, slopes = nearest.floor - stochastic.floor, stochastic.slope - nearest.slope
    return float(slopes / gap) if gap * slopes > 0 else None

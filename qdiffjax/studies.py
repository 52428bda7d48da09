"""One study of one recipe: everything the front door measures, on the same samples."""

import dataclasses
import functools
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import chunks, estimates, labels, measures, promises, reports, results
from qdiffjax._checks import check_count
from qdiffjax._typing import Key
from qdiffjax.analysis import divergences, guarantees
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import prediction, runs
from qdiffjax.analysis.errors.ledger import Ledger
from qdiffjax.comparisons import Bounded, Run, sampled
from qdiffjax.diffusion import DiscreteSchedule, Steps, ddim
from qdiffjax.estimates import Estimate
from qdiffjax.measures import NUM_SAMPLES
from qdiffjax.precision import Quantized, full_call, marks_of, quantized_call
from qdiffjax.precision.refusals import check_quantized, check_sampling


class BoundRow(NamedTuple):
    """A bound of the final error over the error itself: smallest and median over samples.

    label: what kind of bound it is and what it assumes; holds: at every step of every sample.
    """

    name: str
    label: labels.Label
    smallest: float
    median: float
    holds: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Study:
    """What quantization does to a denoiser under one sampler, in units of the samples.

    Attributes:
      name: of the recipe.
      settings: what was run, by name.
      t: times of the N network calls [N].
      sites: names of the sites that are quantized.
      signal_rms: root mean square of the full-precision run [N+1], noisiest first.
      error_rms: of the error that was measured [N+1].
      predicted_rms: of the error that was predicted, the quantized sampler never run [N+1].
      first_order_rms: the same to first order [N+1].
      measured: RMSE of the final samples, with its interval over samples.
      predicted_over_measured: ratio at the end, with its interval over samples.
      first_order_miss: median relative error of first-order propagation of measured local errors.
      bounds: of the final error, the tightest that holds first.
      bounded: both bounds along the run.
      ledger: which (site, step) the mean squared error comes from.
      w2: bracket of the Wasserstein distance between the laws of the samples, (lower, upper).
      path_kl: nats between the reverse chains of the eta = 1 companion of the sampler, None if the
        schedule is not discrete.
      samples, samples_hat: the first final samples [8, *shape].
      cost: seconds by part.
      next_sample: what the RMSE of one more random sample does not exceed with probability 0.9, see
        `promise`; None of fewer than 9 samples, or of noise that the recipe was calibrated on.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> study = qd.study(q, steps, jax.random.key(1), 8, progress=False)
      >>> study.error_rms.shape, study.bounds[0].holds
      ((5,), True)
    """

    name: str
    settings: dict[str, Any]
    t: np.ndarray
    sites: tuple[str, ...]
    signal_rms: np.ndarray
    error_rms: np.ndarray
    predicted_rms: np.ndarray
    first_order_rms: np.ndarray
    measured: Estimate
    predicted_over_measured: Estimate
    first_order_miss: float
    bounds: tuple[BoundRow, ...]
    bounded: Bounded
    ledger: Ledger
    w2: tuple[float, float]
    path_kl: Estimate | None
    samples: np.ndarray
    samples_hat: np.ndarray
    cost: dict[str, float]
    next_sample: guarantees.Conformal | None = None

    def __repr__(self):
        return str(reports.study_page(self))

    def _repr_html_(self) -> str:
        return reports.study_page(self)._repr_html_()

    def to_dataframe(self):
        """Return the curves as a pandas data frame, a row for each state of the run.

        Raises:
          ImportError: pandas is not installed.
        """
        return reports.steps_frame(self)

    def save(self, folder) -> None:
        """Write arrays.npz, config.json and summary.json, which are read without JAX."""
        config = {"name": self.name, "settings": self.settings, "cost": self.cost}
        results.save(folder, config, reports.arrays_of(self), [reports.summary_row(self)])

    @classmethod
    def load(cls, folder) -> "Study":
        """Read what `save` wrote.

        Raises:
          FileNotFoundError: no study there.
        """
        config, arrays, _ = results.load(folder, remedy="Study.save(folder)")

        def part(name: str) -> dict[str, Any]:
            return {key.removeprefix(name): a for key, a in arrays.items() if key.startswith(name)}

        bounded, entries = Bounded(**part("bounded/")), part("ledger/")
        columns = np.moveaxis(entries["contributions"], -1, 0)
        entries["contributions"] = dict(zip(map(str, entries.pop("sites")), columns, strict=True))
        fields: dict[str, Any] = {name: arrays[name] for name in reports.ARRAYS}
        for name in {"measured", "predicted_over_measured", "path_kl"} & set(arrays):
            fields[name] = Estimate(*arrays[name])
        if "next_sample" in arrays:
            bound, rank, num, *levels = arrays["next_sample"].tolist()
            fields["next_sample"] = guarantees.Conformal(bound, int(rank), int(num), *levels)
        fields |= {"sites": tuple(map(str, arrays["sites"])), "w2": tuple(arrays["w2"].tolist()),
                   "first_order_miss": float(arrays["first_order_miss"]), "bounded": bounded,
                   "bounds": bound_rows(bounded), "ledger": Ledger(**entries)}  # fmt: skip
        return cls(**{"path_kl": None, **fields}, name=config["name"],
                   settings=config["settings"], cost=config["cost"])  # fmt: skip


def study(
    q: Quantized,
    steps: Steps,
    key: Key,
    num_samples: int = NUM_SAMPLES,
    *,
    name: str = "",
    num_ledger: int = 32,
    num_bound: int = 8,
    batch_size: int | None = None,
    progress: bool = True,
) -> Study:
    """Measure, predict, attribute and bound the error of a quantized denoiser.

    Every number is of the same samples, or of the first of them; both runs share all noise.

    Args:
      q: a denoiser that `quantize` or `lower` returned.
      steps: the sampler.
      key: of noise, conditions and probes; another than that of `calibrate`.
      num_samples: of the RMSE and the distances.
      name: of the recipe; "" takes that of q's settings.
      num_ledger: samples of the ledger.
      num_bound: samples that are bounded.
      batch_size: samples at a time; None takes what fits.
      progress: show a progress bar and what the study costs.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> study = qd.study(q, steps, jax.random.key(1), 8, progress=False)
      >>> bool(study.measured.low <= study.measured.value <= study.measured.high)
      True
    """
    from tqdm import tqdm

    check_quantized(q)
    check_sampling(q.denoiser, steps, key, num_samples, batch_size=batch_size)
    check_count("num_ledger", num_ledger)
    check_count("num_bound", num_bound)
    key_run, key_probe = jax.random.split(key)
    seconds: dict[str, float] = {}
    if progress:
        num_of = functools.partial(min, num_samples)
        words = chunks.cost(q, steps, num_samples, num_of(num_ledger), num_of(num_bound))
        tqdm.write(words, file=sys.stderr)
    bar = tqdm(total=5, disable=not progress, unit="part")

    def timed(part: str, fn):
        bar.set_description(part)
        start = time.perf_counter()
        result = jax.block_until_ready(fn())
        seconds[part] = time.perf_counter() - start
        bar.update()
        return result

    with bar:
        run = timed("runs", lambda: measures.couple(
            q, steps, key_run, num_samples, batch_size=batch_size
        ))  # fmt: skip
        predicted = timed("prediction", lambda: measures.predict(
            q, steps, run, batch_size=batch_size
        ))  # fmt: skip
        bounded = timed("bounds", lambda: measures.bound(q, steps, run, num_samples=num_bound))
        entries = timed("ledger", lambda: measures.attribute(
            q, steps, run, num_samples=num_ledger, batch_size=batch_size
        ))  # fmt: skip
        distances = timed("divergences", lambda: _distances(q, steps, run, num_ledger, key_probe))
    errors, x = (sampled(values, steps) for values in (run.errors, run.xs))
    x_hat = steps.coeffs.current(run.xs_hat[-1])
    predictions = [sampled(values, steps) for values in predicted]
    norms = [runs.norms(values[-1:])[0] for values in (errors, predictions[0])]
    interval = _ratios(*norms, key_probe)
    per_element = np.sqrt(errors[0, 0].size)
    return Study(
        name=name or q.settings.name or "quantized",
        settings={"num_steps": len(steps.t), "num_samples": num_samples,
                  "num_ledger": entries.x_0.shape[0], "num_bound": bounded.local.shape[1]},
        t=np.asarray(steps.t), sites=tuple(q.site_inputs),
        signal_rms=_rms(x), error_rms=_rms(errors),
        predicted_rms=_rms(predictions[0]), first_order_rms=_rms(predictions[1]),
        measured=jax.tree.map(lambda v: np.asarray(v) / per_element, interval["measured"]),
        predicted_over_measured=jax.tree.map(np.asarray, interval["ratio"]),
        first_order_miss=float(jnp.median(bounded.miss)), bounds=bound_rows(bounded),
        bounded=jax.tree.map(np.asarray, bounded), ledger=jax.tree.map(np.asarray, entries),
        samples=np.asarray(x[-1, :8]), samples_hat=np.asarray(x_hat[:8]),
        cost=seconds, next_sample=_next_sample(q, x[0], errors[-1]), **distances,
    )  # fmt: skip


def _next_sample(q, x_T, errors) -> guarantees.Conformal | None:
    """Return the bound of the next sample's RMSE from final errors [batch, *shape]; see `Study`."""
    seen = q.noise.shared(marks_of(x_T=x_T))
    if seen or len(errors) < guarantees.samples_needed(promises.ALPHA):
        return None
    return guarantees.conformal_bound(_rms(errors), promises.ALPHA, promises.DELTA)


def _rms(values) -> np.ndarray:
    return np.asarray(prediction.root_mean_square(values))


@jax.jit
def _ratios(measured, predicted, key) -> dict[str, Estimate]:
    """Return the root mean square of norms [batch], and of the predicted ones over it."""
    rms = lambda m: jnp.sqrt(jnp.mean(m**2))  # noqa: E731
    return {
        "measured": estimates.bootstrap(rms, measured, key=key, num=1000),
        "ratio": estimates.bootstrap(
            lambda p, m: rms(p) / rms(m), predicted, measured, key=key, num=1000
        ),
    }


def bound_rows(bounded: Bounded) -> tuple[BoundRow, ...]:
    """Return both bounds of the final error, the tightest that holds first."""
    gronwall, remainder = map(np.asarray, bounded.over_measured())
    gronwall_holds, remainder_holds = bounded.holds()
    rows = [
        BoundRow(name, labels.label(fn), float(np.min(ratio[-1])), float(np.median(ratio[-1])),
                 holds)
        for name, fn, ratio, holds in (
            ("first order + remainder", pathwise.remainder_bound, remainder, remainder_holds),
            ("Grönwall", pathwise.gronwall, gronwall, gronwall_holds),
        )
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: (not row.holds, row.median)))


def _distances(q: Quantized, steps: Steps, run: Run, num: int, key: Key) -> dict[str, Any]:
    ends = [steps.coeffs.current(xs[-1]) for xs in (run.xs, run.xs_hat)]
    is_pair = ends[0].shape[0] > 1
    x, x_hat = ends
    upper = float(divergences.w2_coupling(x, x_hat).value) if is_pair else float("nan")
    lower = float(divergences.w2_lower(x, x_hat, key)) if is_pair else float("nan")
    schedule = q.denoiser.schedule
    kl = None
    if isinstance(schedule, DiscreteSchedule) and len(steps.t) > 1:
        first = run.first(min(num, ends[0].shape[0]))
        x_T = steps.coeffs.current(first.xs[0])
        companion = ddim(schedule, len(steps.t), eta=1.0)
        terms = measures.program(_path_kl)(q.given(first.cond), x_T, companion, key)
        kl = estimates.mean_interval(jnp.sum(terms, axis=0)) if x_T.shape[0] > 1 else None
    return {"w2": (lower, upper), "path_kl": kl and jax.tree.map(np.asarray, kl)}


def _path_kl(q, x_T, steps, key):
    return divergences.path_kl(
        full_call(q), quantized_call(q), x_T, steps, key=key, per_call=q.calls(steps),
        state=q.start(x_T),
    )  # fmt: skip

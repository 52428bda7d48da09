"""The measurements behind `experiments.propagation_laws`, and the laws fitted to them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import subject
from qdiffjax import compiling, diffusion, precision
from qdiffjax.analysis import bounds, errors
from qdiffjax.analysis.gains import step_gains
from qdiffjax.precision import Quantized, full_call, quantized_call

PARTS = ("W", "A", "SR", "WA")
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
        """Name for files and arrays."""
        draws = f"x{self.draws}" if self.draws > 1 else ""
        return f"{self.sampler}_{self.num_calls}_{self.part}{self.bits}{draws}"


def rounding_keys(q: Quantized, num_calls: int, key) -> dict[str, Any]:
    """Return inputs of every call that make the rounding of activations stochastic.

    Leaves are [calls, ...]: every operand has its own key in every call.
    """
    inputs = {}
    for i, (name, quantization) in enumerate(q.site_inputs.items()):
        grids = quantization.activations
        keys = jax.random.split(jax.random.fold_in(key, i), (len(grids), num_calls))
        grids = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_calls, *leaf.shape)),
            tuple(dataclasses.replace(grid, key=None) for grid in grids),
        )
        inputs[name] = precision.SiteQuant(None, tuple(
            dataclasses.replace(grid, key=k) for grid, k in zip(grids, keys, strict=True)
        ))  # fmt: skip
    return inputs


class Context(NamedTuple):
    """What all cases share: one denoiser and its initial noise."""

    config: Any
    subject: subject.Subject
    x_T: jax.Array


class Runs(NamedTuple):
    """What the cases of one sampler and number of calls share.

    subject: calibrated on this sampler; key: of its noise, if there is any; xs: its full-precision
    states; gains: of its steps; compare: `compare_runs`, compiled.
    """

    steps: diffusion.Steps
    subject: subject.Subject
    key: Any
    xs: jax.Array
    gains: jax.Array
    compare: Callable


def prepare(config) -> Context:
    """Load the denoiser and draw the noise."""
    steps_of = lambda schedule: subject.SAMPLERS["ddim"](schedule, config.middle)  # noqa: E731
    study = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    for name, num_calls in (*(("ddim", n) for n in config.num_steps),
                            *((name, config.middle) for name in config.samplers)):  # fmt: skip
        steps_within(study.denoiser.schedule, name, num_calls)  # refuses more than there are
    return Context(config, study, subject.noise(study.denoiser, config.num_samples, config.seed))


def steps_within(schedule, sampler: str, num_calls: int) -> diffusion.Steps:
    """Return the steps of a sampler that has about so many network calls."""
    make = subject.SAMPLERS[sampler]
    steps = make(schedule, num_calls)
    # Two calls a step.
    return steps if diffusion.nfe(steps) <= num_calls else make(schedule, num_calls // 2)


def full_runs(context: Context, sampler: str, num_calls: int) -> Runs:
    """Run a sampler in full precision, and calibrate on it."""
    config, denoiser = context.config, context.subject.denoiser
    steps = steps_within(denoiser.schedule, sampler, num_calls)
    key = subject.noise_key(steps, config.seed)
    full = diffusion.bind(denoiser.eps_fn, denoiser.params)
    sample = compiling.compiled(lambda x: diffusion.sample(full, x, steps, key=key).states)
    xs = sample(context.x_T)
    gains = compiling.compiled(lambda xs: step_gains(
        full, xs, steps, key=jax.random.key(config.seed + 2), num_iterations=4
    ).norms)  # fmt: skip
    compare = compiling.compiled(lambda q, xs, gains, calls: compare_runs(
        q, context.x_T, xs, gains, calls, steps, key
    ))  # fmt: skip
    observed = subject.observed(context.subject, steps, config.seed)
    calibrated = observed.widened(config.edge_margin)
    return Runs(steps, calibrated, key, xs, gains(xs[:, : config.num_checked]), compare)


def compare_runs(q: Quantized, x_T, xs, gains, calls, steps, key) -> dict[str, jax.Array]:
    """Return what is measured, predicted and bounded of the quantized run, by sample.

    Args:
      q: the quantized denoiser.
      x_T: initial noise [B, ...].
      xs: full-precision states [N+1, B, ...].
      gains: of the steps of the first samples, those whose coherence and bound are computed.
      calls: inputs of every call, or None; see `rounding_keys`.
      steps, key: the sampler and its noise.
    """
    full, quantized = full_call(q), quantized_call(q)
    xs_hat = diffusion.sample(quantized, x_T, steps, key=key, per_call=calls).states
    at_end = steps.coeffs.current
    predicted = errors.predict_errors(q, xs, steps, per_call=calls)[-1]
    # Coherence and bound on a few samples: their own runs, since stochastic bits depend on
    # the size of the batch.
    n = gains.shape[-1]
    x, x_hat = xs[:, :n], xs_hat[:, :n]
    if calls is not None:
        x_hat = diffusion.sample(quantized, x_T[:n], steps, key=key, per_call=calls).states
    e = errors.local_errors(full, quantized, x_hat, steps, per_call=calls)
    first, rho = errors.propagate_with_remainders(full, x, x_hat, steps, e)
    bound, _ = bounds.remainder_bound(gains, errors.norms(rho), first)
    vs = errors.signs(jax.random.key(7), NUM_PROBES, at_end(x[-1]))
    return {
        "errors": errors.root_mean_square(at_end(xs_hat[-1]) - at_end(xs[-1])),
        "predicted": errors.root_mean_square(at_end(predicted)),
        "kappa": errors.coherence_factor(errors.probed_gram(full, x, steps, e, vs)),
        "bound_over_measured": bound[-1] / errors.norms((x_hat - x)[-1:])[0],
    }


def measure(context: Context, runs: Runs, case: Case) -> tuple[dict[str, np.ndarray], dict]:
    """Return (arrays, row) of one case."""
    q = subject.without_idle_sites(runs.subject.quantized(
        case.bits if "W" in case.part else None, None if case.part == "W" else case.bits
    ))  # fmt: skip
    if case.part == "A":  # its own weights, so that it shares the compilation of "WA"
        weights = context.subject.calibration.weights
        inputs = {n: v._replace(weight=weights.get(n)) for n, v in q.site_inputs.items()}
        q = dataclasses.replace(q, site_inputs=inputs)
    draws = []
    for draw in range(case.draws):
        calls = None
        if case.part == "SR":
            key = jax.random.fold_in(jax.random.key(context.config.seed + 3), draw)
            calls = rounding_keys(q, runs.steps.t.shape[0], key)
        draws.append(jax.device_get(runs.compare(q, runs.xs, runs.gains, calls)))
    arrays = {name: np.concatenate([draw[name] for draw in draws]) for name in draws[0]}
    medians = [float(np.median(draw["errors"])) for draw in draws]
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
    """Return the RMS of all samples from the RMS of each [batch], in float64."""
    return float(np.sqrt(np.mean(np.asarray(rms, np.float64) ** 2)))


def laws(rows: list[dict], config) -> list[dict]:
    """Return exponents in the number of steps and in the bits, and where stochastic rounding
    overtakes.

    Errors ~ N^p are fitted from FIT_FROM steps on; errors ~ 2^pb over the widths whose median error
    is below a tenth of the signal.
    """  # fmt: skip
    theory, fits = {"W": 0.0, "SR": -0.5}, []
    for part in PARTS:
        medians = _medians(rows, part, "num_calls", config.num_steps, bits=config.width)
        long = {n: median for n, median in medians.items() if n >= FIT_FROM}
        fits += _law(f"{part}{config.width} against steps", long, theory.get(part))
    for part in PARTS:
        medians = _medians(rows, part, "bits", config.bits, num_calls=config.middle)
        small = {b: median for b, median in medians.items() if median < 0.1}
        name = f"{part} against bits {min(small, default=0)} to {max(small, default=0)}"
        fits += _law(name, {2.0**b: median for b, median in small.items()}, -1.0)
    return fits + crossovers(rows, config)


def _medians(rows, part: str, by: str, values, **fixed) -> dict[int, float]:
    """Return the median errors of a part under DDIM, by the ascending `values` of a column."""
    chosen = {r[by]: r["median"] for r in rows if r["sampler"] == "ddim" and r["part"] == part
              and all(r[k] == v for k, v in fixed.items())}  # fmt: skip
    return {value: chosen[value] for value in sorted(set(values)) if value in chosen}


def _law(name: str, medians: dict, theory: float | None) -> list[dict]:
    """Return the row of an exponent, if there are three points to fit it to."""
    if len(medians) < 3:
        return []
    fit = errors.fit_exponent(list(medians), list(medians.values()))
    return [{
        "kind": "law", "law": name, "exponent": float(fit.exponent),
        "standard_error": float(fit.standard_error), "theory": theory,
    }]  # fmt: skip


def crossovers(rows: list[dict], config) -> list[dict]:
    """Return the number of steps beyond which stochastic rounding of activations is better.

    That is measured (between which two grids), and of the model fitted to both
    (N* = (2 - tau) v G_i / (B^2 G_c)).
    """
    nearest, stochastic = (
        _medians(rows, part, "num_calls", config.num_steps, bits=config.width)
        for part in ("A", "SR")
    )
    sizes = [n for n in nearest if n in stochastic]
    if len(sizes) < 3:
        return []
    first = next((i for i, n in enumerate(sizes) if stochastic[n] < nearest[n]), None)
    long = [n for n in sizes if n >= min(FIT_FROM, sizes[-3])]
    fits = [errors.fit_floor(np.array(long), np.array([medians[n] for n in long]) ** 2)
            for medians in (nearest, stochastic)]  # fmt: skip
    return [{
        "kind": "crossover", "better_from": None if first is None else sizes[first],
        "worse_until": None if not first else sizes[first - 1],
        "nearest_floor": float(fits[0].floor), "nearest_floor_error": float(fits[0].floor_error),
        "stochastic_floor": float(fits[1].floor),
        "stochastic_floor_error": float(fits[1].floor_error),
        "model": _meeting(*fits),
    }]  # fmt: skip


def _meeting(nearest: errors.Floor, stochastic: errors.Floor) -> float | None:
    """Return N at which the two fits floor + slope / N are equal, None if they never are."""
    gap, slopes = nearest.floor - stochastic.floor, stochastic.slope - nearest.slope
    return float(slopes / gap) if gap * slopes > 0 else None

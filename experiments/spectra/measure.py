"""The measurements behind `experiments.spectra`: a function for each part, and their summary."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.harness import subject
from qdiffjax import compiling, diffusion, precision
from qdiffjax.analysis.errors import runs
from qdiffjax.analysis.gains import spectra


class Context(NamedTuple):
    """What all parts share.

    full: call_fn of the denoiser in full precision; many: its runs from all samples x_T
    [N+1, C, ...]; xs: those of the samples whose spectra are computed [N+1, B, ...].
    """

    config: Any
    subject: subject.Subject
    steps: diffusion.Steps
    full: Any
    x_T: jax.Array
    many: jax.Array
    xs: jax.Array
    size: int
    key: jax.Array


def prepare(config) -> Context:
    """Load the denoiser and run it in full precision."""
    steps_of = lambda schedule: diffusion.ddim(schedule, config.num_steps)  # noqa: E731
    study = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser, steps = study.denoiser, steps_of(study.denoiser.schedule)
    full = diffusion.bind(denoiser.eps_fn, denoiser.params)
    x_T = subject.noise(denoiser, config.num_gain_samples, config.seed)
    many = compiling.compiled(lambda x: diffusion.sample(full, x, steps).xs)(x_T)
    xs, key = many[:, : config.num_samples], jax.random.key(config.seed + 2)
    return Context(config, study, steps, full, x_T, many, xs, xs[0, 0].size, key)


def step_values(c: Context) -> dict[str, Any]:
    """Return the largest singular values of every step's Jacobian."""
    values = compiling.compiled(lambda xs: spectra.step_spectra(
        c.full, xs, c.steps, num=c.config.num_values, key=c.key
    ).values)(c.xs)  # fmt: skip
    return {"step_values": values[..., : c.config.num_shown]}


def log_volumes(c: Context) -> dict[str, Any]:
    """Return log|det J_i| of every step, per dimension."""
    volumes = compiling.compiled(lambda xs: spectra.probed_log_volumes(
        c.full, xs, c.steps, num=c.config.num_nodes, key=c.key
    ))(c.xs)  # fmt: skip
    return {"log_volumes": volumes / c.size}


def sampler_values(c: Context) -> dict[str, Any]:
    """Return the largest singular values of the rest of the sampler, from a few starts."""
    starts = np.linspace(0, c.config.num_steps, c.config.num_starts, endpoint=False).astype(int)
    spectrum = compiling.compiled(lambda xs, first: spectra.sampler_spectrum(
        c.full, xs, c.steps, num=c.config.num_values, key=c.key, first=first
    ).values)  # fmt: skip
    values = np.stack([np.asarray(spectrum(c.xs, int(i))) for i in starts])
    return {"starts": starts, "sampler_values": values[..., : c.config.num_shown]}


def rms_gains(c: Context) -> dict[str, Any]:
    """Return what becomes of a random error of every step, with the error of the estimate."""
    vs = runs.signs(c.key, c.config.num_probes, c.many[-1])
    squares = compiling.compiled(lambda xs, vs: spectra.squared_frobenius(c.full, xs, c.steps, vs))
    value, error = (a / c.size for a in squares(c.many, vs))
    return {"rms_gains": jnp.sqrt(value), "standard_error": error / (2 * jnp.sqrt(value))}


def stretches(c: Context) -> dict[str, Any]:
    """Return the log stretches of a random frame since the start."""
    return {"stretches": compiling.compiled(lambda xs: spectra.stretches(
        c.full, xs, c.steps, num=c.config.num_shown, key=c.key
    ))(c.xs)}  # fmt: skip


def log_norms(c: Context) -> dict[str, Any]:
    """Return growth over a step at the rates at its start, backwards in time as sampling goes."""
    process, eps_fn = subject.continuous(c.subject.denoiser)
    field = diffusion.pf_ode(eps_fn, c.subject.denoiser.params, process)
    rates = compiling.compiled(lambda xs: spectra.log_norms(
        field, c.steps.t, xs, key=c.key, num_iterations=c.config.num_values
    ))(c.xs[:-1])  # fmt: skip
    lengths = (np.asarray(c.steps.t) - np.asarray(c.steps.s))[:, None]
    ends = (rates.largest, rates.smallest)
    return {"log_norms": np.stack([-np.asarray(rate) * lengths for rate in ends])}


def errors(c: Context) -> dict[str, Any]:
    """Return the RMS error of every quantized sample."""
    q = c.subject.quantized(c.config.bits, c.config.bits)
    sample = compiling.compiled(
        lambda q, x: diffusion.sample(precision.quantized_call(q), x, c.steps).x_0
    )
    gap = sample(q, c.x_T) - c.many[-1]
    return {"errors": runs.norms(gap[None])[0] / c.size**0.5}


PARTS: dict[str, Callable[[Context], dict[str, Any]]] = {
    "step_values": step_values, "log_volumes": log_volumes, "sampler_values": sampler_values,
    "rms_gains": rms_gains, "stretches": stretches, "log_norms": log_norms, "errors": errors,
}  # fmt: skip


def measure(context: Context, part: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, {}) of one part, with the times and the size of a sample."""
    arrays = jax.device_get(PARTS[part](context))
    common = {"t": np.asarray(context.steps.t), "size": np.asarray(context.size)}
    return common | {name: np.asarray(value) for name, value in arrays.items()}, {}


def quantiles(values) -> list[float]:
    """Return the 10, 50 and 90 % quantiles of values [batch]."""
    return [float(q) for q in np.quantile(np.asarray(values, np.float64), (0.1, 0.5, 0.9))]


def summary(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row a step, a row a start, and one of the whole run."""
    gains = arrays["step_values"][..., 0]
    steps = [{
        "kind": "step", "step": i, "t": float(t), "top_gain": quantiles(gains[i]),
        "amplified": float(np.mean(gains[i] > 1)), "rms_gain": quantiles(arrays["rms_gains"][i]),
        "log_norm": quantiles(arrays["log_norms"][1, i]),
        "log_volume": float(np.mean(arrays["log_volumes"][i])),
    } for i, t in enumerate(arrays["t"])]  # fmt: skip
    starts = zip(arrays["starts"], arrays["sampler_values"][..., 0], strict=True)
    return [*steps, *(_start(arrays, i, gain) for i, gain in starts), _whole(arrays)]


def _start(arrays, i: int, gain) -> dict[str, Any]:
    """Return the row of the rest of the sampler from step i on, whose top gain is [batch]."""
    tops, norms = np.log(arrays["step_values"][i:, :, 0]), arrays["log_norms"][1, i:]
    return {
        "kind": "start", "step": int(i), "t": float(arrays["t"][i]), "top_gain": quantiles(gain),
        "amplified": float(np.mean(gain > 1)),
        "rms_gain": quantiles(arrays["rms_gains"][i, : gain.size]),
        "product": quantiles(np.exp(tops.sum(axis=0))),
        "gronwall": quantiles(np.exp(norms.sum(axis=0))),
    }  # fmt: skip


def _whole(arrays) -> dict[str, Any]:
    num_steps = len(arrays["t"])
    gains, errors = arrays["rms_gains"], arrays["errors"]
    volumes = arrays["log_volumes"].sum(axis=0)
    typical = np.sqrt(np.mean(gains[1:] ** 2, axis=0))  # of an error committed at a random step
    rank = stats.spearmanr(typical, errors)
    return {
        "kind": "whole", "log_volume": float(volumes.mean()),
        "log_volume_error": float(volumes.std(ddof=1) / len(volumes) ** 0.5),
        "top_exponent": quantiles(np.log(arrays["sampler_values"][0, :, 0]) / num_steps),
        "frame_exponents": [quantiles(s / num_steps) for s in arrays["stretches"][-1].T],
        "rms_gain_above_one": float(np.mean(gains[:-1] > 1)),
        "ever_above_one": float(np.mean(np.any(gains[:-1] > 1, axis=0))),
        "largest_rms_gain": float(gains[:-1].max()),
        "rank_correlation": float(rank.statistic), "rank_p": float(rank.pvalue),
        "error_median": float(np.median(errors)),
        "error_rms": float(np.sqrt(np.mean(errors**2))), "error_max": float(errors.max()),
    }  # fmt: skip

"""The measurements behind `experiments.spectra`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.harness import store, subject
from qdiffjax import compiling, diffusion
from qdiffjax.analysis.errors import runs
from qdiffjax.analysis.gains import spectra
from qdiffjax.analysis.gains import spectra as lyapunov
from qdiffjax.precision import quantized_call

PARTS = ("step_values", "log_volumes", "sampler_values", "rms_gains", "stretches", "log_norms",
         "errors")  # fmt: skip


class Study:
    """One denoiser and its full-precision runs."""

    def __init__(self, config):
        self.config = config
        self.subject = subject.prepare(
            config.checkpoint, lambda s: diffusion.ddim(s, config.num_steps), config.sites,
            config.seed,
        )  # fmt: skip
        denoiser = self.subject.denoiser
        self.steps = diffusion.ddim(denoiser.schedule, config.num_steps)
        self.full = diffusion.bind(denoiser.eps_fn, denoiser.params)
        self.x_T = subject.noise(denoiser, config.num_gain_samples, config.seed)
        run = compiling.compiled(lambda x: diffusion.sample(self.full, x, self.steps).xs)
        self.many = run(self.x_T)
        self.xs = self.many[:, : config.num_samples]
        self.size = self.xs[0, 0].size

    def mark(self) -> str:
        """Fingerprint of the run."""
        return store.fingerprint(dataclasses.asdict(self.config), self.subject.mark())

    def measure(self, part: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, {}) of one part."""
        found = jax.device_get(getattr(self, f"_{part}")(jax.random.key(self.config.seed + 2)))
        common = {"t": np.asarray(self.steps.t), "size": np.asarray(self.size)}
        return common | {name: np.asarray(value) for name, value in found.items()}, {}

    def _step_values(self, key):
        c = self.config
        run = compiling.compiled(lambda xs: spectra.step_spectra(
            self.full, xs, self.steps, num=c.num_values, key=key
        ).values)  # fmt: skip
        return {"step_values": run(self.xs)[..., : c.num_shown]}

    def _log_volumes(self, key):
        run = compiling.compiled(lambda xs: spectra.probed_log_volumes(
            self.full, xs, self.steps, num=self.config.num_nodes, key=key
        ))  # fmt: skip
        return {"log_volumes": run(self.xs) / self.size}

    def _sampler_values(self, key):
        c = self.config
        starts = np.linspace(0, c.num_steps, c.num_starts, endpoint=False).astype(int)
        run = compiling.compiled(lambda xs, first: spectra.sampler_spectrum(
            self.full, xs, self.steps, num=c.num_values, key=key, first=first
        ).values)  # fmt: skip
        values = np.stack([np.asarray(run(self.xs, int(i))) for i in starts])
        return {"starts": starts, "sampler_values": values[..., : c.num_shown]}

    def _rms_gains(self, key):
        vs = runs.signs(key, self.config.num_probes, self.many[-1])
        run = compiling.compiled(
            lambda xs, vs: spectra.squared_frobenius(self.full, xs, self.steps, vs)
        )
        value, error = (a / self.size for a in run(self.many, vs))
        return {"rms_gains": jnp.sqrt(value), "standard_error": error / (2 * jnp.sqrt(value))}

    def _stretches(self, key):
        run = compiling.compiled(lambda xs: lyapunov.stretches(
            self.full, xs, self.steps, num=self.config.num_shown, key=key
        ))  # fmt: skip
        return {"stretches": run(self.xs)}

    def _log_norms(self, key):
        """Growth over a step at the rates at its start, backwards in time, which is sampling."""
        denoiser = self.subject.denoiser
        process, eps_fn = subject.continuous(denoiser)
        field = diffusion.pf_ode(eps_fn, denoiser.params, process)
        run = compiling.compiled(lambda xs: lyapunov.log_norms(
            field, self.steps.t, xs, key=key, num_iterations=self.config.num_values
        ))  # fmt: skip
        found = run(self.xs[:-1])
        lengths = (np.asarray(self.steps.t) - np.asarray(self.steps.s))[:, None]
        return {"log_norms": np.stack([-np.asarray(found.largest) * lengths,
                                       -np.asarray(found.smallest) * lengths])}  # fmt: skip

    def _errors(self, key):
        q = self.subject.quantized(self.config.bits, self.config.bits)
        run = compiling.compiled(
            lambda q, x: diffusion.sample(quantized_call(q), x, self.steps).x_0
        )
        gap = run(q, self.x_T) - self.many[-1]
        return {"errors": runs.norms(gap[None])[0] / self.size**0.5}


def quantiles(values) -> list[float]:
    """Return the 10, 50 and 90 % quantiles of values [batch]."""
    return [float(q) for q in np.quantile(np.asarray(values, np.float64), (0.1, 0.5, 0.9))]


def summary(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row a step, a row a start, and one of the whole run."""
    return [*_steps(arrays), *_starts(arrays), _whole(arrays)]


def _steps(arrays):
    top = arrays["step_values"][..., 0]
    return [{
        "kind": "step", "step": i, "t": float(t), "top_gain": quantiles(top[i]),
        "amplified": float(np.mean(top[i] > 1)), "rms_gain": quantiles(arrays["rms_gains"][i]),
        "log_norm": quantiles(arrays["log_norms"][1, i]),
        "log_volume": float(np.mean(arrays["log_volumes"][i])),
    } for i, t in enumerate(arrays["t"])]  # fmt: skip


def _starts(arrays):
    top, norms = np.log(arrays["step_values"][..., 0]), arrays["log_norms"][1]
    rows = []
    for i, values in zip(arrays["starts"], arrays["sampler_values"], strict=True):
        rms = arrays["rms_gains"][i, : values.shape[0]]
        rows.append({
            "kind": "start", "step": int(i), "t": float(arrays["t"][i]),
            "top_gain": quantiles(values[:, 0]), "amplified": float(np.mean(values[:, 0] > 1)),
            "rms_gain": quantiles(rms), "product": quantiles(np.exp(top[i:].sum(axis=0))),
            "gronwall": quantiles(np.exp(norms[i:].sum(axis=0))),
        })  # fmt: skip
    return rows


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

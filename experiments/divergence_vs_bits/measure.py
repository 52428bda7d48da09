"""The measurements behind `experiments.divergence_vs_bits`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import vq

from experiments.harness import subject
from qdiffjax import diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.analysis.errors import coherence, flips, propagation, runs
from qdiffjax.compiling import compiled
from qdiffjax.diffusion.gaussian import gaussian_kl
from qdiffjax.precision import full_call, quantized_call

NUM_CENTRES = 10
NUM_BLOCKS = 8


class Samples(NamedTuple):
    """Of one denoiser: final samples and the states before the last step, both [num, n], on
    the two halves and on the samples where directions are chosen.
    """

    x_0: tuple[np.ndarray, np.ndarray]
    x_1: tuple[np.ndarray, np.ndarray]
    chosen_0: np.ndarray
    chosen_1: np.ndarray


class Study(NamedTuple):
    """One denoiser and DDIM with eta = 1: what all widths share.

    key: of the estimators; sample: q -> `Samples`; paths: q -> terms of path KL, of Girsanov's
    integral and of the exact fan; full: samples in full precision; frames: directions to project
    on; label_fn: the nearest of the centres.
    """

    subject: subject.Subject
    key: jax.Array
    sample: Callable[[Any], Samples]
    paths: Callable[[Any], tuple]
    full: Samples
    frames: dict[str, np.ndarray]
    label_fn: Callable


def prepare(config) -> Study:
    """Load, calibrate, sample in full precision, and choose directions and centres."""
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps, eta=1.0)
    prepared = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
    denoiser, steps = prepared.denoiser, steps_of(prepared.denoiser.schedule)
    keys = jax.random.split(jax.random.key(config.seed + 1), 6)
    num = 2 * config.num_samples + config.num_chosen
    x_T = subject.noise(denoiser, num, config.seed)
    rule = divergences.quadrature(float(steps.t[-1]), float(steps.t[0]))
    states = compiled(lambda q, x: last_states(denoiser, q, x, steps, keys[0]))
    paths = compiled(lambda q, x: measure_paths(q, x, config, denoiser, steps, rule, keys[1:4]))
    sample = lambda q: split(states(q, x_T), config.num_samples)  # noqa: E731
    full = sample(None)
    centres, _ = vq.kmeans2(full.chosen_0, NUM_CENTRES, minit="++", seed=config.seed)
    label_fn = flips.nearest(jnp.asarray(centres, jnp.float32))
    return Study(prepared, keys[4], sample, lambda q: jax.device_get(paths(q, x_T)), full,
                 frames(full.chosen_1), label_fn)  # fmt: skip


def last_states(denoiser, q, x_T, steps: diffusion.Steps, key):
    """Return the states before the last step, and final samples; full precision for q = None."""
    full = diffusion.bind(denoiser.eps_fn, denoiser.params)
    states = diffusion.sample(full if q is None else quantized_call(q), x_T, steps, key=key).states
    return states[-2], states[-1]


def split(states, num: int) -> Samples:
    """Flatten `last_states`, and cut them into halves of `num` and the chosen."""
    x_1, x_0 = (np.asarray(a).reshape(len(a), -1) for a in states)
    return Samples((x_0[:num], x_0[num : 2 * num]), (x_1[:num], x_1[num : 2 * num]),
                   x_0[2 * num :], x_1[2 * num :])  # fmt: skip


def measure_paths(q, x_T, config, denoiser, steps: diffusion.Steps, rule, keys):
    """Return the terms of path KL, of Girsanov's integral, and of the exact fan."""
    full, quantized, x = full_call(q), quantized_call(q), x_T[: config.num_kl_samples]
    path = divergences.path_kl(full, quantized, x, steps, key=keys[0])
    process, _ = subject.continuous(denoiser)
    x_0 = diffusion.sample(full, x, steps, key=keys[0]).x_0
    girsanov = divergences.girsanov_kl(full, quantized, x_0, process, rule, key=keys[1])
    pair = runs.couple(full, quantized, x_T[: config.num_fan_samples], steps, key=keys[2])
    return path, girsanov, propagation.fan(full, pair.xs_hat, steps, key=keys[2])


def measure_floor(study: Study, config) -> dict[str, Any]:
    """Return the row of every estimate between two halves of full-precision samples."""
    full = study.full
    # The mean shift needs a quantized network; a random direction has the same floor.
    shift = np.random.default_rng(config.seed).normal(size=(1, full.x_0[0].shape[1]))
    kl = projected(*full.x_1, study.frames | {"shift": unit(shift)}, config, study.key)
    distance = distances(*full.x_0, study.key, config.num_resamples)
    return {"kind": "floor", **distance, "projected": kl}


def measure_width(study: Study, config, bits: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, row) of one width."""
    full, q = study.full, study.subject.quantized(bits, bits)
    quantized = study.sample(q)
    x, y = (np.concatenate(samples.x_0) for samples in (full, quantized))
    shift = unit(np.mean(quantized.chosen_1 - full.chosen_1, axis=0, keepdims=True))
    chosen = study.frames | {"shift": shift}
    kl = projected(full.x_1[0], quantized.x_1[1], chosen, config, study.key)
    path, girsanov, fan = study.paths(q)
    shares = coherence.conflict(path, fan)
    path_kl = interval(estimates.mean_interval(path.sum(axis=0)))
    errors = np.sqrt(np.mean((y - x) ** 2, 1))
    row = {
        "kind": "width", "bits": bits, "projected": kl,
        **distances(full.x_0[0], quantized.x_0[0], study.key, config.num_resamples),
        **flipped(x, y, study.label_fn), "path_kl": path_kl,
        "girsanov_kl": interval(estimates.mean_interval(girsanov.sum(axis=0))),
        "kl_shares": [float(s) for s in shares.kl],
        "error_shares": [float(s) for s in shares.error],
        "tightness": max(k["neighbours"][0] for k in kl.values()) / path_kl[0],
        "bounds_hold": all(k["neighbours"][1] <= path_kl[2] for k in kl.values()), **tails(errors),
    }  # fmt: skip
    arrays = {"kl_terms": path.mean(axis=1), "errors": errors,
              "error_profile": np.asarray(coherence.error_profile(fan))}  # fmt: skip
    return arrays, row


def flipped(x, y, label_fn) -> dict[str, Any]:
    """Return how many of the samples y [num, n] changed their centre, or lost their twin in x."""
    changed = flips.mode_flips(jnp.asarray(x), jnp.asarray(y), label_fn)
    cost = np.sum(x**2, 1) - 2 * y @ x.T  # of y_i to x_j, less |y_i|^2
    return {
        "flips": interval(changed.rate), "rms_flipped": float(changed.rms_flipped),
        "rms_kept": float(changed.rms_kept),
        "lost": float(np.mean(np.argmin(cost, axis=1) != np.arange(len(x)))),
    }  # fmt: skip


def unit(rows) -> np.ndarray:
    """Return rows [k, n] at length one."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def frames(x) -> dict[str, np.ndarray]:
    """Return the leading principal directions of x [num, n], one, two and four of them."""
    directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2]
    return {f"principal {k}": directions[:k] for k in (1, 2, 4)}


def interval(estimate) -> list[float]:
    """Return [value, low, high]."""
    return [float(leaf) for leaf in estimate]


@functools.partial(jax.jit, static_argnames="num")
def _distances(x, y, key, num):
    widths = divergences.median_distance(x, x) * jnp.asarray([0.25, 1.0, 4.0], x.dtype)
    mmd = functools.partial(divergences.mmd_squared, kernel=divergences.rbf_mixture(widths))
    frame = divergences.orthonormal_frames(key, 1, x.shape[1], x.dtype)

    def sliced(x, y):  # in units of W2
        return jnp.sqrt(x.shape[1] * divergences.sliced_w2_squared(x, y, frame))

    bracket = divergences.w2_bracket(x, y, key=key, num=num)
    return {
        "w2_lower": bracket.lower, "w2_upper": bracket.upper,
        "sliced": estimates.bootstrap(sliced, x, y, key=key, num=num),
        "mmd_squared": estimates.block_mean(mmd, x, y, num_blocks=NUM_BLOCKS),
        "energy": estimates.block_mean(divergences.energy_distance, x, y,
                                         num_blocks=NUM_BLOCKS),
    }  # fmt: skip


def distances(x, y, key, num: int) -> dict[str, list[float]]:
    """Return distances of two sets of samples [num, n] with their intervals."""
    by_name = _distances(jnp.asarray(x), jnp.asarray(y), key, num)
    return {name: interval(estimate) for name, estimate in by_name.items()}


def projected(x, y, chosen: dict[str, np.ndarray], config, key) -> dict[str, dict[str, list]]:
    """Return the KL of projections of independent samples, by neighbours and of Gaussian fits."""
    kl = {}
    for name, frame in chosen.items():
        a, b = (np.asarray(s @ frame.T, np.float64) for s in (x, y))
        fits = estimates.bootstrap(_fitted_kl, a, b, key=key, num=config.num_resamples)
        kl[name] = {
            "neighbours": interval(divergences.knn_kl(a, b)), "gaussian": interval(fits)
        }  # fmt: skip
    return kl


def _fitted_kl(a, b):
    moments = []
    for x in (a, b):
        centred = x - jnp.mean(x, axis=0, keepdims=True)
        moments += [jnp.mean(x, axis=0), centred.T @ centred / len(x)]
    return gaussian_kl(*moments)


def tails(errors) -> dict[str, float]:
    """Return RMS and median of the samples' errors, and what the worst 5 % of them carry."""
    squares = np.sort(np.asarray(errors, np.float64) ** 2)[::-1]
    worst = max(1, round(0.05 * squares.size))
    return {
        "error_rms": float(np.sqrt(squares.mean())), "error_median": float(np.median(errors)),
        "worst_share": float(np.sum(squares[:worst]) / np.sum(squares)),
    }  # fmt: skip

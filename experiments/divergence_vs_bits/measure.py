"""The measurements behind `experiments.divergence_vs_bits`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import vq

from experiments.harness import store, subject
from qdiffjax import compiling, diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.analysis.errors import coherence, flips, propagation, runs
from qdiffjax.diffusion.gaussian import gaussian_kl
from qdiffjax.precision import full_call, quantized_call

NUM_CENTRES = 10
NUM_BLOCKS = 8


@dataclasses.dataclass(frozen=True)
class Samples:
    """Of one denoiser: final samples and the states before the last step, both [num, n], on
    the two halves and on the samples where directions are chosen.
    """

    x_0: tuple[np.ndarray, np.ndarray]
    x_1: tuple[np.ndarray, np.ndarray]
    chosen_0: np.ndarray
    chosen_1: np.ndarray


class Study:
    """One denoiser and DDIM with eta = 1; what all widths share is computed once."""

    def __init__(self, config):
        self.config = config
        steps_of = lambda s: diffusion.ddim(s, config.num_steps, eta=1.0)  # noqa: E731
        self.subject = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
        denoiser = self.subject.denoiser
        self.steps = steps_of(denoiser.schedule)
        self.rule = divergences.quadrature(float(self.steps.t[-1]), float(self.steps.t[0]))
        self.keys = jax.random.split(jax.random.key(config.seed + 1), 6)
        num = 2 * config.num_samples + config.num_chosen
        self.x_T = subject.noise(denoiser, num, config.seed)
        self.sample = compiling.compiled(self._sample)
        self.along = compiling.compiled(self._along)
        self.floor_samples = self.split(*self.sample(None, self.x_T))
        found, self.frames = self.floor_samples, frames(self.floor_samples.chosen_1)
        centres, _ = vq.kmeans2(found.chosen_0, NUM_CENTRES, minit="++", seed=config.seed)
        self.label_fn = flips.nearest(jnp.asarray(centres, jnp.float32))

    def mark(self) -> str:
        """Fingerprint of everything but the list of widths."""
        config = dataclasses.asdict(self.config) | {"bits": None}
        return store.fingerprint(config, self.subject.mark())

    def _sample(self, q, x):
        """States before the last step, and final samples; full precision for q = None."""
        denoiser = self.subject.denoiser
        full = diffusion.bind(denoiser.eps_fn, denoiser.params)
        call = full if q is None else quantized_call(q)
        states = diffusion.sample(call, x, self.steps, key=self.keys[0]).states
        return states[-2], states[-1]

    def split(self, x_1, x_0) -> Samples:
        """Flatten, and cut into the halves and the chosen."""
        n = self.config.num_samples
        x_0, x_1 = (np.asarray(a).reshape(len(a), -1) for a in (x_0, x_1))
        return Samples((x_0[:n], x_0[n : 2 * n]), (x_1[:n], x_1[n : 2 * n]),
                       x_0[2 * n :], x_1[2 * n :])  # fmt: skip

    def _along(self, q, x_T):
        """Terms of path KL, of Girsanov's integral, and of the exact fan."""
        full, quantized, c = full_call(q), quantized_call(q), self.config
        x = x_T[: c.num_kl_samples]
        path = divergences.path_kl(full, quantized, x, self.steps, key=self.keys[1])
        process, _ = subject.continuous(self.subject.denoiser)
        x_0 = diffusion.sample(full, x, self.steps, key=self.keys[1]).x_0
        girsanov = divergences.girsanov_kl(
            full, quantized, x_0, process, self.rule, key=self.keys[2]
        )
        pair = runs.couple(full, quantized, x_T[: c.num_fan_samples], self.steps, key=self.keys[3])
        return path, girsanov, propagation.fan(full, pair.xs_hat, self.steps, key=self.keys[3])

    def measure(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, row) of one width, or of the floor."""
        if name == "floor":
            return {}, self._floor()
        full, key = self.floor_samples, self.keys[4]
        bits = int(name.partition("A")[2])
        q = self.subject.quantized(bits, bits)
        found = self.split(*self.sample(q, self.x_T))
        shift = unit(np.mean(found.chosen_1 - full.chosen_1, axis=0, keepdims=True))
        kl = projected(full.x_1[0], found.x_1[1], self.frames | {"shift": shift}, self.config, key)
        row: dict[str, Any] = {"kind": "width", "bits": bits, "projected": kl}
        row |= distances(full.x_0[0], found.x_0[0], key, self.config.num_resamples)
        row |= self._flips(np.concatenate(full.x_0), np.concatenate(found.x_0))
        arrays, paths = self._paths(q)
        path = paths["path_kl"]
        best = max(k["neighbours"][0] for k in kl.values())
        hold = all(k["neighbours"][1] <= path[2] for k in kl.values())
        row |= paths | {"tightness": best / path[0], "bounds_hold": hold}
        errors = np.sqrt(np.mean((np.concatenate(found.x_0) - np.concatenate(full.x_0)) ** 2, 1))
        return arrays | {"errors": errors}, row | tails(errors)

    def _floor(self) -> dict[str, Any]:
        """Every estimate between two halves of full-precision samples."""
        full, key = self.floor_samples, self.keys[4]
        # The mean shift needs a quantized network; a random direction has the same floor.
        shift = np.random.default_rng(self.config.seed).normal(size=(1, full.x_0[0].shape[1]))
        kl = projected(*full.x_1, self.frames | {"shift": unit(shift)}, self.config, key)
        found = distances(*full.x_0, key, self.config.num_resamples)
        return {"kind": "floor", **found, "projected": kl}

    def _paths(self, q):
        path, girsanov, fan = jax.device_get(self.along(q, self.x_T))
        shares = coherence.conflict(path, fan)
        row = {
            "path_kl": interval(estimates.mean_interval(path.sum(axis=0))),
            "girsanov_kl": interval(estimates.mean_interval(girsanov.sum(axis=0))),
            "kl_shares": [float(s) for s in shares.kl],
            "error_shares": [float(s) for s in shares.error],
        }
        arrays = {"kl_terms": path.mean(axis=1),
                  "error_profile": np.asarray(coherence.error_profile(fan))}  # fmt: skip
        return arrays, row

    def _flips(self, x, y) -> dict[str, Any]:
        found = flips.mode_flips(jnp.asarray(x), jnp.asarray(y), self.label_fn)
        cost = np.sum(x**2, 1) - 2 * y @ x.T  # of y_i to x_j, less |y_i|^2
        return {
            "flips": interval(found.rate), "rms_flipped": float(found.rms_flipped),
            "rms_kept": float(found.rms_kept),
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

    return {
        "w2": divergences.w2_bracket(x, y, key=key, num=num),
        "sliced": estimates.bootstrap(sliced, x, y, key=key, num=num),
        "mmd_squared": estimates.block_mean(mmd, x, y, num_blocks=NUM_BLOCKS),
        "energy": estimates.block_mean(divergences.energy_distance, x, y,
                                         num_blocks=NUM_BLOCKS),
    }  # fmt: skip


def distances(x, y, key, num: int) -> dict[str, list[float]]:
    """Return distances of two sets of samples [num, n] with their intervals."""
    found = _distances(jnp.asarray(x), jnp.asarray(y), key, num)
    bracket = found.pop("w2")
    sides = {"w2_lower": bracket.lower, "w2_upper": bracket.upper}
    return {name: interval(value) for name, value in (sides | found).items()}


def projected(x, y, chosen: dict[str, np.ndarray], config, key) -> dict[str, dict[str, list]]:
    """Return the KL of projections of independent samples, by neighbours and of Gaussian fits."""
    found = {}
    for name, frame in chosen.items():
        a, b = (np.asarray(s @ frame.T, np.float64) for s in (x, y))
        fits = estimates.bootstrap(_fitted_kl, a, b, key=key, num=config.num_resamples)
        found[name] = {
            "neighbours": interval(divergences.knn_kl(a, b)), "gaussian": interval(fits)
        }  # fmt: skip
    return found


def _fitted_kl(a, b):
    moments = []
    for s in (a, b):
        centred = s - jnp.mean(s, axis=0, keepdims=True)
        moments += [jnp.mean(s, axis=0), centred.T @ centred / len(s)]
    return gaussian_kl(*moments)


def tails(errors) -> dict[str, float]:
    """Return RMS and median of the samples' errors, and what the worst 5 % of them carry."""
    squares = np.sort(np.asarray(errors, np.float64) ** 2)[::-1]
    worst = max(1, round(0.05 * squares.size))
    return {
        "error_rms": float(np.sqrt(squares.mean())), "error_median": float(np.median(errors)),
        "worst_share": float(np.sum(squares[:worst]) / np.sum(squares)),
    }  # fmt: skip

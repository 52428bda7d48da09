"""Pools of scores whose law is known because it is the pool: drawn with replacement.

A pool holds scores of several recipes on the same noises [recipes, num_pool], from the one that
errs least: `values` as they are, `bounded` in [0, most].
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion, precision, promises
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion.gaussian import GaussianMixture

DIM, NUM_MODES, STD = 16, 8, 0.3  # of the mixture
WIDTH = 64  # of the network that is fitted to it
SCALES = {"1": 1.0, "1.5": 1.5, "2": 2.0, "3": 3.0, "4": 4.0}  # of heavy-tailed scores
MOST = 10.0  # to which heavy-tailed scores are clipped, where a mean is bounded
ELEMENTS = 400_000  # of the samples that run at a time


class Pool(NamedTuple):
    """Scores of recipes by name; see the module."""

    names: tuple[str, ...]
    values: np.ndarray
    bounded: np.ndarray
    most: float


def mixture(seed: int) -> GaussianMixture:
    """Return the data of the toy: equal weights, one width, modes uniform in a cube."""
    means = np.random.default_rng(seed).uniform(-0.8, 0.8, size=(NUM_MODES, DIM))
    covs = np.broadcast_to(STD**2 * np.eye(DIM), (NUM_MODES, DIM, DIM))
    return GaussianMixture(np.full(NUM_MODES, 1 / NUM_MODES), means, covs)


def mixture_denoiser(law: GaussianMixture) -> Denoiser:
    """Return the optimal denoiser of the toy, with two products that a recipe can round.

        eps = (x - alpha E[x_0 | x]) / sigma,  E[x_0 | x] = m + alpha s^2 (x - alpha m) / v,
        m = sum_k w_k mu_k,  w = softmax((alpha x mu_k - alpha^2 |mu_k|^2 / 2) / v)

    v = alpha^2 s^2 + sigma^2: attention to the modes mu, s their width.
    """
    means = jnp.asarray(law.means, jnp.float32)
    schedule = diffusion.linear()

    def net_fn(params, x, t):
        level = schedule(t)
        v = (level.alpha * STD) ** 2 + level.sigma**2
        norms = level.alpha * jnp.sum(means**2, axis=1) / 2
        weights = jax.nn.softmax(level.alpha * (x @ params["keys"] - norms[None]) / v, axis=-1)
        near = weights @ params["values"]
        x_0 = near + level.alpha * STD**2 / v * (x - level.alpha * near)
        return (x - level.alpha * x_0) / level.sigma

    return Denoiser(net_fn, {"keys": means.T, "values": means}, schedule, (DIM,))


def fitted_denoiser(law: GaussianMixture, seed: int) -> Denoiser:
    """Return a network of one hidden layer, its last layer fitted to the toy's optimal denoiser.

    eps = tanh([x, cos and sin of t] W_1) W_2, W_1 random; least squares in NumPy.
    """
    exact = mixture_denoiser(law)
    rng = np.random.default_rng(seed)
    inner = rng.normal(size=(DIM + 4, WIDTH)) * np.r_[np.full(DIM, 0.5), np.full(4, 2.0)][:, None]
    params = {"in": jnp.asarray(inner, jnp.float32)}

    def hidden(params, x, t):
        times = jnp.stack([jnp.cos(t / 200), jnp.sin(t / 200), jnp.cos(t / 40), jnp.sin(t / 40)])
        seen = jnp.concatenate([x, jnp.broadcast_to(times, (x.shape[0], 4))], axis=1)
        return jnp.tanh(seen @ params["in"])

    num = 400
    modes = np.asarray(law.means)[rng.integers(NUM_MODES, size=num)]
    x_0 = modes + STD * rng.normal(size=(num, DIM))
    features, targets = [], []
    for t in np.linspace(0, 1000, 21)[1:]:
        level = exact.schedule.exact(t)
        x = jnp.asarray(level.alpha * x_0 + level.sigma * rng.normal(size=x_0.shape), jnp.float32)
        features.append(np.asarray(hidden(params, x, jnp.float32(t))))
        targets.append(np.asarray(exact.eps_fn(exact.params, x, jnp.float32(t))))
    outer = np.linalg.lstsq(np.concatenate(features), np.concatenate(targets))[0]
    params["out"] = jnp.asarray(outer, jnp.float32)

    def net_fn(params, x, t):
        return hidden(params, x, t) @ params["out"]

    return Denoiser(net_fn, params, exact.schedule, (DIM,))


def of_network(denoiser: Denoiser, num_steps: int, recipes, sites, num: int, seed: int,
               progress: bool) -> Pool:  # fmt: skip
    """Return a pool of a denoiser, calibrated on noise of its own; bounded are clipped squares."""
    steps = diffusion.ddim(denoiser.schedule, num_steps)
    splits = promises.split_noise(jax.random.key(seed))
    calibration = precision.calibrate(denoiser, steps, splits.calibrate)
    batch = min(num, max(1, ELEMENTS // int(np.prod(denoiser.shape))))
    own = [precision.quantize(calibration, words, sites=sites) for words in recipes]
    scores = [promises.draw_scores(q, steps, splits.promise, num, batch_size=batch,
                                   progress=progress)
              for q in precision.alike(own, steps)]  # fmt: skip
    return Pool(tuple(recipes), np.stack([s.rmse for s in scores]),
                np.stack([s.squares for s in scores]), scores[0].most)  # fmt: skip


def of_law(draws: np.ndarray) -> Pool:
    """Return a pool of recipes whose scores are the same draws [num_pool] times a scale each."""
    values = np.stack([scale * draws for scale in SCALES.values()])
    return Pool(tuple(SCALES), values, np.minimum(values, MOST), MOST)


def heavy_tails(num: int, seed: int) -> Mapping[str, Pool]:
    """Return the pools of two laws: lognormal of width 2, and Pareto of index 0.8, without mean."""
    rng = np.random.default_rng(seed)
    return {"lognormal": of_law(rng.lognormal(0.0, 2.0, size=num)),
            "Pareto": of_law(rng.pareto(0.8, size=num))}  # fmt: skip

"""Exact oracles: Gaussian-mixture data under diffusion (Gaussian laws: gaussian_laws.py).

With p_0 = sum_k w_k N(mu_k, S_k) every marginal is again a mixture,

    p_t = sum_k w_k N(m_k, C_k),   m_k = alpha mu_k,   C_k = alpha^2 S_k + sigma^2 I,

so score, Hessian, posterior and optimal eps are closed forms (Efron 2011 for Tweedie's formula).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, EpsFn, Key
from qdiffjax.diffusion.gaussian_laws import (
    GaussianChain,
    affine_steps,
    cast,
    gaussian_chain,
    gaussian_kl,
    gaussian_w2_squared,
    push_forward,
    symmetric_root,
)
from qdiffjax.diffusion.schedules import NoiseLevel, float_dtype

__all__ = [
    "GaussianChain",
    "GaussianMixture",
    "affine_steps",
    "eps_fn_for",
    "eps_jacobian",
    "gaussian",
    "gaussian_chain",
    "gaussian_kl",
    "gaussian_w2_squared",
    "hessian",
    "log_prob",
    "marginal",
    "posterior_cov",
    "posterior_mean",
    "push_forward",
    "sample_mixture",
    "score",
]


class GaussianMixture(NamedTuple):
    """weights [K], positive, sum 1; means [K, n]; covs [K, n, n], symmetric."""

    weights: Any
    means: Any
    covs: Any


def gaussian(mean, cov) -> GaussianMixture:
    """Return N(mean [n], cov [n, n]) as a mixture of one."""
    mean, cov = jnp.asarray(mean), jnp.asarray(cov)
    return GaussianMixture(jnp.ones((1,), mean.dtype), mean[None], cov[None])


def marginal(mixture: GaussianMixture, level: NoiseLevel) -> GaussianMixture:
    """Return the law of x_t = alpha * x_0 + sigma * eps for x_0 ~ mixture; level scalars."""
    mixture = cast(mixture, float_dtype(mixture.means))
    alpha, sigma = cast(level, mixture.means.dtype)
    identity = jnp.eye(mixture.means.shape[-1], dtype=mixture.means.dtype)[None]
    covs = alpha**2 * mixture.covs + sigma**2 * identity
    return GaussianMixture(mixture.weights, alpha * mixture.means, covs)


def log_prob(mixture: GaussianMixture, x) -> Array:
    """Return log p(x) [*batch] in nats for x [*batch, n]."""
    return _pointwise(mixture, x, lambda c: jax.nn.logsumexp(c.log_joint), "(n)->()")


def score(mixture: GaussianMixture, x) -> Array:
    """Return grad log p(x) = sum_k r_k g_k, g_k = -C_k^-1 (x - m_k), r_k = p(k | x) [*batch, n]."""
    return _pointwise(mixture, x, _score, "(n)->(n)")


def hessian(mixture: GaussianMixture, x) -> Array:
    """Return the Hessian of log p: sum_k r_k (g_k g_k^T - C_k^-1) - s s^T [*batch, n, n]."""
    return _pointwise(mixture, x, _hessian, "(n)->(n,m)")


def sample_mixture(key: Key, mixture: GaussianMixture, num: int) -> Array:
    """Draw x [num, n] from the mixture; singular covariances are welcome."""
    mixture = cast(mixture, float_dtype(mixture.means))
    key_k, key_z = jax.random.split(key)
    k = jax.random.categorical(key_k, jnp.log(mixture.weights), shape=(num,))
    z = jax.random.normal(key_z, (num, mixture.means.shape[-1]), mixture.means.dtype)
    roots = jax.vmap(symmetric_root)(mixture.covs)
    return mixture.means[k] + jnp.einsum("bij,bj->bi", roots[k], z, precision="highest")


def posterior_mean(mixture: GaussianMixture, x, level: NoiseLevel) -> Array:
    """Return E[x_0 | x_t = x] = (x + sigma^2 score) / alpha [*batch, n] (Tweedie)."""
    s = score(marginal(mixture, level), x)
    alpha, sigma = cast(level, s.dtype)
    return (jnp.asarray(x).astype(s.dtype) + sigma**2 * s) / alpha


def posterior_cov(mixture: GaussianMixture, x, level: NoiseLevel) -> Array:
    """Return Cov[x_0 | x_t = x] = (sigma / alpha)^2 (I + sigma^2 Hessian) [*batch, n, n].

    For small sigma the sum cancels: the absolute error is of the order of eps(dtype) sigma^2.
    """
    h = hessian(marginal(mixture, level), x)
    alpha, sigma = cast(level, h.dtype)
    identity = jnp.broadcast_to(jnp.eye(h.shape[-1], dtype=h.dtype), h.shape)
    return (sigma / alpha) ** 2 * (identity + sigma**2 * h)


def eps_jacobian(mixture: GaussianMixture, x, level: NoiseLevel) -> Array:
    """Return d E[eps | x_t] / dx = -sigma * Hessian [*batch, n, n]; sigma > 0."""
    h = hessian(marginal(mixture, level), x)
    return -jnp.asarray(level.sigma).astype(h.dtype) * h


def eps_fn_for(schedule: Callable[[Any], NoiseLevel]) -> EpsFn:
    """Return the optimal denoiser of mixture data, eps = E[eps | x_t] = -sigma_t * score_t(x).

    It is eps_fn(params, x [*batch, n], t scalar or [*batch]) -> eps [*batch, n] with the mixture
    as its params. At sigma = 0 it is zero, whatever the covariances. `schedule` is any process,
    t -> level.
    """

    def one(params, x, t):
        alpha, sigma = schedule(t)
        # Any positive level will do at sigma = 0; the data's own law may have no density.
        safe = NoiseLevel(alpha, jnp.where(sigma > 0, sigma, jnp.ones_like(sigma)))
        return -sigma.astype(x.dtype) * score(marginal(params, safe), x)

    def eps_fn(params, x, t):
        x = jnp.asarray(x).astype(float_dtype(x))
        params, t = cast(params, x.dtype), jnp.asarray(t).astype(x.dtype)
        return jnp.vectorize(one, excluded={0}, signature="(n),()->(n)")(params, x, t)

    return eps_fn


class _Components(NamedTuple):
    """At one point x [n]: log w_k p_k(x) [K], g_k [K, n], C_k^-1 [K, n, n]."""

    log_joint: Array
    gradients: Array
    precisions: Array


def _components(mixture: GaussianMixture, precisions, log_norms, x) -> _Components:
    diff = x[None, :] - mixture.means
    gradients = -jnp.einsum("kij,kj->ki", precisions, diff, precision="highest")
    log_joint = log_norms + jnp.sum(diff * gradients, axis=-1) / 2
    return _Components(log_joint, gradients, precisions)


def _pointwise(mixture: GaussianMixture, x, fn, signature: str) -> Array:
    """Map fn(components at x) over x [*batch, n]; the factorizations are shared by all points."""
    x = jnp.asarray(x).astype(float_dtype(x))
    mixture = cast(mixture, x.dtype)
    chols = jnp.linalg.cholesky(mixture.covs)
    identity = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), chols.shape)
    whiten = jax.scipy.linalg.solve_triangular(chols, identity, lower=True)
    precisions = jnp.einsum("kji,kjl->kil", whiten, whiten, precision="highest")
    log_roots = jnp.sum(jnp.log(jnp.diagonal(chols, axis1=1, axis2=2)), axis=-1)
    constant = x.shape[-1] / 2 * math.log(2 * math.pi)
    log_norms = jnp.log(mixture.weights) - log_roots - constant

    def at(v):
        return fn(_components(mixture, precisions, log_norms, v))

    return jnp.vectorize(at, signature=signature)(x)


def _score(c: _Components) -> Array:
    return jnp.einsum("k,kn->n", jax.nn.softmax(c.log_joint), c.gradients, precision="highest")


def _hessian(c: _Components) -> Array:
    s, r = _score(c), jax.nn.softmax(c.log_joint)
    # Centred gradients: the sum of squares minus the square would cancel far from the modes.
    spread = c.gradients - s[None, :]
    outer = jnp.einsum("k,ki,kj->ij", r, spread, spread, precision="highest")
    return outer - jnp.einsum("k,kij->ij", r, c.precisions, precision="highest")

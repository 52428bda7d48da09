"""Exact gains on data of a known law, and volumes by dense Jacobians: what bounds must hold."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.analysis.errors.runs import step_map
from qdiffjax.diffusion.gaussian import log_prob, marginal, sample_mixture
from qdiffjax.estimates import mean_interval


def gaussian_flow_gain(level_t, level_s, variance):
    """Return d x_s / d x_t of the probability-flow ODE along an axis of Gaussian data.

        sqrt(v_s / v_t),   v = alpha^2 c^2 + sigma^2

    as the flow keeps standardized x constant; VE: c / sqrt(c^2 + s^2) down to data. Above one
    only where the variance grows: in x_t with c > 1 (VP), never in x_t / alpha. `variance` is c^2,
    any shape that broadcasts with the levels' leaves.
    """
    return jnp.sqrt(_variance(level_s, variance) / _variance(level_t, variance))


def gaussian_mean_gain(level_t, level_s, variance):
    """Return d E[x_s | x_t] / d x_t along an axis of Gaussian data.

        (alpha_t / alpha_s) v_s / v_t,   v = alpha^2 c^2 + sigma^2

    It is the Jacobian of an ancestral (DDPM, or DDIM with eta = 1) step of any stride, and
    telescopes: the product of the steps from t to s is the gain of one step from t to s, down to
    data alpha_t c^2 / v_t. Arguments as `gaussian_flow_gain`.
    """
    ratio = jnp.asarray(level_t.alpha) / level_s.alpha
    return ratio * _variance(level_s, variance) / _variance(level_t, variance)


def log_volumes(call, xs, steps):
    """Return log |det J_i| of every step along given states [N, batch], by dense Jacobians.

    For an invertible sampler, sum_i E log|det J_i| = h(law of x_0) - h(law of x_T) whatever the
    laws: the sum of the finite-time Lyapunov exponents is a difference of entropies, so volumes
    contract on average when data has less entropy than noise. n JVPs a step: small n.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N], without memory.
    """
    xs = jnp.asarray(xs)

    def one(x, t, coeffs):
        jacobian = jax.jacfwd(lambda v: step_map(call, t, coeffs)(v[None])[0])(x)
        return jnp.linalg.slogdet(jacobian.reshape(x.size, x.size))[1]

    table = (xs[:-1], steps.times(xs), steps.coeffs)
    return jax.lax.map(lambda a: jax.vmap(one, (0, None, None))(*a), table)


def entropy_change(mixture, level_t, level_s, *, key, num):
    """Estimate h(p_s) - h(p_t) in nats, the mean log-volume gain of the flow from t to s.

        E log|det d x_s / d x_t| = h(p_s) - h(p_t) = E[log p_t(x_t) - log p_s(x_s)]

    (Cover & Thomas 2006, eq. 8.71). x_t and x_s share x_0 and noise, which cancels most of the
    variance; both levels need sigma > 0 or a mixture with density. Costs no network.
    """
    key_0, key_z = jax.random.split(key)
    x_0 = sample_mixture(key_0, mixture, num)
    z = jax.random.normal(key_z, x_0.shape, x_0.dtype)

    def surprise(level):
        alpha, sigma = (jnp.asarray(c).astype(x_0.dtype) for c in level)
        return -log_prob(marginal(mixture, level), alpha * x_0 + sigma * z)

    return mean_interval(surprise(level_s) - surprise(level_t))


class Rearranged(NamedTuple):
    """x_s and d x_s / d x_t, both [*shape]."""

    x: Any
    gain: Any


def rearrange(mixture, level_t, level_s, x) -> Rearranged:
    """Return the exact probability flow from x_t to x_s of one-dimensional mixture data.

        F_s(x_s) = F_t(x_t),   d x_s / d x_t = p_t(x_t) / p_s(x_s)

    with F the distribution functions: in one dimension the flow is the monotone rearrangement,
    the optimal map (Villani 2003, section 2.2). No solver; accurate in both tails.

    Args:
      mixture: of one-dimensional data, means [K, 1].
      level_t, level_s: the levels, scalars; p_s must have a density.
      x: x_t [*shape].
    """
    x = jnp.asarray(x)
    law_t, law_s = marginal(mixture, level_t), marginal(mixture, level_s)
    target = _log_odds(law_t, x)
    stds = jnp.sqrt(law_s.covs[:, 0, 0])
    low = jnp.full_like(x, jnp.min(law_s.means[:, 0] - 40 * stds))
    high = jnp.full_like(x, jnp.max(law_s.means[:, 0] + 40 * stds))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = _log_odds(law_s, middle) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    y = jax.lax.stop_gradient(sum(jax.lax.fori_loop(0, 64, halve, (low, high))) / 2)

    def slope(v):
        return jax.jvp(lambda v: _log_odds(law_s, v), (v,), (jnp.ones_like(v),))[1]

    # One Newton step, which carries the derivative of the implicit function.
    y = y - (_log_odds(law_s, y) - target) / jax.lax.stop_gradient(slope(y))
    gain = jnp.exp(log_prob(law_t, x[..., None]) - log_prob(law_s, y[..., None]))
    return Rearranged(y, gain)


def _variance(level, variance):
    return jnp.asarray(level.alpha) ** 2 * variance + jnp.asarray(level.sigma) ** 2


def _log_odds(law, x):
    """Return log F(x) - log(1 - F(x)) [*shape]."""
    mean, variance, weight = (
        a.reshape((1,) * x.ndim + (-1,)) for a in (law.means, law.covs, law.weights)
    )
    z, weights = (x[..., None] - mean) / jnp.sqrt(variance), jnp.log(weight)
    below = jax.nn.logsumexp(jax.scipy.stats.norm.logcdf(z) + weights, axis=-1)
    above = jax.nn.logsumexp(jax.scipy.stats.norm.logcdf(-z) + weights, axis=-1)
    return below - above

"""What one rounding costs one Gaussian step, in KL: orders 2, 4, and 6 or 8.

P = N(mu, sigma^2) is the full-precision step, P_hat the step whose mean carries rounding noise e of
standard deviation r. In units of sigma, to leading order in r / sigma and in either direction,

    biased      e = r, a number                            r^2 / 2
    unbiased    E e = 0, independent: stochastic rounding  r^4 / 4
    absorbed    unbiased, and the injected variance        kappa_3^2 / 12 + kappa_4^2 / 48
                reduced to sigma^2 - r^2

kappa the cumulants of e: order 6 if e is skewed, order 8 if not. Each follows from the Hermite
expansion p_hat / p - 1 = sum_k c_k He_k / k!, whose KL is sum_k c_k^2 / (2 k!): c_1 = r, c_2 = r^2,
and after absorption c_3 = kappa_3, c_4 = kappa_4. Elements and steps add up.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.diffusion import StepCoeffs
from qdiffjax.diffusion.gaussian import log_excess

RANGE, NUM_POINTS = 14.0, 2801  # standard deviations of P; the trapezoid rule converges beyond


class Noise(NamedTuple):
    """A discrete law: values [*batch, K], probabilities [*batch, K]."""

    values: Any
    probs: Any


class StepKL(NamedTuple):
    """KL(P || P_hat) and KL(P_hat || P) of one step, nats [*batch]."""

    forward: Array
    reverse: Array


def stochastic_rounding_noise(fraction, scale) -> Noise:
    """Return the error of stochastic rounding at fractional part f of the grid: two points.

    scale (1 - f) with probability f, -scale f with probability 1 - f: mean 0, variance
    scale^2 f (1 - f), skewed unless f = 1/2. Both arguments [*batch].
    """
    f, scale = jnp.asarray(fraction), jnp.asarray(scale)
    values = jnp.stack([scale * (1 - f), -scale * f], axis=-1)
    return Noise(values, jnp.stack([f, 1 - f], axis=-1))


def cumulants(noise: Noise) -> tuple[Array, Array, Array, Array]:
    """Return the first four cumulants of the noise, each [*batch]."""
    mean = jnp.sum(noise.probs * noise.values, axis=-1)
    centred = noise.values - mean[..., None]
    second, third, fourth = (jnp.sum(noise.probs * centred**k, axis=-1) for k in (2, 3, 4))
    return mean, second, third, fourth - 3 * second**2


def biased_kl(error, sigma) -> Array:
    """Return error^2 / (2 sigma^2): a rounding error that is a number; exact [*batch]."""
    return error**2 / (2 * sigma**2)


def unbiased_kl(noise: Noise, sigma) -> Array:
    """Predict (r / sigma)^4 / 4, r^2 the variance of independent noise of mean zero [*batch]."""
    return cumulants(noise)[1] ** 2 / (4 * sigma**4)


def absorbed_kl(noise: Noise, sigma) -> Array:
    """Predict kappa_3^2 / (12 sigma^6) + kappa_4^2 / (48 sigma^8) [*batch].

    For noise of mean zero and an injected variance reduced by its variance. Two equal points at
    +- r: (r / sigma)^8 / 12. Grows without bound in truth as r -> sigma, not here.
    """
    _, _, third, fourth = cumulants(noise)
    return third**2 / (12 * sigma**6) + fourth**2 / (48 * sigma**8)


def exact_kl(noise: Noise, sigma, *, absorbed: bool = False) -> StepKL:
    """Return both KLs between N(0, sigma^2) and noise + N(0, s^2), by quadrature [*batch].

    s^2 = sigma^2, or sigma^2 - Var noise if absorbed: nan where that is not positive. With
    u = p_hat / p - 1, the trapezoid rule on E_p[u - log(1 + u)] and
    E_p[(1 + u) log(1 + u) - u], which keep their digits where u is small. Accurate while
    |noise| is at most a few sigma.
    """
    values = jnp.asarray(noise.values) / jnp.asarray(sigma)[..., None]
    probs = jnp.asarray(noise.probs)
    variance = 1 - jnp.where(absorbed, cumulants(Noise(values, probs))[1], 0)
    x = jnp.linspace(-RANGE, RANGE, NUM_POINTS, dtype=values.dtype)
    x = x.reshape(-1, *(1,) * values.ndim)
    exponent = x**2 / 2 - (x - values[None]) ** 2 / (2 * variance)[None, ..., None]
    exponent = exponent - jnp.log(variance)[None, ..., None] / 2
    log_ratio = jax.nn.logsumexp(exponent, axis=-1, b=probs[None])
    # Both branches stay finite where they are not taken: derivatives see both.
    is_small = jnp.max(jnp.abs(exponent), axis=-1) < 1
    small = jnp.sum(probs[None] * jnp.expm1(jnp.minimum(exponent, 1)), axis=-1)
    small = jnp.where(is_small, small, 0)
    u = jnp.where(is_small, small, jnp.expm1(log_ratio))
    log_density = -(x[..., 0] ** 2) / 2 - np.log(2 * np.pi) / 2
    weight = jnp.exp(log_density) * (2 * RANGE / (NUM_POINTS - 1))
    forward = jnp.where(is_small, log_excess(small), u - log_ratio)
    log_ratio = jnp.where(is_small, jnp.log1p(small), log_ratio)
    # (1 + u) log(1 + u) - u = u log(1 + u) - (u - log(1 + u)).
    both = jnp.sum(weight * forward, 0), jnp.sum(weight * (u * log_ratio - forward), 0)
    return StepKL(*(jnp.where(variance > 0, kl, jnp.nan) for kl in both))


class AverageCosts(NamedTuple):
    """Predicted KL of one element and step, by kind of rounding, nats [*shape]."""

    biased: Array
    unbiased: Array
    absorbed: Array


def average_costs(coeffs: StepCoeffs, scale) -> AverageCosts:
    """Predict what rounding eps to a grid costs on average over the fractional part [*shape].

        q^2 / 24 (nearest),   q^4 / 120 (stochastic),   q^6 / 2520 + q^8 / 10080 (absorbed),
        q = |c.eps| scale / c.noise

    the leading orders above, averaged over f uniform in [0, 1): the mean squares of s f (1 - f) and
    of the third and fourth cumulants are s^4 / 30, s^6 / 210 and s^8 / 210. Absorbed means that the
    variance s^2 f (1 - f) of *this* element is taken out. Sum over elements and steps; infinite
    where the step adds no noise.

    Args:
      coeffs: of the sampler, scalars or leaves [N].
      scale: step of the grid, in units of eps, broadcastable to them.
    """
    q = jnp.abs(coeffs.eps) * scale / coeffs.noise
    return AverageCosts(q**2 / 24, q**4 / 120, q**6 / 2520 + q**8 / 10080)


class LargestScale(NamedTuple):
    """Steps of the grid up to which absorption is possible: at every fractional part, on average.

    Leaves [N], in units of eps.
    """

    always: Array
    on_average: Array


def largest_absorbable_scale(coeffs: StepCoeffs) -> LargestScale:
    """Return the coarsest stochastic rounding of eps that a step's own noise can absorb.

        (c.eps s)^2 / 4 < c.noise^2   at f = 1/2,      (c.eps s)^2 / 6 < c.noise^2   on average

    For DDPM with sigma^2 = beta: s^2 < 4 alpha_t (1 - alpha_bar_t) / beta_t elementwise, 6 on
    average over the fractional part. Zero where the step adds no noise.
    """
    ratio = jnp.asarray(coeffs.noise / jnp.abs(coeffs.eps))
    return LargestScale(2 * ratio, 6**0.5 * ratio)


def absorbed_noise(coeffs: StepCoeffs, variance) -> Array:
    """Return the standard deviation left to inject, sqrt(noise^2 - c.eps^2 variance).

    The `noise_hat` of `divergences.path_kl`'s quantized chain once the rounding variance of eps is
    taken out of it; nan where the rounding noise exceeds the step's own.

    Args:
      coeffs: scalars or leaves [N].
      variance: of the rounding error of eps, broadcastable to the coefficients.
    """
    return jnp.sqrt(coeffs.noise**2 - coeffs.eps**2 * variance)

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

from typing import NamedTuple

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.diffusion import StepCoeffs


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

"""W1 and total variation of named pairs of laws on the line, in closed form.

Oracles for estimators, and the least that a known change of a law costs. On the line W1 is
E |F^-1(U) - G^-1(U)|; total variation is half the integral of |p - q|. All broadcast.
"""

import jax.numpy as jnp
from jax.scipy.special import erf

from qdiffjax._checks import check_number
from qdiffjax._typing import Array


def gaussian_w1(mean_1, std_1, mean_2, std_2) -> Array:
    """Return W1 of two Gaussians on the line: E |m + s Z| for the gaps m of means and s of stds.

    |s| sqrt(2 / pi) exp(-m^2 / (2 s^2)) + m erf(m / (sqrt(2) |s|));   |m| where s = 0
    """
    mean_1, std_1, mean_2, std_2 = _reals(mean_1, std_1, mean_2, std_2)
    _check_scales("std_1, std_2", std_1, std_2)
    m, s = mean_1 - mean_2, jnp.abs(std_1 - std_2)
    safe = jnp.where(s > 0, s, 1)
    z = m / safe
    folded = safe * jnp.sqrt(2 / jnp.pi) * jnp.exp(-(z**2) / 2) + m * erf(z / jnp.sqrt(2.0))
    return jnp.where(s > 0, folded, jnp.abs(m))


def gaussian_total_variation(mean_1, std_1, mean_2, std_2) -> Array:
    """Return the total variation of two Gaussians on the line.

    Their densities cross at the roots of a quadratic; between them one lies above. Equal stds:
    erf(|mean_1 - mean_2| / (2 sqrt(2) std), one crossing.
    """
    mean_1, std_1, mean_2, std_2 = _reals(mean_1, std_1, mean_2, std_2)
    _check_scales("std_1, std_2", std_1, std_2)
    # In units of the narrower law, which is N(0, 1), the other N(m, s^2) with m >= 0 and s >= 1.
    narrow = jnp.minimum(std_1, std_2)
    m, s = jnp.abs(mean_1 - mean_2) / narrow, jnp.maximum(std_1, std_2) / narrow
    a = s**2 - 1  # (s^2 - 1) x^2 + 2 m x - m^2 - 2 s^2 log s = 0
    c = m**2 + 2 * s**2 * jnp.log(s)
    root = jnp.sqrt(m**2 + a * c)
    safe = jnp.where(a > 0, a, 1)
    total = m + root
    high = jnp.where(total > 0, c / jnp.where(total > 0, total, 1), 0)  # no cancellation
    low = jnp.where(a > 0, -total / safe, -jnp.inf)
    inside = _normal_cdf(high) - _normal_cdf(low)
    outside = _normal_cdf((high - m) / s) - _normal_cdf((low - m) / s)
    return jnp.clip(inside - outside, 0, 1)


def gaussian_shift_total_variation(mean_1, mean_2, covariance) -> Array:
    """Return the total variation of two Gaussians of one covariance, in any dimension.

        erf(d / (2 sqrt(2))),   d^2 = (mean_1 - mean_2)^T covariance^-1 (mean_1 - mean_2)

    Args:
      mean_1, mean_2: [n].
      covariance: positive definite [n, n].
    """
    mean_1, mean_2, covariance = _reals(mean_1, mean_2, covariance)
    gap = jnp.linalg.solve(jnp.linalg.cholesky(covariance), mean_1 - mean_2)
    return erf(jnp.sqrt(jnp.sum(gap**2)) / (2 * jnp.sqrt(2.0)))


def laplace_w1(mean_1, scale_1, mean_2, scale_2) -> Array:
    """Return W1 of two Laplace laws: |m| + s exp(-|m| / s) for the gaps m and s >= 0."""
    mean_1, scale_1, mean_2, scale_2 = _reals(mean_1, scale_1, mean_2, scale_2)
    _check_scales("scale_1, scale_2", scale_1, scale_2)
    m, s = jnp.abs(mean_1 - mean_2), jnp.abs(scale_1 - scale_2)
    return m + jnp.where(s > 0, s * jnp.exp(-m / jnp.where(s > 0, s, 1)), 0)


def laplace_shift_total_variation(mean_1, mean_2, scale) -> Array:
    """Return the total variation of two Laplace laws of one scale, 1 - exp(-|m| / (2 b))."""
    mean_1, mean_2, scale = _reals(mean_1, mean_2, scale)
    _check_scales("scale", scale)
    return -jnp.expm1(-jnp.abs(mean_1 - mean_2) / (2 * scale))


def laplace_scale_total_variation(scale_1, scale_2) -> Array:
    """Return the total variation of two centred Laplace laws.

    For scales b < c the densities cross at |x| = t = b c log(c / b) / (c - b), and it is
    exp(-t / c) - exp(-t / b).
    """
    scale_1, scale_2 = _reals(scale_1, scale_2)
    _check_scales("scale_1, scale_2", scale_1, scale_2)
    b, c = jnp.minimum(scale_1, scale_2), jnp.maximum(scale_1, scale_2)
    gap = jnp.where(c > b, c - b, 1)
    t = b * c * jnp.log(c / b) / gap
    return jnp.where(c > b, jnp.exp(-t / c) - jnp.exp(-t / b), 0)


def uniform_w1(low_1, high_1, low_2, high_2) -> Array:
    """Return W1 of two uniform laws: the mean of |gap| that goes straight from p to q.

    With p and q the gaps of the low and the high ends: |p + q| / 2 if they have one sign, else
    (p^2 + q^2) / (2 (|p| + |q|)).
    """
    low_1, high_1, low_2, high_2 = _reals(low_1, high_1, low_2, high_2)
    _check_scales("high - low", high_1 - low_1, high_2 - low_2)
    p, q = low_1 - low_2, high_1 - high_2
    size = jnp.abs(p) + jnp.abs(q)
    crossed = (p**2 + q**2) / (2 * jnp.where(size > 0, size, 1))
    return jnp.where(p * q >= 0, jnp.abs(p + q) / 2, crossed)


def uniform_total_variation(low_1, high_1, low_2, high_2) -> Array:
    """Return the total variation of two uniform laws: 1 - overlap / length of the longer one."""
    low_1, high_1, low_2, high_2 = _reals(low_1, high_1, low_2, high_2)
    _check_scales("high - low", high_1 - low_1, high_2 - low_2)
    overlap = jnp.clip(jnp.minimum(high_1, high_2) - jnp.maximum(low_1, low_2), 0)
    return 1 - overlap / jnp.maximum(high_1 - low_1, high_2 - low_2)


def _reals(*values) -> list[Array]:
    return [jnp.asarray(v, jnp.result_type(float)) for v in values]


def _check_scales(names: str, *scales) -> None:
    for scale in scales:
        check_number(names, scale, above=0)


def _normal_cdf(x) -> Array:
    return (1 + erf(x / jnp.sqrt(2.0))) / 2

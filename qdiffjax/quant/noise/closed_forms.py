"""Closed forms of the theory of one rounding: what needs no sum over levels."""

import math
from collections.abc import Callable

import numpy as np

from qdiffjax.quant.formats.integers import Format
from qdiffjax.quant.noise.distributions import Distribution


def widrow_mse(
    scale: float, characteristic_fn: Callable[[np.ndarray], np.ndarray], *, num_terms: int = 100_000
) -> float:
    """Mean squared error of nearest rounding to all multiples of scale, for any input.

        E e^2 = s^2 / 12 + (s^2 / pi^2) sum_{k >= 1} (-1)^k / k^2 Re f(2 pi k / s)

    with f the characteristic function of x: Sripad and Snyder 1977, eq. 20; Widrow's theorem is
    that the sum is empty for band-limited f. For a Gaussian it is below 1e-8 s^2 once s <= std.
    What the terms left out can add is below s^2 max|f| / (pi^2 num_terms).

    Args:
      scale: s, in units of x.
      characteristic_fn: E exp(i t x) at t [num_terms], such as `Gaussian.characteristic`.
      num_terms: of the series.
    """
    k = np.arange(1.0, num_terms + 1)
    signs = 1 - 2 * (k % 2)
    terms = signs / k**2 * np.real(characteristic_fn(2 * np.pi * k / scale))
    return scale**2 * (1 / 12 + float(np.sum(terms)) / np.pi**2)


def bussgang_gain(scale: float, std: float = 1.0) -> float:
    """Gain E[x Q] / E[x^2] of nearest rounding of N(0, std^2) to all multiples of scale.

        theta_4(0, q) = 1 + 2 sum_{n >= 1} (-1)^n q^(n^2),   q = exp(-2 pi^2 std^2 / scale^2)

    Stein's lemma gives E Q', the sum of scale * p over the thresholds; Poisson's summation turns
    it into the theta function. Where q is close to 1 the first sum is used.
    """
    n = np.arange(1.0, 40.0)
    if scale < 4 * std:
        terms = (-1) ** n * np.exp(-2 * (np.pi * n * std / scale) ** 2)
        return 1 + 2 * float(np.sum(terms))
    t = (n - 0.5) * scale / std
    return 2 * scale / std * float(np.sum(_normal_density(t)))


def saturating_gain(format: Format, scale: float, std: float = 1.0) -> float:
    """Gain E[x Q] / E[x^2] of nearest rounding of N(0, std^2) to the levels of a format.

        sum_j (y_{j+1} - y_j) phi(t_j / std) / std,   t_j = (y_j + y_{j+1}) / 2

    Stein's lemma. Where every level is the mean of its cell (Lloyd-Max) it is 1 - D / std^2, so
    the quantized signal shrinks by its own distortion D.

    Args:
      format: static, rounding to the nearest level.
      scale: positive step, in units of x.
      std: of x.
    """
    y = scale * format.levels() / std
    return float(np.sum(np.diff(y) * _normal_density((y[1:] + y[:-1]) / 2)))


def panter_dite_mse(bits: float, distribution: Distribution) -> float:
    """Mean squared error of the best codebook of 2^bits levels, as bits grow.

        (integral p^(1/3))^3 / 12 * 4^-bits

    Panter and Dite 1951, eq. 22: sqrt(3) pi / 2 std^2 for Gaussian, 9/2 std^2 for Laplace.
    """
    return distribution.cube_norm / 12 * 4.0**-bits


def entropy_coded_mse(bits: float, distribution: Distribution) -> float:
    """Mean squared error of a uniform quantizer with entropy-coded indices of `bits`, as they grow.

        exp(2 h) / 12 * 4^-bits,   h the differential entropy

    Gish and Pierce 1968: pi e / 6 (1.533 dB, 0.2546 bit) above `shannon_mse`.
    """
    return math.exp(2 * distribution.entropy) / 12 * 4.0**-bits


def shannon_mse(bits: float, distribution: Distribution) -> float:
    """Mean squared error that no code of `bits` per number is below, however long its blocks.

        exp(2 h) / (2 pi e) * 4^-bits

    Shannon's lower bound (Cover and Thomas 2006, section 10.3): the distortion-rate function
    std^2 4^-bits itself for a Gaussian.
    """
    return math.exp(2 * distribution.entropy) / (2 * math.pi * math.e) * 4.0**-bits


def float_relative_mse(mantissa_bits: int) -> float:
    """Mean squared relative error of a float format, for numbers uniform in logarithm.

        E (e / x)^2 = (1 / log 2) integral_1^2 (Q(x) - x)^2 / x^3 dx

    no exponent range, nearest rounding; the sum over the 2^m + 1 cells is exact. High resolution:
    3 / (96 log 2) 4^-m = .04508 * 4^-m.

    Args:
      mantissa_bits: m, 0..10; beyond, the high-resolution form is right to 1e-6 and returned.
    """
    if mantissa_bits > 10:
        return 3 / (96 * math.log(2)) * 4.0**-mantissa_bits
    y = 1 + np.arange(2.0**mantissa_bits + 1) * 2.0**-mantissa_bits
    t = np.concatenate([[1.0], (y[1:] + y[:-1]) / 2, [2.0]])

    def antiderivative(x):
        return np.log(x) + 2 * y / x - y**2 / (2 * x**2)

    return float(np.sum(antiderivative(t[1:]) - antiderivative(t[:-1]))) / math.log(2)


def _normal_density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

"""Closed forms that check `quant.noise.predict`, and laws that they are checked on."""

import math

import numpy as np

from qdiffjax.quant import noise


def uniform(low: float, high: float) -> noise.Histogram:
    """Return the uniform law on low..high, low < high."""
    return noise.Histogram(np.array([low, high]), np.ones(1))


def samples(x) -> noise.Histogram:
    """Return the law that gives each element of x the same probability."""
    x = np.sort(np.asarray(x, np.float64).ravel())
    return noise.Histogram(np.repeat(x, 2), np.tile([1.0, 0.0], x.size)[:-1])


def characteristic(law, t) -> np.ndarray:
    """E exp(i t x) [*shape] at t [*shape], complex."""
    if isinstance(law, noise.Gaussian):
        return np.exp(1j * law.mean * t - (law.std * t) ** 2 / 2)
    if isinstance(law, noise.Laplace):
        return 1 / (1 + (law.std * t) ** 2 / 2) + 0j
    t = t[..., None]
    centre, width = (law.edges[1:] + law.edges[:-1]) / 2, np.diff(law.edges)
    return np.sum(law.masses * np.exp(1j * t * centre) * np.sinc(t * width / 2 / np.pi), -1)


def widrow_mse(scale: float, law, *, num_terms: int = 100_000) -> float:
    """Mean squared error of nearest rounding to all multiples of scale, for any input.

        E e^2 = s^2 / 12 + (s^2 / pi^2) sum_{k >= 1} (-1)^k / k^2 Re f(2 pi k / s)

    with f the characteristic function of x: Sripad and Snyder 1977, eq. 20; Widrow's theorem is
    that the sum is empty for band-limited f. For a Gaussian it is below 1e-8 s^2 once s <= std.
    What the terms left out can add is below s^2 max|f| / (pi^2 num_terms).

    """
    k = np.arange(1.0, num_terms + 1)
    signs = 1 - 2 * (k % 2)
    parts = np.array_split(2 * np.pi * k / scale, 50)
    terms = signs / k**2 * np.real(np.concatenate([characteristic(law, part) for part in parts]))
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


def saturating_gain(format, scale: float, std: float = 1.0) -> float:
    """Gain E[x Q] / E[x^2] of nearest rounding of N(0, std^2) to the levels of a format.

        sum_j (y_{j+1} - y_j) phi(t_j / std) / std,   t_j = (y_j + y_{j+1}) / 2

    Stein's lemma. Where every level is the mean of its cell (Lloyd-Max) it is 1 - D / std^2, so
    the quantized signal shrinks by its own distortion D.
    """
    y = scale * format.levels() / std
    return float(np.sum(np.diff(y) * _normal_density((y[1:] + y[:-1]) / 2)))


def entropy_coded_mse(bits: float, distribution) -> float:
    """Mean squared error of a uniform quantizer with entropy-coded indices of `bits`, as they grow.

        exp(2 h) / 12 * 4^-bits,   h the differential entropy

    Gish and Pierce 1968: pi e / 6 (1.533 dB, 0.2546 bit) above `shannon_mse`.
    """
    return math.exp(2 * distribution.entropy) / 12 * 4.0**-bits


def _normal_density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)

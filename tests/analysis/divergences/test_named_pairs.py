"""W1 and total variation of named pairs against numerical integrals of their definitions."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from qdiffjax.analysis import divergences as d
from qdiffjax.analysis.divergences import named_pairs

LINE = (-60.0, 60.0)


def w1(p, q, breaks):
    """The area between the two distribution functions."""
    return integrate.quad(lambda x: abs(p.cdf(x) - q.cdf(x)), *LINE, points=breaks, limit=400)[0]


def total_variation(p, q, breaks):
    return (
        integrate.quad(lambda x: abs(p.pdf(x) - q.pdf(x)), *LINE, points=breaks, limit=400)[0] / 2
    )


GAUSSIANS = [
    (0.0, 1.0, 0.7, 1.0),
    (0.0, 1.0, 0.0, 2.5),
    (1.0, 0.3, -2.0, 0.4),
    (0.5, 3.0, 0.6, 0.1),
]
LAPLACES = [(0.0, 1.0, 0.7, 1.0), (0.0, 0.5, 0.0, 2.5), (1.0, 0.3, -2.0, 0.9)]
UNIFORMS = [(0.0, 1.0, 0.5, 1.5), (0.0, 1.0, -1.0, 3.0), (0.0, 1.0, 2.0, 5.0), (0.0, 2.0, 0.5, 1.0)]


def uniform(low, high):
    return stats.uniform(low, high - low)


CASES = [
    (named_pairs.gaussian_w1, w1, stats.norm, GAUSSIANS),
    (named_pairs.gaussian_total_variation, total_variation, stats.norm, GAUSSIANS),
    (named_pairs.laplace_w1, w1, stats.laplace, LAPLACES),
    (named_pairs.uniform_w1, w1, uniform, UNIFORMS),
    (named_pairs.uniform_total_variation, total_variation, uniform, UNIFORMS),
]


@pytest.mark.parametrize(
    ("fn", "integral", "law", "values"),
    [(*case[:3], values) for case in CASES for values in case[3]],
)
def test_a_closed_form_is_the_integral_of_its_definition_and_symmetric(fn, integral, law, values):
    p, q = law(*values[:2]), law(*values[2:])
    breaks = sorted({*values[::2], *values[1::2], 0.0, -8.0, 8.0})
    np.testing.assert_allclose(fn(*values), integral(p, q, breaks), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(fn(*values), fn(*values[2:], *values[:2]), rtol=1e-12)
    np.testing.assert_allclose(fn(*values[:2], *values[:2]), 0, atol=1e-12)


def test_total_variation_of_laplace_laws_is_the_integral():
    p = stats.laplace(0, 0.7)
    shifted = total_variation(p, stats.laplace(1.3, 0.7), [0, 0.65, 1.3])
    np.testing.assert_allclose(named_pairs.laplace_shift_total_variation(0, 1.3, 0.7), shifted)
    scaled = total_variation(p, stats.laplace(0, 1.9), [-1.5, 0, 1.5])
    found = named_pairs.laplace_scale_total_variation(jnp.array([0.7, 1.9, 0.7]), [1.9, 0.7, 0.7])
    np.testing.assert_allclose(found, [scaled, scaled, 0], rtol=1e-6)


def test_total_variation_of_a_shift_in_many_dimensions_is_that_along_it():
    rng = np.random.default_rng(0)
    root, shift = rng.normal(size=(3, 3)), rng.normal(size=3)
    cov = root @ root.T + np.eye(3)
    distance = np.sqrt(shift @ np.linalg.solve(cov, shift))
    found = named_pairs.gaussian_shift_total_variation(np.zeros(3), shift, cov)
    line = named_pairs.gaussian_total_variation(0.0, 1.0, distance, 1.0)
    np.testing.assert_allclose(found, line, rtol=1e-12)


def test_total_variation_of_nearly_equal_gaussians_does_not_cancel():
    """To first order a scale (1 + h) costs h E|1 - x^2| / 2 = h sqrt(2 / (pi e))."""
    h = 1e-6
    found = named_pairs.gaussian_total_variation(0.0, 1.0, 0.0, 1.0 + h)
    np.testing.assert_allclose(found, h * np.sqrt(2 / (np.pi * np.e)), rtol=1e-4)


def test_empirical_w1_is_the_area_between_the_distribution_functions_and_tends_to_the_closed_form():
    x, y = np.array([[0.0], [3.0], [1.0]]), np.array([[5.0], [0.0], [2.0]])
    np.testing.assert_allclose(d.w1_1d(x, y), [(0 + 1 + 2) / 3])
    quantiles = (np.arange(20000) + 0.5) / 20000
    pair = (stats.norm(0.5, 1).ppf(quantiles), stats.norm(0, 2).ppf(quantiles))
    np.testing.assert_allclose(d.w1_1d(*pair), named_pairs.gaussian_w1(0.5, 1, 0, 2), rtol=1e-3)


def test_scales_that_are_not_positive_are_refused():
    for call in (
        functools.partial(named_pairs.gaussian_w1, 0.0, 0.0, 0.0, 1.0),
        functools.partial(named_pairs.laplace_scale_total_variation, -1.0, 1.0),
        functools.partial(named_pairs.uniform_w1, 0.0, 0.0, 0.0, 1.0),
    ):
        with pytest.raises(ValueError, match="above 0"):
            call()

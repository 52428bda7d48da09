"""The Frechet distance: exact on Gaussians, independent definitions, limits."""

import numpy as np
import pytest
from scipy import linalg, stats

from qdiffjax import metrics
from qdiffjax.metrics.streaming import Moments

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4)) + 0.5


def gaussian(mean, covariance):
    """Moments with this mean and covariance."""
    return Moments(101, np.asarray(mean, float), 100 * np.asarray(covariance, float))


def by_sqrtm(x, y):
    """The survey's eq. 17 as it is printed, by SciPy's root of the product."""
    a, b = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(a @ b)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root.real)


TURN = stats.ortho_group(3, seed=1).rvs()
A, B = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.0])
NAMED = {
    "a shift": (gaussian([1, 2], np.eye(2)), gaussian([0, 0], np.eye(2)), 5.0),
    "two scales": (gaussian([0], [[4.0]]), gaussian([1], [[9.0]]), 2.0),
    "itself": (gaussian([3, 1], [[2, 1], [1, 2]]), gaussian([3, 1], [[2, 1], [1, 2]]), 0.0),
    "variances along common axes": (
        gaussian(np.zeros(3), TURN @ np.diag(A) @ TURN.T),
        gaussian(np.zeros(3), TURN @ np.diag(B) @ TURN.T),
        np.sum((np.sqrt(A) - np.sqrt(B)) ** 2),
    ),
    # tr (C_1 C_2)^.5 of 2 x 2 matrices is sqrt(tr C_1 C_2 + 2 sqrt(det C_1 C_2))
    "axes that do not commute": (
        gaussian([0, 0], [[2, 0], [0, 1]]), gaussian([0, 0], [[2, 1], [1, 2]]),
        3 + 4 - 2 * np.sqrt(6 + 2 * np.sqrt(6)),
    ),
    "points": (gaussian([0, 3], np.zeros((2, 2))), gaussian([4, 0], np.zeros((2, 2))), 25.0),
    "a line and its normal": (gaussian([0, 0], np.diag([1, 0])), gaussian([0, 0], np.diag([0, 4])),
                              5.0),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_of_named_gaussians_it_is_exact_singular_ones_too(name, users_defaults):
    x, y, expected = NAMED[name]
    assert abs(metrics.moments_distance(x, y) - expected) < 1e-8
    assert abs(metrics.moments_distance(y, x) - expected) < 1e-8


def test_of_samples_it_is_eq_17_by_scipys_root(users_defaults):
    found = metrics.frechet_distance(X, Y, num_groups=5)
    np.testing.assert_allclose(found.value, by_sqrtm(X, Y), rtol=1e-8)
    assert (found.num_samples, found.covers) == (50, "expectation at this size")


def test_the_interval_is_the_jackknife_of_groups_by_hand():
    x, y = X[:50], Y
    left = [by_sqrtm(np.delete(x, np.s_[g::5], 0), np.delete(y, np.s_[g::5], 0)) for g in range(5)]
    width = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * np.sum((left - np.mean(left)) ** 2))
    found = metrics.frechet_distance(x, y, num_groups=5)
    np.testing.assert_allclose(found.high - found.value, width, rtol=1e-6)
    np.testing.assert_allclose(found.value - found.low, width, rtol=1e-6)


def test_streamed_groups_give_the_same_as_features():
    groups = [metrics.streamed(np.split(a, [7, 30]), num_groups=5) for a in (X[:50], Y)]
    found, whole = (
        metrics.frechet_distance(*groups),
        metrics.frechet_distance(X[:50], Y, num_groups=5),
    )
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-8)


def test_the_moments_of_a_reference_are_given_whole():
    reference = metrics.moments(Y)
    found = metrics.frechet_distance(X, reference, num_groups=5)
    np.testing.assert_allclose(found.value, by_sqrtm(X, Y), rtol=1e-8)
    left = [by_sqrtm(np.delete(X, np.s_[g::5], 0), Y) for g in range(5)]
    width = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5 * np.sum((left - np.mean(left)) ** 2))
    np.testing.assert_allclose(found.high - found.value, width, rtol=1e-6)


def test_the_limit_is_that_of_a_line_through_all_and_all_but_a_group():
    x, y = X[:48], Y[:48]
    left = [by_sqrtm(np.delete(x, np.s_[g::8], 0), np.delete(y, np.s_[g::8], 0)) for g in range(8)]
    expected = np.polyfit(1 / np.array([48, *[42] * 8]), [by_sqrtm(x, y), *left], 1)[1]
    found = metrics.frechet_of_infinite(x, y, num_groups=8)
    np.testing.assert_allclose(found.value, expected, rtol=1e-8)
    assert found.covers == "population value"


def test_of_infinitely_many_samples_there_is_no_bias_left():
    """Two draws of one law: the plug-in value leans upwards, the limit is zero in the mean."""
    rng, plain, limits = np.random.default_rng(1), [], []
    for _ in range(100):
        x, y = rng.normal(size=(2, 200, 3))
        plain.append(metrics.frechet_distance(x, y, num_groups=5).value)
        limits.append(metrics.frechet_of_infinite(x, y, num_groups=8).value)
    error = np.std(limits) / 10
    assert np.mean(plain) > 8 * error
    assert abs(np.mean(limits)) < 3 * error

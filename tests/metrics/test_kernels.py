"""KID and MMD against double loops, and unbiased."""

import numpy as np
import pytest

from qdiffjax import metrics

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 3)), RNG.normal(size=(24, 3)) * 1.5 + 0.3


def cubic(a, b):
    return (a @ b / len(a) + 1) ** 3


def gaussians(widths):
    return lambda a, b: np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * w**2)) for w in widths])


def double_loop(x, y, kernel, paired):
    """The unbiased MMD^2 of two sets."""
    within = [np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])
              for s in (x, y)]  # fmt: skip
    between = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(y)
                       if not paired or i != j])  # fmt: skip
    return sum(within) - 2 * between


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("num", [24, 17])
def test_kid_is_a_double_loop_and_its_interval_that_of_loops_without_a_group(
    paired, num, users_defaults
):
    y = Y if paired else Y[:num]
    found = metrics.kernel_inception_distance(X, y, paired=paired, num_groups=4)
    np.testing.assert_allclose(found.value, double_loop(X, y, cubic, paired), rtol=1e-10)
    left = [double_loop(np.delete(X, np.s_[g::4], 0), np.delete(y, np.s_[g::4], 0), cubic, paired)
            for g in range(4)]  # fmt: skip
    half = 3.182446305284263 * np.sqrt(3 / 4 * np.sum((left - np.mean(left)) ** 2))  # t(3), tables
    np.testing.assert_allclose(found.high - found.value, half, rtol=1e-6)
    assert found.num_samples == len(y)


@pytest.mark.parametrize("paired", [False, True])
def test_mmd_is_a_double_loop(paired):
    squares = [np.sum((a - b) ** 2) for i, a in enumerate(X) for j, b in enumerate(Y) if i != j]
    kernel = gaussians(np.sqrt(np.median(squares)) * np.array([0.25, 1, 4]))
    found = metrics.mean_discrepancy(X, Y, paired=paired, num_groups=3)
    np.testing.assert_allclose(found.value, double_loop(X, Y, kernel, paired), rtol=1e-10)


@pytest.mark.parametrize("paired", [False, True])
def test_between_equal_laws_it_is_zero_in_the_mean(paired):
    rng = np.random.default_rng(1)
    for distance in (metrics.kernel_inception_distance, metrics.mean_discrepancy):
        values = []
        for _ in range(200):
            x, y = rng.normal(size=(2, 20, 2))
            y = (x + y) / np.sqrt(2) if paired else y  # of the law of x, and dependent on it
            values.append(distance(x, y, paired=paired, num_groups=2).value)
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values)) < 3 * error
        assert error < 0.1

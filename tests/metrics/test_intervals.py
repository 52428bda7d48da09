"""Intervals of 95 % hold as often as they say, over thousands of draws of two small sets.

What an interval covers is known: population values in closed form, expectations at the size from
other draws, whose own standard error is far below a half-width.
"""

import math

import numpy as np
import pytest
from scipy import stats

from qdiffjax import estimates, metrics

NUM = 2000
LOW, HIGH = stats.binom.interval(0.99, NUM, 0.95)  # of 95 % in as many draws
SHIFT, SPREAD = np.array([0.8, 0.0]), np.array([1.0, 2.0])


def draws(seed, num=NUM, size=100, dims=2):
    """Pairs of sets of N(0, I) and N(SHIFT, diag(SPREAD^2))."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        x, y = rng.normal(size=(2, size, dims))
        yield x, y * SPREAD[:dims] + SHIFT[:dims]


def hits(found, truth):
    found = np.array([(m.low, m.high) for m in found])
    return int(np.sum((found[:, 0] <= truth) & (truth <= found[:, 1])))


def test_the_jackknife_covers_an_expectation_at_the_size_and_without_bias_the_limit():
    """Of exp(mean) of 200 N(0, 1): exp(1 / 400), and 1."""
    rng, plain, limits = np.random.default_rng(0), [], []
    for _ in range(NUM):
        groups = np.split(rng.normal(size=200), 20)
        stat = lambda kept: np.exp(np.mean(kept))  # noqa: E731
        plain.append(estimates.jackknife(stat, groups))
        limits.append(estimates.jackknife(stat, groups, unbiased=True))
    assert LOW <= hits(plain, np.exp(1 / 400)) <= HIGH
    assert LOW <= hits(limits, 1) <= HIGH


@pytest.mark.slow
def test_frechet_distances_are_covered_at_their_size_and_in_the_limit():
    plain = [metrics.frechet_distance(x, y, num_groups=10) for x, y in draws(0, size=200)]
    assert LOW <= hits(plain, np.mean([m.value for m in plain])) <= HIGH
    limits = [metrics.frechet_of_infinite(x, y, num_groups=10) for x, y in draws(0, size=200)]
    assert LOW <= hits(limits, 0.8**2 + (2 - 1) ** 2) <= HIGH


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_kid_of_uniform_numbers_is_covered_between_equal_and_unequal_laws(shift):
    """k = (u + 1)^3 with u = <x, y> / 3: moments of uniforms on [0, 1] and [shift, 1 + shift]."""
    rng, found = np.random.default_rng(0), []
    for _ in range(NUM):
        x, y = rng.uniform(size=(2, 500, 3))
        found.append(metrics.kernel_inception_distance(x, y + shift))
    truth = _cubic_distance(shift)
    assert LOW <= hits(found, truth) <= HIGH


def _cubic_distance(shift):
    """MMD^2 of the cubic kernel in closed form: sums over products of moments of one axis."""
    low = np.array([1 / (k + 1) for k in range(4)])
    high = np.array([((1 + shift) ** (k + 1) - shift ** (k + 1)) / (k + 1) for k in range(4)])

    def mean_kernel(a, b):
        total = 0.0
        for i, j, k in np.ndindex(4, 4, 4):
            if i + j + k <= 3:  # (1 + u_1 + u_2 + u_3)^3, each u the product of an axis over 3
                ways = math.factorial(3) / math.prod(map(math.factorial, (i, j, k, 3 - i - j - k)))
                total += ways * math.prod(a[e] * b[e] / 3**e for e in (i, j, k))
        return total

    return mean_kernel(low, low) + mean_kernel(high, high) - 2 * mean_kernel(low, high)


@pytest.mark.slow
def test_manifolds_are_covered_at_least_as_often_as_they_say():
    """Balls change where a group is left out, so all but precision have too wide intervals here."""
    sharp, dense = [], []
    for x, y in draws(0):
        sharp.append(metrics.precision_recall(x, y, num_groups=10))
        dense.append(metrics.density_coverage(x, y, num_groups=10))
    precision, *others = (*zip(*sharp, strict=True), *zip(*dense, strict=True))
    counts = [hits(own, np.mean([m.value for m in own])) for own in (precision, *others)]
    assert LOW <= counts[0] <= HIGH
    assert min(counts) >= LOW


def test_inception_scores_are_covered():
    rng = np.random.default_rng(0)
    found = [metrics.inception_score(rng.dirichlet(np.ones(3), size=100)) for _ in range(NUM)]
    assert LOW <= hits(found, np.mean([m.value for m in found])) <= HIGH


def test_means_over_pairs_are_covered():
    """PSNR of constant errors 10^(-z / 20), z of N(20, 1), is z dB."""
    rng, found = np.random.default_rng(0), []
    for _ in range(NUM):
        error = 10 ** (-rng.normal(20, 1, size=(200, 1)) / 20)
        found.append(metrics.psnr(np.zeros((200, 1)), error, data_range=1))
    assert LOW <= hits(found, 20) <= HIGH

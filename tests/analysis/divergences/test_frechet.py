"""The Frechet distance of finitely many samples, against exact and drawn biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from qdiffjax.analysis import divergences as d


def test_of_one_feature_the_bias_is_that_of_its_mean_and_deviation():
    """Exact for N(0, v): v (1 / N + 2 (1 - c_4(N))), c_4 that of the mean deviation."""
    for num in (50, 500, 5000):
        c4 = np.sqrt(2 / (num - 1)) * np.exp(
            special.gammaln(num / 2) - special.gammaln((num - 1) / 2)
        )
        exact = 3.0 * (1 / num + 2 * (1 - c4))
        np.testing.assert_allclose(d.frechet_bias(jnp.array([3.0]), num), exact, rtol=1.5 / num)


def test_of_several_features_the_bias_is_the_mean_distance_of_drawn_samples():
    rng, num, cov = np.random.default_rng(0), 400, np.diag([2.0, 0.5, 0.5, 0.1])
    turn = stats.ortho_group(4, seed=1).rvs()
    cov = turn @ cov @ turn.T
    x = rng.multivariate_normal(np.zeros(4), cov, size=(1500, num))
    means, covs = x.mean(1), np.einsum("rni,rnj->rij", x, x) / num
    covs = (covs - means[:, :, None] * means[:, None]) * num / (num - 1)
    distance = jax.jit(jax.vmap(lambda m, c: d.gaussian_w2_squared(m, c, jnp.zeros(4), cov)))
    values = np.asarray(distance(means, covs))
    error = values.std() / np.sqrt(values.size)
    assert abs(values.mean() - d.frechet_bias(cov, num)) < 3 * error + 0.01 * values.mean()
    np.testing.assert_allclose(d.frechet_bias(np.linalg.eigvalsh(cov), num),
                               d.frechet_bias(cov, num), rtol=1e-12)  # fmt: skip


def test_the_limit_is_the_intercept_and_its_interval_covers_it():
    nums = np.array([500, 1000, 2000, 4000])
    found = d.frechet_limit(nums, 2.5 + 700 / nums)
    np.testing.assert_allclose([found.value, found.low, found.high], 2.5, rtol=1e-9)
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        found = d.frechet_limit(nums, 2.5 + 700 / nums + 0.1 * rng.normal(size=4))
        hits += bool(found.low <= 2.5 <= found.high)
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize(("nums", "distances"), [([10, 20], [1.0, 2.0]), ([9, 9, 9], [1, 2, 3])])
def test_a_line_needs_three_distances_at_two_numbers(nums, distances):
    with pytest.raises(ValueError, match="at least three"):
        d.frechet_limit(nums, distances)

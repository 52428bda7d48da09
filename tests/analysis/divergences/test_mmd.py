"""Theorems about MMD, the energy distance, blocks, floors and the Sinkhorn divergence."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from qdiffjax import estimates
from qdiffjax.analysis import divergences
from tests.tolerances import assert_close

KEY = jax.random.key(0)
RBF = divergences.rbf_mixture(np.array([0.5, 2.0]))
mmd = jax.jit(partial(divergences.mmd_squared, kernel=RBF))
energy = jax.jit(divergences.energy_distance)


def within(estimate, exact, errors=3.0):
    half = float(estimate.high - estimate.low) / 2 / 1.96
    return abs(float(estimate.value) - exact) <= errors * half


def gaussian_mmd(mean, cov_x, cov_y):
    """E k over N(0, cov_x), N(mean, cov_y): E exp(-|z|^2 / 2 s^2) of a Gaussian z, closed form."""

    def expected(m, cov):
        out = 0.0
        for s in (0.5, 2.0):
            total = cov + s**2 * np.eye(len(m))
            out += np.exp(-m @ np.linalg.solve(total, m) / 2) / np.sqrt(np.linalg.det(total / s**2))
        return out / 2

    zero = np.zeros_like(mean)
    return expected(zero, 2 * cov_x) + expected(zero, 2 * cov_y) - 2 * expected(mean, cov_x + cov_y)


def gaussian_energy(shift, std_x, std_y):
    """On the line E|z| = s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m erf(m / (s sqrt 2))."""

    def absolute(m, s):
        tail = s * np.sqrt(2 / np.pi) * np.exp(-(m**2) / (2 * s**2))
        return tail + m * special.erf(m / (s * np.sqrt(2)))

    within = absolute(0, np.sqrt(2) * std_x) + absolute(0, np.sqrt(2) * std_y)
    return 2 * absolute(shift, np.hypot(std_x, std_y)) - within


COV = np.array([[0.6, 0.2], [0.2, 0.9]])
SHIFT = np.array([0.4, -0.1])


def gaussian_pair(seed, num, shared):
    """N(0, I) and N(SHIFT, COV), from one noise or from two."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 2))
    z = x if shared else rng.normal(size=(num, 2))
    return x, SHIFT + z @ np.linalg.cholesky(COV).T


@pytest.mark.parametrize("shared", [False, True])
def test_mmd_of_gaussians_is_the_closed_form_with_shared_noise_or_without(shared):
    x, y = gaussian_pair(1, 4000, shared)
    found = estimates.block_mean(mmd, x, y, num_blocks=80)
    assert within(found, gaussian_mmd(SHIFT, np.eye(2), COV))


def test_the_pairs_left_out_are_what_would_bias_it():
    """Equal sets of n points: all cross pairs would give 2 (mean k - 1) / n, not 0."""
    x = np.random.default_rng(0).normal(size=(10, 2))
    assert abs(float(mmd(x, x))) < 1e-15


def test_a_worked_case():
    """On the line x = 0, 1; y = 3, 5; kernel -|x - y|; cross pairs (0, 5), (1, 3)."""
    found = energy(np.array([[0.0], [1.0]]), np.array([[3.0], [5.0]]))
    assert_close(found, np.array(-1.0 - 2.0 + 2 * (5 + 2) / 2))


def test_sets_of_different_size_use_all_cross_pairs():
    found = divergences.energy_distance(np.array([[0.0], [1.0]]), np.array([[3.0], [5.0], [4.0]]))
    assert_close(found, np.array(-1.0 - (2 + 1 + 1) / 3 + 2 * (3 + 5 + 4 + 2 + 4 + 3) / 6))


@pytest.mark.parametrize(("shift", "std"), [(0.5, 1.0), (0.0, 1.5)])
def test_the_energy_distance_of_gaussians_is_the_closed_form(shift, std):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4000, 1)), shift + std * rng.normal(size=(4000, 1))
    found = estimates.block_mean(energy, x, y, num_blocks=80)
    assert within(found, gaussian_energy(shift, 1.0, std))


def test_on_the_line_the_energy_distance_is_twice_the_cramer_distance():
    """2 int (F - G)^2, the V-statistic; scipy's energy_distance is its root."""
    x, y = np.random.default_rng(3).normal(size=(2, 12))
    n = x.size
    every = np.abs(x[:, None] - y[None]).mean()  # the library leaves i = j out
    some = (every * n**2 - np.abs(x - y).sum()) / (n * (n - 1))
    u = [np.abs(a[:, None] - a[None]).mean() for a in (x, y)]
    v_statistic = stats.energy_distance(x, y) ** 2
    expected = v_statistic - 2 * (every - some) - sum(u) / (n - 1)
    assert_close(energy(x[:, None], y[:, None]), np.array(expected), factor=100)


def test_between_equal_laws_mmd_is_negative_about_half_of_the_time():
    draws = np.random.default_rng(4).normal(size=(2, 200, 20, 2))
    values = jax.jit(jax.vmap(partial(divergences.mmd_squared, kernel=RBF)))(*draws)
    assert within(estimates.mean_interval(values), 0.0)
    assert 0.35 < np.mean(np.asarray(values) < 0) < 0.75  # skewed: weighted chi-squares, centred


def test_distances_that_vanish_leave_derivatives_finite():
    x = np.random.default_rng(5).normal(size=(5, 2))
    slope = jax.grad(lambda y: divergences.energy_distance(x, y))(jnp.asarray(x))
    assert np.all(np.isfinite(slope))


def test_the_median_distance_of_a_worked_case():
    """|0-5|, |1-3| for i != j."""
    found = divergences.median_distance(np.array([0.0, 1.0]), np.array([3.0, 5.0]))
    assert_close(found**2, np.array((25 + 4) / 2))


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        divergences.mmd_squared(np.zeros((3, 2)), np.zeros((3, 4)), RBF)


# Blocks and the floor.


def test_the_block_mean_of_a_worked_case():
    """Blocks 1, 3 | 5, 11 (17 is left over): mean 5, standard error 3, Student's t_1 12.706."""
    found = estimates.block_mean(jnp.mean, np.array([1.0, 3.0, 5.0, 11.0, 17.0]), num_blocks=2)
    np.testing.assert_allclose(jnp.stack(found), [5, 5 - 38.1186, 5 + 38.1186], rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_interval_of_blocks_covers_between_equal_laws_too(shift):
    """200 estimates from ten blocks of 20; the statistic is skewed, so somewhat below 0.95."""
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(2, 200, 200, 1))
    found = jax.jit(jax.vmap(lambda x, y: estimates.block_mean(mmd, x, y)))(x, y + shift)
    one = np.eye(1)
    exact = gaussian_mmd(np.array([shift]), one, one)
    assert np.mean((found.low <= exact) & (found.high >= exact)) > 0.87


def test_blocks_that_stay_together_widen_the_bootstrap_of_a_dependent_series():
    """Rows repeated 10 times: sqrt(10) times the standard error of independent ones."""
    series = np.repeat(np.random.default_rng(6).normal(size=200), 10)
    one, ten = (estimates.bootstrap(jnp.mean, series, key=KEY, num=500, block=b) for b in (1, 10))
    widths = [float(e.high - e.low) for e in (one, ten)]
    # Blocks that start anywhere straddle two values: variance factor 6.7, not 10 (triangle).
    assert 2.2 < widths[1] / widths[0] < 3.3


def test_a_block_longer_than_the_series_is_refused():
    with pytest.raises(ValueError, match="block: got 4 of 3"):
        estimates.bootstrap(jnp.mean, np.zeros(3), key=KEY, block=4)


def test_the_floor_is_the_estimate_between_two_halves_of_one_law():
    """E W2^2 of two n-samples of N(0, 1) is positive; a shift by 5 stands out from it."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=400), rng.normal(size=400) + 5
    found = estimates.beside_floor(divergences.w2_squared_1d, x, y, key=KEY)
    halves = [divergences.w2_squared_1d(*rng.normal(size=(2, 200))) for _ in range(50)]
    assert min(halves) <= float(found.floor) <= max(halves)
    assert 20 < float(found.measured) < 30


# Sinkhorn.


def plain_sinkhorn(x, y, epsilon):
    """<C, P> + epsilon KL(P || ab) by the textbook iteration, many times."""
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    n = len(x)
    kernel, v = np.exp(-cost / epsilon), np.ones(n)
    for _ in range(20_000):
        u = 1 / n / (kernel @ v)
        v = 1 / n / (kernel.T @ u)
    plan = u[:, None] * kernel * v[None]
    return np.sum(plan * cost) + epsilon * np.sum(plan * np.log(plan * n * n))


@pytest.mark.slow
def test_the_sinkhorn_divergence_is_the_debiased_cost():
    pytest.importorskip("ott")
    x, y = np.random.default_rng(8).normal(size=(2, 8, 2))
    found = divergences.sinkhorn_divergence(x, y, 0.5, threshold=1e-9, max_iterations=20_000)
    self_costs = plain_sinkhorn(x, x, 0.5) + plain_sinkhorn(y, y, 0.5)
    np.testing.assert_allclose(found, plain_sinkhorn(x, y, 0.5) - self_costs / 2, rtol=1e-6)


def test_the_sinkhorn_divergence_goes_from_w2_to_the_gap_of_the_means():
    pytest.importorskip("ott")
    x, y = np.random.default_rng(9).normal(size=(2, 8, 2))
    far = divergences.sinkhorn_divergence(x, y, 1e6)
    np.testing.assert_allclose(far, np.sum((x.mean(0) - y.mean(0)) ** 2), rtol=1e-3)
    near = divergences.sinkhorn_divergence(x, x + 0.01, 1e-3, max_iterations=100_000)
    np.testing.assert_allclose(near, divergences.assignment_w2_squared(x, x + 0.01), rtol=1e-3)


def test_without_ott_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ott", None)
    monkeypatch.setitem(sys.modules, "ott.tools", None)
    with pytest.raises(ImportError, match="pip install ott-jax"):
        divergences.sinkhorn_divergence(np.zeros((2, 1)), np.ones((2, 1)), 1.0)


def test_kid_is_the_published_estimator_of_the_cubic_kernel():
    """Binkowski et al. 2018, eq. 4, by Gram matrices; their kernel is (<x, y> / n + 1)^3."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2, 3)), rng.normal(size=(5, 2, 3)) + 0.3
    a, b = x.reshape(7, 6), y.reshape(5, 6)
    k_xx, k_yy, k_xy = ((p @ q.T / 6 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    expected = (k_xx.sum() - np.trace(k_xx)) / 42 + (k_yy.sum() - np.trace(k_yy)) / 20
    expected -= 2 * k_xy.mean()
    assert_close(divergences.kid(x, y), expected, factor=64)
    z = x + 0.1
    k_zz, k_xz = ((p @ q.T / 6 + 1) ** 3 for p, q in ((a + 0.1, a + 0.1), (a, a + 0.1)))
    within = sum((k.sum() - np.trace(k)) / 42 for k in (k_xx, k_zz))
    assert_close(divergences.kid(x, z), within - 2 * k_xz.mean(), factor=64, scale=1.0)
    paired = within - 2 * (k_xz.sum() - np.trace(k_xz)) / 42
    assert_close(divergences.kid(x, z, paired=True), paired, factor=64, scale=1.0)
    with pytest.raises(ValueError, match="expected as many of both"):
        divergences.kid(x, y, paired=True)


def test_kid_of_two_shifted_gaussians_is_on_average_its_closed_form():
    """N(0, 1) and N(1, 1): E k = E (xy + 1)^3 = 1 + 3 E xy + 3 E x^2 y^2 + E x^3 y^3."""
    moments = {0: (1, 0, 1, 0), 1: (1, 1, 2, 4)}

    def mean(a, b):
        return sum(c * moments[a][i] * moments[b][i] for i, c in enumerate((1, 3, 3, 1)))

    exact = mean(0, 0) + mean(1, 1) - 2 * mean(0, 1)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 30, 1)), 1 + rng.normal(size=(200, 30, 1))
    values = np.asarray(jax.jit(jax.vmap(divergences.kid))(x, y))
    assert abs(values.mean() - exact) < 4 * values.std() / 200**0.5

"""Theorems about W2 brackets, total variation and intervals from paired samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from qdiffjax import estimates
from qdiffjax.analysis import divergences
from qdiffjax.diffusion import gaussian
from tests.tolerances import assert_close

KEY = jax.random.key(0)
w2_lower = jax.jit(divergences.w2_lower)


def pairs(seed, num, n, noise=0.3):
    """Samples and a distorted copy: scaled, shifted, perturbed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, n)) @ rng.normal(size=(n, n)) / np.sqrt(n)
    return x, 1.1 * x + 0.2 * rng.normal(size=(n,)) + noise * rng.normal(size=(num, n))


def optimal_transport(x, y):
    """Exact W2 of two empirical laws by linear assignment."""
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    return np.sqrt(cost[optimize.linear_sum_assignment(cost)].mean())


@pytest.mark.parametrize(("num", "n"), [(30, 4), (6, 20)])
@pytest.mark.parametrize("noise", [0.0, 0.3, 2.0])
def test_the_bracket_holds_the_exact_distance_of_the_samples(num, n, noise):
    for seed in range(4):
        x, y = pairs(seed, num, n, noise)
        exact = optimal_transport(x, y)
        low = float(w2_lower(x, y, KEY))
        assert low <= exact * (1 + 1e-12)
        assert exact <= float(divergences.w2_coupling(x, y).value) * (1 + 1e-12)


def test_a_translation_attains_all_three():
    x = np.random.default_rng(0).normal(size=(5, 7))
    shift = np.arange(7.0)
    distance = np.linalg.norm(shift)
    np.testing.assert_allclose(w2_lower(x, x + shift, KEY), distance, rtol=1e-12)
    np.testing.assert_allclose(divergences.w2_coupling(x, x + shift).value, distance, rtol=1e-12)
    squared = divergences.gelbrich_squared(x, x + shift)
    np.testing.assert_allclose(squared, distance**2, rtol=1e-12)
    frame = divergences.orthonormal_frames(KEY, 1, 7)
    sliced = 7 * divergences.sliced_w2_squared(x, x + shift, frame)
    np.testing.assert_allclose(sliced, distance**2, rtol=1e-12)


def test_the_lower_bound_never_exceeds_a_small_translation():
    """Independent directions would, in about half of all draws; a full frame cannot."""
    x = np.random.default_rng(1).normal(size=(4, 9))
    values = [w2_lower(x, x + 1e-3, jax.random.key(k)) for k in range(20)]
    np.testing.assert_allclose(values, 3e-3, rtol=1e-9)


def test_between_equal_moments_the_lower_bound_is_n_times_that_of_the_directions():
    """+-sqrt(k) with mass 1 / k and else 0, against +-1: one mean and covariance, another law."""
    n, k = 3, 4
    x = np.concatenate([s * k**0.5 * np.eye(n) for s in (1, -1)] + [np.zeros((2 * n * (k - 1), n))])
    y = np.concatenate([s * np.eye(n) for s in (1, -1)] * k)
    assert abs(divergences.gelbrich_squared(x, y)) < 1e-12
    frame = np.asarray(divergences.orthonormal_frames(KEY, 1, n))
    gaps = np.sort(x @ frame.T, axis=0) - np.sort(y @ frame.T, axis=0)
    np.testing.assert_allclose(w2_lower(x, y, KEY), np.sqrt(np.mean(np.sum(gaps**2, 1))), rtol=1e-9)
    assert float(w2_lower(x, y, KEY)) > 0.3


def textbook_gelbrich(x, y):
    cov_x, cov_y = (np.cov(a, rowvar=False, bias=True) for a in (x, y))
    values = np.linalg.eigvals(cov_x @ cov_y).real
    cross = np.sqrt(np.maximum(values, 0)).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y) - 2 * cross


@pytest.mark.parametrize(("num", "n"), [(40, 5), (6, 5), (5, 12), (12, 12)])
def test_gelbrich_is_that_of_the_sample_moments_however_few_samples(num, n):
    x, y = pairs(2, num, n)
    expected = textbook_gelbrich(x, y)
    # Roots of the eigenvalues that should be zero: sqrt(eps).
    np.testing.assert_allclose(divergences.gelbrich_squared(x, y), expected, atol=1e-6)
    moments = (np.mean(x, 0), np.cov(x, rowvar=False, bias=True))
    moments += (np.mean(y, 0), np.cov(y, rowvar=False, bias=True))
    gauss = gaussian.gaussian_w2_squared(*moments)
    np.testing.assert_allclose(divergences.gelbrich_squared(x, y), gauss, rtol=1e-6)


def test_gelbrich_keeps_its_digits_between_close_samples_in_float32():
    """Stretching each of two orthogonal centred axes by 1 + h costs h^2 trace(cov)."""
    x = np.array([[1, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0]], np.float32)
    h = np.float32(2.0**-12)
    got = divergences.gelbrich_squared(x, x * (1 + h))
    np.testing.assert_allclose(got, 2.5 * float(h) ** 2, rtol=1e-2)


def test_frames_are_orthonormal_and_average_squares_exactly():
    """The mean over a frame of <u, z>^2 is |z|^2 / n."""
    frames = divergences.orthonormal_frames(KEY, 3, 6).reshape(3, 6, 6)
    assert_close(jnp.einsum("fij,fkj->fik", frames, frames), np.stack([np.eye(6)] * 3), factor=100)
    z = np.arange(1.0, 7.0)
    means = np.mean((np.asarray(frames) @ z) ** 2, axis=1)
    assert_close(means, np.full(3, 91 / 6), factor=100)


def test_frames_are_isotropic():
    """E u u^T = I / n for each row of a random frame, within 5 standard errors."""
    rows = np.asarray(divergences.orthonormal_frames(KEY, 2000, 3)).reshape(2000, 3, 3)
    second = np.einsum("fri,frj->rij", rows, rows) / 2000
    np.testing.assert_allclose(second, np.stack([np.eye(3) / 3] * 3), atol=5 * 0.3 / 2000**0.5)


def test_on_the_line_the_sorted_coupling_is_optimal():
    x, y = np.random.default_rng(3).normal(size=(2, 25, 1))
    assert_close(divergences.w2_squared_1d(x, y), np.array([optimal_transport(x, y) ** 2]))
    assert_close(divergences.sliced_w2_squared(x, y, np.ones((1, 1))), optimal_transport(x, y) ** 2)


def test_samples_may_have_any_shape():
    x, y = pairs(4, 6, 12)
    images = (a.reshape(6, 2, 3, 2) for a in (x, y))
    assert_close(w2_lower(*images, KEY), w2_lower(x, y, KEY), factor=100)


def test_the_coupling_of_a_worked_case():
    """Squared gaps 1, 9: mean 5, standard error 4; root of 5 and of 5 +- 1.96 * 4 from 0 on."""
    out = divergences.w2_coupling(np.zeros((2, 2)), np.array([[1.0, 0], [0, 3.0]]))
    assert_close(jnp.stack(out), np.sqrt([5.0, 0.0, 12.84]))


def test_the_bootstrapped_bracket_holds_the_exact_distance():
    x, y = pairs(5, 30, 4)
    bracket = divergences.w2_bracket(x, y, key=KEY, num=50)
    exact = divergences.assignment_w2_squared(x, y) ** 0.5
    assert float(bracket.lower.value) <= exact <= float(bracket.upper.value)
    coupling = divergences.w2_coupling(x, y)
    assert_close(bracket.upper.value, coupling.value)
    width, clt = (float(e.high - e.low) for e in (bracket.upper, coupling))
    assert 0.4 < width / clt < 1.6  # 50 resamples of few rows


def test_assignment_undoes_any_permutation_of_a_small_translation():
    x = np.arange(10.0).reshape(5, 2)
    y = (x + 0.01)[[3, 1, 4, 0, 2]]
    np.testing.assert_allclose(divergences.assignment_w2_squared(x, y), 2e-4, rtol=1e-9)


def test_w2_of_gaussians_is_the_root_of_its_square():
    """Commuting covariances: |m|^2 + sum (sqrt a - sqrt b)^2, by hand 9 + 1 + 4."""
    laws = np.zeros(2), np.diag([1.0, 4.0]), np.array([3.0, 0]), np.diag([4.0, 16.0])
    assert_close(divergences.gaussian_w2_squared(*laws), np.array(14.0), factor=100)
    assert_close(divergences.gaussian_w2(*laws), np.sqrt(14.0), factor=100)


@pytest.mark.parametrize("fn", [divergences.gelbrich_squared, divergences.w2_coupling])
def test_unpaired_samples_are_refused(fn):
    with pytest.raises(ValueError, match="same noise"):
        fn(np.zeros((3, 2)), np.zeros((4, 2)))


# Total variation.


def test_both_bounds_hold_for_shifted_gaussians():
    """N(0, 1), N(d, 1): TV = 2 Phi(d / 2) - 1, KL = d^2 / 2."""
    d = np.array([1e-3, 0.1, 1.0, 2.0, 5.0])
    exact = 2 * stats.norm.cdf(d / 2) - 1
    for bound in divergences.total_variation_bounds(d**2 / 2):
        assert np.all(exact <= bound)


def test_pinsker_is_the_smaller_up_to_a_known_kl():
    pinsker, bretagnolle = divergences.total_variation_bounds(np.array([1.5, 1.7, 50.0]))
    np.testing.assert_array_equal(pinsker < bretagnolle, [True, False, False])
    assert bretagnolle[2] <= 1


# Intervals.


def test_the_mean_interval_of_a_worked_case():
    """0, 2, 4: mean 2, standard deviation 2, standard error 2 / sqrt(3)."""
    out = estimates.mean_interval(np.array([0.0, 2.0, 4.0]))
    half = 1.96 * 2 / np.sqrt(3)
    assert_close(jnp.stack(out), np.array([2.0, 2.0 - half, 2.0 + half]))


def test_the_mean_interval_covers_in_about_95_percent_of_all_cases():
    out = estimates.mean_interval(np.random.default_rng(0).normal(size=(50, 4000)))
    covered = np.mean((out.low <= 0) & (out.high >= 0))
    assert 0.93 <= covered <= 0.96


def test_one_sample_has_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        estimates.mean_interval(np.ones((1,)))


def test_the_bootstrap_keeps_pairs_together():
    """y = x + 1: the mean gap of any paired resample is 1."""
    x = np.random.default_rng(0).normal(size=20)
    out = estimates.bootstrap(lambda x, y: jnp.mean(y - x), x, x + 1, key=KEY, num=50)
    assert_close(jnp.stack(out), np.ones(3), factor=100)


def test_the_bootstrap_of_a_mean_agrees_with_the_clt():
    x = np.random.default_rng(1).normal(size=400)
    out = estimates.bootstrap(jnp.mean, x, key=KEY, num=1000)
    clt = estimates.mean_interval(x)
    width = float(clt.high - clt.low)
    np.testing.assert_allclose(out.high - out.low, width, rtol=0.1)
    np.testing.assert_allclose(out.low, clt.low, atol=0.1 * width)


def test_the_bootstrap_refuses_unpaired_arrays():
    with pytest.raises(ValueError, match="paired"):
        estimates.bootstrap(jnp.mean, np.ones(3), np.ones(4), key=KEY)

"""Theorems about KL from densities and from samples: Gaussians and mixtures know the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from qdiffjax import diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close


def mixture_kl(key, p, q, num, *, control=False):
    """Return KL(p || q) of two Gaussian mixtures from num samples of p, with interval []."""
    x = gaussian.sample_mixture(key, p, num)
    return divergences.log_ratio_kl(
        gaussian.log_prob(p, x), gaussian.log_prob(q, x), control=control
    )


KEY = jax.random.key(0)
P = gaussian_law(np.array([0.3, -0.2]), np.array([[0.8, 0.2], [0.2, 0.5]]))
Q = gaussian_law(np.array([0.0, 0.1]), np.array([[1.0, -0.1], [-0.1, 0.6]]))
EXACT = float(gaussian.gaussian_kl(P.means[0], P.covs[0], Q.means[0], Q.covs[0]))


def within(estimate, exact, errors=3.0):
    """|estimate - exact| <= errors standard errors, read off the 95 % interval."""
    half = float(estimate.high - estimate.low) / 2 / 1.96
    return abs(float(estimate.value) - exact) <= errors * half


@pytest.mark.parametrize("control", [False, True])
def test_monte_carlo_kl_of_gaussians_is_the_closed_form(control):
    assert within(mixture_kl(KEY, P, Q, 20_000, control=control), EXACT)


def test_monte_carlo_kl_of_mixtures_is_the_integral():
    p = gaussian.GaussianMixture(np.array([0.3, 0.7]), np.array([[-1.0], [0.5]]),
                                 np.array([[[0.2]], [[0.5]]]))  # fmt: skip
    q = gaussian.GaussianMixture(np.array([0.5, 0.5]), np.array([[-0.8], [0.6]]),
                                 np.array([[[0.4]], [[0.5]]]))  # fmt: skip
    x = np.linspace(-12, 12, 20_001)[:, None]
    log_p, log_q = (np.asarray(gaussian.log_prob(m, x)) for m in (p, q))
    exact = float(np.sum(np.exp(log_p) * (log_p - log_q)) * 24 / 20_000)
    assert within(mixture_kl(KEY, p, q, 20_000), exact)


def test_the_control_resolves_a_kl_that_plain_sampling_cannot():
    """N(0, 1), N(1e-3, 1): KL = 5e-7; 1000 plain samples have the standard error 3e-5."""
    p, q = (gaussian_law(np.array([m]), np.eye(1)) for m in (0.0, 1e-3))
    plain = mixture_kl(KEY, p, q, 1000)
    control = mixture_kl(KEY, p, q, 1000, control=True)
    assert float(plain.high - plain.low) > 5e-5
    assert float(control.high - control.low) < 1e-7
    assert within(control, 5e-7)


def test_likelihoods_of_two_smooth_networks_give_the_kl_of_their_flows():
    """eps_hat = 1.1 eps on N(0, c^2): variance c_0^2 of both flows in closed form, one dimension.

    In x / alpha with s = sigma_edm the flow is dx/ds = g s x / (c^2 + s^2), g the gain: x grows
    with (c^2 + s^2)^(g / 2), so the variance at s_0 is v_T ((c^2 + s_0^2) / (c^2 + s_T^2))^g.
    """
    process, c2, gain = diffusion.EDM(), 0.5, 1.1
    times = np.geomspace(0.1, 10.0, 129)
    law = gaussian_law(np.zeros(1), c2 * np.eye(1))
    exact_fn = gaussian.eps_fn_for(process)
    v_T = c2 + times[-1] ** 2
    prior = lambda x: -(x[:, 0] ** 2) / (2 * v_T) - jnp.log(2 * jnp.pi * v_T) / 2  # noqa: E731
    variances = [v_T * ((c2 + times[0] ** 2) / v_T) ** g for g in (1.0, gain)]
    x = np.sqrt(variances[0]) * np.random.default_rng(0).normal(size=(500, 1))

    @jax.jit
    def log_prob(gain):
        fn = lambda params, x, t: gain * exact_fn(params, x, t)  # noqa: E731
        return diffusion.log_likelihood(fn, law, process, x, times, prior_fn=prior).log_prob

    found = divergences.log_ratio_kl(log_prob(1.0), log_prob(gain), control=True)
    ratio = variances[0] / variances[1]
    log_ratio = (np.log(ratio) + (1 - ratio) * x[:, 0] ** 2 / variances[0]) / 2  # log q / p
    np.testing.assert_allclose(found.value, np.mean(np.expm1(log_ratio) - log_ratio), rtol=1e-6)
    assert within(found, (ratio - 1 - np.log(ratio)) / 2)


# Nearest neighbours and bins.


@pytest.mark.parametrize("num_neighbours", [1, 5])
def test_nearest_neighbours_find_the_kl_of_gaussians(num_neighbours):
    rng = np.random.default_rng(2)
    x, y = (np.asarray(rng.multivariate_normal(m.means[0], m.covs[0], 4000)) for m in (P, Q))
    found = divergences.knn_kl(x, y, num_neighbours=num_neighbours)
    assert within(found, EXACT)


def test_the_neighbour_estimate_of_a_worked_case():
    """x = 0, 1; y = 3, 5, k = 1: rho = 1, 1; nu = 3, 2; mean log nu / rho + log(2 / 1)."""
    found = divergences.knn_kl(np.array([0.0, 1.0]), np.array([3.0, 5.0]), num_neighbours=1)
    assert_close(found.value, np.array(np.log(6) / 2 + np.log(2)))


def test_the_interval_of_the_neighbour_estimate_covers():
    """60 estimates on the line, where the bias is small; the spread of the terms covers 0.73."""
    rng = np.random.default_rng(8)
    draws = [(rng.normal(size=1000), rng.normal(size=1000) + 0.8) for _ in range(60)]
    _, low, high = np.array([divergences.knn_kl(*draw) for draw in draws]).T
    assert np.mean((low <= 0.32) & (high >= 0.32)) > 0.85


def test_too_few_samples_for_two_blocks_have_no_interval():
    found = divergences.knn_kl(np.arange(6.0), np.arange(6.0) + 0.5)
    assert np.isinf(found.high)
    assert np.isfinite(found.value)


def test_neighbour_estimates_are_invariant_under_rotation_and_scale():
    x, y = np.random.default_rng(3).normal(size=(2, 50, 3))
    turn = 7 * np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    moved = divergences.knn_kl(x @ turn, y @ turn)
    np.testing.assert_allclose(moved.value, divergences.knn_kl(x, y).value, rtol=1e-10)


def test_many_dimensions_are_warned_of():
    x, y = np.random.default_rng(0).normal(size=(2, 30, 11))
    with pytest.warns(UserWarning, match="11 dimensions"):
        divergences.knn_kl(x, y)


@pytest.mark.parametrize(("x", "message"), [(np.zeros(30), "coincid"), (np.arange(3.0), "more")])
def test_neighbours_need_distinct_points_and_enough_of_them(x, message):
    with pytest.raises(ValueError, match=message):
        divergences.knn_kl(x, np.arange(30.0) + 0.5)


def test_the_histogram_estimate_is_unbiased_between_equal_laws():
    """Mean of 400 estimates between equal laws: 0, within 3 standard errors."""
    x, y = np.random.default_rng(5).normal(size=(2, 400, 300))
    found = jax.jit(jax.vmap(divergences.histogram_kl))(x, y)
    assert within(estimates.mean_interval(found), 0.0)


def test_the_histogram_estimate_approaches_the_kl_from_below():
    """N(0, 1), N(1/2, 1): KL = 1/8; 8 bins lose some, 64 less."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=20_000), rng.normal(size=20_000) + 0.5
    coarse, fine = (float(divergences.histogram_kl(x, y, num_bins=b)) for b in (4, 64))
    assert coarse < fine < 0.125 + 3 * 0.5 / 2e4**0.5
    assert fine > 0.11


# Projections.


def test_projections_lose_kl_and_an_invertible_frame_loses_none():
    laws = P.means[0], P.covs[0], Q.means[0], Q.covs[0]
    for angle in np.linspace(0, np.pi, 7):
        frame = np.array([[np.cos(angle), np.sin(angle)]])
        assert 0 <= float(divergences.gaussian_projected_kl(*laws, frame)) <= EXACT
    full = divergences.gaussian_projected_kl(*laws, np.array([[1.0, 2.0], [0.0, 3.0]]))
    np.testing.assert_allclose(full, EXACT, rtol=1e-12)


def test_the_discriminant_direction_keeps_all_kl_of_a_shift():
    """Equal covariances: the direction C^-1 (m_1 - m_2) is sufficient (Fisher)."""
    shift = P.means[0] - Q.means[0]
    frame = np.linalg.solve(P.covs[0], shift)[None]
    seen = divergences.gaussian_projected_kl(P.means[0], P.covs[0], Q.means[0], P.covs[0], frame)
    np.testing.assert_allclose(seen, shift @ np.linalg.solve(P.covs[0], shift) / 2, rtol=1e-12)


def test_measured_projections_agree_with_the_closed_form():
    rng = np.random.default_rng(7)
    x, y = (rng.multivariate_normal(m.means[0], m.covs[0], 4000) for m in (P, Q))
    frames = np.array([[[1.0, 0.0]], [[0.6, 0.8]]])
    found = divergences.projected_kl(x, y, frames)
    for i, frame in enumerate(frames):
        laws = P.means[0], P.covs[0], Q.means[0], Q.covs[0]
        exact = float(divergences.gaussian_projected_kl(*laws, frame))
        assert within(estimates.Estimate(*(leaf[i] for leaf in found)), exact)


def test_total_variation_of_a_negative_estimate_is_zero_and_of_none_is_nan():
    for found in divergences.total_variation_bounds(jnp.array([-1e-3, -0.0, 0.0, jnp.nan])):
        np.testing.assert_array_equal(found, [0, 0, 0, np.nan])


def test_of_17_nats_192_samples_show_what_the_findings_say():
    """KL(N(0, 1) || N(0, v)) = (1 / v - 1 + log v) / 2 = 17, or |shift|^2 / 2 = 17."""
    v = optimize.brentq(lambda v: (1 / v - 1 + np.log(v)) / 2 - 17, 1e-3, 1)
    rng = np.random.default_rng(0)
    others = {1.3: lambda z: v**0.5 * z, 4.4: lambda z: z + 34**0.5}
    for said, other in others.items():
        x, y = rng.normal(size=(2, 20, 192, 1))
        found = np.mean([divergences.knn_kl(a, other(b)).value for a, b in zip(x, y, strict=True)])
        assert round(float(found), 1) == said

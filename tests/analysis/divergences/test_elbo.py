"""Theorems about the weighted Delta L: Gaussian data and affine networks know every number.

An affine network makes Delta L quadratic in (x_0, eps), and the symmetric points +- sqrt(m) e_j,
whitened, integrate every quadratic in m Gaussian variables exactly: expectations without sampling.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis import divergences
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(6, 1e-2, 0.4)
MEAN, COV = np.array([0.5, -1.0]), np.array([[0.6, 0.2], [0.2, 0.3]])
EXACT = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), gaussian_law(MEAN, COV))
KAPPA, BIAS = 0.2, np.array([0.1, -0.05])
THETA_KAPPA, THETA_BIAS = -0.15, np.array([0.0, 0.2])


def distorted(kappa, bias):
    """The affine network (1 + kappa) eps + bias."""
    return lambda x, t, inputs, state=(): (
        (1 + kappa) * EXACT(x, t, None)[0] + bias[None],
        None,
        state,
    )


def exact_points():
    """x_0 and eps [8, 2] whose mean of any quadratic is its expectation."""
    units = np.concatenate([np.eye(4), -np.eye(4)]) * 2.0
    return MEAN + units[:, :2] @ np.linalg.cholesky(COV).T, units[:, 2:]


@jax.jit
def mean_gaps(kappa, bias, theta_kappa, theta_bias):
    """Exact E |d|^2 and E 2 <eps_theta - eps, d> at t = 1 ... T."""
    x_0, eps = exact_points()
    full, quantized = distorted(theta_kappa, theta_bias), distorted(kappa, bias)

    def one(t):
        gap = divergences.loss_gap(full, quantized, x_0, t, eps, SCHEDULE)
        return jnp.mean(gap.square), jnp.mean(gap.cross)

    return jax.lax.map(one, jnp.arange(1.0, 7.0))


def joint_forward():
    """Mean and covariance of q(x_T, ..., x_0)."""
    abar = SCHEDULE.alpha_bar
    eye, size = np.eye(2), 7
    mean = np.concatenate([np.sqrt(abar[t]) * MEAN for t in range(6, -1, -1)])
    cov = np.zeros((2 * size, 2 * size))
    for i, t in enumerate(range(6, -1, -1)):
        for j, s in enumerate(range(6, -1, -1)):
            low, high = min(s, t), max(s, t)
            block = np.sqrt(abar[high] / abar[low]) * (abar[low] * COV + (1 - abar[low]) * eye)
            cov[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = block
    return mean, cov


def joint_reverse(kappa, bias):
    """Mean and covariance of p(x_T, ..., x_0) under the DDPM kernels, noise in every step."""
    steps = diffusion.make_steps(
        SCHEDULE, np.arange(6, -1, -1),
        lambda t, s: diffusion.ddpm_coeffs(t, s, variance_fn=diffusion.forward_variance),
    )  # fmt: skip
    matrices, offsets = gaussian.affine_steps(MEAN, COV, SCHEDULE, steps, kappa=kappa, bias=bias)
    root, mean = np.zeros((14, 14)), np.zeros(14)
    root[:2, :2] = np.eye(2)
    for i in range(6):
        here, after = slice(2 * i, 2 * i + 2), slice(2 * i + 2, 2 * i + 4)
        root[after] = np.asarray(matrices[i]) @ root[here]
        root[after, after] = float(steps.coeffs.noise[i]) * np.eye(2)
        mean[after] = np.asarray(matrices[i]) @ mean[here] + np.asarray(offsets[i])
    return mean, root @ root.T


@pytest.mark.parametrize("theta", [(0.0, np.zeros(2)), (THETA_KAPPA, THETA_BIAS)])
def test_the_weighted_delta_l_is_the_change_of_the_kl_from_the_data(theta):
    """KL(q || p_hat) - KL(q || p) of the joint Gaussians, for the optimal theta and another."""
    square, cross = mean_gaps(KAPPA, BIAS, *theta)
    total = float(np.sum(divergences.elbo_weights(SCHEDULE) * np.asarray(square + cross)))
    q = joint_forward()
    kls = [gaussian.gaussian_kl(*q, *joint_reverse(*net)) for net in ((KAPPA, BIAS), theta)]
    np.testing.assert_allclose(total, float(kls[0] - kls[1]), rtol=1e-10)


def test_the_cross_term_vanishes_for_the_conditional_mean_only():
    square, cross = mean_gaps(KAPPA, BIAS, 0.0, np.zeros(2))
    np.testing.assert_allclose(cross, 0, atol=1e-13)
    assert np.all(np.asarray(square) > 0)
    _, cross = mean_gaps(KAPPA, BIAS, THETA_KAPPA, THETA_BIAS)
    assert np.min(np.abs(cross)) > 1e-3


def test_delta_l_is_negative_when_quantization_repairs_the_network():
    """eps_hat exact, eps_theta not: Delta L = -E |d|^2."""
    square, cross = mean_gaps(0.0, np.zeros(2), THETA_KAPPA, THETA_BIAS)
    assert_close(square + cross, -square, factor=1e3)


@pytest.mark.parametrize("num_times", [None, 4])
def test_sampled_gaps_agree_with_the_exact_sum(num_times):
    """All times, or four strata of six times."""
    x_0 = jnp.tile(exact_points()[0], (250, 1))  # no spread of their own: exact moments
    full, quantized = distorted(THETA_KAPPA, THETA_BIAS), distorted(KAPPA, BIAS)

    @jax.jit
    def total(key):
        gaps = divergences.elbo_gaps(full, quantized, x_0, SCHEDULE, key=key, num_times=num_times)
        return jnp.mean(jnp.sum(gaps.total, axis=0))

    # Strata share their random times among samples: the spread is over keys.
    sums = np.stack([total(jax.random.key(k)) for k in range(40)])
    square, cross = mean_gaps(KAPPA, BIAS, THETA_KAPPA, THETA_BIAS)
    exact = np.sum(divergences.elbo_weights(SCHEDULE) * np.asarray(square + cross))
    assert abs(sums.mean() - exact) <= 3 * sums.std(ddof=1) / 40**0.5
    assert sums.std(ddof=1) > 0


def test_local_errors_predict_the_weighted_delta_l():
    """At the forward process's states |e|^2 / 2 sigma^2 = w |d|^2, all of it in expectation."""
    x_0, eps = exact_points()
    steps = diffusion.ddpm(SCHEDULE, 6, variance_fn=diffusion.forward_variance)
    level = SCHEDULE(steps.t)
    xs = level.alpha[:, None, None] * x_0[None] + level.sigma[:, None, None] * eps[None]
    full = distorted(0.0, np.zeros(2))
    d = jnp.stack([distorted(KAPPA, BIAS)(x, t, None)[0] - full(x, t, None)[0]
                   for x, t in zip(xs, steps.t, strict=True)])  # fmt: skip
    found = divergences.local_kl(steps.coeffs.eps[:, None, None] * d, steps)
    square, _ = mean_gaps(KAPPA, BIAS, 0.0, np.zeros(2))
    expected = divergences.elbo_weights(SCHEDULE)[::-1] * np.asarray(square)[::-1]
    assert_close(jnp.mean(found, axis=1)[:-1], expected[:-1], factor=1e3)
    assert np.all(found[-1] == 0)  # Ho et al.'s last step adds no noise


def test_more_strata_than_times_are_refused():
    with pytest.raises(ValueError, match="num_times = 7"):
        divergences.elbo_gaps(EXACT, EXACT, np.zeros((1, 2)), SCHEDULE,
                              key=jax.random.key(0), num_times=7)  # fmt: skip

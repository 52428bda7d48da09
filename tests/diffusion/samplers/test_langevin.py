"""Theorems about critically damped Langevin diffusion: its law, its denoiser, its samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, stats

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

PROCESS = d.CLD()
MEAN, VARIANCE = 0.7, 0.36  # of the data, one dimension


def drift(process):
    r = process.rate
    return process.beta * np.array([[0.0, r**2], [-1.0, -2 * r]])


def law(process, t):
    """Mean [2] and covariance [2, 2] of (x_t, v_t) for x_0 ~ N(MEAN, VARIANCE)."""
    level = process.exact(t)
    spread = VARIANCE * np.outer(level.alpha, level.alpha)
    return MEAN * level.alpha, spread + level.sigma @ level.sigma.T


@pytest.mark.slow
@pytest.mark.parametrize("process", [d.CLD(), d.CLD(8.0, 1.5, 1.0)])
def test_the_levels_solve_the_moment_equations(process):
    """dm = A m dt and dC = (A C + C A^T + G G^T) dt, integrated numerically."""
    a, noise = drift(process), np.diag([0.0, 4 * process.beta / process.rate])

    def slope(t, y):
        mean, cov = y[:2], y[2:].reshape(2, 2)
        return np.concatenate([a @ mean, (a @ cov + cov @ a.T + noise).ravel()])

    first = [1.0, 0.0, 0.0, 0.0, 0.0, process.start / process.rate**2]
    times = np.array([0.0, 1e-3, 0.1, 0.5, 1.0])
    found = integrate.solve_ivp(slope, (0, 1), first, "DOP853", times, rtol=1e-12, atol=1e-14).y.T
    level = process.exact(times)
    cov = level.sigma @ np.swapaxes(level.sigma, 1, 2)
    np.testing.assert_allclose(level.alpha, found[:, :2], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(cov.reshape(-1, 4), found[:, 2:], rtol=1e-8, atol=1e-12)
    for ours, exact in zip(process(jnp.asarray(times)), level, strict=True):
        assert_close(ours, exact, factor=64)


def test_damping_is_critical():
    """The drift has the double eigenvalue -r beta and one eigenvector only."""
    a = drift(PROCESS) / PROCESS.beta + PROCESS.rate * np.eye(2)
    assert np.all(a @ a == 0)
    assert np.any(a != 0)


def test_position_without_noise_at_the_start_and_equilibrium_at_the_end():
    first, last = d.CLD().exact(0.0), d.CLD(beta=40.0).exact(1.0)
    assert_close(first.sigma, np.array([[0.0, 0.0], [0.0, 0.2 / 2]]))
    assert_close(last.sigma, np.diag(PROCESS.equilibrium))
    assert np.all(np.abs(last.alpha) < 1e-30)


@pytest.mark.slow
def test_single_precision_levels_are_accurate_near_the_data():
    t = np.float32(1e-3)
    exact = PROCESS.exact(t)
    np.testing.assert_allclose(PROCESS(t).sigma, exact.sigma, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_the_denoiser_is_that_of_the_joint_gaussian_law():
    """eps = sigma^-1 (u - alpha E[x_0 | u]) by the normal equations, x_0 of two dimensions."""
    mean, cov, t = np.array([0.5, -1.0]), np.array([[0.6, 0.3], [0.3, 0.9]]), 0.4
    alpha, sigma = PROCESS.exact(t)
    u = np.random.default_rng(0).normal(size=(3, 2, 2))
    to_u = np.kron(alpha[:, None], np.eye(2))
    noise = np.kron(sigma @ sigma.T, np.eye(2))
    gain = cov @ to_u.T @ np.linalg.inv(to_u @ cov @ to_u.T + noise)
    x_0 = mean + (u.reshape(3, 4) - to_u @ mean) @ gain.T
    expected = np.einsum("jk,bkn->bjn", np.linalg.inv(sigma), u - alpha[:, None] * x_0[:, None])
    eps_fn = d.cld_eps_fn_for(PROCESS)
    found = eps_fn(gaussian_law(mean, cov), jnp.asarray(u), jnp.float64(t))
    assert_close(found, expected, factor=1e3)


def test_the_velocity_half_of_eps_is_its_score():
    """eps_v = -sigma_vv d log p / dv, by differentiating SciPy's density."""
    t, u, h = 0.3, np.array([0.4, -0.2]), 1e-6
    density = stats.multivariate_normal(*law(PROCESS, t)).logpdf
    slope = (density(u + np.array([0, h])) - density(u - np.array([0, h]))) / (2 * h)
    data = gaussian_law(np.array([MEAN]), VARIANCE * np.eye(1))
    eps = d.cld_eps_fn_for(PROCESS)(data, jnp.asarray(u).reshape(1, 2, 1), jnp.float64(t))
    np.testing.assert_allclose(eps[0, 1, 0], -PROCESS.exact(t).sigma[1, 1] * slope, rtol=1e-7)


@pytest.mark.slow
def test_the_exact_denoiser_has_the_posterior_variance_as_its_loss():
    """E (eps_v - E[eps_v | u])^2 = 1 - (sigma^T C^-1 sigma)_vv, averaged over uniform times."""

    def eps_fn(params, u, t):
        law_of = jax.vmap(lambda u, t: d.cld_eps_fn_for(PROCESS)(params, u[None], t)[0])
        return law_of(u, t)

    times = (np.arange(2000) + 0.5) / 2000
    roots, covs = PROCESS.exact(times).sigma, np.stack([law(PROCESS, t)[1] for t in times])
    variance = 1 - np.einsum("tij,tij->t", roots[..., 1:], np.linalg.solve(covs, roots[..., 1:]))
    num, key = 8000, jax.random.key(0)
    x_0 = MEAN + np.sqrt(VARIANCE) * jax.random.normal(key, (num, 1))
    data = gaussian_law(np.array([MEAN]), VARIANCE * np.eye(1))
    found = jax.jit(lambda x: d.cld_loss(eps_fn, data, jax.random.fold_in(key, 1), x, PROCESS))(x_0)
    second = 3 * np.mean(variance**2)  # fourth moment of a Gaussian, over times
    assert abs(found - variance.mean()) < 5 * np.sqrt((second - variance.mean() ** 2) / num)


def final_law(steps, process, mean, cov):
    """The exact moments at the end: every step is affine, for eps = sigma^T C^-1 (u - m)."""
    x, eps, noise = (np.asarray(leaf) for leaf in steps.coeffs)
    for i, t in enumerate(np.asarray(steps.t)):
        m, c = law(process, t)
        jacobian = process.exact(t).sigma.T @ np.linalg.inv(c)
        move = x[i] + eps[i] @ jacobian
        mean = move @ mean - eps[i] @ jacobian @ m
        cov = move @ cov @ move.T + noise[i] @ noise[i].T
    return mean, cov


def half_move(process, c, mean, cov):
    """The first half step A of SSCS, by the matrix exponential and the equilibrium it keeps."""
    r = process.rate
    move = linalg.expm(c / r * np.array([[0.0, -(r**2)], [1.0, -2 * r]]))
    rest = np.diag(process.equilibrium**2)
    return move @ mean, move @ cov @ move.T + rest - move @ rest @ move.T


def errors(method, nums, start=0.8, end=0.1, process=PROCESS):
    found = []
    for num in nums:
        steps = method(process, d.power_times(start, end, int(num)))
        first = law(process, start)
        if method is d.sscs:
            half = process.beta * (start - end) / num / 2
            first = half_move(process, process.rate * half, *first)
        (mean, cov), (m, c) = final_law(steps, process, *first), law(process, end)
        found.append(np.linalg.norm(np.append(mean - m, (cov - c).ravel())))
    return np.array(found)


def euler(process, times):
    return d.cld_euler_maruyama(process, times, eta=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", [d.cld_euler_maruyama, euler, d.sscs])
def test_moments_converge_with_order_one(method):
    coarse, fine = -np.diff(np.log2(errors(method, [256, 512, 1024])))
    assert abs(2 * fine - coarse - 1) < 0.1


def test_symmetric_splitting_is_seven_times_as_accurate():
    """A finding: same order, much smaller constant, as its authors report for few steps."""
    plain, split = (errors(m, [64])[0] for m in (d.cld_euler_maruyama, d.sscs))
    assert split < plain / 5


def test_splitting_keeps_the_equilibrium_if_the_network_says_so():
    """eps_v / sigma_vv = r^2 v switches S off, and A alone keeps N(0, diag(1, 1 / r^2))."""
    steps = d.sscs(PROCESS, d.power_times(1.0, 0.0, 5))
    x, eps, noise = (np.asarray(leaf) for leaf in steps.coeffs)
    cov = rest = np.diag(PROCESS.equilibrium**2)
    for i, t in enumerate(np.asarray(steps.t)):
        gain = PROCESS.rate**2 * PROCESS.exact(t).sigma[1, 1] * np.diag([0.0, 1.0])
        move = x[i] + eps[i] @ gain
        cov = move @ cov @ move.T + noise[i] @ noise[i].T
        assert_close(cov, rest)


def test_euler_maruyama_is_one_step_of_the_reverse_sde_by_hand():
    """b = 4 * 0.25 = 1, r = 2: x - 4 v; v + (x + 4 v) - 2 eps_v / sigma_vv + sqrt(2) z."""
    steps = d.cld_euler_maruyama(PROCESS, [0.75, 0.5])
    x, eps, noise = (np.asarray(leaf)[0] for leaf in steps.coeffs)
    assert_close(x, np.array([[1.0, -4.0], [1.0, 5.0]]))
    assert_close(eps, np.array([[0, 0], [0, -2 / PROCESS.exact(0.75).sigma[1, 1]]]))
    assert_close(noise, np.array([[0, 0], [0, np.sqrt(2)]]))


def test_sampling_applies_the_matrices_to_axis_one():
    steps = d.cld_euler_maruyama(PROCESS, d.power_times(0.9, 0.1, 4))
    data = gaussian_law(np.array([MEAN]), VARIANCE * np.eye(1))
    u = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 1)))
    eps_fn, key = d.cld_eps_fn_for(PROCESS), jax.random.key(0)
    found = jax.jit(lambda u: d.sample(d.bind(eps_fn, data), u, steps, key=key).x_0)(u)
    expected = np.asarray(u)[:, :, 0]
    for i, t in enumerate(np.asarray(steps.t)):
        x, eps, noise = (np.asarray(leaf)[i] for leaf in steps.coeffs)
        m, c = law(PROCESS, t)
        e = (expected - m) @ np.linalg.inv(c) @ PROCESS.exact(t).sigma
        z = np.asarray(d.step_noise(key, i, u))[:, :, 0]
        expected = expected @ x.T + e @ eps.T + z @ noise.T
    assert_close(found[:, :, 0], expected, factor=1e3)


def test_what_needs_scalar_coefficients_says_so():
    steps = d.cld_euler_maruyama(PROCESS, [0.75, 0.5])
    with pytest.raises(ValueError, match="got matrix coefficients"):
        gaussian.gaussian_chain(np.zeros(2), np.eye(2), PROCESS, steps)
    with pytest.raises(ValueError, match="got matrix coefficients"):
        d.pad(steps, 3, 2)
    with pytest.raises(ValueError, match="strictly descending"):
        d.sscs(PROCESS, [0.5, 0.75])

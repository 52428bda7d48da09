"""Theorems about Gaussian laws along a sampler, and about KL and W2 between Gaussians."""

from decimal import Decimal, getcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, stats

from qdiffjax import diffusion
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(20, 1e-3, 0.3)
n = 3

gaussian_chain = jax.jit(gaussian.gaussian_chain, static_argnums=2)
affine_steps = jax.jit(gaussian.affine_steps, static_argnums=2)
gaussian_kl, w2_squared = map(jax.jit, (gaussian.gaussian_kl, gaussian.gaussian_w2_squared))


def law(seed, size=n):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return rng.normal(size=size), root @ root.T + 0.3 * np.eye(size)


def test_the_ddpm_chain_obeys_the_scalar_recursion():
    """s_{t-1} = K^2 s_t + sigma_t^2 with K = sqrt(1 - beta_t) v_{t-1} / v_t."""
    beta, c = np.linspace(1e-3, 0.3, 20), 0.6
    abar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    v = abar * c**2 + 1 - abar
    expected = [1.0]
    for t in range(20, 0, -1):
        gain = np.sqrt(1 - beta[t - 1]) * v[t - 1] / v[t]
        noise = beta[t - 1] * (1 - abar[t - 1]) / (1 - abar[t])
        expected.append(gain**2 * expected[-1] + noise)
    chain = gaussian_chain(np.zeros(1), c**2 * np.eye(1), SCHEDULE, diffusion.ddpm(SCHEDULE, 20))
    assert_close(chain.covs[:, 0, 0], np.array(expected), factor=1e3)
    np.testing.assert_array_equal(chain.means, np.zeros((21, 1)))


@pytest.mark.parametrize("num_steps", [1, 6, 20])
def test_with_the_exact_reverse_variance_every_state_has_the_true_marginal(num_steps):
    mean, c = np.array([1.0, -2.0]), 0.7

    def v(level):
        return level.alpha**2 * c**2 + level.sigma**2

    def reverse_variance(t, s):
        return diffusion.forward_variance(t, s) * v(s) / v(t)

    times = diffusion.uniform_times(20, num_steps)
    steps = diffusion.make_steps(
        SCHEDULE, times, lambda t, s: diffusion.ddpm_coeffs(t, s, variance_fn=reverse_variance)
    )
    level = SCHEDULE.exact(times)
    start = (level.alpha[0] * mean, v(level)[0] * np.eye(2))
    chain = gaussian_chain(mean, c**2 * np.eye(2), SCHEDULE, steps, start=start)
    assert_close(chain.means, level.alpha[:, None] * mean, factor=100)
    assert_close(chain.covs, v(level)[:, None, None] * np.eye(2), factor=100)


def test_affine_steps_are_the_sampler_on_the_perturbed_network():
    mean, cov = law(0)
    steps = diffusion.ddim(SCHEDULE, 4)
    kappa, bias = jnp.array([0.1, -0.2, 0.0, 0.05]), jnp.asarray(law(5)[0])
    exact = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), gaussian_law(mean, cov))

    def call_fn(x, t, kappa, state=()):
        eps, _, state = exact(x, t, None)
        return (1 + kappa) * eps + bias, None, state

    x = jnp.asarray(law(9)[0])
    xs = jax.jit(lambda x: diffusion.sample(call_fn, x, steps, per_call=kappa).xs)(x)
    matrices, offsets = affine_steps(mean, cov, SCHEDULE, steps, kappa=kappa, bias=bias)
    moved = jnp.einsum("tij,tj->ti", matrices, xs[:-1]) + offsets
    assert_close(moved, xs[1:], factor=100)


def test_the_chain_is_the_law_of_simulated_samples():
    mean, cov = law(2)
    num, kappa, bias = 20_000, 0.3, jnp.array([0.5, 0.0, -1.0])
    steps = diffusion.ddpm(SCHEDULE, 4)
    chain = gaussian_chain(mean, cov, SCHEDULE, steps, kappa=kappa, bias=bias)
    exact = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), gaussian_law(mean, cov))

    def call_fn(x, t, inputs, state=()):
        eps, _, state = exact(x, t, inputs)
        return (1 + kappa) * eps + bias[None, :], None, state

    x_T = jax.random.normal(jax.random.key(0), (num, n))
    run = jax.jit(lambda x, key: diffusion.sample(call_fn, x, steps, key=key).x_0)
    x = np.asarray(run(x_T, jax.random.key(1)))
    centred = x - np.asarray(chain.means[-1])
    products = centred[:, :, None] * centred[:, None, :]
    assert np.all(np.abs(centred.mean(0)) < 5 * x.std(0) / np.sqrt(num))
    tolerance = 5 * products.std(0) / np.sqrt(num)
    assert np.all(np.abs(products.mean(0) - np.asarray(chain.covs[-1])) < tolerance)


def test_a_relative_error_kappa_turns_the_exponent_one_half_into_one_half_of_one_plus_kappa():
    """PF-ODE in x / alpha: std gain (c^2 / (c^2 + sigma_edm^2))^((1 + kappa) / 2); slope -1."""
    schedule, c, kappa = diffusion.linear(), 0.5, 0.2
    abar = schedule.alpha_bar[-1]
    exponent = (1 + kappa) / 2
    exact = (c**2 / (c**2 + (1 - abar) / abar)) ** exponent / np.sqrt(abar)
    num_steps, errors = [250, 500, 1000], []
    for num in num_steps:
        steps = diffusion.ddim(schedule, num)
        chain = gaussian_chain(np.zeros(1), c**2 * np.eye(1), schedule, steps, kappa=kappa)
        errors.append(abs(float(chain.covs[-1, 0, 0]) ** 0.5 - exact))
    assert abs(np.polyfit(np.log(num_steps), np.log(errors), 1)[0] + 1) < 0.1


def test_covariances_along_a_chain_stay_symmetric_and_float32_stays_float32():
    mean, cov = law(3)
    chain = gaussian_chain(mean.astype(np.float32), cov, SCHEDULE, diffusion.ddpm(SCHEDULE, 20))
    chex.assert_type([chain.means, chain.covs], jnp.float32)
    np.testing.assert_array_equal(chain.covs, chain.covs.swapaxes(1, 2))


def test_kl_is_the_integral_of_its_definition():
    (m1, s1), (m2, s2) = (0.3, 0.7), (-0.5, 1.1)
    p, q = stats.norm(m1, s1), stats.norm(m2, s2)
    expected = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 8, epsabs=1e-13, points=[m1]
    )[0]
    kl = gaussian_kl(np.array([m1]), np.array([[s1**2]]), np.array([m2]),
                              np.array([[s2**2]]))  # fmt: skip
    assert_close(kl, expected, factor=1e3)


def test_kl_is_the_textbook_formula():
    (m1, c1), (m2, c2) = law(0, 5), law(1, 5)
    d, inverse = m2 - m1, np.linalg.inv(c2)
    logdets = np.linalg.slogdet(c2)[1] - np.linalg.slogdet(c1)[1]
    expected = 0.5 * (np.trace(inverse @ c1) + d @ inverse @ d - 5 + logdets)
    np.testing.assert_allclose(gaussian_kl(m1, c1, m2, c2), expected, rtol=1e-12)


@pytest.mark.parametrize("h", ["1e-8", "1e-5", "0.9e-3", "1.1e-3", "0.5"])
def test_kl_of_close_laws_keeps_its_relative_accuracy(h):
    getcontext().prec = 50
    # cov_1 = (1 + h) cov_2 in one dimension: KL = (h - log(1 + h)) / 2.
    rounded = Decimal(float(1 + float(h))) - 1
    expected = float((rounded - (1 + rounded).ln()) / 2)
    cov = np.array([[float(1 + rounded)]])
    kl = gaussian_kl(np.zeros(1), cov, np.zeros(1), np.ones((1, 1)))
    np.testing.assert_allclose(kl, expected, rtol=1e-12)


def test_kl_of_a_law_that_is_flat_in_one_direction_is_infinite():
    flat, round_ = np.diag([1.0, 0.0]), np.eye(2)
    assert gaussian_kl(np.zeros(2), flat, np.zeros(2), round_) == np.inf


def test_w2_is_the_quantile_distance_in_one_dimension():
    m1, s1, m2, s2 = 0.3, 0.7, -0.5, 1.1
    square = w2_squared(np.array([m1]), np.array([[s1**2]]), np.array([m2]), np.array([[s2**2]]))
    assert_close(square, (m1 - m2) ** 2 + (s1 - s2) ** 2)


def test_w2_is_the_trace_formula():
    (m1, c1), (m2, c2) = law(0, 5), law(1, 5)
    root = linalg.sqrtm(c1)
    cross = linalg.sqrtm(root @ c2 @ root).real
    expected = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * cross)
    np.testing.assert_allclose(w2_squared(m1, c1, m2, c2), expected, rtol=1e-12)


def test_w2_is_symmetric_and_unchanged_by_rotation():
    (m1, c1), (m2, c2) = law(0), law(1)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    expected = w2_squared(m1, c1, m2, c2)
    turned = w2_squared(q @ m1, q @ c1 @ q.T, q @ m2, q @ c2 @ q.T)
    assert_close(w2_squared(m2, c2, m1, c1), expected, factor=100)
    assert_close(turned, expected, factor=100)


@pytest.mark.parametrize("h", [1e-9, 1e-4])
def test_w2_of_close_laws_keeps_its_relative_accuracy(h):
    mean, cov = law(4)
    square = w2_squared(mean, cov, mean, (1 + h) ** 2 * cov)
    # The roots differ by h root: their rounding, a few eps, is relative to h.
    np.testing.assert_allclose(square, h**2 * np.trace(cov), rtol=1e-13 / h)


def test_w2_to_a_point_mass_is_the_second_moment():
    mean, cov = law(6)
    square = w2_squared(mean, cov, np.zeros(n), np.zeros((n, n)))
    assert_close(square, mean @ mean + np.trace(cov), factor=64)


def test_affine_steps_of_a_sampler_with_memory_are_the_sampler_on_its_whole_state():
    mean, cov = law(0)
    process, bias = diffusion.VP(), jnp.asarray(law(5)[0])
    steps = diffusion.unipc(process, diffusion.power_times(0.9, 0.1, 4), order=2)
    exact = diffusion.bind(gaussian.eps_fn_for(process), gaussian_law(mean, cov))

    def call_fn(x, t, kappa, state=()):
        return (1 + kappa) * exact(x, t, None)[0] + bias[None], None, state

    kappa, x = jnp.array([0.1, -0.2, 0.0, 0.05]), jnp.asarray(law(9)[0])[None]
    states = jax.jit(lambda x: diffusion.sample(call_fn, x, steps, per_call=kappa).states)(x)
    flat = states.reshape(5, -1)  # batch of one, slots, n
    matrices, offsets = affine_steps(mean, cov, process, steps, kappa=kappa, bias=bias)
    moved = jnp.einsum("tij,tj->ti", matrices, flat[:-1]) + offsets
    assert_close(moved, flat[1:], factor=1e3)


def test_one_noise_reaches_all_slots_together():
    """y = (x + 2 z, x - z) from x ~ N(0, 1): covariances 1 + 4, 1 + 1 and 1 - 2."""
    (x, _), _, z = diffusion.basis(2)
    call = diffusion.Call(1.0, 0.5, x, (x + 2 * z, x - z))
    chain = gaussian_chain(
        np.zeros(1), np.eye(1), diffusion.VP(), diffusion.assemble([call]), start=None
    )
    assert_close(chain.covs[1], np.array([[5.0, -1.0], [-1.0, 2.0]]))
    assert_close(chain.covs[0], np.array([[1.0, 0.0], [0.0, 0.0]]))

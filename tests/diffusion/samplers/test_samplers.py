"""Theorems about sampler coefficients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from qdiffjax import diffusion
from qdiffjax.diffusion import NoiseLevel, gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close


def ve(times):
    """EDM's process: no scaling, sigma grows."""
    return NoiseLevel(np.ones(np.shape(times)), np.asarray(times) / 50.0)


PROCESSES = [diffusion.linear().exact, diffusion.cosine().exact, ve]
processes = pytest.mark.parametrize("process", PROCESSES, ids=["linear", "cosine", "ve"])
T, S = np.array([1000, 700, 400, 2]), np.array([400, 699, 1, 1])


def zero_noise(steps):
    return steps._replace(coeffs=steps.coeffs._replace(noise=jnp.zeros_like(steps.coeffs.noise)))


def final(call_fn, x_T, steps):
    return jax.jit(lambda x: diffusion.sample(call_fn, x, steps).x_0)(x_T)


def slope(num_steps, errors):
    return np.polyfit(np.log(num_steps), np.log(errors), 1)[0]


@processes
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_step_preserves_the_marginal_of_point_mass_data(process, eta):
    t, s = process(T), process(S)
    c = diffusion.ddim_coeffs(t, s, eta=eta)
    gain = c.x + c.eps / t.sigma  # eps(x) = (x - alpha_t m) / sigma_t, any m
    assert_close(c.x * t.alpha, s.alpha)
    # x and eps cancel: the rounding of x sigma_t, 1e4 at the end of cosine, is what is left.
    assert_close(
        (gain * t.sigma) ** 2 + c.noise**2, s.sigma**2, scale=float(np.max(c.x * t.sigma**2))
    )


@processes
def test_ddim_with_eta_one_is_ancestral_ddpm(process):
    t, s = process(T), process(S)
    ddim = diffusion.ddim_coeffs(t, s, eta=1.0)
    ddpm = diffusion.ddpm_coeffs(t, s)
    for a, b in zip(ddim, ddpm, strict=True):
        assert_close(a, b, factor=1e3)  # kept - x sigma_t cancels when t and s are close


def test_ddim_coefficients_are_those_of_song_et_al_equations_12_and_16():
    schedule, eta = diffusion.linear(), 0.7
    a_t, a_s = schedule.alpha_bar[T], schedule.alpha_bar[S]
    noise = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
    x_t, eps = 0.3, -1.1
    x_0 = (x_t - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
    c = diffusion.ddim_coeffs(schedule.exact(T), schedule.exact(S), eta=eta)
    expected = np.sqrt(a_s) * x_0 + np.sqrt(1 - a_s - noise**2) * eps
    assert_close(c.x * x_t + c.eps * eps, expected, factor=1e3)
    assert_close(c.noise, noise, factor=1e3)


def test_ddpm_mean_is_the_posterior_mean_at_the_predicted_x_0():
    schedule = diffusion.linear()
    a_t, a_s = schedule.alpha_bar[T], schedule.alpha_bar[S]
    alpha, beta = a_t / a_s, 1 - a_t / a_s
    x_t, eps = 0.3, -1.1
    x_0 = (x_t - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
    expected = (np.sqrt(a_s) * beta * x_0 + np.sqrt(alpha) * (1 - a_s) * x_t) / (1 - a_t)  # eq. 7
    c = diffusion.ddpm_coeffs(schedule.exact(T), schedule.exact(S))
    assert_close(c.x * x_t + c.eps * eps, expected, factor=1e3)


def test_one_ddpm_step_is_ho_et_al_equation_11():
    beta = np.linspace(1e-4, 0.02, 1000)
    schedule, t = diffusion.linear(), np.array([2, 500, 1000])
    b, sigma = beta[t - 1], np.sqrt(1 - np.cumprod(1 - beta)[t - 1])
    c = diffusion.ddpm_coeffs(
        schedule.exact(t), schedule.exact(t - 1), variance_fn=diffusion.forward_variance
    )
    assert_close(c.x, 1 / np.sqrt(1 - b))
    # beta is a difference of alpha_bar, so eps(float64) / beta_min = 2e-12 is what one can ask.
    np.testing.assert_allclose(c.eps, -b / (sigma * np.sqrt(1 - b)), rtol=1e-10)
    np.testing.assert_allclose(c.noise**2, b, rtol=1e-10)


@processes
def test_variances_are_those_of_the_joint_gaussian(process):
    t, s = process(T), process(S)
    covariance = t.alpha / s.alpha * s.sigma**2  # of x_t and x_s given x_0
    given_both = s.sigma**2 - covariance**2 / t.sigma**2
    given_x_s = t.sigma**2 - covariance**2 / s.sigma**2
    assert_close(diffusion.posterior_variance(t, s), given_both)
    assert_close(diffusion.forward_variance(t, s), given_x_s)


@processes
def test_forward_variances_compose(process):
    t, m, s = process(900), process(500), process(100)
    composed = (t.alpha / m.alpha) ** 2 * diffusion.forward_variance(
        m, s
    ) + diffusion.forward_variance(t, m)
    assert_close(diffusion.forward_variance(t, s), composed)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_of_no_length_is_the_identity(eta):
    level = diffusion.cosine().exact(np.array([3, 500]))
    c = diffusion.ddim_coeffs(level, level, eta=eta)
    for leaf, expected in zip(c, (1.0, 0.0, 0.0), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=3e-8)  # sqrt(eps(float64)) through 1 - r^2


def test_coefficients_accept_traced_levels_and_eta():
    schedule = diffusion.linear()

    def coeffs(t, s, eta):
        return diffusion.ddim_coeffs(schedule(t), schedule(s), eta=eta)

    expected = diffusion.ddim_coeffs(schedule.exact(T), schedule.exact(S), eta=0.5)
    for a, b in zip(jax.jit(coeffs)(T, S, 0.5), expected, strict=True):
        assert_close(a, b, factor=1e3)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_ddim_reaches_point_mass_data_in_any_number_of_steps(num_steps):
    schedule, data = diffusion.linear(10, 0.1, 0.5), jnp.array([[2.0, -1.0]])
    point = gaussian_law(data[0], jnp.zeros((2, 2)))
    call_fn = diffusion.bind(gaussian.eps_fn_for(schedule), point)
    x_T = jnp.array([[0.3, 5.0]])
    assert_close(final(call_fn, x_T, diffusion.ddim(schedule, num_steps)), data,
                 factor=100)  # fmt: skip


def test_every_sampler_ends_without_noise():
    schedule = diffusion.linear(10)
    for steps in (
        diffusion.ddim(schedule, 5, eta=1.0),
        diffusion.ddpm(schedule, 5),
        diffusion.ddpm(schedule, 5, variance_fn=diffusion.forward_variance),
    ):
        assert steps.coeffs.noise[-1] == 0.0
        assert np.all(np.asarray(steps.coeffs.noise[:-1]) > 0.0)
        np.testing.assert_array_equal(steps.t, [10, 8, 6, 4, 2])
        np.testing.assert_array_equal(steps.s, [8, 6, 4, 2, 0])


@pytest.mark.slow
@pytest.mark.parametrize("c", [0.5, 2.0])
def test_ddim_converges_to_the_probability_flow_of_gaussian_data_with_slope_minus_one(c):
    schedule, mean = diffusion.linear(), jnp.array([1.0, -0.5])
    data = gaussian_law(mean, c**2 * jnp.eye(2))
    call_fn = diffusion.bind(gaussian.eps_fn_for(schedule), data)
    x_T = jnp.array([0.7, -1.3])
    abar = schedule.alpha_bar[-1]
    standardized = (x_T - np.sqrt(abar) * mean) / np.sqrt(abar * c**2 + 1 - abar)
    num_steps = [250, 500, 1000]
    errors = [
        np.linalg.norm(final(call_fn, x_T, diffusion.ddim(schedule, n))
                       - (mean + c * standardized))
        for n in num_steps
    ]  # fmt: skip
    assert abs(slope(num_steps, errors) + 1) < 0.1


@pytest.mark.slow
def test_ddim_converges_to_the_monotone_rearrangement_of_a_1d_mixture():
    schedule = diffusion.linear()
    w, mu, s = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.4, 0.6])
    mixture = gaussian.GaussianMixture(w, mu[:, None], (s**2)[:, None, None])
    call_fn = diffusion.bind(gaussian.eps_fn_for(schedule), mixture)
    x_T = np.array([-1.2, 0.1, 1.4])
    abar = schedule.alpha_bar[-1]

    def cdf(x, mean, std):
        return np.sum(w * stats.norm.cdf(x, mean, std))

    targets = [cdf(x, np.sqrt(abar) * mu, np.sqrt(abar * s**2 + 1 - abar)) for x in x_T]
    exact = [optimize.brentq(lambda x, q=q: cdf(x, mu, s) - q, -9, 9) for q in targets]
    num_steps = [250, 500, 1000]
    errors = [
        np.linalg.norm(
            final(call_fn, jnp.asarray(x_T)[:, None], diffusion.ddim(schedule, n))
            - np.array(exact)[:, None]
        )
        for n in num_steps
    ]
    assert errors[-1] < 1e-2
    assert abs(slope(num_steps, errors) + 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 7, 100])
def test_the_ddpm_mean_map_of_gaussian_data_telescopes(num_steps):
    schedule, c = diffusion.linear(100, 1e-3, 0.1), 0.6
    call_fn = diffusion.bind(
        gaussian.eps_fn_for(schedule), gaussian_law(jnp.array([2.0]), c**2 * jnp.eye(1))
    )
    steps = zero_noise(diffusion.ddpm(schedule, num_steps))
    gain = jax.jacfwd(lambda x: final(call_fn, x, steps))(jnp.array([0.4]))
    abar = schedule.alpha_bar[-1]
    expected = np.sqrt(abar) * c**2 / (abar * c**2 + 1 - abar)
    assert_close(gain[0, 0], expected, factor=1e3)


@pytest.mark.parametrize("eta", [-0.1, 1.5, 2])
def test_eta_outside_zero_to_one_is_refused(eta):
    with pytest.raises(ValueError, match="at least 0 and at most 1"):
        diffusion.ddim(diffusion.linear(), 10, eta=eta)


@pytest.mark.parametrize("times", [[3, 5, 0], [5], [5, 5, 0], [[5, 0]]])
def test_times_that_do_not_descend_are_refused(times):
    with pytest.raises(ValueError, match="strictly descending"):
        diffusion.make_steps(diffusion.linear(), times, diffusion.ddim_coeffs)


def test_steps_are_the_same_with_64_bit_types_off():
    schedule = diffusion.linear()
    exact = diffusion.ddim(schedule, 50, eta=1.0)
    with jax.enable_x64(False):
        steps = diffusion.ddim(schedule, 50, eta=1.0)
    expected = jax.tree.map(lambda a: np.asarray(a).astype(np.float32), exact)
    chex.assert_trees_all_equal(steps, expected, strict=True)


@pytest.mark.parametrize(("num_steps", "eta"), [(5, 0.0), (7, 0.8), (1, 0.0), (50, 0.0)])
def test_ddim_on_the_linspace_grid_of_diffusers_is_its_loop_by_hand(num_steps, eta):
    """timesteps = linspace(0, T - 1, N), prev = timestep - T // N, alpha_bar 1 below timestep 0."""
    schedule, num_train, key = diffusion.linear(50), 50, jax.random.key(2)
    x_T = jax.random.normal(jax.random.key(0), (4, 2))
    fn = jax.jit(lambda x, t: jnp.tanh(x) + t / 100)
    steps = diffusion.ddim_linspace(schedule, num_steps, eta=eta)
    call_fn = diffusion.bind(lambda params, x, t: fn(x, t), None)
    actual = jax.jit(lambda x: diffusion.sample(call_fn, x, steps, key=key).x_0)(x_T)
    table, x = schedule.alpha_bar[1:], np.asarray(x_T)
    for i, k in enumerate(np.linspace(0, num_train - 1, num_steps).round()[::-1].astype(int)):
        before = k - num_train // num_steps
        a, a_prev = table[k], table[before] if before >= 0 else 1.0
        eps = np.asarray(fn(jnp.asarray(x), k + 1.0))
        x_0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        std = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        noise = np.asarray(diffusion.step_noise(key, i, x_T))
        x = np.sqrt(a_prev) * x_0 + np.sqrt(1 - a_prev - std**2) * eps + std * noise
    assert_close(actual, x, factor=1e4)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_discrete_schedule_without_derivatives_is_refused_with_the_way_out(name):
    with pytest.raises(TypeError, match=r"process: got a DiscreteSchedule.* take edm_heun or ddim"):
        getattr(diffusion, name)(diffusion.linear(), diffusion.uniform_times(1000, 4))

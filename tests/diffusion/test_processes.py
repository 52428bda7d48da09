"""Theorems about continuous processes."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy import integrate

from qdiffjax import diffusion as d
from tests.tolerances import assert_close


def learned(seed=0):
    """A schedule far from linear."""
    return d.init_log_snr(jax.random.key(seed), width=5, first=9.0, last=-7.0)._replace(
        slope=-3.0, in_weight=np.array([60.0, 30.0, 99.0, 5.0, 1.0]),
        in_bias=np.array([-1.0, -1.5, -3.0, 0.0, 1.0]),
    )  # fmt: skip


PROCESSES = [d.VP(), d.SubVP(), d.VE(), d.EDM(), d.Flow(), d.Cosine(), d.Learned(learned())]
names = [type(process).__name__ for process in PROCESSES]
processes = pytest.mark.parametrize("process", PROCESSES, ids=names)
TIMES = np.array([1e-3, 0.1, 0.5, 0.9])


def test_vp_is_song_et_al_equation_32():
    process, t = d.VP(beta_min=0.1, beta_max=20.0), 0.3
    log_alpha = -(t**2) * (20.0 - 0.1) / 4 - t * 0.1 / 2
    level = process.exact(t)
    assert_close(level.alpha, np.exp(log_alpha))
    assert_close(level.sigma, np.sqrt(1 - np.exp(2 * log_alpha)))
    assert_close(d.SubVP().exact(t).sigma, 1 - np.exp(2 * log_alpha))


def test_ve_edm_and_flow_are_their_definitions():
    assert_close(np.array(d.VE(0.01, 50.0).exact(0.5)), np.array([1.0, np.sqrt(0.01 * 50.0)]))
    assert_close(np.array(d.EDM().exact(3.0)), np.array([1.0, 3.0]))
    assert_close(np.array(d.Flow().exact(0.25)), np.array([0.75, 0.25]))
    assert_close(np.array(d.Cosine().exact(1 / 3)), np.array([np.sqrt(3) / 2, 0.5]))


@pytest.mark.slow
@processes
def test_velocity_is_the_derivative_of_the_level(process):
    def level(t):
        return jnp.stack(process(t))

    slopes = jax.vmap(jax.jacfwd(level))(jnp.asarray(TIMES)).T
    assert_close(np.stack(process.velocity(TIMES)), slopes, factor=64)


@pytest.mark.slow
@processes
def test_the_rates_are_those_of_the_sde_that_has_these_levels(process):
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2; Karras et al. 2022, eq. 30."""
    t = jnp.asarray(TIMES)
    f = jax.vmap(jax.grad(lambda v: jnp.log(process(v).alpha)))(t)
    growth = jax.vmap(jax.grad(lambda v: process(v).sigma ** 2))(t)
    assert_close(process.drift(t), f, factor=64)
    assert_close(process.diffusion_squared(t), growth - 2 * f * process(t).sigma ** 2, factor=64)
    exact = process.exact_rates(TIMES)
    assert_close(np.stack(exact), np.stack([process.drift(t), process.diffusion_squared(t)]))


@processes
def test_the_level_is_the_variance_that_the_sde_builds_up(process):
    """sigma_t^2 = (alpha_t / alpha_s)^2 sigma_s^2 + int_s^t (alpha_t / alpha_u)^2 g_u^2 du."""
    s, t = 0.2, 0.7
    at, start = process.exact(t), process.exact(s)

    def integrand(u):
        return (at.alpha / process.exact(u).alpha) ** 2 * process.exact_rates(u).diffusion_squared

    built, _ = integrate.quad(integrand, s, t, epsabs=0, epsrel=1e-12)
    assert_close(at.sigma**2, (at.alpha / start.alpha * start.sigma) ** 2 + built, factor=1e3)


@processes
@given(t=st.floats(1e-6, 0.999))
@settings(max_examples=30, deadline=None)
def test_time_is_the_inverse_of_log_snr(process, t):
    recovered = process.time(2 * d.half_log_snr(process.exact(t)))
    # Rounding of log-SNR moves t by eps |log_snr| / |d log_snr / dt|.
    slope = sum(
        abs(v / leaf) for v, leaf in zip(process.velocity(t), process.exact(t), strict=True)
    )
    reach = (1 + abs(2 * d.half_log_snr(process.exact(t)))) / slope
    assert_close(recovered, np.float64(t), scale=max(reach, t))


@processes
def test_log_snr_falls_with_time(process):
    log_snr = d.half_log_snr(process.exact(np.linspace(1e-3, 0.99, 50)))
    assert np.all(np.diff(log_snr) < 0)


@processes
def test_a_process_is_static_and_has_the_dtype_of_t(process):
    level = jax.jit(lambda p, t: p(t), static_argnums=0)(process, jnp.asarray(TIMES, jnp.float32))
    assert level.alpha.dtype == level.sigma.dtype == jnp.float32
    assert_close(np.stack(level), np.stack(process.exact(TIMES)).astype(np.float32))
    assert process == copy.deepcopy(process)
    assert hash(process) == hash(copy.deepcopy(process))


def test_an_interpolated_schedule_keeps_its_table_and_has_a_constant_beta_between():
    schedule = d.linear(10, 0.1, 0.5)
    process = d.Interpolated(schedule)
    times = np.arange(11)
    assert_close(np.stack(process.exact(times)), np.stack(schedule.exact(times)))
    beta = -np.log(1 - np.linspace(0.1, 0.5, 10))
    rates = process.exact_rates(np.array([0.5, 1.0, 1.5, 9.99]))
    assert_close(rates.diffusion_squared, beta[[0, 0, 1, 9]])
    assert_close(rates.drift, -beta[[0, 0, 1, 9]] / 2)
    middle = np.array([0.5, 4.5, 9.5])
    assert_close(process.time(2 * d.half_log_snr(process.exact(middle))), middle)
    assert_close(process.velocity(middle).alpha, -beta[[0, 4, 9]] / 2 * process.exact(middle).alpha)
    assert process == d.Interpolated(d.linear(10, 0.1, 0.5))
    inside = jax.jit(process)(jnp.asarray(middle))
    assert_close(np.stack(inside), np.stack(process.exact(middle)))


def test_a_schedule_of_zero_terminal_snr_cannot_be_interpolated():
    with pytest.raises(ValueError, match="stay at its integer times"):
        d.Interpolated(d.zero_terminal_snr(d.linear()))


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_a_learned_log_snr_falls_from_one_end_to_the_other_whatever_its_weights(seed, scale):
    rng = np.random.default_rng(seed)
    params = d.LogSNRParams(np.array([13.3, -5.0]), *(
        scale * rng.normal(size=shape) for shape in ((), (7,), (7,), (7,))
    ))  # fmt: skip
    log_snr = 2 * d.half_log_snr(d.Learned(params).exact(np.linspace(0, 1, 40)))
    assert np.all(np.diff(log_snr) < 0)
    assert_close(log_snr[[0, -1]], np.array([13.3, -5.0]), factor=1e3)


@pytest.mark.slow
def test_a_learned_schedule_with_a_flat_hidden_layer_is_linear_in_log_snr():
    params = d.LogSNRParams(np.array([10.0, -6.0]), 0.3, np.full(3, -800.0), np.ones(3), np.ones(3))
    t = jnp.linspace(0, 1, 9)
    assert_close(d.learned_log_snr(params, t), 10.0 - 16.0 * t)
    level = d.learned_level(params, t)
    assert_close(level.alpha**2 + level.sigma**2, np.ones(9))
    assert_close(level.alpha**2, 1 / (1 + np.exp(-(10.0 - 16.0 * np.asarray(t)))), factor=64)


@pytest.mark.slow
def test_a_learned_schedule_trains_in_both_modes():
    """Forward, reverse and finite differences agree in every parameter."""
    params, t = jax.tree.map(jnp.asarray, learned()), jnp.asarray(TIMES)
    flat, unravel = ravel_pytree(params)

    def total(v):
        return jnp.sum(d.learned_level(unravel(v), t).alpha * jnp.arange(1.0, 5.0))

    reverse, forward = jax.grad(total)(flat), jax.jacfwd(total)(flat)
    assert_close(reverse, forward, factor=64)
    steps = 1e-5 * jnp.eye(flat.size)
    slopes = jax.vmap(lambda e: (total(flat + e) - total(flat - e)) / 2e-5)(steps)
    np.testing.assert_allclose(reverse, slopes, rtol=1e-5, atol=1e-8)


def test_a_learned_schedule_that_rises_is_refused():
    with pytest.raises(ValueError, match=r"got log-SNR from -5\.0 to 13\.3"):
        d.Learned(d.init_log_snr(jax.random.key(0), first=-5.0, last=13.3))

"""Theorems about the forward process and the eps loss."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.diffusion import NoiseLevel, gaussian, losses
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(50, 1e-3, 0.2)

eps_loss = jax.jit(losses.prediction_loss, static_argnums=(0, 4))


@functools.partial(jax.jit, static_argnums=(0, 5))
def squared_errors(eps_fn, params, x_0, t, eps, schedule):
    """|eps - eps_fn(params, x_t, t)|^2 of each sample, the integrand of the loss."""
    residual = eps - eps_fn(params, losses.add_noise(x_0, eps, schedule(t)), t)
    return jnp.sum(residual**2, axis=tuple(range(1, residual.ndim)))


def zero_fn(params, x, t):
    return jnp.zeros_like(x)


def test_noise_is_added_sample_by_sample():
    x_0, eps = jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]]), jnp.array([[[1.0, -1.0]], [[0.5, 2.0]]])
    level = NoiseLevel(jnp.array([0.8, 0.0]), jnp.array([0.6, 1.0]))
    expected = np.array([[[1.4, 1.0]], [[0.5, 2.0]]])
    assert_close(losses.add_noise(x_0, eps, level), expected)
    assert_close(losses.add_noise(x_0[:1], eps[:1], NoiseLevel(0.8, 0.6)), expected[:1])


def test_a_network_that_knows_x_0_has_no_error():
    x_0 = jax.random.normal(jax.random.key(0), (4, 3, 2))
    eps = jax.random.normal(jax.random.key(1), x_0.shape)
    t = jnp.array([1.0, 10.0, 30.0, 50.0])

    def oracle(x_0, x, t):
        level = jax.tree.map(lambda leaf: leaf[:, None, None], SCHEDULE(t))
        return (x - level.alpha * x_0) / level.sigma

    errors = squared_errors(oracle, x_0, x_0, t, eps, SCHEDULE)
    assert errors.shape == (4,)
    # x - alpha x_0 cancels and is divided by sigma >= sqrt(1e-3).
    np.testing.assert_allclose(errors, np.zeros(4), atol=(1e2 * np.finfo(float).eps) ** 2)


def test_squared_errors_are_sums_over_the_elements():
    eps = jnp.array([[[3.0, 4.0]], [[1.0, 1.0]]])
    errors = squared_errors(zero_fn, None, eps, jnp.array([1.0, 2.0]), eps, SCHEDULE)
    assert_close(errors, np.array([25.0, 2.0]))


@pytest.mark.parametrize("shape", [(4000, 2), (1000, 4, 2, 1)])
def test_the_loss_of_answering_zero_is_one_per_element(shape):
    loss = eps_loss(zero_fn, None, jax.random.key(0), jnp.zeros(shape), SCHEDULE)
    assert loss.shape == ()
    assert abs(loss - 1) < 5 * np.sqrt(2 / 8000)  # five standard errors of a chi-square mean


def test_the_optimal_error_of_gaussian_data_is_its_posterior_variance():
    """E|eps - E[eps | x_t]|^2 = n alpha^2 c^2 / v at level t, v = alpha^2 c^2 + sigma^2."""
    n, num, c, t = 3, 4000, 0.7, 20
    data = gaussian_law(jnp.array([1.0, 0.0, -2.0]), c**2 * jnp.eye(n))
    x_0 = jax.jit(gaussian.sample_mixture, static_argnums=2)(jax.random.key(0), data, num)
    eps = jax.random.normal(jax.random.key(1), x_0.shape)
    errors = squared_errors(
        gaussian.eps_fn_for(SCHEDULE), data, x_0, jnp.full(num, float(t)), eps, SCHEDULE
    )
    abar = SCHEDULE.alpha_bar[t]
    expected = n * abar * c**2 / (abar * c**2 + 1 - abar)
    assert abs(errors.mean() - expected) < 5 * expected * np.sqrt(2 / (n * num))


@pytest.mark.slow
def test_the_loss_draws_every_time_but_zero():
    seen = []

    def eps_fn(params, x, t):
        seen.append(np.asarray(t))
        return x

    short = diffusion.linear(3, 0.1, 0.3)
    losses.prediction_loss(eps_fn, None, jax.random.key(0), jnp.zeros((200, 1)), short)
    assert set(seen[0].tolist()) == {1.0, 2.0, 3.0}


def test_the_loss_is_computed_in_float32_for_a_low_precision_network():
    def eps_fn(params, x, t):
        chex.assert_type([x, t], jnp.float32)
        return x.astype(jnp.bfloat16)

    x_0 = jnp.zeros((4, 2), jnp.float32)
    assert eps_loss(eps_fn, None, jax.random.key(0), x_0, SCHEDULE).dtype == jnp.float32

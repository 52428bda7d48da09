"""Theorems about the sampling loop."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.diffusion import StepCoeffs, Steps
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(20, 1e-3, 0.3)
N = 5


def eps_fn(params, x, t):
    return jnp.tanh(params * x) + SCHEDULE(t).sigma * jnp.cos(x)


CALL_FN = diffusion.bind(eps_fn, jnp.float64(0.8))


def x_T(dtype=jnp.float64):
    return jax.random.normal(jax.random.key(7), (3, 2), dtype)


def constant_steps(x, eps, noise):
    leaves = (jnp.full((N,), float(v)) for v in (x, eps, noise))
    return Steps(jnp.arange(N, 0.0, -1.0), jnp.arange(N - 1.0, -1.0, -1.0), StepCoeffs(*leaves))


def sample(*args, **kwargs):
    return jax.jit(lambda: diffusion.sample(*args, **kwargs))()


def at(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


@pytest.mark.parametrize("steps", [diffusion.ddim(SCHEDULE, N), diffusion.ddpm(SCHEDULE, N)])
def test_sampling_is_the_plain_loop_over_steps_that_replays_the_noise(steps):
    key, x = jax.random.key(1), x_T()
    states = [x]
    for i in range(N):
        c, noise = at(steps.coeffs, i), diffusion.step_noise(key, i, x)
        x = c.x * x + c.eps * CALL_FN(x, steps.t[i], None)[0] + c.noise * noise
        states.append(x)
    trajectory = sample(CALL_FN, x_T(), steps, key=key)
    assert_close(trajectory.xs, jnp.stack(states), factor=64)
    np.testing.assert_array_equal(trajectory.x_0, trajectory.xs[-1])


@pytest.mark.parametrize(("steps", "expected"), [
    (diffusion.ddim(SCHEDULE, N), True), (diffusion.ddpm(SCHEDULE, N), True),
    (diffusion.dpmpp_2m(SCHEDULE, np.arange(N)[::-1]), False),
    (diffusion.cld_euler_maruyama(diffusion.CLD(), [0.75, 0.5]), False),
], ids=["ddim", "ddpm", "slots", "matrices"])  # fmt: skip
def test_a_sampler_and_each_of_its_calls_are_first_order_if_scalars_move_x_alone(steps, expected):
    assert steps.is_first_order == expected
    assert at(steps, 0).is_first_order == expected
    assert jax.tree.map(lambda leaf: leaf[None], steps).is_first_order == expected


@pytest.mark.parametrize(("steps", "expected"), [
    (diffusion.ddim(SCHEDULE, N), False), (diffusion.ddim(SCHEDULE, N, eta=0.5), True),
    (diffusion.dpmpp_2m(SCHEDULE, np.arange(N)[::-1]), False),
    (diffusion.cld_euler_maruyama(diffusion.CLD(), [0.75, 0.5]), True),
], ids=["ddim", "eta", "slots", "matrices"])  # fmt: skip
def test_a_sampler_has_a_key_of_its_noise_if_it_adds_any(steps, expected):
    key = jax.random.key(0)
    assert steps.adds_noise == expected
    assert (steps.noise_key(key) is key) == expected


def test_with_unit_coefficients_the_increments_are_the_step_noises():
    key, x = jax.random.key(3), x_T()
    trajectory = diffusion.sample(CALL_FN, x, constant_steps(1, 0, 1), key=key)
    noises = [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i in range(N)]
    assert_close(np.diff(trajectory.xs, axis=0), np.stack(noises), scale=10.0)


def test_each_call_gets_its_slice_and_its_outputs_come_back_in_order():
    per_call = {"shift": jnp.arange(1.0, N + 1)}

    def call_fn(x, t, inputs, state=()):
        return jnp.full_like(x, inputs["shift"]), {"t": t, "square": inputs["shift"] ** 2}, state

    trajectory = diffusion.sample(call_fn, x_T(), constant_steps(1, 1, 0), per_call=per_call)
    assert_close(trajectory.x_0, x_T() + 15.0)
    np.testing.assert_array_equal(trajectory.outputs["t"], [5, 4, 3, 2, 1])
    np.testing.assert_array_equal(trajectory.outputs["square"], [1, 4, 9, 16, 25])


def test_runs_that_differ_in_data_share_one_compilation_and_one_scan():
    calls = []

    def call_fn(x, t, inputs, state=()):
        calls.append(t)
        return eps_fn(inputs, x, t), None, state

    def run(steps, key, gains):
        return diffusion.sample(call_fn, x_T(), steps, key=key, per_call=gains).x_0

    compiled = jax.jit(run)
    first = (diffusion.ddpm(SCHEDULE, N), jax.random.key(0), jnp.ones(N))
    compiled(*first)
    num_traced = len(calls)
    other = (diffusion.ddim(SCHEDULE, N, eta=0.3), jax.random.key(1), jnp.zeros(N))
    assert_close(compiled(*other), run(*other), factor=64)
    del calls[num_traced:]
    compiled(*first)
    assert len(calls) == num_traced
    # The state loop is the only scan: the network appears once, whatever N is.
    assert str(jax.make_jaxpr(run)(*first)).count("scan[") == 1


@pytest.mark.slow
def test_a_batch_of_recipes_under_vmap_is_each_recipe_alone():
    tables = [diffusion.ddim(SCHEDULE, N, eta=eta) for eta in (0.0, 0.5, 1.0)]
    key = jax.random.key(2)

    def run(steps):
        return diffusion.sample(CALL_FN, x_T(), steps, key=key).x_0

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
    alone = jnp.stack([run(steps) for steps in tables])
    assert_close(jax.vmap(run)(stacked), alone, factor=64)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_state_is_float32_whatever_the_dtype_of_the_network(dtype):
    def call_fn(x, t, inputs, state=()):
        chex.assert_type([x, t], jnp.float32)
        return jnp.zeros(x.shape, dtype), None, state

    x = x_T(jnp.float32)
    trajectory = diffusion.sample(call_fn, x, constant_steps(1, 1, 0))
    chex.assert_type(trajectory.xs, jnp.float32)
    np.testing.assert_array_equal(trajectory.x_0, x)  # not one bit is lost on the way
    assert diffusion.sample(call_fn, x.astype(dtype), constant_steps(1, 1, 0)).x_0.dtype == x.dtype


def test_a_float64_state_stays_float64_beside_a_float32_network():
    def call_fn(x, t, inputs, state=()):
        return x.astype(jnp.float32), None, state

    trajectory = diffusion.sample(call_fn, x_T(), constant_steps(1, 0, 0))
    assert trajectory.x_0.dtype == jnp.float64
    np.testing.assert_array_equal(trajectory.x_0, x_T())


def test_deterministic_steps_do_not_look_at_the_key():
    steps = diffusion.ddim(SCHEDULE, N)
    without = sample(CALL_FN, x_T(), steps)
    with_key = sample(CALL_FN, x_T(), steps, key=jax.random.key(0))
    np.testing.assert_array_equal(without.xs, with_key.xs)


def test_noisy_steps_without_a_key_are_refused():
    with pytest.raises(ValueError, match=r"got key=None .* pass key="):
        diffusion.sample(CALL_FN, x_T(), diffusion.ddpm(SCHEDULE, N))


def test_traced_deterministic_steps_need_no_key():
    run = jax.jit(lambda steps: diffusion.sample(CALL_FN, x_T(), steps).x_0)
    steps = diffusion.ddim(SCHEDULE, N)
    assert_close(run(steps), diffusion.sample(CALL_FN, x_T(), steps).x_0)


@pytest.mark.parametrize("per_call", [jnp.ones(N + 1), {"a": jnp.ones((N, 2)), "b": 1.0}])
def test_per_call_without_one_slice_per_call_is_refused(per_call):
    with pytest.raises(ValueError, match="one slice per network call"):
        diffusion.sample(CALL_FN, x_T(), diffusion.ddim(SCHEDULE, N), per_call=per_call)


def test_dropping_the_trajectory_changes_nothing_else():
    steps, key = diffusion.ddpm(SCHEDULE, N), jax.random.key(0)
    kept = sample(CALL_FN, x_T(), steps, key=key)
    dropped = sample(CALL_FN, x_T(), steps, key=key, keep_trajectory=False)
    assert dropped.xs is None
    assert_close(dropped.x_0, kept.x_0)


def test_the_gradient_of_a_sample_is_the_product_of_the_step_jacobians():
    steps, x = diffusion.ddim(SCHEDULE, N), jnp.array([0.3])
    trajectory = diffusion.sample(CALL_FN, x, steps)
    expected = 1.0
    for i in range(N):
        c, x_t = at(steps.coeffs, i), trajectory.xs[i]
        slope = 0.8 / jnp.cosh(0.8 * x_t) ** 2 - SCHEDULE(steps.t[i]).sigma * jnp.sin(x_t)
        expected = expected * (c.x + c.eps * slope)
    gradient = jax.grad(lambda v: diffusion.sample(CALL_FN, v, steps).x_0[0])(x)
    assert_close(gradient, expected, factor=64)

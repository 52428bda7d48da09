"""What a network call hands on to the next is part of the point that a run is at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis.errors import coherence, propagation, runs
from qdiffjax.analysis.gains import spectra, steps
from tests import worlds
from tests.analysis import coupled
from tests.tolerances import assert_close

RESIDUAL = jnp.zeros((worlds.BATCH, 2))
SAMPLERS = coupled.ALL_SAMPLERS
A, B, C, D = (worlds.normal(90 + i, 2, 2, scale=0.4) for i in range(4))


def feedback(x, t, inputs, state):
    """Rounds eps, and adds what rounding lost to the next call's: an error-feedback accumulator."""
    eps = worlds.fast(x, t, inputs)[0] + state
    rounded = worlds.grid(eps)
    return rounded, {"t": t}, eps - rounded


def affine(x, t, inputs, state):
    """A linear filter of the states seen so far: a call with memory and no curvature."""
    return x @ A + state @ B + t / 40, None, x @ C + state @ D


def moved(x, t, inputs, state):
    """Its low-precision self: both results off, and rounded."""
    eps, _, state = affine(worlds.grid(x), t, inputs, state)
    return worlds.grid(eps) + 0.1, None, worlds.grid(state)


def by_hand(call, steps, key, state):
    """The loop of `sample` on points, in Python."""
    zs = coupled.noise_path(steps, key, worlds.X_T)
    y, path = steps.coeffs.start(worlds.X_T), []
    for i in range(worlds.NUM_STEPS):
        path.append((y, state))
        coeffs = jax.tree.map(lambda a, i=i: a[i], steps.coeffs)
        eps, _, state = call(coeffs.read(y), steps.t[i], None, state)
        y = coeffs.advance(y, eps, zs[i])
    return [jnp.stack(a) for a in zip(*path, (y, state), strict=True)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_carries_the_state_from_call_to_call(name):
    table, key = SAMPLERS[name]
    run = jax.jit(lambda x: diffusion.sample(feedback, x, table, key=key, state=RESIDUAL))
    found, (ys, states) = run(worlds.X_T), by_hand(feedback, table, key, RESIDUAL)
    assert_close(found.states.x, ys, factor=64)
    assert_close(found.states.state, states, factor=64)
    assert_close(found.state, states[-1], factor=64)
    assert_close(found.x_0, table.coeffs.current(ys[-1]), factor=64)
    assert found.xs.shape == (worlds.NUM_STEPS + 1, *worlds.X_T.shape)
    assert np.all(np.linalg.norm(np.asarray(states[1:]), axis=(1, 2)) > 1e-3)
    alone = jax.jit(lambda x: diffusion.sample(
        feedback, x, table, key=key, state=RESIDUAL, keep_trajectory=False
    ))(worlds.X_T)  # fmt: skip
    assert_close(alone.state, found.state)


def test_calls_without_state_leave_arrays_and_the_program_that_knows_no_state():
    def plain(x, t, inputs, state):
        assert state == ()
        return worlds.fast(x, t, inputs)

    found = diffusion.sample(plain, worlds.X_T, worlds.DDIM)
    assert isinstance(found.states, jax.Array)
    assert found.state == ()
    text = str(jax.make_jaxpr(lambda x: diffusion.sample(plain, x, worlds.DDIM).states)(worlds.X_T))
    with_state = jax.make_jaxpr(
        lambda x: diffusion.sample(plain, x, worlds.DDIM, state=()).states
    )(worlds.X_T)  # fmt: skip
    assert str(with_state) == text


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_error_of_error_feedback_closes_the_recursion(name):
    """The full-precision denoiser hands the accumulator on as it is; its errors are those of x."""
    table, key = SAMPLERS[name]
    couple = jax.jit(lambda x: runs.couple(
        worlds.fast, feedback, x, table, key=key, state=RESIDUAL
    ))  # fmt: skip
    pair = couple(worlds.X_T)
    ys, states = by_hand(feedback, table, key, RESIDUAL)
    assert_close(pair.xs_hat.x, ys, factor=64)
    assert_close(pair.errors.x, ys - by_hand(worlds.fast, table, key, RESIDUAL)[0], factor=256)
    assert_close(pair.errors.state, states, factor=64)
    assert_close(pair.local_errors.state, jnp.diff(states, axis=0), factor=64, scale=1.0)
    terms = jax.jit(lambda p: propagation.fan(worlds.fast, p, table, key=key))(pair.xs_hat)
    assert_close(jnp.sum(terms.x, axis=0), pair.errors.x[-1], factor=256)


@pytest.fixture(scope="module", params=SAMPLERS)
def filtered(request):
    table, key = SAMPLERS[request.param]
    state = worlds.normal(94, worlds.BATCH, 2)
    couple = jax.jit(lambda x: runs.couple(affine, moved, x, table, key=key, state=state))
    return table, key, state, couple(worlds.X_T)


def test_first_order_is_exact_for_an_affine_sampler_with_state(filtered):
    table, _, _, pair = filtered
    run = jax.jit(lambda p: propagation.propagate_with_remainders(
        affine, p.xs, p.xs_hat, table, p.local_errors
    ))  # fmt: skip
    errors, rho = run(pair)
    jax.tree.map(lambda a, b: assert_close(a, b, factor=256), errors, pair.errors)
    jax.tree.map(lambda a: assert_close(a, np.zeros(a.shape), factor=64, scale=3.0), rho)
    alone = jax.jit(lambda p: propagation.propagate(affine, p.xs, table, p.local_errors))(pair)
    jax.tree.map(lambda a, b: assert_close(a, b, factor=64), alone, errors)
    assert np.min(np.abs(pair.errors.x[-1])) > 1e-3


def test_every_way_to_the_final_error_counts_what_the_state_carried(filtered):
    table, key, state, pair = filtered
    final = pair.errors.x[-1]
    shares = jax.jit(lambda e: coherence.split_error(
        affine, worlds.X_T, table, jax.tree.map(lambda a: a[None], e), num_nodes=1, key=key,
        state=state,
    ))(pair.local_errors)  # fmt: skip
    assert_close(shares[0], table.coeffs.current(final), factor=256)
    orders = jax.jit(lambda p: propagation.propagate_second_order(
        affine, p.xs, table, p.local_errors
    ))(pair)  # fmt: skip
    assert_close(orders.first.x[-1], final, factor=256)
    assert_close(orders.second.x, np.zeros(orders.second.x.shape), factor=64, scale=3.0)
    probes = coupled.axes(worlds.X_T)
    grams = jax.jit(lambda p: coherence.probed_gram(affine, p.xs, table, p.local_errors, probes))
    squares = np.sum(np.asarray(table.coeffs.current(final)) ** 2, axis=1)
    np.testing.assert_allclose(np.sum(grams(pair), axis=(1, 2)), squares, rtol=1e-10)


@pytest.mark.slow
def test_gains_are_those_of_the_step_of_the_pair(filtered):
    table, _, _, pair = filtered
    size = jax.tree.leaves(pair.xs)[0][0, 0].size + 2
    dense = [dense_jacobian(jax.tree.map(lambda a, i=i: a[i], table)) for i in range(6)]
    values = np.stack([np.linalg.svd(j)[1] for j in dense])
    run = jax.jit(
        lambda p: steps.step_gains(affine, p.xs, table, key=worlds.KEY, num_iterations=size)
    )
    np.testing.assert_allclose(run(pair).norms, values[:, :1] + np.zeros((1, 4)), rtol=1e-9)
    found = jax.jit(lambda p: spectra.step_spectra(affine, p.xs, table, num=2, key=worlds.KEY))(
        pair
    )
    assert np.all(found.values <= values[:, None, :2] * (1 + 1e-9))
    growth = jax.jit(lambda p: spectra.stretches(affine, p.xs, table, num=2, key=worlds.KEY))(pair)
    assert growth.shape == (worlds.NUM_STEPS + 1, worlds.BATCH, 2)


def dense_jacobian(row):
    """Jacobian of one step of the pair, every sample the same."""
    coeffs = row.coeffs
    start = coeffs.start(worlds.X_T[:1])

    def move(v):
        y, state = v[:-2].reshape(start.shape), v[-2:]
        eps, _, state = affine(coeffs.read(y), row.t, None, state[None])
        return jnp.concatenate([coeffs.advance(y, eps).ravel(), state.ravel()])

    return jax.jacfwd(move)(jnp.zeros(start.size + 2))

"""The analysis of a sampler with memory: its state, not x_t alone, is what errors travel in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis import divergences
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import ledger, prediction, propagation, runs
from qdiffjax.analysis.gains import steps as step_norms
from tests import worlds
from tests.analysis import coupled

STEPS = coupled.MULTISTEP
Q = coupled.quantized(5, 5)
FULL, HAT = coupled.calls(Q)


@pytest.fixture(scope="module")
def pair():
    return jax.jit(lambda: runs.couple(FULL, HAT, worlds.X_T, STEPS))()


def by_hand(call):
    """The two-step method as a loop over x and the last prediction; returns x_0."""
    x, last, c = worlds.X_T, None, worlds.DDIM.coeffs
    for i in range(worlds.NUM_STEPS):
        eps = call(x, worlds.DDIM.t[i], None)[0]
        mixed = eps if last is None else 1.5 * eps - 0.5 * last
        x, last = c.x[i] * x + c.eps[i] * mixed, eps
    return x


def test_the_table_runs_the_method_it_is_named_after(pair):
    for xs, call in ((pair.xs, FULL), (pair.xs_hat, HAT)):
        expected = jax.jit(functools.partial(by_hand, call))()
        np.testing.assert_allclose(xs[-1][:, 0], expected, rtol=1e-12, atol=1e-13)


def test_the_terms_of_the_fan_sum_to_the_error_of_the_state(pair):
    terms = jax.jit(lambda x: propagation.fan(FULL, x, STEPS))(pair.xs_hat)
    np.testing.assert_allclose(jnp.sum(terms, axis=0), pair.errors[-1], rtol=1e-10, atol=1e-12)


def test_first_order_with_its_remainders_is_exact(pair):
    _, rho = jax.jit(lambda p: propagation.propagate_with_remainders(
        FULL, p.xs, p.xs_hat, STEPS, p.local_errors
    ))(pair)  # fmt: skip
    by_jvp = jax.jit(lambda p: coupled.remainders(FULL, p.xs, p.xs_hat, STEPS))(pair)
    np.testing.assert_allclose(rho, by_jvp, rtol=1e-10, atol=1e-12)
    found = jax.jit(lambda p, e: propagation.propagate(FULL, p.xs, STEPS, e))(
        pair, pair.local_errors + rho
    )
    np.testing.assert_allclose(found, pair.errors, rtol=1e-10, atol=1e-12)
    alone = jax.jit(lambda p: propagation.propagate(FULL, p.xs, STEPS, p.local_errors))(pair)
    assert np.linalg.norm(alone - pair.errors) > 1e-4 * np.linalg.norm(pair.errors)


def test_the_homotopy_gives_the_final_error(pair):
    found = jax.jit(
        lambda e: coupled.homotopy(FULL, worlds.X_T, STEPS, e, num_nodes=5)
    )(pair.local_errors)  # fmt: skip
    np.testing.assert_allclose(found, pair.errors[-1][:, 0], rtol=1e-6, atol=1e-8)


def test_all_amounts_injected_are_the_quantized_run(pair):
    ones = {name: jnp.ones(worlds.NUM_STEPS) for name in worlds.NAMES}
    found = jax.jit(lambda: ledger.inject(Q, worlds.X_T, STEPS, ones))()
    np.testing.assert_allclose(found, pair.xs_hat[-1][:, 0], rtol=1e-10, atol=1e-12)


def test_the_gronwall_bound_holds_for_the_norm_of_the_state(pair):
    gains = jax.jit(
        lambda p: step_norms.segment_gains(FULL, p.xs, p.xs_hat, STEPS, key=worlds.KEY)
    )(pair)  # fmt: skip
    bound = pathwise.gronwall(gains.norms, runs.norms(pair.local_errors))
    assert np.all(runs.norms(pair.errors) <= bound * (1 + 1e-9))


def test_the_prediction_is_first_order_in_a_priori_local_errors(pair):
    found = jax.jit(lambda xs: prediction.predict_first_order(Q, xs, STEPS))(pair.xs)
    e = jax.jit(lambda xs: runs.local_errors(FULL, HAT, xs, STEPS))(pair.xs)
    expected = jax.jit(lambda xs: propagation.propagate(FULL, xs, STEPS, e))(pair.xs)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_what_needs_a_first_order_sampler_says_so():
    with pytest.raises(ValueError, match="memory"):
        divergences.path_kl(FULL, HAT, worlds.X_T, STEPS, key=worlds.KEY)
    xs = diffusion.sample(FULL, worlds.X_T, STEPS).states
    with pytest.raises(ValueError, match="memory"):
        step_norms.log_norm_gains(FULL, xs, STEPS, key=worlds.KEY)

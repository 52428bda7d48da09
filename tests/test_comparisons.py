"""Columns of the main job on runs made by hand; networks are in the tests of `error_bounds`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion
from qdiffjax.analysis.errors import ledger
from tests import worlds


def ledger_of(fn):
    """attribute(nodes, weights) -> the ledger whose one entry is the integral of fn over [0, 1]."""

    def attribute(nodes, weights):
        assert len(nodes) == len(weights) == 1
        entry = jnp.asarray([[float(np.sum(weights * fn(nodes)))]])
        return ledger.Ledger({"site": entry}, jnp.asarray([1.0]), None, None)

    return attribute


@pytest.mark.parametrize(
    ("power", "max_nodes", "expected"), [(1, 8, 1), (5, 8, 3), (11, 8, 7), (11, 6, 3), (23, 15, 15)]
)
def test_nodes_are_added_until_the_quadrature_is_exact_or_no_more_are_allowed(
    power, max_nodes, expected
):
    """Rules of 1, 3, 7 and 15 nodes integrate powers up to 1, 5, 11 and 23 exactly."""
    attribute = ledger_of(lambda s: (power + 1) * s**power)
    whole, num_nodes = comparisons.attributed(attribute, tolerance=1e-5, max_nodes=max_nodes)
    assert num_nodes == expected
    is_exact = power <= {1: 1, 3: 5, 7: 11, 15: 23}[expected]
    assert is_exact == bool(abs(whole.contributions["site"][0, 0] - 1) < 1e-5)


@pytest.mark.slow
def test_bounds_of_aligned_errors_under_scalar_steps_are_attained():
    """x_{i+1} = 2 x_i: errors of one sign add up, so both bounds equal the error."""
    e = jnp.asarray([1.0, 3.0]).reshape(2, 1, 1)
    errors = jnp.asarray([0.0, 1.0, 5.0]).reshape(3, 1, 1)
    run = comparisons.Run(jnp.ones((3, 1, 1)), 1 + errors, jnp.zeros((2, 1, 1)))
    parts = comparisons.Propagated(e, errors, jnp.zeros_like(e))
    steps = diffusion.ddim(diffusion.linear(), 2)
    bounded = comparisons.bounded(run, parts, jnp.full((2, 1), 2.0), steps)
    for ratio in bounded.over_measured():
        np.testing.assert_array_equal(ratio, 1)
    np.testing.assert_array_equal(bounded.measured, errors[..., 0])
    assert float(bounded.miss[0]) == 0


def test_a_run_of_fewer_samples_is_a_slice_of_the_whole():
    run = comparisons.Run(*(jnp.arange(12.0).reshape(2, 3, 2) + i for i in range(3)))
    np.testing.assert_array_equal(run.first(2).errors, run.errors[:, :2])
    assert run.first(2).eps_hat.shape == (2, 2, 2)


def test_the_slack_of_a_run_holds_what_float32_does_to_it(users_defaults):
    """x_{i+1} = (c.x + c.eps W) x_i: in float64 the run is exact, beside that of float32."""
    num_steps, n = 100, 16
    schedule = diffusion.linear()
    with jax.enable_x64(True):
        steps = diffusion.ddim(schedule, num_steps)
    weight = worlds.normal32(0, n, n, scale=0.25)
    narrow = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float32), steps)
    x_T = worlds.normal32(1, 32, n)
    eps_fn = lambda x, t, inputs, state: (x @ weight, x @ weight, state)  # noqa: E731
    run = diffusion.sample(eps_fn, x_T, narrow)
    xs, matrix = [np.float64(x_T)], np.float64(weight)
    coeffs = [np.float64(c) for c in narrow.coeffs]
    for a, b in zip(*coeffs[:2], strict=True):
        xs.append(a * xs[-1] + b * xs[-1] @ matrix)
    missed = np.linalg.norm(np.float64(run.states) - np.stack(xs), axis=-1)
    maps = coeffs[0][:, None, None] * np.eye(n) + coeffs[1][:, None, None] * matrix
    gains = jnp.float32(np.linalg.norm(maps, 2, axis=(1, 2)))[:, None]
    both = comparisons.Run(run.states, run.states, run.outputs)
    slack = comparisons.rounding_slack(both, gains + jnp.zeros((1, 32)), narrow, math.sqrt(8 + 4))
    assert np.all(missed <= slack)
    assert np.all(np.median(missed, 1)[1:] * 30 >= np.median(slack, 1)[1:])

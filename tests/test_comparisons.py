"""Columns of the main job on runs made by hand; networks are in the tests of `error_bounds`."""

import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion
from qdiffjax.analysis.errors import ledger, propagation


def ledger_of(fn):
    """attribute(nodes, weights) -> the ledger whose one entry is the integral of fn over [0, 1]."""

    def attribute(nodes, weights):
        assert len(nodes) == len(weights) == 2
        entry = jnp.asarray([[float(np.sum(weights * fn(nodes)))]])
        return ledger.Ledger({"site": entry}, jnp.asarray([1.0]), None, None)

    return attribute


@pytest.mark.parametrize(
    ("power", "max_nodes", "expected"), [(3, 8, 2), (7, 8, 4), (15, 8, 8), (15, 5, 4), (15, 1, 2)]
)
def test_nodes_are_added_until_the_quadrature_is_exact_or_no_more_are_allowed(
    power, max_nodes, expected
):
    """Gauss-Legendre with K nodes integrates powers up to 2 K - 1 exactly."""
    attribute = ledger_of(lambda s: (power + 1) * s**power)
    whole, num_nodes = comparisons.attributed(attribute, tolerance=1e-5, max_nodes=max_nodes)
    assert num_nodes == expected
    nodes, weights = propagation.gauss_legendre(num_nodes)
    exact = np.sum(weights * (power + 1) * nodes**power)
    np.testing.assert_allclose(whole.contributions["site"][0, 0], exact, rtol=1e-6)


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

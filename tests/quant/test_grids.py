"""The record of an activation's grid: a pytree with static or traced bits."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import E4M3FN, ActivationGrid, IntFormat, activation_grid, fake_quant
from tests.worlds import normal32

UINT4 = IntFormat(4, signed=False)
GRIDS = {
    "static": activation_grid(jnp.float64(-1), jnp.float64(2), UINT4),
    "traced": activation_grid(jnp.float64(-1), jnp.float64(2), UINT4).with_bits_as_data(),
    "symmetric": activation_grid(jnp.float64(-1), jnp.float64(2), E4M3FN),
    "dynamic": ActivationGrid(IntFormat(8, narrow=False), key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_what_its_leaves_and_structure_make(name):
    grid = GRIDS[name]
    leaves, tree = jax.tree.flatten(grid)
    assert jax.tree.unflatten(tree, leaves) == grid
    assert hash(tree) == hash(jax.tree.structure(grid))
    through = jax.jit(lambda g: g)(grid)
    chex.assert_trees_all_equal(through, grid, strict=True)
    assert through.format.is_static == (name != "traced")


def test_grids_that_differ_in_traced_bits_share_a_compilation_and_round_as_static_ones():
    x = np.linspace(-1.5, 2.5, 41)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(grid):
        scale, zero_point = grid.parameters(x, ())
        return fake_quant(x, scale, zero_point, format=grid.format)

    for bits in (1, 2, 8, 16):
        static = activation_grid(jnp.float64(-1), jnp.float64(2), IntFormat(bits, signed=False))
        scale, zero_point = static.parameters(x, ())
        expected = jax.jit(
            lambda s=static, a=scale, z=zero_point: fake_quant(x, a, z, format=s.format)
        )()
        np.testing.assert_array_equal(run(static.with_bits_as_data()), expected)


def test_bits_by_step_have_the_shape_of_the_scales():
    low, high = -jnp.ones(3), jnp.arange(1.0, 4.0)
    grid = activation_grid(low, high, UINT4).with_bits_as_data()
    assert {leaf.shape for leaf in jax.tree.leaves(grid)} == {(3,)}
    np.testing.assert_array_equal(jax.tree.map(lambda a: a[1], grid).format.qmax, 15)


def test_a_dynamic_scale_is_that_of_each_token_and_a_static_one_gets_the_rank_of_x():
    x = jnp.asarray([[1.0, -2.0], [0.0, 0.5]], jnp.float32)
    scale, zero_point = ActivationGrid(IntFormat(8)).parameters(x, (1,))
    np.testing.assert_array_equal(scale, np.float32([[2 / 127], [0.5 / 127]]))
    assert zero_point is None
    scale, zero_point = ActivationGrid(UINT4, jnp.float32(0.5), jnp.int32(3)).parameters(x, (1,))
    assert scale.shape == zero_point.shape == (1, 1)


def test_a_dynamic_grid_without_sign_covers_each_token_and_zero():
    x = jnp.asarray([[1.0, -2.0], [0.5, 2.0], [0.0, 0.0]], jnp.float32)
    scale, zero_point = ActivationGrid(UINT4).parameters(x, (1,))
    np.testing.assert_allclose(scale, np.float32([[3 / 15], [2 / 15], [1]]), rtol=1e-6)
    np.testing.assert_array_equal(zero_point, [[10], [0], [0]])


def test_dynamic_grids_share_a_compilation_over_bits_and_are_constant_in_derivatives():
    x = jnp.asarray([[1.0, -2.0], [0.5, 2.0]], jnp.float32)

    @jax.jit
    def run(grid, x):
        scale, zero_point = grid.parameters(x, (1,))
        return fake_quant(x, scale, zero_point, format=grid.format)

    for bits in (2, 4, 8):
        grid = ActivationGrid(IntFormat(bits, signed=False))
        np.testing.assert_array_equal(run(grid.with_bits_as_data(), x), jax.jit(run)(grid, x))
    data = [ActivationGrid(IntFormat(b, signed=False)).with_bits_as_data() for b in (2, 4)]
    assert jax.tree.structure(data[0]) == jax.tree.structure(data[1])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(run(data[1], x)))(x), jnp.ones((2, 2)))


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["nearest", "stochastic"])
def test_pieces_of_the_channels_are_rounded_as_operands_of_their_own(key):
    x = normal32(7, 3, 5, 10) * jnp.array([1.0] * 4 + [100.0] * 6, jnp.float32)[None, None]
    grid = ActivationGrid(UINT4, key=key, pieces=(4, 6))
    ends, rounded = (0, 4, 10), grid.round(x, (1, 2), None, 2)
    for place, (start, stop) in enumerate(itertools.pairwise(ends)):
        own = None if key is None else jax.random.fold_in(key, place)
        alone = ActivationGrid(UINT4, key=own).round(x[..., start:stop], (1, 2))
        np.testing.assert_array_equal(rounded[..., start:stop], alone)
    np.testing.assert_array_equal(jax.grad(lambda x: grid.round(x, (1, 2), None, 2).sum())(x), 1.0)
    with pytest.raises(ValueError, match=r"pieces: got \(4, 6\), 10 in all, expected 9 channels"):
        grid.round(x[..., :9], (1, 2), None, 2)

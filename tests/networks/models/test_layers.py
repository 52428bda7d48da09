"""Layers that are ours for speed equal those they stand for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models.layers import GroupNorm, split_features, upsampled


@pytest.fixture
def _flax():
    with jax.numpy_dtype_promotion("standard"):  # flax's GroupNorm mixes float32 and float64
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_flax")
@pytest.mark.parametrize("shape", [(3, 5, 4, 16), (2, 7, 24), (2, 3, 4, 5, 8)])
def test_group_norm_is_flax_s(shape):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), shape)
    params = {
        "scale": jax.random.normal(jax.random.key(1), shape[-1:]),
        "bias": jax.random.normal(jax.random.key(2), shape[-1:]),
    }
    theirs, ours = nn.GroupNorm(8), GroupNorm(8)

    def loss(module, params, x):
        return jnp.sum(jnp.sin(module.apply({"params": params}, x)))

    value, grads = jax.value_and_grad(loss, (1, 2))(ours, params, x)
    expected, expected_grads = jax.value_and_grad(loss, (1, 2))(theirs, params, x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.max(jnp.abs(b)))),
        grads, expected_grads,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("_flax")
def test_group_norm_has_flax_s_parameters():
    x = jnp.zeros((1, 2, 2, 8))
    theirs, ours = (module(8).init(jax.random.key(0), x) for module in (nn.GroupNorm, GroupNorm))
    assert jax.tree.map(jnp.shape, theirs) == jax.tree.map(jnp.shape, ours)


@pytest.mark.slow
def test_statistics_of_bfloat16_are_float32():
    x = (100 + jax.random.normal(jax.random.key(0), (1, 64, 64, 8))).astype(jnp.bfloat16)
    y, _ = GroupNorm(8, jnp.bfloat16).init_with_output(jax.random.key(1), x)
    assert y.dtype == jnp.bfloat16
    wide, _ = GroupNorm(8).init_with_output(jax.random.key(1), x.astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(y, np.float32), wide, atol=2e-2)


@pytest.mark.parametrize("num", [1, 2, 6])
def test_split_features_is_jnp_split_to_the_bit(num):
    x = jax.random.normal(jax.random.key(0), (3, 1, 12))
    for ours, theirs in zip(split_features(x, num), jnp.split(x, num, -1), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_upsampling_repeats_pixels_along_both_axes_to_the_bit():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    np.testing.assert_array_equal(upsampled(x), np.asarray(x).repeat(2, 1).repeat(2, 2))

"""Rounding alone: every path gives the numbers of quant, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import kernels
from qdiffjax.quant import E2M1, E4M3FN, E5M2, IntFormat, fake_quant
from tests.kernels.paths import INT4, UINT8, fast_paths
from tests.worlds import normal32, quick_jit

GRIDS = {
    "per tensor": (INT4, (1, 1, 1), None),
    "affine, per channel": (UINT8, (1, 1, 70), 77),
    "per token": (E4M3FN, (3, 11, 1), None),
    "wide float": (E5M2, (1, 1, 1), None),
    "groups of a channel": (INT4, (1, 1, 7), None),
    "other format": (E2M1, (1, 1, 1), None),
}


@pytest.mark.slow
@fast_paths
@pytest.mark.parametrize("name", GRIDS)
def test_rounded_is_fake_quant(path, name):
    format, groups, zero = GRIDS[name]
    x = np.random.default_rng(0).standard_normal((3, 11, 70))
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2] = np.nan, np.inf, -1e9
    x = jnp.asarray(x, jnp.bfloat16)
    scale = jnp.asarray(np.random.default_rng(1).uniform(0.01, 0.2, groups), jnp.float32)
    zero = None if zero is None else jnp.full(groups, zero, jnp.int32)
    got = quick_jit(lambda x: kernels.rounded(x, scale, zero, format=format, path=path))(x)
    expected = quick_jit(lambda x: fake_quant(x, scale, zero, format=format))(x)
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


@fast_paths
@pytest.mark.parametrize("format", [INT4, UINT8], ids=["int4", "uint8"])
def test_averaged_over_all_bits_stochastic_codes_are_x(path, format):
    # 256 equally spaced uniforms, and x on a grid of 1/256: no average is only nearly right.
    eighths = np.arange(-64, 65) if format.signed else np.arange(256)
    x = np.broadcast_to(eighths / 16 * 0.5, (256, eighths.size))
    bits = jnp.asarray(np.broadcast_to(np.arange(256)[:, None] << 24, x.shape), jnp.uint32)
    scale = jnp.full((1, 1), 0.5, jnp.float32)
    run = quick_jit(lambda x: kernels.stochastic_codes(x, scale, bits, format=format, path=path))
    codes = run(jnp.asarray(x, jnp.float32))
    assert codes.dtype == format.storage_dtype
    np.testing.assert_array_equal(np.asarray(codes, np.float64).mean(0), x[0] / 0.5)


@fast_paths
def test_stochastic_codes_saturate_and_neighbour_x(path):
    x, scale = normal32(0, 5, 33), jnp.full((5, 1), 0.01, jnp.float32)
    bits = jax.random.bits(jax.random.key(0), x.shape, jnp.uint32)
    run = quick_jit(
        lambda x: kernels.stochastic_codes(x, scale, bits, format=IntFormat(8), path=path)
    )
    codes = run(x)
    v = np.asarray(x, np.float64) / 0.01
    is_inside = np.abs(v) < 126
    assert 0 < is_inside.sum() < v.size
    assert np.all(np.abs(np.asarray(codes, np.float64) - v)[is_inside] < 1 + 1e-4)
    assert np.all(np.abs(codes) <= 127)


def test_stochastic_codes_refuse_other_bits():
    x, scale = normal32(0, 2, 3), jnp.ones((1, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"got int32 \(2, 3\).*jax.random.bits"):
        kernels.stochastic_codes(x, scale, jnp.zeros((2, 3), jnp.int32), format=INT4)
    with pytest.raises(ValueError, match="at least 2 bits"):
        kernels.stochastic_codes(x, scale, jnp.zeros((2, 3), jnp.uint32), format=IntFormat(1))

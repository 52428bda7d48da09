"""Properties of the quantizer as a function, over shapes and granularities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax.quant import IntFormat, absmax, fake_quant, minmax

SETTINGS = settings(max_examples=20, deadline=None)
BITS = st.sampled_from([2, 4, 8])
SHAPES = [  # (x, scale): per tensor, channel, token, group, and two axes of groups
    ((7,), (1,)),
    ((4, 3), (1, 3)),
    ((3, 4), (3, 1)),
    ((2, 6), (2, 3)),
    ((4, 1, 6), (2, 1, 3)),
]


@st.composite
def arrays(draw):
    """A Gaussian float64 array and the shape of a scale that divides it."""
    shape, scale_shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return jnp.asarray(rng.normal(size=shape)), scale_shape


# Jitted with traced bits, so that hypothesis pays for one compilation per shape.
@functools.partial(jax.jit, static_argnames=("shape", "signed"))
def _calibrated(x, bits, *, shape, signed):
    grid = absmax if signed else minmax
    return grid(x, format=IntFormat(bits, signed=signed), scale_shape=shape)


@functools.partial(jax.jit, static_argnames="signed")
def _fake_quant(x, scale, zero, bits, *, signed=True):
    return fake_quant(x, scale, zero, format=IntFormat(bits, signed=signed))


@SETTINGS
@given(arrays(), BITS, st.booleans())
def test_error_inside_the_range_is_at_most_half_a_step(data, bits, signed):
    x, shape = data
    scale, zero = _calibrated(x, bits, shape=shape, signed=signed)
    error = np.abs(_fake_quant(x, scale, zero, bits, signed=signed) - x)
    step = np.kron(scale, np.ones([n // g for n, g in zip(x.shape, shape, strict=True)]))
    # Rounding the zero point moves an affine grid by up to half a step at its ends.
    limit = 0.5 if signed else 1.0
    assert np.all(error <= step * (limit + 1e-12 * 2**bits))


@SETTINGS
@given(arrays(), BITS)
def test_quantizing_twice_is_quantizing_once(data, bits):
    x, shape = data
    scale, _ = _calibrated(x, bits, shape=shape, signed=True)
    once = _fake_quant(x, scale, None, bits)
    np.testing.assert_array_equal(_fake_quant(once, scale, None, bits), once)


@SETTINGS
@given(arrays(), BITS)
def test_symmetric_narrow_quantizer_is_odd(data, bits):
    x, shape = data
    scale, _ = _calibrated(x, bits, shape=shape, signed=True)
    np.testing.assert_array_equal(
        _fake_quant(-x, scale, None, bits), -_fake_quant(x, scale, None, bits)
    )


@SETTINGS
@given(arrays(), BITS, st.integers(-20, 20))
def test_scaling_data_by_a_power_of_two_scales_the_result_bitwise(data, bits, exponent):
    x, shape = data
    k = 2.0**exponent
    scale, _ = _calibrated(x, bits, shape=shape, signed=True)
    scaled, _ = _calibrated(x * k, bits, shape=shape, signed=True)
    np.testing.assert_array_equal(scaled, scale * k)
    expected = _fake_quant(x, scale, None, bits) * k
    np.testing.assert_array_equal(_fake_quant(x * k, scaled, None, bits), expected)


@SETTINGS
@given(st.integers(0, 2**32 - 1), BITS, st.booleans())
def test_quantizer_is_monotone(seed, bits, signed):
    x = jnp.sort(jnp.asarray(np.random.default_rng(seed).normal(size=64)))
    zero = None if signed else jnp.array([1])
    assert np.all(np.diff(_fake_quant(x, jnp.array([0.3]), zero, bits, signed=signed)) >= 0)


@SETTINGS
@given(arrays(), BITS)
def test_zero_is_always_a_grid_point(data, bits):
    x, shape = data
    scale, zero = _calibrated(x, bits, shape=shape, signed=False)
    nothing = jnp.zeros_like(x)
    np.testing.assert_array_equal(_fake_quant(nothing, scale, zero, bits, signed=False), 0.0)

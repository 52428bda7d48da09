import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import quant
from qdiffjax.quant import IntFormat, floor, per_group, per_token
from tests.tolerances import assert_close

STATIC = ("format", "round_fn")
quantize, fake_quant, quantization_error = (
    jax.jit(f, static_argnames=STATIC)
    for f in (quant.quantize, quant.fake_quant, quant.quantization_error)
)
dequantize = jax.jit(quant.dequantize, static_argnames="dtype")
absmax, minmax = (
    jax.jit(f, static_argnames=("format", "scale_shape")) for f in (quant.absmax, quant.minmax)
)

GOLDEN = jnp.array([-1, -0.35, -0.05, 0, 0.1, 0.25, 0.7, 1.5], jnp.float32)
FULL_4 = IntFormat(4, narrow=False)


@pytest.mark.parametrize(
    ("x", "code"), [(0.3, 1), (0.24, 0), (-0.75, -2), (-1.25, -2), (9.0, 7), (-9.0, -8)]
)
def test_scalar_code_is_the_clipped_nearest_multiple_of_the_step(x, code):
    """Survey eq. 4 with nearest rounding, scale 1/2, b = 4."""
    q = quantize(jnp.array(x, jnp.float32), jnp.array(0.5, jnp.float32), format=FULL_4)
    assert int(q.codes) == code
    assert float(dequantize(q)) == code / 2


def test_literal_floor_of_the_survey_is_an_option():
    x = jnp.array([0.3, -0.3, 0.99])
    q = quantize(x, jnp.array([0.5]), format=FULL_4, round_fn=floor)
    np.testing.assert_array_equal(q.codes, [0, -1, 1])


def test_an_array_is_quantized_elementwise():
    """Survey eq. 5."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 4)))
    whole = quantize(x, jnp.full((1, 1), 0.25), format=FULL_4).codes
    for index in np.ndindex(x.shape):
        one = quantize(x[index], jnp.array(0.25), format=FULL_4).codes
        assert one == whole[index]


def test_error_is_quantized_minus_exact():
    """Survey eqs. 6 and 7; dyadic numbers, so exact."""
    x = jnp.array([[0.3125, -0.75], [8.0, -8.0]])
    expected = [[0.1875, -0.25], [-4.5, 4.0]]  # 0.5, -1.0, 3.5, -4.0
    np.testing.assert_array_equal(
        quantization_error(x, jnp.full((1, 1), 0.5), format=FULL_4), expected
    )


@pytest.mark.parametrize(
    ("bits", "zero_point", "codes"),
    [
        (4, 6, [0, 4, 6, 6, 7, 8, 10, 15]),
        (8, 102, [0, 66, 97, 102, 112, 128, 173, 255]),
    ],
)
def test_worked_affine_example(bits, zero_point, codes):
    format = IntFormat(bits, signed=False)
    scale, zero = minmax(GOLDEN, format=format)
    assert int(zero[0]) == zero_point
    assert zero.dtype == jnp.int32
    q = quantize(GOLDEN, scale, zero, format=format)
    np.testing.assert_array_equal(q.codes, codes)
    expected = (np.array(codes) - zero_point) * 2.5 / (2**bits - 1)
    assert_close(dequantize(q), expected.astype(np.float32))


def test_worked_symmetric_example():
    format = IntFormat(4)
    q = quantize(GOLDEN, *absmax(GOLDEN, format=format), format=format)
    np.testing.assert_array_equal(q.codes, [-5, -2, 0, 0, 0, 1, 3, 7])
    assert_close(dequantize(q), np.array([-5, -2, 0, 0, 0, 1, 3, 7], np.float32) * 1.5 / 7)


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_grid_points_are_fixed_points_bitwise(bits, signed):
    format = IntFormat(bits, signed=signed)
    codes = np.unique(np.linspace(format.qmin, format.qmax, 300).round())
    x = jnp.asarray(codes * 2.0**-5, jnp.float32)
    scale = jnp.full(1, 2.0**-5, jnp.float32)
    q = quantize(x, scale, format=format)
    assert q.codes.dtype == format.storage_dtype
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(dequantize(q), x)
    np.testing.assert_array_equal(fake_quant(x, scale, format=format), x)


@pytest.mark.parametrize("points", [2, 3, 8])
def test_equispaced_points_in_each_bin_have_mse_of_a_uniform_grid(points):
    """MSE = scale^2 / 12 (1 - 1 / N^2), exactly."""
    scale, format = 0.37, IntFormat(5)
    offsets = (np.arange(points) + 0.5) / points - 0.5
    x = scale * (np.arange(-15, 16)[:, None] + offsets[None, :])
    mse = np.mean(quantization_error(jnp.asarray(x), jnp.full((1, 1), scale), format=format) ** 2)
    assert_close(mse, np.float64(scale**2 / 12 * (1 - 1 / points**2)))


def test_group_scales_equal_slicing_by_hand():
    x = jax.random.normal(jax.random.key(1), (4, 6, 3))
    shape = per_group(x, 1, 2)
    assert shape == (4, 3, 3)
    scale = jax.random.uniform(jax.random.key(2), shape, minval=0.1, maxval=0.5)
    q = quantize(x, scale, format=IntFormat(3))
    x, scale, back = np.asarray(x), np.asarray(scale), np.asarray(dequantize(q))
    for g in range(3):
        part = quantize(x[:, 2 * g : 2 * g + 2], scale[:, g : g + 1], format=IntFormat(3))
        np.testing.assert_array_equal(np.asarray(q.codes)[:, 2 * g : 2 * g + 2], part.codes)
        np.testing.assert_array_equal(back[:, 2 * g : 2 * g + 2], dequantize(part))


def test_tokens_do_not_see_each_other():
    x = jax.random.normal(jax.random.key(3), (5, 8)) * jnp.logspace(-3, 3, 5)[:, None]
    rows = [_absmax_quantized(row[None], (1, 1))[0] for row in x]
    np.testing.assert_array_equal(_absmax_quantized(x, per_token(x)), np.stack(rows))


@functools.partial(jax.jit, static_argnames="shape")
def _absmax_quantized(x, shape):
    format = IntFormat(4)
    return dequantize(quantize(x, *absmax(x, format=format, scale_shape=shape), format=format))


def test_bfloat16_input_gets_the_codes_of_its_float32_copy():
    x = jax.random.normal(jax.random.key(4), (64, 64)).astype(jnp.bfloat16)
    scale = jnp.full((1, 1), 0.013, jnp.float32)
    q16 = quantize(x, scale, format=IntFormat(8))
    q32 = quantize(x.astype(jnp.float32), scale, format=IntFormat(8))
    np.testing.assert_array_equal(q16.codes, q32.codes)
    assert q16.scale.dtype == jnp.float32
    fake = fake_quant(x, scale, format=IntFormat(8))
    assert fake.dtype == jnp.bfloat16
    np.testing.assert_array_equal(fake, dequantize(q32, jnp.bfloat16))


def test_fake_quant_is_dequantize_of_quantize_bitwise():
    x = jax.random.normal(jax.random.key(5), (6, 8))
    format = IntFormat(5, signed=False)
    scale, zero = minmax(x, format=format, scale_shape=(6, 2))
    roundtrip = dequantize(quantize(x, scale, zero, format=format), jnp.float64)
    np.testing.assert_array_equal(fake_quant(x, scale, zero, format=format), roundtrip)


def test_qtensor_is_a_pytree_with_static_format():
    q = quantize(GOLDEN, jnp.array([0.25]), format=IntFormat(4))
    leaves, tree = jax.tree.flatten(q)
    assert len(leaves) == 2
    back = jax.tree.unflatten(tree, leaves)
    assert back.format == q.format
    np.testing.assert_array_equal(dequantize(q), quant.dequantize(q))
    stacked = jax.vmap(lambda s: quantize(GOLDEN, s, format=IntFormat(4)))(jnp.ones((3, 1)))
    assert stacked.codes.shape == (3, 8)


def test_codes_of_one_signed_bit_are_minus_and_plus_one():
    x = jnp.array([-3.0, -0.1, 0.0, 5.0])
    q = quantize(x, jnp.array([0.5]), format=IntFormat(1))
    np.testing.assert_array_equal(dequantize(q), [-0.5, -0.5, 0.5, 0.5])


def test_concrete_nan_is_refused_and_traced_nan_becomes_zero():
    x = jnp.array([jnp.nan, 1.0, jnp.inf])
    format = IntFormat(4, signed=False)
    arguments = x, jnp.array([0.5]), jnp.array([3])
    with pytest.raises(ValueError, match="got NaN"):
        quant.quantize(*arguments, format=format)
    np.testing.assert_array_equal(quantize(*arguments, format=format).codes, [3, 5, 15])
    fake = fake_quant(*arguments, format=format)
    np.testing.assert_array_equal(fake, [np.nan, 1.0, 6.0])


@pytest.mark.parametrize("shape", [(), (4,), (1, 3), (2, 4, 1)])
def test_scale_that_does_not_divide_is_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match="expected the same rank") as error:
        quantize(jnp.ones((2, 4)), jnp.ones(shape), format=IntFormat(4))
    assert str(shape) in str(error.value)
    assert "(2, 4)" in str(error.value)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("function", ["quantize", "fake_quant", "quantization_error"])
def test_scale_that_is_not_positive_is_refused(function, bad):
    with pytest.raises(ValueError, match="expected positive finite steps"):
        getattr(quant, function)(jnp.ones((2, 4)), jnp.full((1, 1), bad), format=IntFormat(4))


def test_misuse_is_refused_with_a_remedy():
    one = jnp.ones(1)
    with pytest.raises(TypeError, match="use fake_quant"):
        quant.quantize(one, one, format=IntFormat(jnp.array(4)))
    with pytest.raises(TypeError, match="cast x first"):
        quant.fake_quant(jnp.arange(3), one, format=IntFormat(4))
    with pytest.raises(ValueError, match="binary format"):
        quant.fake_quant(one, one, one, format=IntFormat(1))

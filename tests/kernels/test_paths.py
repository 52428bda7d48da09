"""Every path of matmul and conv computes the same product of what the codes stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import kernels
from qdiffjax.kernels import REFERENCE, TPU_INTERPRETED
from qdiffjax.kernels.operands import quantized
from qdiffjax.quant import E4M3FN, ActivationGrid, IntFormat, QTensor, dequantize
from tests.kernels.paths import (
    AFFINE,
    DYNAMIC,
    FP8,
    FP8_DYNAMIC,
    INT4,
    INT8,
    STATIC,
    TOKENS,
    UINT8,
    all_paths,
    by_numpy,
    exact,
    exact_operand,
    fast_paths,
    weight,
)
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit

# name: (how x becomes codes, format of w, groups of inputs (0: one scale for all), zeros of w)
MATMULS = {
    "W8A8 affine, per tensor": (AFFINE, INT8, 0, False),
    "W8A8 both affine": (AFFINE, INT8, 1, True),
    "W4A8": (DYNAMIC, INT4, 1, False),
    "W8A8 affine, dynamic": (TOKENS, INT8, 1, False),
    "W4A8 in groups": (AFFINE, INT4, 3, False),
    "W4A8 in affine groups": (STATIC, INT4, 3, True),
    "W8 unsigned": (STATIC, UINT8, 1, False),
    "W8A16": (None, INT8, 1, False),
    "W8A16 unsigned": (None, UINT8, 1, False),
    "W4A16 in groups": (None, INT4, 3, False),
    "fp8": (FP8, E4M3FN, 1, False),
    "fp8 mixed, dynamic": (FP8_DYNAMIC, E4M3FN, 3, False),
}


def product(path, x, w, how, bias=None, act_fn=None, out_dtype=jnp.float32):
    def run(x, w, how, bias):
        return kernels.matmul(
            x, w, activation=how, bias=bias, act_fn=act_fn, out_dtype=out_dtype, path=path
        )

    return quick_jit(run)(x, w, how, bias)


@functools.cache
def matmul_case(name):
    how, format, groups, zeros = MATMULS[name]
    x = normal32(0, 2, 19, 96)
    w = weight((96, 37), format, (1, 1) if groups == 0 else (groups, 37), zeros)
    return x, w, how, exact_operand(x, how, (2,)) @ exact(w)


@pytest.mark.slow
@fast_paths
@pytest.mark.parametrize("name", MATMULS)
def test_matmul_multiplies_what_the_codes_stand_for(path, name):
    *operands, expected = matmul_case(name)
    assert_close(product(path, *operands), expected)


@pytest.mark.parametrize("name", ["W8A8 affine, per tensor", "W4A8 in groups", "W8A16"])
def test_reference_multiplies_what_the_codes_stand_for(name):
    *operands, expected = matmul_case(name)
    assert_close(product(REFERENCE, *operands), expected)


@fast_paths
def test_matmul_of_codes_of_tokens(path):
    scale = np.random.default_rng(3).uniform(0.01, 0.03, (5, 1))
    x = by_numpy(normal32(0, 5, 24), scale, np.arange(5)[:, None], UINT8)
    w = weight((24, 9))
    assert_close(product(path, x, w, None), exact(x) @ exact(w))


@pytest.mark.slow
@all_paths
def test_epilogue_is_bias_then_function_then_dtype(path):
    x, w, bias = normal32(0, 7, 16), weight((16, 9)), normal32(5, 9)
    y = exact_operand(x, STATIC, (1,)) @ exact(w) + np.asarray(bias)
    gain = jnp.float32(3.0)
    for act_fn in (jax.nn.relu, lambda y: jnp.maximum(y, 0) * gain):  # one holds an array
        expected = np.maximum(y, 0) * (1 if act_fn is jax.nn.relu else 3)
        got = product(path, x, w, STATIC, bias, act_fn)
        assert_close(got, expected)
        short = product(path, x, w, STATIC, bias, act_fn, jnp.bfloat16)
        np.testing.assert_array_equal(short, got.astype(jnp.bfloat16))


@fast_paths
def test_integer_sums_are_exact(path):
    codes = np.random.default_rng(0).integers(-127, 128, (2, 40, 700))
    one = jnp.ones((1, 1), jnp.float32)
    left, right = (
        QTensor(jnp.asarray(c, jnp.int8), one, None, INT8) for c in (codes[0], codes[1].T)
    )
    integers = codes[0] @ codes[1].T
    np.testing.assert_array_equal(product(path, left, right, None), integers.astype(np.float32))


@pytest.mark.slow
@fast_paths
@pytest.mark.parametrize(
    "how",
    [
        DYNAMIC, AFFINE, TOKENS, FP8, FP8_DYNAMIC,
        ActivationGrid(IntFormat(8, narrow=False), jnp.float32(0.02), jnp.int32(-100)),
    ],
    ids=["dynamic", "affine", "affine, dynamic", "e4m3", "e5m2", "signed affine"],
)  # fmt: skip
def test_codes_of_the_prologue_are_those_of_quantize(path, how):
    # Times the identity, each result is the number that one code stands for.
    numbers = np.random.default_rng(0).standard_normal((32, 32))
    numbers[0], numbers[1], numbers[2, 3] = np.arange(32) * 0.01, 0, -1e9
    x = jnp.asarray(numbers, jnp.float32)
    format = INT8 if isinstance(how.format, IntFormat) else how.format
    identity = by_numpy(np.eye(32), np.ones((1, 1)), None, format)
    got = product(path, x, identity, how)
    np.testing.assert_array_equal(got, quick_jit(lambda x: dequantize(quantized(x, how, (1,))))(x))
    np.testing.assert_array_equal(got, exact_operand(x, how, (1,)).astype(np.float32))


@pytest.mark.slow
@fast_paths
def test_matmul_under_vmap_and_scan(path):
    x, w = normal32(0, 3, 4, 16), weight((16, 9))
    scales = jnp.asarray([0.01, 0.02, 0.04], jnp.float32)

    def run(x, scale):
        return kernels.matmul(x, w, activation=ActivationGrid(INT8, scale), path=path)

    def scanned(x, scales):
        return jax.lax.scan(lambda c, a: (c, run(*a)), None, (x, scales))[1]

    one_by_one = jnp.stack([quick_jit(run)(a, s) for a, s in zip(x, scales, strict=True)])
    for many in (jax.vmap(run), scanned):
        assert_close(quick_jit(many)(x, scales), one_by_one)


# name: (x shape, w shape, how, format of w, strides, padding)
CONVS = {
    "same": ((2, 3, 4, 8), (3, 3, 8, 5), AFFINE, INT8, (1, 1), "SAME"),
    "rows that fill registers": ((1, 2, 32, 8), (2, 3, 8, 5), STATIC, INT4, (1, 1), "SAME"),
    "valid, dynamic": ((2, 3, 5, 8), (2, 3, 8, 5), DYNAMIC, INT8, (1, 1), "VALID"),
    "same, affine, dynamic": ((2, 3, 5, 8), (2, 3, 8, 5), TOKENS, INT8, (1, 1), "SAME"),
    "strided, more than a register": (
        (1, 5, 4, 136), (2, 2, 136, 3), AFFINE, INT8, (2, 2), ((0, 1), (1, 1)),
    ),
    "pointwise, weight only": ((2, 4, 3, 8), (1, 1, 8, 5), None, INT4, (1, 1), "SAME"),
    "unsigned weight": ((1, 3, 4, 8), (3, 1, 8, 5), AFFINE, UINT8, (1, 1), "SAME"),
    "unsigned weight alone": ((1, 3, 4, 8), (3, 1, 8, 5), None, UINT8, (1, 1), "SAME"),
}  # fmt: skip


def convolved(path, x, w, how, **options):
    run = lambda x, w, how: kernels.conv(x, w, activation=how, path=path, **options)  # noqa: E731
    return quick_jit(run)(x, w, how)


def expected_conv(x, w, how, strides=(1, 1), padding="SAME", rhs_dilation=None, groups=1):
    return jax.lax.conv_general_dilated(
        exact_operand(x, how, (1, 2, 3)), exact(w), strides, padding, rhs_dilation=rhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


@functools.cache
def conv_case(name):
    x_shape, w_shape, how, format, strides, padding = CONVS[name]
    x, w = normal32(0, *x_shape), weight(w_shape, format)
    options = {"strides": strides, "padding": padding}
    return (x, w, how), options, expected_conv(x, w, how, **options)


@pytest.mark.slow
@fast_paths
@pytest.mark.parametrize("name", CONVS)
def test_conv_convolves_what_the_codes_stand_for(path, name):
    operands, options, expected = conv_case(name)
    assert_close(convolved(path, *operands, **options), expected)


@pytest.mark.parametrize("name", ["same", "pointwise, weight only"])
def test_reference_convolves_what_the_codes_stand_for(name):
    operands, options, expected = conv_case(name)
    assert_close(convolved(REFERENCE, *operands, **options), expected)


def test_conv_of_8_bit_floats():
    # On the path of its own only: XLA takes seconds to compile one for a CPU.
    x, w = normal32(0, 2, 4, 3, 8), weight((1, 2, 8, 5), E4M3FN)
    assert_close(convolved(TPU_INTERPRETED, x, w, FP8), expected_conv(x, w, FP8))


CROPS = {  # how x becomes codes, and whether it is codes already
    "real": (None, False), "codes": (AFFINE, True), "static": (AFFINE, False),
    "dynamic": (TOKENS, False),
}  # fmt: skip


@pytest.mark.parametrize("padding", [((-1, 1), (0, -1)), ((2, -3), (-2, -1)), ((-6, 4), (1, 0))])
@pytest.mark.parametrize("name", CROPS)
def test_negative_padding_reads_the_image_alone(name, padding):
    how, is_coded = CROPS[name]
    x, w = normal32(0, 2, 5, 6, 8), weight((3, 2, 8, 5))
    rounded = exact_operand(x, how, (1, 2, 3))
    window = np.pad(rounded, [(0, 0), (6, 6), (6, 6), (0, 0)])
    (top, bottom), (left, right) = padding
    window = window[:, 6 - top : 11 + bottom, 6 - left : 12 + right]
    expected = sum(  # a sum over taps: no convolution is asked
        window[:, i : window.shape[1] - 2 + i, j : window.shape[2] - 1 + j] @ exact(w)[i, j]
        for i in range(3)
        for j in range(2)
    )
    operands = (quantized(x, how, (1, 2, 3)), w, None) if is_coded else (x, w, how)
    assert_close(convolved(kernels.XLA, *operands, padding=padding), expected)


def test_the_derivative_of_a_cropping_convolution_is_that_of_the_cropped_image():
    x, w = normal32(0, 1, 4, 5, 3), weight((1, 1, 3, 2))
    for how in (None, DYNAMIC):
        crop = functools.partial(kernels.conv, w=w, activation=how, padding=((-1, 0), (0, -2)))
        expected = np.zeros(x.shape)
        expected[:, 1:, :3] = exact(w)[0, 0].sum(-1)
        assert_close(quick_jit(jax.grad(lambda x, crop=crop: jnp.sum(crop(x))))(x), expected)


@pytest.mark.parametrize("how", [AFFINE, DYNAMIC, TOKENS])
def test_a_missing_number_is_missing_in_all_that_sums_it_and_there_alone(how):
    """A dynamic range with NaN in it is not known: then all of the sample is."""
    x, w = normal32(0, 2, 4, 5, 4).at[0, 2, 1, 3].set(jnp.nan), weight((2, 3, 2, 4))
    options = {"feature_group_count": 2, "rhs_dilation": (2, 1), "padding": ((1, 1), (0, 2))}
    options["act_fn"] = jnp.square
    y = convolved(kernels.XLA, x, w, how, **options)
    expected = jax.lax.conv_general_dilated(
        x, exact(w).astype(jnp.float32), (1, 1), options["padding"], rhs_dilation=(2, 1),
        feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    missing = np.isnan(expected)
    assert 0 < missing[0].mean() < 1
    if how.scale is None:
        missing[0] = True
    np.testing.assert_array_equal(np.isnan(y), missing)
    rows = normal32(0, 3, 8).at[1, 2].set(jnp.nan)
    y = product(kernels.XLA, rows, weight((8, 4)), how, act_fn=lambda y: jnp.where(y < 0, 0, y))
    assert np.isnan(y).all(-1).tolist() == [False, True, False]


@pytest.mark.slow
@fast_paths
def test_conv_of_codes_of_samples(path):
    scale, zero = (np.reshape(a, (2, 1, 1, 1)) for a in ([0.01, 0.03], [3, 120]))
    x = by_numpy(normal32(0, 2, 2, 3, 8), scale, zero, UINT8)
    w = weight((3, 3, 8, 5), scale_shape=(1, 1, 1, 1))
    assert_close(convolved(path, x, w, None), expected_conv(x, w, None))


@fast_paths
def test_conv_with_dilation_and_groups(path):
    x, w = normal32(0, 2, 5, 6, 8), weight((3, 3, 4, 6))
    options = {"rhs_dilation": (2, 1)}
    expected = expected_conv(x, w, AFFINE, groups=2, **options)
    assert_close(convolved(path, x, w, AFFINE, feature_group_count=2, **options), expected)

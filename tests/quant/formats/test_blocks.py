"""Block formats against a slow rendering of the OCP text, exact powers of two, Monte Carlo."""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax.quant import IntFormat, dequantize, fake_quant
from qdiffjax.quant.fake_quant_variants import fake_quant_block, quantize_block
from qdiffjax.quant.formats.blocks import (
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
    absmax_scale,
    block_float,
    block_scale,
    ceil_log_scale,
    ceil_scale,
    even_scale,
    floor_scale,
    nearest_scale,
)
from qdiffjax.quant.formats.codebooks import CodebookFormat
from qdiffjax.quant.formats.floats import E2M1, E3M2, E4M3FN, FloatFormat
from tests.tolerances import assert_close

SETTINGS = settings(max_examples=20, deadline=None)
POWER_RULES = (floor_scale, ceil_scale, ceil_log_scale, nearest_scale, even_scale)
# Positive numbers and emax of the elements, OCP MX v1.0, section 5.3, from ml_dtypes.
OCP = {
    "MXFP8_E4M3": (MXFP8_E4M3, ml_dtypes.float8_e4m3fn, 8, 8),
    "MXFP8_E5M2": (MXFP8_E5M2, ml_dtypes.float8_e5m2, 15, 8),
    "MXFP6_E2M3": (MXFP6_E2M3, ml_dtypes.float6_e2m3fn, 2, 6),
    "MXFP6_E3M2": (MXFP6_E3M2, ml_dtypes.float6_e3m2fn, 4, 6),
    "MXFP4": (MXFP4, ml_dtypes.float4_e2m1fn, 2, 4),
}


@functools.partial(jax.jit, static_argnames=("format", "axis"))
def _fake(x, format, axis=-1):
    return fake_quant_block(x, format, axis=axis)


@functools.partial(jax.jit, static_argnames="element")
def _scales(absmax, element):
    """All rules at once [5, *groups], in the order of POWER_RULES; the fifth for floats only."""
    rules = POWER_RULES if isinstance(element, FloatFormat) else POWER_RULES[:4]
    return jnp.stack([rule(absmax, element) for rule in rules])


def _data(shape, seed=0):
    """Blocks of very different size, one of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-20, 20, (*shape[:-1], 1))
    x[0] = 0
    return x.astype(np.float32)


def _ocp(x, dtype, emax, bits):
    """Section 6.3 word for word, a block [k] at a time, in float64."""
    absmax = np.max(np.abs(x))
    if absmax == 0:
        return np.zeros_like(x)
    shared = math.floor(math.log2(absmax)) - emax
    scale = 2.0 ** min(max(shared, -127), 127)
    codes = np.arange(2**bits, dtype=np.uint8)
    numbers = codes.view(dtype) if bits == 8 else codes.astype(np.uint8).view(dtype)
    high = float(np.nanmax(np.where(np.isfinite(numbers.astype(float)), numbers.astype(float), 0)))
    clipped = np.clip(x.astype(np.float64) / scale, -high, high)
    return scale * clipped.astype(dtype).astype(np.float64)


@pytest.mark.parametrize("name", OCP)
def test_mx_floats_are_those_of_the_ocp_text(name):
    format, *definition = OCP[name]
    x = _data((40, 32))
    expected = np.stack([_ocp(block, *definition) for block in x])
    np.testing.assert_array_equal(_fake(x, format), expected)


@pytest.mark.parametrize("narrow", [True, False])
def test_mxint8_is_that_of_the_ocp_text(narrow):
    """Elements are multiples of 2^-6 in -2..1 63/64, or from -1 63/64: section 5.3.4."""
    format = dataclasses.replace(MXINT8, element=IntFormat(8, narrow=narrow))
    x = _data((40, 32), seed=1)
    scale = 2.0 ** np.floor(np.log2(np.abs(x[1:]).max(1, keepdims=True).astype(float)))
    low = -127 / 64 if narrow else -2.0
    elements = np.clip(np.round(x[1:] / scale * 64) / 64, low, 127 / 64)
    np.testing.assert_array_equal(_fake(x, format)[1:], scale * elements)
    np.testing.assert_array_equal(_fake(x, format)[0], 0)


def test_golden_vector_of_mxfp4():
    x = np.float32([-1, -0.35, -0.05, 0, 0.1, 0.25, 0.7, 1.5])
    format = dataclasses.replace(MXFP4, block_size=8)
    np.testing.assert_array_equal(_fake(x, format), [-1, -0.375, 0, 0, 0.125, 0.25, 0.75, 1.5])
    np.testing.assert_array_equal(jax.jit(lambda x: block_scale(x, format))(x), [0.25])


def _exponents(absmax, high):
    """The rules in rational arithmetic: floor, ceil, ceil_log, nearest."""
    a, top = Fraction(float(absmax)), Fraction(float(high))
    floor = math.frexp(absmax)[1] - 1
    floor_top = math.frexp(high)[1] - 1
    fits = a * Fraction(2) ** (floor_top - floor) <= top
    return (
        floor - floor_top,
        floor - floor_top + (not fits),
        floor - floor_top + (a > Fraction(2) ** floor),
        floor - floor_top + (a * a > 2 * Fraction(4) ** floor),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("element", [E2M1, E4M3FN, IntFormat(8)])
def test_power_of_two_rules_are_exact_at_and_next_to_every_boundary(dtype, element):
    turns = np.array([1, math.sqrt(2), 1.5, 1.75, 127 / 64, 1.984375], dtype)
    turns = np.concatenate([turns, np.nextafter(turns, 0), np.nextafter(turns, 9)])
    absmax = np.concatenate([turns * dtype(2.0) ** e for e in (-100, -7, 0, 1, 60)])
    expected = np.array([_exponents(a, element.high) for a in absmax])
    np.testing.assert_array_equal(_scales(absmax, element)[:4], 2.0**expected.T)


def test_even_rule_is_torchaos_bit_arithmetic():
    """Add half an ulp of the element to the bits of absmax, then keep the exponent field."""
    absmax = (np.abs(np.random.default_rng(2).normal(size=4000)) + 0.01).astype(np.float32)
    for element, m, emax in ((E2M1, 1, 2), (E4M3FN, 3, 8), (E3M2, 2, 4)):
        bits = absmax.view(np.int32) + (1 << (23 - m - 1))
        expected = 2.0 ** ((bits >> 23) - 127 - emax)
        floor, *_, even = np.asarray(_scales(absmax, element))
        np.testing.assert_array_equal(even, expected)
        assert np.any(even != floor)


@pytest.mark.parametrize("element", [E2M1, E4M3FN, IntFormat(4)])
def test_ceil_is_the_least_power_of_two_that_clips_nothing(element):
    absmax = np.exp(np.linspace(-30, 30, 2001)).astype(np.float32)
    scale = np.asarray(_scales(absmax, element), np.float64)[1]
    assert np.all(absmax <= scale * element.high)
    assert np.all(absmax > scale / 2 * element.high)


def test_scales_are_e8m0_numbers_up_to_the_ends_of_float32():
    tiny = np.finfo(np.float32).tiny
    absmax = np.float32([0, 1e-45, tiny, 2.0**-120, 2.0**127, np.finfo(np.float32).max])
    for element in (E2M1, FloatFormat(5, 2, "ieee"), IntFormat(8), IntFormat(2)):
        scales = np.asarray(_scales(absmax, element))
        fraction, exponent = np.frexp(scales)
        np.testing.assert_array_equal(fraction, 0.5)
        assert np.all((exponent - 1 >= -126) & (exponent - 1 <= 126))
        np.testing.assert_array_equal(scales[:, :2], 1)  # subnormals read as zero


def test_float64_scales_saturate_at_the_ends_of_e8m0():
    absmax = np.array([1e-300, 1e300])
    np.testing.assert_array_equal(_scales(absmax, E2M1)[0], [2.0**-127, 2.0**127])
    # An MXINT8 element has an implicit 2^-6, which is part of our scale.
    np.testing.assert_array_equal(_scales(absmax, IntFormat(8))[0], [2.0**-133, 2.0**121])


def _nvfp4(x):
    """arXiv:2509.25149, appendix C, with casts by ml_dtypes; x float64 [blocks, 16]."""
    tensor = np.abs(x).max() / (6 * 448)
    scales = np.abs(x).max(1, keepdims=True) / 6 / tensor
    scales = np.maximum(scales.astype(ml_dtypes.float8_e4m3fn).astype(float), 2.0**-9) * tensor
    return scales * np.clip(x / scales, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(float)


def test_nvfp4_is_its_two_level_definition():
    x = np.random.default_rng(3).normal(size=(200, 16)) * np.exp(np.linspace(-12, 0, 200))[:, None]
    x[5] = 0
    assert_close(_fake(x, NVFP4), _nvfp4(x))
    assert np.all(_fake(np.zeros((2, 16), np.float32), NVFP4) == 0)


def test_block_float_shares_an_exponent_and_rounds_mantissas_to_integers():
    x = _data((40, 16), seed=4)
    for m in (1, 3, 7):
        exponent = np.floor(np.log2(np.maximum(np.abs(x).max(1, keepdims=True), 1e-30)))
        step = 2.0 ** (exponent - m + 1)
        mantissa = np.clip(np.round(x / step), -(2**m) + 1, 2**m - 1)
        np.testing.assert_array_equal(_fake(x, block_float(m, 16)), step * mantissa)
    assert block_float(3, 16).bits == 4.5  # MSFP12: 1 + 3 bits each, 8 for sixteen


FORMATS = [*(f for f, *_ in OCP.values()), MXINT8, NVFP4, block_float(3, 16)]
FORMATS += [dataclasses.replace(MXFP4, scale_fn=rule) for rule in (ceil_scale, absmax_scale)]


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.integers(-30, 30))
def test_block_quantizer_is_odd_and_homogeneous_in_powers_of_two(seed, format, exponent):
    x = np.random.default_rng(seed).normal(size=(40, 32)).astype(np.float32)
    once = np.asarray(_fake(x, format))
    np.testing.assert_array_equal(_fake(-x, format), -once)
    k = np.float32(2.0**exponent)
    np.testing.assert_array_equal(_fake(k * x, format), k * once)


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMATS[:6]))
def test_ocp_formats_are_idempotent(seed, format):
    """The floor rule keeps the exponent of absmax, so the scale of the result is the same."""
    x = np.random.default_rng(seed).normal(size=(40, 32)).astype(np.float32)
    once = np.asarray(_fake(x, format))
    np.testing.assert_array_equal(_fake(once, format), once)


def test_blocks_along_any_axis_with_any_leading_shape():
    x = np.random.default_rng(5).normal(size=(2, 64, 3)).astype(np.float32)
    expected = np.moveaxis(np.asarray(_fake(np.moveaxis(x, 1, 2), MXFP4)), 2, 1)
    np.testing.assert_array_equal(_fake(x, MXFP4, 1), expected)
    np.testing.assert_array_equal(_fake(x, MXFP4, -2), expected)
    assert jax.eval_shape(lambda x: block_scale(x, MXFP4, axis=1), x).shape == (2, 2, 3)


def test_blocks_lie_along_the_last_axis_unless_another_is_named():
    """Each row of 32 is a block: its first number is exact, the others are lost beside it."""
    x = np.float32([[[1.0] * 32, [2.0] * 32], [[3.0] * 32, [4.0] * 32]]) * np.float32(2.0**-9)
    x[..., 1:] /= 2**20
    kept = np.where(np.arange(32) == 0, x, 0)
    np.testing.assert_array_equal(fake_quant_block(x, MXFP4), kept)
    q = quantize_block(x, MXFP4)
    assert q.scale.shape == (2, 2, 1)
    np.testing.assert_array_equal(dequantize(q), kept)


def test_stored_codes_and_scales_give_the_same_numbers():
    x = _data((40, 32), seed=6)
    for format in (MXFP4, MXINT8, NVFP4):
        q = jax.jit(lambda x, f=format: quantize_block(x, f))(x)
        np.testing.assert_array_equal(jax.jit(dequantize)(q), _fake(x, format))
        assert q.scale.shape == (40, 32 // format.block_size)
    assert MXFP4.bits == 4.25
    assert NVFP4.bits == 4.5


def test_nan_and_infinity_leave_the_rest_of_their_block_alone():
    x = np.random.default_rng(7).normal(size=(1, 32)).astype(np.float32)
    x[0, :2] = 0
    expected = np.asarray(_fake(x, MXFP4)).copy()
    limit = 6 * 2.0 ** (math.floor(math.log2(np.abs(x).max())) - 2)
    x[0, :2] = np.nan, -np.inf
    expected[0, :2] = np.nan, -limit
    np.testing.assert_array_equal(_fake(x, MXFP4), expected)


def test_empty_arrays_subnormal_and_single_element_blocks():
    for shape in ((0,), (0, 32), (2, 0)):
        assert _fake(np.zeros(shape, np.float32), MXFP4).shape == shape
    np.testing.assert_array_equal(_fake(np.full(32, 1e-40, np.float32), MXFP4), 0)
    single = BlockFormat(E2M1, 1, ceil_scale)
    np.testing.assert_array_equal(_fake(np.float32([3.0, -0.4]), single), [3, -0.375])


def test_derivative_is_the_identity_in_both_modes_also_where_clipped():
    x = np.full((1, 32), 0.5)
    x[0, 0] = 7.9  # scale 1, so clipped to 6
    assert _fake(x, MXFP4)[0, 0] == 6
    u, d = np.random.default_rng(8).normal(size=(2, 1, 32))

    @jax.jit
    def derivatives(x):
        function = lambda x: fake_quant_block(x, MXFP4)  # noqa: E731
        second = jax.jvp(lambda x: jax.jvp(function, (x,), (d,))[1], (x,), (u,))[1]
        return jax.jvp(function, (x,), (d,))[1], jax.vjp(function, x)[1](u)[0], second

    tangent, cotangent, second = derivatives(jnp.asarray(x))
    np.testing.assert_array_equal(tangent, d)
    np.testing.assert_array_equal(cotangent, u)
    np.testing.assert_array_equal(second, 0)


def test_clipped_derivative_and_constant_scale_are_one_composition_away():
    x = jnp.asarray(np.concatenate([[7.9], np.full(31, 0.5)]))
    loss = lambda x: jnp.sum(fake_quant(x, block_scale(x, MXFP4), format=E2M1))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x), [0] + 31 * [1])


def test_traced_elements_equal_static_elements_bitwise():
    x = _data((40, 32), seed=9)
    bits = np.array([2, 4, 8])
    sweep = jax.jit(
        jax.vmap(lambda b: fake_quant_block(x, BlockFormat(IntFormat(b), 32, ceil_scale)))
    )
    static = [_fake(x, BlockFormat(IntFormat(int(b)), 32, ceil_scale)) for b in bits]
    np.testing.assert_array_equal(sweep(bits), np.stack(static))
    books = np.stack([E2M1.levels(), np.linspace(-7, 7, 15)])
    rows = jax.jit(
        jax.vmap(lambda b: fake_quant_block(x, BlockFormat(CodebookFormat(b), 32, floor_scale)))
    )
    np.testing.assert_array_equal(rows(books)[0], _fake(x, MXFP4))


# Mean squared error on N(0, 1), from 4.2e6 samples drawn elsewhere (so known to 1e-3).
MONTE_CARLO = [
    (MXFP4, 1.321e-2),
    (dataclasses.replace(MXFP4, scale_fn=ceil_scale), 1.331e-2),
    (NVFP4, 9.04e-3),
    (dataclasses.replace(NVFP4, scale_fn=absmax_scale), 8.86e-3),
    (MXFP8_E4M3, 8.61e-4),
    (dataclasses.replace(MXFP8_E4M3, scale_fn=ceil_scale), 7.04e-4),
    (MXFP6_E2M3, 8.05e-4),
    (MXFP6_E3M2, 2.91e-3),
    (MXINT8, 6.82e-5),
    (BlockFormat(IntFormat(4), 32, absmax_scale), 9.41e-3),
    (BlockFormat(IntFormat(4), 64, absmax_scale), 1.159e-2),
    (BlockFormat(IntFormat(4), 128, absmax_scale), 1.378e-2),
    (BlockFormat(IntFormat(4), 1024, absmax_scale), 2.03e-2),
    (BlockFormat(IntFormat(8), 32, absmax_scale), 2.86e-5),
    (BlockFormat(IntFormat(8), 128, absmax_scale), 4.18e-5),
]


def test_gaussian_mean_squared_errors_within_three_standard_errors():
    """n = 2^18; a block is one independent sample, and the table's own 1e-3 counts."""
    x = np.random.default_rng(10).normal(size=2**18).astype(np.float32)
    for format, known in MONTE_CARLO:
        squares = (np.asarray(_fake(x, format), np.float64) - x) ** 2
        blocks = squares.reshape(-1, format.block_size).mean(1)
        se = math.hypot(blocks.std() / math.sqrt(blocks.size), 1e-3 * known)
        assert abs(blocks.mean() - known) < 3 * se


def test_bad_arguments_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"block_size: got 32 .* divisor of 40; pad the axis"):
        fake_quant_block(jnp.zeros((2, 40)), MXFP4)
    with pytest.raises(ValueError, match="axis: got 2"):
        block_scale(jnp.zeros((2, 32)), MXFP4, axis=2)
    with pytest.raises(ValueError, match="block_size: got 0"):
        BlockFormat(E2M1, 0, floor_scale)
    with pytest.raises(TypeError, match="cast x first"):
        block_scale(jnp.zeros(32, int), MXFP4)
    with pytest.raises(TypeError, match="expected a FloatFormat"):
        block_scale(jnp.zeros(32), dataclasses.replace(MXINT8, scale_fn=even_scale))
    with pytest.raises(ValueError, match="NaN"):
        quantize_block(jnp.full(32, jnp.nan), MXFP4)

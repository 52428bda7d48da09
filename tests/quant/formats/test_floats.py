"""Floats against ml_dtypes, against integer arithmetic on bits, and against brute force."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax import quant
from qdiffjax.quant import fake_quant_stochastic
from qdiffjax.quant.formats.base import Format
from qdiffjax.quant.formats.floats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3B11FNUZ,
    E4M3FN,
    E5M2,
    FP16,
    TF32,
    FloatFormat,
)
from tests.tolerances import assert_close

TWINS = {
    "e4m3fn": (E4M3FN, ml_dtypes.float8_e4m3fn),
    "e5m2": (E5M2, ml_dtypes.float8_e5m2),
    "e4m3b11fnuz": (E4M3B11FNUZ, ml_dtypes.float8_e4m3b11fnuz),
    "e4m3fnuz": (FloatFormat(4, 3, "fnuz"), ml_dtypes.float8_e4m3fnuz),
    "e3m4": (FloatFormat(3, 4, "ieee"), ml_dtypes.float8_e3m4),
    "e3m2": (E3M2, ml_dtypes.float6_e3m2fn),
    "e2m3": (E2M3, ml_dtypes.float6_e2m3fn),
    "e2m1": (E2M1, ml_dtypes.float4_e2m1fn),
    "fp16": (FP16, np.float16),
    "bf16": (BF16, ml_dtypes.bfloat16),
}
SPLITS = [(4, 3), (5, 2), (2, 1), (3, 0), (2, 5), (5, 10), (1, 2)]
SETTINGS = settings(max_examples=20, deadline=None)


fake_quant, quantize = (
    jax.jit(f, static_argnames=("format", "round_fn")) for f in (quant.fake_quant, quant.quantize)
)


@functools.partial(jax.jit, static_argnames=("format", "round_fn"))
def _round(v, *, format, round_fn=jnp.round):
    return format.round(v, round_fn)


@functools.partial(jax.jit, static_argnames="format")
def _cast(v, *, format):
    """The codes of the numbers that v rounds to, and the numbers."""
    codes = format.encode(format.round(v, jnp.round))
    return codes, format.decode(codes, v.dtype)


@functools.partial(jax.jit, static_argnames="format")
def _decode(codes, *, format):
    return format.decode(codes, jnp.float32), format.decode(codes, jnp.float64)


def _all_codes(format):
    return np.arange(2**format.bits).astype(format.storage_dtype)


def _probes(format, dtype=np.float32):
    """All numbers, all ties, both neighbours of either, many magnitudes, and the special ones."""
    levels = format.levels()
    rng = np.random.default_rng(0)
    wide = rng.normal(size=20_000) * 2.0 ** rng.integers(-145, 120, 20_000)
    beyond = format.high * np.array([1 + 1e-6, 1.5, 100.0]) if format.high < 1e30 else []
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45]
    with np.errstate(over="ignore"):
        v = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, wide, beyond]).astype(dtype)
        up, down = np.nextafter(v, dtype(np.inf)), np.nextafter(v, dtype(-np.inf))
    return np.concatenate([v, up, down, np.array(special, dtype)])


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_every_code_means_what_ml_dtypes_says_in_float32_and_float64(name):
    format, dtype = TWINS[name]
    assert isinstance(format, Format)
    with np.errstate(invalid="ignore"):
        expected = _all_codes(format).view(dtype).astype(np.float64)
    for carrier in (np.float32, np.float64):
        numbers = np.asarray(format.decode(jnp.asarray(_all_codes(format)), carrier))
        assert numbers.dtype == carrier
        np.testing.assert_array_equal(numbers, expected)  # NaN equals NaN here
        is_number = ~np.isnan(expected)
        assert np.all((np.signbit(numbers) == np.signbit(expected))[is_number])
    np.testing.assert_array_equal(format.levels(), np.unique(expected[np.isfinite(expected)]))


@pytest.mark.parametrize("name", TWINS)
def test_named_constants_are_those_of_ml_dtypes(name):
    format, dtype = TWINS[name]
    info = ml_dtypes.finfo(dtype)
    assert (format.bits, format.is_static) == (info.bits, True)
    assert (-format.low, format.high) == (float(info.max), float(info.max))
    assert format.smallest_subnormal == float(info.smallest_subnormal)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_rounding_is_the_saturated_cast_of_ml_dtypes_bit_for_bit(name):
    """Numbers, ties, neighbours of ties, subnormals of the format and of float32, NaN, overflow."""
    format, dtype = TWINS[name]
    v = _probes(format)
    codes, numbers = _cast(v, format=format)
    has_infinity = format.kind == "ieee"
    clipped = np.clip(v, np.float32(format.low), np.float32(format.high))
    expected = np.where(np.isinf(v) & has_infinity, v, clipped).astype(dtype)
    has_nan = format.kind != "finite"  # ml_dtypes then says -0, we say 0
    known = ~np.isnan(v) | has_nan
    np.testing.assert_array_equal(
        np.asarray(codes)[known], expected.view(format.storage_dtype)[known]
    )
    np.testing.assert_array_equal(numbers[known], expected.astype(np.float32)[known])


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "fp16"])
def test_float64_is_rounded_once_to_the_nearest_level(name):
    """By search among the levels; ml_dtypes rounds float64 twice, by way of float32."""
    format, _ = TWINS[name]
    v = _probes(format, np.float64)
    v = v[~np.isnan(v)]
    levels = format.levels()
    above = np.clip(np.searchsorted(levels, v), 1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    middle = (low + high) / 2  # exact: one more bit
    # Neighbouring numbers have neighbouring codes, one of them even.
    to_low = (v < middle) | ((v == middle) & ((above - 1 - len(levels) // 2) % 2 == 0))
    expected = np.where(to_low, low, high)
    got = jnp.clip(_round(v, format=format), format.low, format.high)
    np.testing.assert_array_equal(got, expected)


def test_tf32_is_float32_with_thirteen_bits_rounded_off():
    v = _probes(FloatFormat(5, 10, "ieee"))
    v = np.concatenate([v, v * np.float32(2.0**-120)])
    v = v[np.abs(v) < TF32.high]
    bits = v.view(np.uint32).astype(np.uint64)
    dropped, odd = bits & 0x1FFF, (bits >> 13) & 1
    carry = (dropped > 0x1000) | ((dropped == 0x1000) & (odd == 1))
    expected = (((bits >> 13) + carry) << 13).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(_round(v, format=TF32), expected)
    codes, numbers = _cast(expected, format=TF32)
    assert (TF32.bits, codes.dtype) == (19, np.uint32)
    np.testing.assert_array_equal(codes, expected.view(np.uint32) >> 13)
    np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("finite", np.float32), ("finite", np.float64), ("ieee", np.float32), ("fn", np.float32)],
)
def test_traced_bits_equal_static_bits_bit_for_bit(kind, dtype):
    splits = SPLITS[:4] if kind == "ieee" else SPLITS
    v = _probes(E4M3FN, dtype)

    def quantized(e, m):
        format = FloatFormat(e, m, kind)
        assert not format.is_static
        return format.round(v, jnp.round), format.low, format.high

    many = jax.jit(jax.vmap(quantized))(*jnp.array(splits).T)
    for rounded, low, high, split in zip(*many, splits, strict=True):
        format = FloatFormat(*split, kind)
        assert (low, high) == (format.low, format.high)
        if kind == "finite":  # the kind only moves the ends
            np.testing.assert_array_equal(rounded, _round(v, format=format))


def test_traced_eight_exponent_bits_keep_the_subnormals_of_bf16():
    v = _probes(BF16)[::7]
    rounded = jax.jit(lambda e, m: FloatFormat(e, m, "ieee").round(v, jnp.round))(8, 7)
    np.testing.assert_array_equal(rounded, _round(v, format=BF16))


def test_each_channel_may_have_its_own_split():
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    scale = np.ones((1, 2), np.float32)
    got = _property(x, scale, np.array([[4, 2]]), np.array([[3, 1]]))
    for column, split in enumerate([(4, 3), (2, 1)]):
        alone = _property(x[:, column], scale[0, :1], *split)
        np.testing.assert_array_equal(got[:, column], alone)


@pytest.mark.parametrize("round_fn", [jnp.floor, jnp.ceil])
@pytest.mark.parametrize("format", [E2M1, E4M3FN], ids=["e2m1", "e4m3fn"])
def test_directed_rounding_is_the_neighbour_on_that_side(format, round_fn):
    """Also across a binade, where the upper neighbour belongs to the next one."""
    levels = format.levels()
    v = np.random.default_rng(0).uniform(format.low, format.high, 5000).astype(np.float32)
    v = np.concatenate([v, levels.astype(np.float32)])
    side = "right" if round_fn is jnp.floor else "left"
    index = np.searchsorted(levels, v, side=side) - (round_fn is jnp.floor)
    np.testing.assert_array_equal(_round(v, format=format, round_fn=round_fn), levels[index])


@pytest.mark.parametrize("format", [E2M1, E4M3FN, E5M2, FloatFormat(3, 0)])
def test_triangular_dither_stays_on_the_grid_across_binades(format):
    v = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (64, 64)) * format.high)
    dither = quant.triangular_like(jax.random.key(0), v)
    got = jax.jit(lambda v, d: format.round(v, functools.partial(quant.dithered, dither=d)))(
        v, dither
    )
    assert np.isin(np.clip(got, format.low, format.high), format.levels()).all()
    assert np.any(np.asarray(got) != np.asarray(_round(v, format=format)))


def test_stochastic_rounding_is_unbiased_between_neighbours():
    """z within 4 of the exact Bernoulli law, at every binade of e2m1 and its subnormals."""
    x = jnp.array([0.1, 0.4, 0.9, 1.7, 1.99, 2.6, 3.9, 5.0, -0.2, -2.6, -5.5], jnp.float32)
    n = 20_000
    uniform = jax.random.uniform(jax.random.key(0), (n, x.size), jnp.float32)
    one = functools.partial(fake_quant_stochastic, format=E2M1)
    draws = np.asarray(
        jax.jit(jax.vmap(one, (None, None, None, 0)))(x, jnp.ones(1, jnp.float32), None, uniform),
        np.float64,
    )
    levels = E2M1.levels()
    x = np.asarray(x, np.float64)
    above = np.searchsorted(levels, x)
    low, high = levels[above - 1], levels[above]
    assert np.all((draws == low) | (draws == high))
    deviation = np.sqrt((high - x) * (x - low) / n)
    assert np.all(np.abs(draws.mean(0) - x) <= 4 * deviation)


def test_gradient_is_straight_through_inside_and_saturates_outside():
    x, scale = jnp.array([0.3, -2.6, 7.0, -9.0]), jnp.array([1.0])

    @jax.jit
    def both_modes(x, scale, dx):
        f = functools.partial(quant.fake_quant, format=E2M1)
        return jax.vjp(f, x, scale)[1](jnp.ones_like(x)), jax.jvp(
            lambda x: f(x, scale), (x,), (dx,)
        )

    (x_bar, scale_bar), (_, tangent) = both_modes(x, scale, jnp.full(4, 2.0))
    np.testing.assert_array_equal(x_bar, [1, 1, 0, 0])
    # round(v) - v inside: 0.5 - 0.3 and -3 + 2.6; the end that clips outside: 6 - 6.
    assert_close(scale_bar, np.array([0.2 - 0.4]))
    np.testing.assert_array_equal(tangent, [2, 2, 0, 0])


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "bf16"])
def test_dequantized_codes_are_fake_quantization(name):
    format, _ = TWINS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32))
    scale = jnp.full((1, 6), 0.37, jnp.float32)
    q = quantize(x, scale, format=format)
    assert q.codes.dtype == format.storage_dtype
    np.testing.assert_array_equal(jax.jit(quant.dequantize)(q), fake_quant(x, scale, format=format))


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.sampled_from(SPLITS), st.integers(-20, 20))
def test_fake_quant_is_idempotent_odd_monotone_close_and_equivariant(seed, split, power):
    e, m = split
    x = np.sort(np.random.default_rng(seed).normal(size=64) * 4)
    scale = np.array([0.37])
    once, format = _property(x, scale, e, m), FloatFormat(e, m)
    np.testing.assert_array_equal(_property(once, scale, e, m), once)
    np.testing.assert_array_equal(_property(-x, scale, e, m), -once)
    assert np.all(np.diff(once) >= 0)
    inside = np.abs(x) <= 0.37 * format.high
    ulp = np.maximum(np.abs(x) * 2.0**-m, 0.37 * format.smallest_subnormal)
    assert np.all(np.abs(once - x)[inside] <= (0.5 + 1e-12) * ulp[inside])
    scaled = _property(x * 2.0**power, scale * 2.0**power, e, m)
    np.testing.assert_array_equal(scaled, once * 2.0**power)


@jax.jit
def _property(x, scale, e, m):
    return quant.fake_quant(x, scale, format=FloatFormat(e, m))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_nan_stays_infinity_saturates_and_small_arrays_pass(dtype):
    scale = jnp.ones(1, jnp.float32)
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0, 1e-42], dtype)
    got = fake_quant(x, scale, format=E4M3FN)
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got, np.float64), [np.nan, 448, -448, 0, 0])
    assert fake_quant(x[:0], scale, format=E4M3FN).shape == (0,)
    assert fake_quant(x[4], scale[0], format=E4M3FN) == 0


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ((0, 3), ValueError, r"exponent_bits: got 0, expected 1\.\.8"),
        ((4, 24), ValueError, r"mantissa_bits: got 24, expected 0\.\.23"),
        ((4.0, 3), TypeError, "expected an int or an integer array"),
        ((4, True), TypeError, "expected an int or an integer array"),
        ((4, 3, "fp"), ValueError, "kind: got 'fp', expected one of"),
        ((8, 7), ValueError, "use kind='ieee' for 8 exponent bits"),
        ((1, 0, "ieee"), ValueError, "and a positive number"),
        ((4, 3, "fn", 200), ValueError, r"bias: got 200, expected -126\.\.127"),
        ((jnp.array([4, 8]), 3), ValueError, r"expected -126\.\.127 as of float32"),
    ],
)
def test_fields_that_make_no_format_are_refused(fields, error, text):
    with pytest.raises(error, match=text):
        FloatFormat(*fields)


def test_other_dtypes_are_refused_by_the_format_itself():
    with pytest.raises(TypeError, match="got bfloat16, expected float32 or float64"):
        E4M3FN.round(jnp.ones(2, jnp.bfloat16), jnp.round)


def test_static_format_is_hashable_and_equal_by_value():
    assert hash(FloatFormat(np.int64(4), 3, "fn")) == hash(E4M3FN)
    assert FloatFormat(4, 3, "fn") == E4M3FN != FloatFormat(4, 3)

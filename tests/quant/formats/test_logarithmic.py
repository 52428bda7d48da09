"""Logarithmic formats against exact rational arithmetic and ml_dtypes."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax import quant
from qdiffjax.quant.formats.base import Format
from qdiffjax.quant.formats.logarithmic import E8M0, LogFormat
from tests.tolerances import assert_close

SETTINGS = settings(max_examples=20, deadline=None)
FORMATS = {
    "log2": LogFormat(4),
    "sqrt2": LogFormat(4, 0.5),
    "signed log2": LogFormat(4, signed=True),
    "signed sqrt2": LogFormat(4, 0.5, signed=True),
}
ALL = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)

fake_quant, quantize = (
    jax.jit(f, static_argnames=("format", "round_fn")) for f in (quant.fake_quant, quant.quantize)
)
dequantize = jax.jit(quant.dequantize)


def _num_positive(format):
    return 2 ** (format.bits - 1) - 1 if format.signed else 2**format.bits


def _exact(v, format, dtype):
    """The level of v by exact comparison with its thresholds, |v|^(2 / k) with 2^-(2 q + 1)."""
    if np.isnan(v):
        return v
    power = round(2 / format.base_exponent)
    size = Fraction(float(abs(v))) ** power if np.isfinite(v) else Fraction(2) ** 2000
    if not format.signed and v <= 0:
        size = Fraction(0)
    q = sum(size < Fraction(1, 2 ** (2 * i + 1)) for i in range(_num_positive(format)))
    if q == _num_positive(format):
        if format.signed:
            return np.copysign(dtype(0), v)
        q -= 1
    level = dtype(2.0 ** (-format.base_exponent * q))
    return -level if format.signed and v < 0 else level


def _probes(format, dtype):
    """Levels, thresholds, two neighbours on both sides of each, many magnitudes, special ones."""
    q = np.arange(-3, 40) / 2
    rng = np.random.default_rng(0)
    wide = 2.0 ** rng.uniform(-20, 2, 200)
    v = np.concatenate([2.0 ** (-format.base_exponent * q), wide]).astype(dtype)
    up, down = np.nextafter(v, dtype(9)), np.nextafter(v, dtype(0))
    v = np.concatenate([v, up, down, np.nextafter(up, dtype(9)), np.nextafter(down, dtype(0))])
    return np.concatenate([v, -v[::3], np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45], dtype)])


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_is_rounded_to_the_nearest_exponent(format, dtype):
    """Also one float away from the irrational thresholds, which log2 alone would miss."""
    v = _probes(format, dtype)
    got = np.asarray(fake_quant(v, np.ones(1, dtype), format=format))
    expected = np.array([_exact(x, format, dtype) for x in v])
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)


def _half_up(t):
    return jnp.floor(t + 0.5)


def _half_down(t):
    return jnp.ceil(t - 0.5)


@pytest.mark.parametrize("k", [1.0, 0.5])
def test_no_number_is_a_tie_because_thresholds_are_irrational(k):
    v, one, format = _probes(LogFormat(4, k), np.float32), np.ones(1, np.float32), LogFormat(4, k)
    up, down = (fake_quant(v, one, format=format, round_fn=f) for f in (_half_up, _half_down))
    np.testing.assert_array_equal(up, down)


def test_nearest_exponent_is_not_the_nearest_number():
    """0.72 is nearer to 0.5, but log2(0.72) = -0.474 is nearer to 0; so for 0.36 and 0.18."""
    x = np.array([0.72, 0.36, 0.18])
    got = fake_quant(x, np.ones(1), format=LogFormat(4))
    np.testing.assert_array_equal(got, [1.0, 0.5, 0.25])


def test_codes_are_those_of_the_papers():
    """q = clip(round(-log2(p)), 0, 2^b - 1); zero, which has no code, becomes the smallest."""
    p = jnp.array([1.0, 0.6, 0.3, 0.24, 1e-3, 1e-9, 0.0, 3.0])
    q = quantize(p, jnp.ones(1), format=LogFormat(3))
    np.testing.assert_array_equal(q.codes, [0, 1, 2, 2, 7, 7, 7, 0])
    assert q.codes.dtype == np.uint8
    half = quantize(p, jnp.ones(1), format=LogFormat(4, 0.5))
    np.testing.assert_array_equal(half.codes, [0, 1, 3, 4, 15, 15, 15, 0])


def test_signed_codes_are_sign_and_exponent_with_the_last_for_zero():
    x = jnp.array([1.0, -1.0, 0.5, -0.5, 0.0, 0.25, -0.25, 0.17, -9.0])
    q = quantize(x, jnp.ones(1), format=LogFormat(3, signed=True))
    np.testing.assert_array_equal(q.codes, [0, 4, 1, 5, 3, 2, 6, 3, 4])
    np.testing.assert_array_equal(dequantize(q), [1, -1, 0.5, -0.5, 0, 0.25, -0.25, 0, -1])


@pytest.mark.slow
@ALL
def test_levels_are_all_powers_once_and_survive_storage(format):
    assert isinstance(format, Format)
    n, k = _num_positive(format), Fraction(format.base_exponent)
    positive = [float(np.exp2(np.longdouble(-k * q))) for q in reversed(range(n))]
    expected = [-p for p in reversed(positive)] + [0.0] + positive if format.signed else positive
    levels = format.levels()
    np.testing.assert_array_equal(levels, expected)
    assert (format.low, format.high) == (levels[0], levels[-1])
    for dtype in (jnp.float32, jnp.float64):
        x = levels.astype(dtype)
        q = quantize(x, jnp.ones(1, dtype), format=format)
        assert len(np.unique(q.codes)) == len(levels)
        assert np.max(q.codes) < 2**format.bits
        np.testing.assert_array_equal(
            jax.jit(functools.partial(quant.dequantize, dtype=dtype))(q), x
        )
        for round_fn in (jnp.floor, jnp.ceil):  # exactly on the level, so no rounding moves it
            np.testing.assert_array_equal(
                fake_quant(x, jnp.ones(1, dtype), format=format, round_fn=round_fn), x
            )


def test_directed_rounding_is_towards_and_away_from_zero():
    x = np.array([0.3, -0.3, 0.9, -0.6])
    format, one = LogFormat(4, signed=True), np.ones(1)
    floor = fake_quant(x, one, format=format, round_fn=jnp.floor)
    np.testing.assert_array_equal(floor, [0.25, -0.25, 0.5, -0.5])
    ceil = fake_quant(x, one, format=format, round_fn=jnp.ceil)
    np.testing.assert_array_equal(ceil, [0.5, -0.5, 1.0, -1.0])


def test_stochastic_rounding_is_unbiased_in_the_logarithm():
    """z within 4 of the exact Bernoulli law."""
    x, n = jnp.array([0.3, 0.55, 0.9]), 20_000
    uniform = jax.random.uniform(jax.random.key(1), (n, 3), jnp.float32)
    one = functools.partial(quant.fake_quant_stochastic, format=LogFormat(4))
    draws = jax.jit(jax.vmap(one, (None, None, None, 0)))(x, jnp.ones(1), None, uniform)
    exponent = np.log2(np.asarray(draws))
    fraction = np.log2(x) - np.floor(np.log2(x))
    deviation = np.sqrt(fraction * (1 - fraction) / n)
    assert np.all(np.abs(exponent.mean(0) - np.log2(x)) <= 4 * deviation)


@pytest.mark.parametrize("k", [1.0, 0.5])
@pytest.mark.parametrize("signed", [False, True])
def test_traced_bits_equal_static_bits_bit_for_bit(k, signed):
    bits = np.arange(2, 7)
    for dtype in (np.float32, np.float64):
        v = _probes(LogFormat(4, k), dtype)
        one = np.ones(1, dtype)

        def quantized(b, v=v, one=one):
            return quant.fake_quant(v, one, format=LogFormat(b, k, signed))

        together = jax.jit(jax.vmap(quantized))(bits)
        alone = jax.jit(lambda: [quantized(int(b)) for b in bits])()
        np.testing.assert_array_equal(together, np.stack(alone))


@SETTINGS
@given(st.integers(0, 2**32 - 1), st.sampled_from(["sqrt2", "signed log2"]), st.integers(-20, 20))
def test_quantizer_is_idempotent_monotone_equivariant_and_close_in_the_logarithm(seed, name, power):
    format, scale = FORMATS[name], np.array([0.5])  # a power of two, so that levels stay levels
    x = np.sort(np.random.default_rng(seed).normal(size=32))
    once = fake_quant(x, scale, format=format)
    np.testing.assert_array_equal(fake_quant(once, scale, format=format), once)
    assert np.all(np.diff(once) >= 0)
    scaled = fake_quant(x * 2.0**power, scale * 2.0**power, format=format)
    np.testing.assert_array_equal(scaled, once * 2.0**power)
    if format.signed:
        np.testing.assert_array_equal(fake_quant(-x, scale, format=format), -once)
    smallest = np.min(np.abs(format.levels()[format.levels() != 0])) * 0.5
    inside = (np.abs(x) <= 0.5) & (np.abs(x) >= smallest) & (format.signed | (x > 0))
    ratio = np.log2(np.abs(once[inside]) / np.abs(x[inside]))
    assert np.all(np.abs(ratio) <= (0.5 + 1e-12) * format.base_exponent)


def test_gradient_is_straight_through_inside_and_constant_outside():
    x, scale = jnp.array([0.3, 0.01, 2.0, -1.0]), jnp.array([1.0])

    @jax.jit
    def both_modes(x, scale, dx):
        f = functools.partial(quant.fake_quant, format=LogFormat(2))  # 1/8..1
        return jax.vjp(f, x, scale)[1](jnp.ones_like(x)), jax.jvp(
            lambda x: f(x, scale), (x,), (dx,)
        )

    (x_bar, scale_bar), (_, tangent) = both_modes(x, scale, jnp.full(4, 2.0))
    np.testing.assert_array_equal(x_bar, [1, 0, 0, 0])
    assert_close(scale_bar, np.array([(0.25 - 0.3) + 0.125 + 1 + 0.125]))
    np.testing.assert_array_equal(tangent, [2, 0, 0, 0])


@ALL
def test_empty_and_scalar_arrays_pass(format):
    assert fake_quant(jnp.zeros((0, 3)), jnp.ones((1, 1)), format=format).shape == (0, 3)
    assert fake_quant(jnp.array(0.5), jnp.array(1.0), format=format) == 0.5


def test_e8m0_is_the_cast_of_ml_dtypes_with_saturation():
    """Between 2^-127 and 1.5 * 2^-127 ml_dtypes rounds up, away from the nearest; left out."""
    dtype = ml_dtypes.float8_e8m0fnu
    rng = np.random.default_rng(0)
    powers = 2.0 ** np.arange(-127, 127)
    v = np.concatenate([powers, 1.5 * powers, powers * rng.uniform(1, 2, 254)]).astype(np.float32)
    v = np.concatenate([v, np.nextafter(v, np.float32(0)), np.nextafter(v, np.float32(1e38))])
    v = v[(v <= 2.0**-127) | (v >= 1.5 * 2.0**-127)]
    rounded, codes = jax.jit(lambda v: (E8M0.round(v, jnp.round), E8M0.encode(v)))(v)
    np.testing.assert_array_equal(codes, v.astype(dtype).view(np.uint8))
    np.testing.assert_array_equal(rounded, v.astype(dtype).astype(np.float32))
    special = np.array([0, -1, -0.0, np.inf, 3e38, 1.2 * 2.0**-127, np.nan], np.float32)
    codes = jax.jit(E8M0.encode)(special)
    np.testing.assert_array_equal(codes, [0, 0, 0, 254, 254, 0, 255])


def test_e8m0_codes_are_biased_exponents():
    assert isinstance(E8M0, Format)
    codes = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
        got = jax.jit(E8M0.decode, static_argnums=1)(codes, dtype)
        expected = codes.view(ml_dtypes.float8_e8m0fnu).astype(dtype)
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(E8M0.levels(), expected[:-1])
    assert (E8M0.low, E8M0.high) == (expected[0], expected[-2])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, r"bits: got 0, expected 1\.\.6"),
        ((7,), ValueError, r"bits: got 7, expected 1\.\.6"),
        ((8, 0.5), ValueError, r"bits: got 8, expected 1\.\.7"),
        ((1, 1, True), ValueError, r"bits: got 1, expected 2\.\.7"),
        ((4, 2), ValueError, r"base_exponent: got 2, expected 1 or 0\.5"),
        ((4.0,), TypeError, "expected an int or an integer array"),
    ],
)
def test_arguments_that_make_no_format_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        LogFormat(*arguments)

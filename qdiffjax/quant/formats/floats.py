"""Floating-point formats of any split, named by their exponent and mantissa bits.

A code is sign | exponent field E | mantissa field M and means, with m mantissa bits,

    (-1)^sign * (M / 2^m + [E > 0]) * 2^(max(E, 1) - bias),

always a float32; arithmetic is carried out there or in float64, by the bits of these carriers
(`split` and `join`).
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats.base import check_integer, format_pytree, shift
from qdiffjax.quant.granularity import expand

Kind = Literal["finite", "fn", "ieee", "fnuz"]
_FIELDS = ("exponent_bits", "mantissa_bits", "bias")


class Carrier(NamedTuple):
    """Layout of the dtype that carries the arithmetic."""

    mantissa_bits: int
    bias: int
    integer: Any


def carrier_of(dtype) -> Carrier:
    """Return the layout of float32 or float64.

    Raises:
      TypeError: any other dtype.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return Carrier(23, 127, jnp.int32)
    require(
        jnp.dtype(dtype) == jnp.float64,
        "dtype",
        got=dtype,
        expected="float32 or float64",
        remedy="cast first",
        error=TypeError,
    )
    return Carrier(52, 1023, jnp.int64)


def power_of_two(exponent: int | Array, dtype) -> Array:
    """Return 2^exponent [*shape], a normal number, built from bits; exp2 may round."""
    carrier = carrier_of(dtype)
    field = jnp.asarray(exponent).astype(carrier.integer) + carrier.bias
    return jax.lax.bitcast_convert_type(field << carrier.mantissa_bits, dtype)


def split(v: Array, mantissa_bits: int | Array, min_exponent: int | Array) -> tuple[Array, Array]:
    """Return (v / ulp [*shape], exponent [*shape]) with ulp = 2^(exponent - mantissa_bits).

        exponent = max(floor(log2 |v|), min_exponent)

    The exponent is read from the bits of v: log2 rounds, and frexp is wrong for subnormals.
    mantissa_bits and min_exponent are ints, or integer arrays that broadcast against v.
    """
    carrier = carrier_of(v.dtype)
    magnitude = jax.lax.bitcast_convert_type(jnp.abs(v), carrier.integer)
    exponent = (magnitude >> carrier.mantissa_bits) - carrier.bias
    exponent = jnp.clip(exponent, _integer(min_exponent, carrier), carrier.bias)
    # Two factors, 2^(1 - exponent) and 2^(m - 1), are normal numbers where 1 / ulp is not.
    scaled = v * power_of_two(1 - exponent, v.dtype)
    scaled *= power_of_two(_integer(mantissa_bits, carrier) - 1, v.dtype)
    if not _may_be_subnormal(min_exponent, v.dtype):
        return scaled, exponent
    unit = power_of_two(_integer(mantissa_bits, carrier) - carrier.mantissa_bits, v.dtype)
    exact = magnitude.astype(v.dtype) * unit
    is_subnormal = (exponent == 1 - carrier.bias) & (magnitude < 1 << carrier.mantissa_bits)
    return jnp.where(is_subnormal, _with_sign_of(v, exact), scaled), exponent


def join(
    significand: Array, exponent: Array, mantissa_bits: int | Array, min_exponent: int | Array
) -> Array:
    """Return significand * ulp [*shape], the inverse of `split`, for integer significands."""
    dtype = significand.dtype
    carrier = carrier_of(dtype)
    scaled = significand * power_of_two(-_integer(mantissa_bits, carrier), dtype)
    scaled *= power_of_two(exponent, dtype)
    if not _may_be_subnormal(min_exponent, dtype):
        return scaled
    places = carrier.mantissa_bits - _integer(mantissa_bits, carrier)
    bits = jnp.abs(significand).astype(carrier.integer) << places
    exact = _with_sign_of(significand, jax.lax.bitcast_convert_type(bits, dtype))
    return jnp.where(exponent == 1 - carrier.bias, exact, scaled)


def _may_be_subnormal(min_exponent, dtype) -> bool:
    """Whether subnormals of dtype may occur, which XLA's CPU arithmetic flushes to zero."""
    smallest = 1 - carrier_of(dtype).bias
    is_known = isinstance(min_exponent, int)
    return min_exponent <= smallest if is_known else jnp.dtype(dtype) == jnp.float32


def _with_sign_of(v, magnitude):
    return jnp.where(jnp.signbit(v), -magnitude, magnitude)


def _integer(number, carrier):
    return jnp.asarray(number).astype(carrier.integer)


@format_pytree(*_FIELDS)
@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """A float format; hashable (so usable as a static argument) if its fields are ints, else data.

        neighbours of v are one ulp = 2^(max(floor(log2 |v|), 1 - bias) - mantissa_bits) apart

    The kind says what the top of the range holds, in the words of ml_dtypes' names:

        finite  every code is a number                               e2m1, e2m3, e3m2
        fn      all ones is NaN, no infinity                         e4m3fn
        ieee    the whole top exponent is infinity and NaN           e5m2, fp16, bf16, tf32
        fnuz    every code is a number, but -0 is NaN; bias one more e4m3b11fnuz

    Quantization saturates at `high`, whatever the kind. Ties go to the even significand (without
    mantissa bits: up). XLA's float32 arithmetic on CPU takes numbers below 2^-126 for zero; round,
    encode and decode avoid that, but the multiplication by a scale does not.

    Attributes:
      exponent_bits: 1..8, an int or an integer array (broadcasting, or [*groups]).
      mantissa_bits: 0..23, likewise.
      kind: what the top of the range holds.
      bias: of the exponent, or None for 2^(exponent_bits - 1) - 1 (without the -1 for fnuz).

    Raises:
      TypeError: a field is not an integer.
      ValueError: concrete fields out of range, a format that is not a subset of float32, or an
        unknown kind.
    """

    exponent_bits: Any
    mantissa_bits: Any
    kind: Kind = "finite"
    bias: Any = None

    def __post_init__(self):
        _check_fields(self)
        for name in _FIELDS:
            value = getattr(self, name)
            if isinstance(value, np.integer):
                object.__setattr__(self, name, int(value))
            elif isinstance(value, jax.Array | np.ndarray):
                object.__setattr__(self, name, value.astype(np.int32))

    @property
    def is_static(self) -> bool:
        """Whether every field is a Python int, known before tracing."""
        return all(isinstance(getattr(self, f), int | None) for f in _FIELDS)

    @property
    def bits(self) -> Any:
        """Width of one code, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def exponent_bias(self) -> Any:
        """The bias, spelled out."""
        if self.bias is not None:
            return self.bias
        half = shift(1, self.exponent_bits - 1)
        return half if self.kind == "fnuz" else half - 1

    @property
    def high(self) -> Any:
        """Largest number: float, or float32 array if traced."""
        if not self.is_static:
            return _value(_top_code(self), self, jnp.float32)
        return float(_exact_value(np.asarray(_top_code(self)), self))

    @property
    def low(self) -> Any:
        """Smallest number: -high."""
        return -self.high

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive number, and the spacing around zero; static formats only."""
        return math.ldexp(1.0, 1 - self.exponent_bias - self.mantissa_bits)

    @property
    def storage_dtype(self) -> np.dtype:
        """Smallest whole-byte unsigned dtype that holds every code."""
        widths = (w for w in (8, 16) if self.is_static and self.bits <= w)
        return np.dtype(f"uint{next(widths, 32)}")

    def round(self, v: Array, round_fn: rounding.RoundFn) -> Array:
        """Return ulp * round_fn(v / ulp) [*shape]: to the grid as if it had no largest number.

        Exact whatever round_fn, also where it carries into the next binade; one that would go on
        from there, where steps are larger (triangular dither), stops. NaN and infinity stay.
        """
        layout = _layout(self, v.shape)
        significand, exponent = split(v, *layout)
        end = power_of_two(layout[0] + 1, v.dtype)  # of infinity too: 2 * 2^127 is infinity again
        return join(jnp.clip(round_fn(significand), -end, end), exponent, *layout)

    def encode(self, values: Array) -> Array:
        """Return bit patterns [*shape], in storage_dtype, of numbers; static formats only.

        Larger numbers saturate, infinity too unless it has a code; NaN without a code becomes 0.
        """
        m, min_exponent = _layout(self, values.shape)
        significand, exponent = split(values, m, min_exponent)
        # The hidden bit of a normal significand adds the one by which its field is larger.
        field = jnp.minimum(exponent - min_exponent, 254).astype(jnp.int32)
        integer = jnp.nan_to_num(jnp.abs(significand), posinf=0.0).astype(jnp.int32)
        magnitude = jnp.minimum(integer + (field << m), _top_code(self))
        if self.kind == "ieee":
            magnitude = jnp.where(jnp.isinf(values), _top_code(self) + 1, magnitude)
        is_negative = jnp.signbit(values)
        if self.kind == "fnuz":  # the code of -0 is taken
            is_negative &= magnitude > 0
        codes = magnitude.astype(jnp.uint32) | is_negative.astype(jnp.uint32) << (self.bits - 1)
        codes = jnp.where(jnp.isnan(values), _nan_code(self), codes)
        return codes.astype(self.storage_dtype)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the numbers [*shape] of bit patterns [*shape], exactly, as float32 or float64."""
        codes = codes.astype(jnp.uint32)
        sign = codes >> (self.bits - 1)
        magnitude = (codes & (2 ** (self.bits - 1) - 1)).astype(jnp.int32)
        value = _value(magnitude, self, dtype)
        first = jnp.inf if self.kind == "ieee" else jnp.nan  # of the codes that are no number
        value = jnp.where(magnitude == _top_code(self) + 1, first, value)
        value = jnp.where(magnitude > _top_code(self) + 1, jnp.nan, value)
        if self.kind == "fnuz":
            value = jnp.where((sign == 1) & (magnitude == 0), jnp.nan, value)
        return jnp.where(sign == 1, -value, value)

    def levels(self) -> np.ndarray:
        """Return all distinct numbers, ascending, float64 [n]; static formats only."""
        positive = _exact_value(np.arange(_top_code(self) + 1), self)
        return np.concatenate([-positive[:0:-1], positive])


def _layout(format, shape):
    """Return mantissa bits and the smallest normal's exponent, ints or arrays against [*shape]."""
    fields = (format.mantissa_bits, 1 - format.exponent_bias)
    return [f if isinstance(f, int) else expand(jnp.asarray(f), shape) for f in fields]


def _value(magnitude, format, dtype):
    """Return the number of a code without its sign."""
    m = format.mantissa_bits
    field, mantissa = magnitude >> m, magnitude & (shift(1, m) - 1)
    significand = mantissa + shift(jnp.minimum(field, 1), m)
    exponent = jnp.maximum(field, 1) - format.exponent_bias
    return join(significand.astype(dtype), exponent, m, 1 - format.exponent_bias)


def _exact_value(magnitude, format):
    """Compute as _value, in numpy float64; static formats only."""
    field, mantissa = magnitude >> format.mantissa_bits, magnitude & (2**format.mantissa_bits - 1)
    significand = mantissa / 2**format.mantissa_bits + (field > 0)
    return np.ldexp(significand, np.maximum(field, 1) - format.exponent_bias)


def _top_code(format):
    """Return the largest code without its sign that is a finite number."""
    all_ones = shift(1, format.exponent_bits + format.mantissa_bits) - 1
    if format.kind == "ieee":
        return all_ones - shift(1, format.mantissa_bits)
    return all_ones - 1 if format.kind == "fn" else all_ones


def _nan_code(format) -> int:
    first = _top_code(format) + 1
    quiet = first + (1 << format.mantissa_bits >> 1)  # infinity and the leading mantissa bit
    return {"finite": 0, "fn": first, "ieee": quiet, "fnuz": 1 << format.bits - 1}[format.kind]


def _check_fields(format) -> None:
    for name, low, high in (("exponent_bits", 1, 8), ("mantissa_bits", 0, 23), ("bias", -126, 127)):
        if name != "bias" or format.bias is not None:
            check_integer(name, getattr(format, name), low, high)
    kinds = get_args(Kind)
    require(format.kind in kinds, "kind", got=repr(format.kind), expected=f"one of {kinds}",
            remedy="'finite' has neither infinity nor NaN")  # fmt: skip
    if any(isinstance(getattr(format, f), jax.core.Tracer) for f in _FIELDS):
        return  # trusted
    with jax.ensure_compile_time_eval():
        top, bias = np.asarray(_top_code(format)), np.asarray(format.exponent_bias)
        largest = np.asarray(top >> np.asarray(format.mantissa_bits)) - bias
    require(
        np.all((bias <= 127) & (largest <= 127) & (top >= 1)), "format",
        got=f"exponents {1 - bias}..{largest}", expected="-126..127 as of float32, and a positive "
        "number", remedy="use kind='ieee' for 8 exponent bits, or move the bias",
    )  # fmt: skip


E4M3FN = FloatFormat(4, 3, "fn")
E5M2 = FloatFormat(5, 2, "ieee")
E4M3B11FNUZ = FloatFormat(4, 3, "fnuz", bias=11)
E3M2 = FloatFormat(3, 2)
E2M3 = FloatFormat(2, 3)
E2M1 = FloatFormat(2, 1)
FP16 = FloatFormat(5, 10, "ieee")
BF16 = FloatFormat(8, 7, "ieee")
TF32 = FloatFormat(8, 10, "ieee")

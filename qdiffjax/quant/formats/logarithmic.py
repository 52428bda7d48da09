"""Logarithmic formats: powers of 2 or of the square root of 2, rounded in the log domain."""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats import base, floats
from qdiffjax.quant.granularity import expand

MAX_HALVINGS = 126  # 2^-126 is the smallest normal float32


@base.format_pytree("bits")
@dataclasses.dataclass(frozen=True)
class LogFormat:
    """Powers of 2^base_exponent at and below 1; hashable if bits is an int.

        v_hat = 2^(-k q),   q = clip(round(-log2(v) / k), 0, 2^b - 1),   k = base_exponent

    Rounding is to the nearest exponent, not the nearest number: the threshold between two levels
    is their geometric mean. Another round_fn acts on log2(v) / k, so `floor` goes towards zero
    and `stochastic` is without bias in the logarithm, not in the value.

    Unsigned, the form of softmax outputs (k = 1: FQ-ViT, Lin et al. 2022; k = 1/2: RepQ-ViT, Li
    et al. 2023), has no code for zero: zero and negative numbers become the smallest level.
    Signed spends one bit on the sign and the largest q on zero (in Miyashita et al. 2016 only
    zero itself becomes zero), so

        v_hat = +-2^(-k q), q = 0..2^(b-1) - 2,   or 0 if the rounded q is larger,

    and Q is odd. Numbers are correctly rounded to the dtype of the arithmetic; levels() gives
    them in float64.

    Attributes:
      bits: total width, sign included: an int, or an integer array (a tracer inside jit or vmap),
        from 1 (signed: 2) to the width whose smallest level is a normal float32: 6 bits
        for k = 1, 7 for k = 1/2, one more if signed.
      base_exponent: k, 1 or 1/2.
      signed: whether negative numbers exist.

    Raises:
      TypeError: bits is not an integer.
      ValueError: concrete bits out of range, or another base exponent.
    """

    bits: Any
    base_exponent: float = 1.0
    signed: bool = False

    high = 1.0
    storage_dtype = np.dtype(np.uint8)

    def __post_init__(self):
        if isinstance(self.bits, np.integer):
            object.__setattr__(self, "bits", int(self.bits))
        k, extra = self.base_exponent, int(self.signed)
        require(
            k in (1, 0.5),
            "base_exponent",
            got=repr(k),
            expected="1 or 0.5",
            remedy="1 is powers of 2, 0.5 of its root",
        )
        # Wider, levels would fall below the smallest normal float32.
        base.check_integer("bits", self.bits, 1 + extra, (6 if k == 1 else 7) + extra)

    @property
    def is_static(self) -> bool:
        """Whether the width is a Python int, known before tracing."""
        return isinstance(self.bits, int)

    @property
    def low(self) -> Any:
        """Smallest number: -1, or unsigned 2^(-k (2^b - 1))."""
        if self.signed:
            return -1.0
        if self.is_static:
            return float(2.0 ** (-self.base_exponent * _last(self)))
        return _level(_last(self), self, jax.dtypes.canonicalize_dtype(jnp.float64))

    def round(self, v: Array, round_fn: rounding.RoundFn) -> Array:
        """Return +-2^(k round_fn(log2|v| / k)) [*shape], with the zeros described above."""
        q = self._negated_log(v, round_fn)
        value = jnp.where(jnp.isnan(v), v, _level(q, self, v.dtype))
        if not self.signed:
            return jnp.where(v <= 0, jnp.zeros_like(v), value)
        value = jnp.where(q > expand(jnp.asarray(_last(self)), v.shape), 0.0, value)
        return jnp.where(jnp.signbit(v), -value, value)

    def encode(self, values: Array) -> Array:
        """Return the codes sign | q as uint8 [*shape]; static bits only. Zero is the largest q."""
        q = self._negated_log(values, rounding.nearest_even)
        last = _last(self) + int(self.signed)
        q = jnp.clip(jnp.where(jnp.isnan(values), last, q), 0, last)
        is_negative = (values < 0) & self.signed
        return (q + (is_negative.astype(jnp.int32) << (self.bits - 1))).astype(self.storage_dtype)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the numbers [*shape] of codes [*shape], as float32 or float64."""
        codes = codes.astype(jnp.int32)
        if not self.signed:
            return _level(codes, self, dtype)
        sign, q = codes >> (self.bits - 1), codes & (2 ** (self.bits - 1) - 1)
        value = jnp.where(q > _last(self), 0.0, _level(q, self, dtype))
        return jnp.where(sign == 1, -value, value)

    def levels(self) -> np.ndarray:
        """Return all numbers, ascending, float64 [n]; static bits only."""
        positive = 2.0 ** (-self.base_exponent * np.arange(_last(self), -1.0, -1.0))
        return np.concatenate([-positive[::-1], [0.0], positive]) if self.signed else positive

    def _negated_log(self, v, round_fn):
        """Return -round_fn(log2|v| / k), int32 [*shape], large for zero."""
        per_octave = round(1 / self.base_exponent)
        significand, octave = floats.split(jnp.abs(v), 0, 2 - np.finfo(v.dtype).maxexp)
        fraction = _log2(significand, per_octave)
        # In two parts, since log2|v| itself would lose the digits that decide between levels.
        whole = per_octave * octave.astype(v.dtype)
        bound = float(per_octave * MAX_HALVINGS)
        exponent = jnp.clip(whole + round_fn(fraction), -bound - 1, bound)
        return -jnp.nan_to_num(exponent).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class ScaleFormat:
    """E8M0, the powers of two in which MX blocks store their scales (OCP MX v1.0, section 5.4.1).

        code = q + 127,   v = 2^q,   q = -127..127;   code 255 is NaN; no zero, no sign

    Unlike LogFormat it rounds to the nearest number, ties up, as ml_dtypes.float8_e8m0fnu does;
    unlike that, it saturates: zero and negative numbers become 2^-127, infinity 2^127.
    """

    bits = 8
    is_static = True
    low, high = 2.0**-127, 2.0**127
    storage_dtype = np.dtype(np.uint8)

    def round(self, v: Array, round_fn: rounding.RoundFn) -> Array:
        """Round v [*shape] between neighbouring powers of two by the value of v; NaN stays."""
        return jnp.where(jnp.isnan(v), v, self.decode(_scale_code(v, round_fn), v.dtype))

    def encode(self, values: Array) -> Array:
        """Return the codes q + 127 as uint8 [*shape]."""
        codes = _scale_code(values, rounding.nearest_even)
        return jnp.where(jnp.isnan(values), 255, codes).astype(self.storage_dtype)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the powers of two [*shape] of codes [*shape], as float32 or float64."""
        exponent = codes.astype(jnp.int32) - 127
        value = floats.power_of_two(jnp.maximum(exponent, -126), dtype)
        value = jnp.where(exponent < -126, np.asarray(self.low, dtype), value)
        return jnp.where(exponent > 127, jnp.nan, value)

    def levels(self) -> np.ndarray:
        """Return all numbers, ascending, float64 [255]."""
        return 2.0 ** np.arange(-127, 128)


E8M0 = ScaleFormat()


def _scale_code(v, round_fn):
    """Return the code of the power of two that v rounds to, int32 [*shape]."""
    significand, exponent = floats.split(v, 0, -126)
    is_smallest = significand < 1  # 2^-127, the only level without an exponent of float32
    rounded = round_fn(jnp.where(is_smallest, 2 * significand, significand))
    is_next, is_before = (b.astype(jnp.int32) for b in (rounded >= 2, is_smallest))
    code = exponent.astype(jnp.int32) + 127 + is_next - is_before
    return jnp.clip(jnp.where(jnp.signbit(v), 0, code), 0, 254)


def _log2(s, per_octave):
    """Return per_octave * log2(s) for s in [1, 2), on the right side of each half-integer.

    jnp.log2 is good to an ulp or two only, and the levels themselves are rounded.
    """
    t, eps = per_octave * jnp.log2(s), np.finfo(s.dtype).eps
    for j, (last_below, first_above) in enumerate(_breakpoints(per_octave, s.dtype.name), 1):
        above = jnp.maximum(t, j / 2 + eps)
        below = jnp.minimum(t, j / 2 - eps)
        t = jnp.where(s <= last_below, below, jnp.where(s >= first_above, above, j / 2))
    return t


@functools.cache
def _breakpoints(per_octave, dtype):
    """Return the last float below and first above 2^(j / (2 per_octave)), j = 1..2 per_octave.

    For even j that is a level, as it is rounded; for odd j an irrational threshold.
    """
    result = []
    for j in range(1, 2 * per_octave + 1):
        x = np.asarray(2.0 ** (j / (2 * per_octave)), dtype)[()]
        down, up = np.nextafter(x, x.dtype.type(0)), np.nextafter(x, x.dtype.type(3))
        if j % 2:
            is_above = Fraction(float(x)) ** (2 * per_octave) > 2**j
            down, up = (down, x) if is_above else (x, up)
        result.append((down, up))
    return result


def _level(q, format, dtype):
    """Return 2^(-k q) as dtype, correctly rounded: a power of two, times sqrt(2) if k q is no
    integer.
    """
    q = jnp.asarray(q).astype(jnp.int32)
    if format.base_exponent == 1:
        return floats.power_of_two(-q, dtype)
    exponent, is_odd = -((q + 1) >> 1), (q & 1) == 1
    root = jnp.where(is_odd, jnp.asarray(math.sqrt(2.0), dtype), jnp.ones((), dtype))
    return root * floats.power_of_two(exponent, dtype)


def _last(format):
    """Return the largest q that is a number."""
    return base.shift(1, format.bits - int(format.signed)) - 1 - int(format.signed)

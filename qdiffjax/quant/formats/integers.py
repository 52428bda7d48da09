"""Integer formats: consecutive codes of a given width."""

import dataclasses
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import NOT_NEGATIVE, check_count, checked, require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats.base import Format, check_integer, format_pytree, shift
from qdiffjax.quant.granularity import normal_or_least, normal_or_one

MIN_BITS, MAX_BITS = 1, 16


@format_pytree("bits")
@dataclasses.dataclass(frozen=True)
class IntFormat:
    """Integer codes of a given width; a pytree, whose leaf is bits if they are an array.

        signed, narrow:      -(2^(b-1) - 1) .. 2^(b-1) - 1     (symmetric; the default)
        signed, not narrow:  -2^(b-1)       .. 2^(b-1) - 1     (survey, eq. 4)
        unsigned:            0              .. 2^b - 1

    The narrow grid drops one code so that Q is odd: on the full grid a symmetric input gets a
    bias. One signed bit is the binary format {-1, +1}, which has no code for zero.

    Attributes:
      bits: total width, sign included: an int in 1..16, which makes the format hashable (so
        usable as a static argument), or an integer array (a tracer inside jit or vmap) in 2..16,
        or 1..16 without sign, so that a sweep over widths compiles once.
      signed: whether negative codes exist.
      narrow: whether the most negative code of a signed format is dropped.

    Raises:
      TypeError: bits is not an integer.
      ValueError: concrete bits outside the range.
    """

    bits: Any
    signed: bool = True
    narrow: bool = True

    def __post_init__(self):
        if isinstance(self.bits, np.integer):
            object.__setattr__(self, "bits", int(self.bits))
        remedy = "wider formats are not quantized at all, and one bit must be a Python int"
        least = 2 if self.signed and not isinstance(self.bits, int) else MIN_BITS
        check_integer("bits", self.bits, least, MAX_BITS, remedy)

    @property
    def is_static(self) -> bool:
        """Whether the width is a Python int, known before tracing."""
        return isinstance(self.bits, int)

    @property
    def is_binary(self) -> bool:
        """Whether the codes are {-1, +1}; traced widths never are."""
        return self.is_static and self.bits == 1 and self.signed

    @property
    def qmax(self) -> int | Array:
        """Largest code: int for static bits, float32 array like bits for traced bits."""
        if self.is_binary:
            return 1
        return _power_of_two(self.bits - 1 if self.signed else self.bits) - 1

    @property
    def qmin(self) -> int | Array:
        """Smallest code: int for static bits, float32 array like bits for traced bits."""
        if not self.signed:
            return self.qmax * 0
        return -self.qmax if self.narrow or self.is_binary else -self.qmax - 1

    low, high = qmin, qmax  # grid values are codes

    @property
    def storage_dtype(self) -> np.dtype:
        """Smallest whole-byte integer dtype that holds every code."""
        is_small = self.is_static and self.bits <= 8
        kind = "int" if self.signed else "uint"
        return np.dtype(f"{kind}{8 if is_small else 16}")

    def round(self, v: Array, round_fn: rounding.RoundFn) -> Array:
        """Round v [*shape] to integers; by its sign, whatever round_fn, if binary."""
        return rounding.binary(v) if self.is_binary else round_fn(v)

    def encode(self, values: Array) -> Array:
        """Return the integers as storage_dtype [*shape]."""
        return values.astype(self.storage_dtype)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the integers as dtype [*shape]."""
        return codes.astype(dtype)

    def levels(self) -> np.ndarray:
        """Return all codes, ascending, float64 [n]; static bits only."""
        if self.is_binary:
            return np.asarray([-1.0, 1.0])
        return np.arange(int(self.qmin), int(self.qmax) + 1, dtype=np.float64)


def is_binary(format: Format) -> bool:
    """Whether the codes of a format are {-1, +1}."""
    return isinstance(format, IntFormat) and format.is_binary


def usable_scale(scale: Array, format: Format) -> Array:
    """Replace scales [*groups] that are not normal floats, as those of all-zero channels.

    By 1; but by the least normal float for the binary format, which has no code for zero: its
    codes of such a channel are +1, and must not stand for 1.
    """
    return normal_or_least(scale) if is_binary(format) else normal_or_one(scale)


def has_equal_steps(format: Format) -> TypeGuard[IntFormat]:
    """Whether a format has integer codes that a zero point or dither can shift."""
    return isinstance(format, IntFormat) and not format.is_binary


def check_equal_steps(format: Format, remedy: str) -> None:
    """Raise ValueError unless `has_equal_steps(format)`."""
    require(
        has_equal_steps(format),
        "format",
        got=format,
        expected="IntFormat of 2 bits or more, or unsigned",
        remedy=remedy,
    )


@checked(group_size=check_count, scale_bits=NOT_NEGATIVE, zero_point_bits=NOT_NEGATIVE)
def effective_bits(
    format: IntFormat, *, group_size: int, scale_bits: float = 32, zero_point_bits: float = 0
) -> Any:
    """Return the storage per element, scales included.

        b + b_s / g + b_z / g          [bits]

    Survey, eq. 13, counts b alone; with groups of 16 and 8-bit scales that is half a bit short.

    Args:
      format: the codes, b = format.bits.
      group_size: g, elements that share one scale (the whole tensor if per tensor).
      scale_bits: b_s, width of one stored scale.
      zero_point_bits: b_z, width of one stored zero point; 0 for symmetric.

    Raises:
      ValueError: group_size below 1.
    """
    return format.bits + (scale_bits + zero_point_bits) / group_size


def _power_of_two(exponent):
    """Return 2^exponent; float32 when traced."""
    power = shift(1, exponent)
    return power if isinstance(power, int) else power.astype(jnp.float32)

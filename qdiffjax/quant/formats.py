"""Number formats: which codes exist. Nothing here touches data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array

MIN_BITS, MAX_BITS = 1, 16


@dataclasses.dataclass(frozen=True)
class IntFormat:
    """Integer codes of a given width; hashable (so usable as a static argument) if bits is an int.

        signed, narrow:      -(2^(b-1) - 1) .. 2^(b-1) - 1     (symmetric; the default)
        signed, not narrow:  -2^(b-1)       .. 2^(b-1) - 1     (survey, eq. 4)
        unsigned:            0              .. 2^b - 1

    The narrow grid drops one code so that Q is odd: on the full grid a symmetric input gets a
    bias. One signed bit is the binary format {-1, +1}, which has no code for zero.

    Attributes:
      bits: total width, sign included: an int in 1..16, or an integer array (a tracer inside
        jit or vmap) in 2..16, so that a sweep over widths compiles once.
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
        _check_bits(self.bits)

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

    @property
    def storage_dtype(self) -> np.dtype:
        """Smallest whole-byte integer dtype that holds every code."""
        is_small = self.is_static and self.bits <= 8
        kind = "int" if self.signed else "uint"
        return np.dtype(f"{kind}{8 if is_small else 16}")


def effective_bits(
    format: IntFormat, *, group_size: int, scale_bits: float = 32, zero_point_bits: float = 0
) -> Any:
    """Storage per element, scales included.

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
    if group_size < 1:
        raise ValueError(f"group_size: got {group_size}, expected at least 1 element per scale.")
    return format.bits + (scale_bits + zero_point_bits) / group_size


def _power_of_two(exponent):
    """2^exponent; by a shift when traced, since exp2 of an integer need not be exact."""
    if isinstance(exponent, int):
        return 2**exponent
    shift = jnp.asarray(exponent).astype(jnp.int32)
    return jnp.left_shift(jnp.ones_like(shift), shift).astype(jnp.float32)


def _check_bits(bits) -> None:
    if isinstance(bits, int) and not isinstance(bits, bool):
        low, values = MIN_BITS, np.asarray(bits)
    elif isinstance(bits, jax.Array | np.ndarray) and np.issubdtype(bits.dtype, np.integer):
        low = 2
        values = np.asarray(low) if isinstance(bits, jax.core.Tracer) else np.asarray(bits)
    else:
        raise TypeError(
            f"bits: got {bits!r} ({type(bits).__name__}), expected an int or an integer array; "
            "round a real-valued width first, for example jnp.round(bits).astype(jnp.int32)."
        )
    if np.any((values < low) | (values > MAX_BITS)):
        raise ValueError(
            f"bits: got {values}, expected {low}..{MAX_BITS}; wider formats are not quantized "
            "at all, and one bit must be a Python int."
        )

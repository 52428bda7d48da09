"""Block formats: an element format, and a rule from the data of a block to its scale.

The scale is an ordinary array [*groups], so everything else is `fake_quant(x, scale,
format=element)`. A rule takes the largest magnitude of each block and the element format; any
function of this signature will do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats.base import Format, check_number_format, check_static_integer
from qdiffjax.quant.formats.floats import E2M1, E2M3, E3M2, E4M3FN, E5M2, power_of_two
from qdiffjax.quant.formats.integers import IntFormat, usable_scale
from qdiffjax.quant.formats.logarithmic import E8M0
from qdiffjax.quant.granularity import (
    Shape,
    compute_dtype,
    divide_small,
    divided,
    group,
    normal_or_one,
)

ScaleFn = Callable[[Array, Format], Array]


def floor_scale(absmax: Array, element: Format) -> Array:
    """Return 2^(floor(log2 absmax) - floor(log2 high)) [*groups]: OCP MX v1.0, section 6.3.

    A block whose largest significand exceeds that of `high` is clipped.

    Args:
      absmax: largest magnitudes, finite [*groups].
      element: format with high > 0; may be traced.
    """
    return _shared_power(absmax, element, lambda m, top: jnp.zeros_like(m, bool))


def ceil_scale(absmax: Array, element: Format) -> Array:
    """Return the least power of two that clips nothing: 2^ceil(log2(absmax / high)) [*groups].

    NVIDIA's rule (cuBLAS, block scaling), "RCEIL" in torchao, and that of qwix; those round
    absmax / high first, here the comparison is exact.
    """
    return _shared_power(absmax, element, lambda m, top: m > top)


def ceil_log_scale(absmax: Array, element: Format) -> Array:
    """Return 2^(ceil(log2 absmax) - floor(log2 high)) [*groups]: torchao's "CEIL".

    Clips nothing, but for most blocks is twice as coarse as needed.
    """
    return _shared_power(absmax, element, lambda m, top: m > 0.5)


def nearest_scale(absmax: Array, element: Format) -> Array:
    """Return 2^(round(log2 absmax) - floor(log2 high)) [*groups]."""
    # m^2 rounds to the right side of 1/2 at both neighbours of its root, float32 and float64.
    return _shared_power(absmax, element, lambda m, top: m * m > 0.5)


def even_scale(absmax: Array, element: Any) -> Array:
    """Return 2^(floor(log2 r) - floor(log2 high)) [*groups], r = absmax to the element's precision.

    torchao's "EVEN": absmax is first rounded to mantissa_bits of the element (half up), so only
    the blocks that would carry into the next power of two change.

    Raises:
      TypeError: an element without mantissa_bits.
    """
    require(
        hasattr(element, "mantissa_bits"),
        "element",
        got=element,
        expected="a FloatFormat",
        remedy="the rule 'even' rounds to its mantissa",
        error=TypeError,
    )
    carry = 1 - power_of_two(-element.mantissa_bits - 2, absmax.dtype)
    return _shared_power(absmax, element, lambda m, top: m >= carry)


def absmax_scale(absmax: Array, element: Format) -> Array:
    """Return absmax / high [*groups], not rounded."""
    return usable_scale(
        divide_small(absmax, jnp.asarray(element.high).astype(absmax.dtype)), element
    )


def e4m3_scale(absmax: Array, element: Format) -> Array:
    """Return absmax / high rounded to e4m3 [*groups], between 2^-9 and 448."""
    ratio = divide_small(absmax, jnp.asarray(element.high).astype(absmax.dtype))
    rounded = E4M3FN.round(ratio, rounding.nearest_even)
    return jnp.clip(rounded, E4M3FN.smallest_subnormal, E4M3FN.high)


def nvfp4_scale(absmax: Array, element: Format, *, tensor_absmax: Any = None) -> Array:
    """Return NVFP4's scale [*groups], an e4m3 number for the block times one for the tensor.

        scale = e4m3(absmax / (high * g)) * g,   g = `nvfp4_tensor_scale`

    NVIDIA 2025 (arXiv:2509.25149), appendix C. A block scale that would round to zero is the
    smallest e4m3 number instead, 2^-9. Stored as one byte a block and one float32 by
    `pack(q, scale_format=E4M3FN, tensor_scale=g)`.

    Args:
      absmax: largest magnitudes [*groups].
      element: e2m1 for NVFP4, high = 6.
      tensor_absmax: a scalar found in calibration; None = the largest of absmax.
    """
    top = jnp.max(absmax, initial=0) if tensor_absmax is None else jnp.asarray(tensor_absmax)
    tensor_scale = nvfp4_tensor_scale(top.astype(absmax.dtype), element)
    ratio = divide_small(absmax, tensor_scale)
    return jnp.maximum(e4m3_scale(ratio, element) * tensor_scale, jnp.finfo(absmax.dtype).tiny)


def nvfp4_tensor_scale(tensor_absmax: Array, element: Format) -> Array:
    """Return g = tensor_absmax / (448 * high), like tensor_absmax; 1 for a tensor of zeros."""
    high = jnp.asarray(element.high).astype(tensor_absmax.dtype)
    return normal_or_one(divide_small(tensor_absmax, E4M3FN.high * high))


# The formats in which scales take a byte; those of other rules are any numbers.
STORED_SCALES: dict[ScaleFn, Any] = {
    **dict.fromkeys((floor_scale, ceil_scale, ceil_log_scale, nearest_scale, even_scale), E8M0),
    **dict.fromkeys((e4m3_scale, nvfp4_scale), E4M3FN),
}


def stored_scales(absmax: Array, format: Any) -> tuple[Any, Array | None]:
    """Return the format of a block format's scales and what they are multiplied by, for `pack`.

    None for rules that round no scale; no factor but NVFP4's, whose scales are

        scale = e4m3 number * g,   g = `nvfp4_tensor_scale`

    Args:
      absmax: the largest magnitude of the tensor, [].
      format: a `BlockFormat`.
    """
    stored = STORED_SCALES.get(format.scale_fn)
    if format.scale_fn is not nvfp4_scale:
        return stored, None
    return stored, nvfp4_tensor_scale(absmax, format.element)


def _shared_power(absmax, element, carries):
    """Return 2^(exponent of absmax - that of high + carries(m, m_high)), m in [1/2, 1)."""
    dtype = absmax.dtype
    m, exponent = jnp.frexp(absmax)
    m_high, high_exponent = jnp.frexp(jnp.asarray(element.high).astype(dtype))
    exponent = exponent - high_exponent + carries(m, m_high).astype(jnp.int32)
    implicit = high_exponent - 1 if isinstance(element, IntFormat) else 0
    lowest = jnp.finfo(dtype).minexp
    exponent = jnp.clip(
        exponent, jnp.maximum(-127 - implicit, lowest), jnp.minimum(127 - implicit, -lowest)
    )
    tiny = jnp.finfo(dtype).tiny
    return jnp.where(absmax >= tiny, power_of_two(exponent, dtype), jnp.ones_like(absmax))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """Neighbours along one axis that share a scale computed from their largest magnitude.

    Attributes:
      element: format of the elements in units of the scale.
      block_size: elements that share a scale.
      scale_fn: (absmax [*groups], element) -> positive scale [*groups].
      scale_bits: width of one stored scale. NVFP4's float32 per tensor is left to `footprint`.

    Raises:
      ValueError: block_size below 1.
    """

    element: Any
    block_size: int
    scale_fn: ScaleFn
    scale_bits: int = 8

    def __post_init__(self):
        check_number_format("element", self.element)
        check_count("block_size", self.block_size)

    @property
    def bits(self) -> Any:
        """Storage per element, scales included: b + b_s / block_size."""
        return self.element.bits + self.scale_bits / self.block_size

    @property
    def is_static(self) -> bool:
        """Whether the element format is known before tracing."""
        return self.element.is_static


def block_scale(x: Array, format: BlockFormat, *, axis: int = -1) -> Array:
    """Return the scale of each block, in units of x [*groups]: x's shape, axis / block_size.

        scale = scale_fn(max |x| over the block, element)

    A constant to autodiff. NaN and infinities do not count, so that a block's other elements
    survive them; a block without a non-zero finite element gives zeros exactly.

    Args:
      x: real array [*shape].
      format: the block format.
      axis: the axis along which blocks lie.

    Raises:
      TypeError: x is not real.
      ValueError: block_size does not divide the axis.
    """
    x = jax.lax.stop_gradient(jnp.asarray(x))
    magnitude = jnp.abs(x.astype(compute_dtype(x)))
    finite = jnp.where(jnp.isfinite(magnitude), magnitude, 0)
    blocks, axes = group(finite, _scale_shape(x.shape, format, axis))
    scale = format.scale_fn(jnp.max(blocks, axes, initial=0), format.element)
    return jax.lax.optimization_barrier(scale)  # else XLA computes it anew for every element


def block_float(mantissa_bits: int, block_size: int) -> BlockFormat:
    """Return block floating point: one shared exponent, integer mantissas with a sign each.

        scale = 2^(floor(log2 absmax) - mantissa_bits + 1),   codes -(2^m - 1) .. 2^m - 1

    Darvish Rouhani et al. 2020 (MSFP): MSFP12 = block_float(3, 16), MSFP16 = block_float(7, 16).

    Raises:
      ValueError: mantissa_bits outside 1..15, or block_size below 1.
    """
    check_static_integer("mantissa_bits", mantissa_bits, 15)
    return BlockFormat(IntFormat(mantissa_bits + 1), block_size, floor_scale)


def _scale_shape(shape: Shape, format: BlockFormat, axis: int) -> Shape:
    groups = divided(shape, axis, format.block_size, "block_size")
    return tuple(max(g, 1) for g in groups)  # an empty axis shares one scale


MXFP8_E4M3 = BlockFormat(E4M3FN, 32, floor_scale)
MXFP8_E5M2 = BlockFormat(E5M2, 32, floor_scale)
MXFP6_E2M3 = BlockFormat(E2M3, 32, floor_scale)
MXFP6_E3M2 = BlockFormat(E3M2, 32, floor_scale)
MXFP4 = BlockFormat(E2M1, 32, floor_scale)
MXINT8 = BlockFormat(IntFormat(8), 32, floor_scale)
NVFP4 = BlockFormat(E2M1, 16, nvfp4_scale)

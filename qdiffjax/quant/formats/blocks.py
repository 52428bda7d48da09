"""Block formats: an element format, and a rule from the data of a block to its scale.

The scale is an ordinary array [*groups], so everything else is `fake_quant(x, scale,
format=element)`. The rules are in `block_scales`; any function of their signature will do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats.floats import E2M1, E2M3, E3M2, E4M3FN, E5M2, power_of_two
from qdiffjax.quant.formats.integers import Format, IntFormat
from qdiffjax.quant.granularity import Shape, compute_dtype, divide_small, group
from qdiffjax.quant.qtensor import QTensor, quantize
from qdiffjax.quant.straight_through import fake_quant

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
    if not hasattr(element, "mantissa_bits"):
        raise TypeError(f"element: got {element}, expected a FloatFormat for the rule 'even'.")
    carry = 1 - power_of_two(-element.mantissa_bits - 2, absmax.dtype)
    return _shared_power(absmax, element, lambda m, top: m >= carry)


def absmax_scale(absmax: Array, element: Format) -> Array:
    """Return absmax / high [*groups], not rounded."""
    return _or_one(divide_small(absmax, jnp.asarray(element.high).astype(absmax.dtype)))


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
    return _or_one(divide_small(tensor_absmax, E4M3FN.high * high))


def _shared_power(absmax, element, carries):
    """2^(exponent of absmax - exponent of high + carries(m, m_high)), significands in [1/2, 1)."""
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


def _or_one(scale):
    return jnp.where(scale >= jnp.finfo(scale.dtype).tiny, scale, jnp.ones_like(scale))


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
        if not isinstance(self.block_size, int) or self.block_size < 1:
            raise ValueError(f"block_size: got {self.block_size!r}, expected an int, at least 1.")

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


def fake_quant_block(
    x: Array,
    format: BlockFormat,
    *,
    axis: int = -1,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> Array:
    """Round x to a block format and return it in real units.

        x_hat = scale * clip(round(x / scale), low, high),   scale = block_scale(x)

    VJP: x_bar = u for every element, also the few that a rule such as OCP's clips, with the scale
    a constant (as NVIDIA Model-Optimizer does for MX). For zero outside instead, call
    `fake_quant(x, block_scale(x, format), format=format.element)`.

    Args:
      x: real array [*shape].
      format: the block format; its element may be traced.
      axis: the axis along which blocks lie.
      round_fn: as for `fake_quant`.

    Returns:
      Array [*shape], dtype of x. NaN gives NaN, infinities saturate.

    Raises:
      TypeError: x is not real.
      ValueError: block_size does not divide the axis.
    """
    x = jnp.asarray(x)
    scale = block_scale(x, format, axis=axis)
    x_hat = fake_quant(jax.lax.stop_gradient(x), scale, format=format.element, round_fn=round_fn)
    return _straight_through(x, x_hat)


def quantize_block(
    x: Array,
    format: BlockFormat,
    *,
    axis: int = -1,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> QTensor:
    """Return x [*shape] as element codes [*shape] and scales [*groups]; see `fake_quant_block`.

    Raises:
      TypeError: x is not real, or a traced element format.
      ValueError: as `fake_quant_block`, and for concrete NaN.
    """
    scale = block_scale(x, format, axis=axis)
    return quantize(x, scale, format=format.element, round_fn=round_fn)


@jax.custom_jvp
def _straight_through(x, x_hat):
    """Return x_hat; the derivative is that of x. x + (x_hat - x) would round."""
    del x
    return x_hat


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return _straight_through(*primals), tangents[0]


def block_float(mantissa_bits: int, block_size: int) -> BlockFormat:
    """Return block floating point: one shared exponent, integer mantissas with a sign each.

        scale = 2^(floor(log2 absmax) - mantissa_bits + 1),   codes -(2^m - 1) .. 2^m - 1

    Darvish Rouhani et al. 2020 (MSFP): MSFP12 = block_float(3, 16), MSFP16 = block_float(7, 16).

    Raises:
      ValueError: mantissa_bits outside 1..15, or block_size below 1.
    """
    if not isinstance(mantissa_bits, int) or not 1 <= mantissa_bits <= 15:
        raise ValueError(f"mantissa_bits: got {mantissa_bits!r}, expected an int in 1..15.")
    return BlockFormat(IntFormat(mantissa_bits + 1), block_size, floor_scale)


def _scale_shape(shape: Shape, format: BlockFormat, axis: int) -> Shape:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: got {axis} for x of shape {shape}, expected one of its axes.")
    if shape[axis] % format.block_size:
        raise ValueError(
            f"block_size: got {format.block_size} for axis {axis} of x {shape}, expected a divisor "
            f"of {shape[axis]}; pad the axis with zeros (jnp.pad), or choose another size."
        )
    groups = list(shape)
    groups[axis] //= format.block_size
    return tuple(max(g, 1) for g in groups)  # an empty axis shares one scale


MXFP8_E4M3 = BlockFormat(E4M3FN, 32, floor_scale)
MXFP8_E5M2 = BlockFormat(E5M2, 32, floor_scale)
MXFP6_E2M3 = BlockFormat(E2M3, 32, floor_scale)
MXFP6_E3M2 = BlockFormat(E3M2, 32, floor_scale)
MXFP4 = BlockFormat(E2M1, 32, floor_scale)
MXINT8 = BlockFormat(IntFormat(8), 32, floor_scale)
NVFP4 = BlockFormat(E2M1, 16, nvfp4_scale)

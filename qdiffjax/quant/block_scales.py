"""Rules from the largest magnitude in a block to its scale: (absmax [*groups], element) -> scale.

Each is a power of two unless it says otherwise, an E8M0 number: 2^-127..2^127, for integer
elements after the implicit 2^-(bits - 2) that makes them fractions. In float32 the exponent also
stays in -126..126, since XLA on CPU reads 2^-127 as zero. An absmax of zero gives 1 (in e4m3 the
smallest number), and so zeros.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant._binades import power_of_two
from qdiffjax.quant._granularity import divide_small
from qdiffjax.quant.floats import E4M3FN
from qdiffjax.quant.formats import Format, IntFormat

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

"""Rounding in vector memory: real numbers come in, codes or rounded numbers stay there.

Everything here runs inside a kernel, on blocks that are in vector memory.
Arithmetic is that of `quant.quantize`: float32, x times 1 / scale, ties to even.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels.operands import FLOAT8, is_integer, native, shift
from qdiffjax.quant import ActivationGrid, Format, QTensor
from qdiffjax.quant.grids import is_affine

# 3 * 2^22: added to |v| < 2^22, it leaves round(v), ties to even, in the low bits of the sum.
MAGIC = 12582912.0
MAGIC_BITS = 0x4B400000


class Step(NamedTuple):
    """How a block becomes codes: scale and 1 / scale, float32, and the int32 code of 0.0.

    They broadcast against the block; zero None is 0.
    """

    scale: Array
    inverse: Array
    zero: Array | None


def code_dtype(format: Format) -> Any:
    """Return the dtype of the codes that a kernel multiplies."""
    return jnp.int8 if is_integer(format) else FLOAT8[format]


def dynamic_scale(x: Array, format: Any, axes: tuple[int, ...]) -> Array:
    """Return absmax / high over `axes` of x, kept with length 1; 1 where x is 0."""
    absmax = jnp.max(jnp.abs(x), axes, keepdims=True)
    high = float(format.qmax if is_integer(format) else format.high)
    # Not by a constant: that would become a product with its rounded inverse.
    scale = absmax / jnp.where(absmax >= 0, high, jnp.nan)
    return jnp.where(scale < jnp.finfo(jnp.float32).tiny, 1.0, scale)


def codes(x: Array, step: Step, format: Format) -> Array:
    """Return codes of x (float32) in the dtype that the chip multiplies; NaN is the code of 0."""
    if is_integer(format):
        return integers(x, step, format).astype(jnp.int8)
    return steps(x, step, format).astype(FLOAT8[format])


def integers(x: Array, step: Step, format: Any) -> Array:
    """Return int32 codes of x, moved down by `shift`: clip(round(v) + zero, qmin, qmax)."""
    low, high = (jnp.float32(end - shift(format)) for end in (format.low, format.high))
    if step.zero is None:
        return whole_steps(x * step.inverse, low, high)
    zero = step.zero.astype(jnp.float32)
    return whole_steps(x * step.inverse, low - zero, high - zero) + step.zero


def whole_steps(v: Array, low: Array, high: Array) -> Array:
    """Return int32 clip(round(v), low, high) for whole ends, ties to even; 0 for NaN to 8 bits.

    One addition rounds, and leaves the integer in the low bits of the sum.
    """
    return jax.lax.bitcast_convert_type(jnp.clip(v, low, high) + MAGIC, jnp.int32) - MAGIC_BITS


def steps(x: Array, step: Step, format: Any) -> Array:
    """Return float32 x / scale, saturated, NaN as 0: the conversion to the format does the
    rounding.
    """
    v = x * step.inverse
    return jnp.clip(jnp.where(v == v, v, 0.0), float(format.low), float(format.high))


def fits(x, grid: ActivationGrid) -> bool:
    """Whether a kernel can round x: not float64, which a chip has not, and by one scale for all or
    by symmetric ones of tokens.
    """
    if grid.scale is None and is_affine(grid.format):
        return False
    params = (grid.scale, grid.zero_point)
    return x.dtype != jnp.float64 and all(p is None or jnp.size(p) == 1 for p in params)


def left_operands(x, activation: ActivationGrid | None) -> dict[str, Array]:
    """Return operands that belong to x: itself, and how it is scaled, one axis less for images."""
    ndim = min(x.ndim, 3)
    if activation is not None:
        return {"left": x} | operands(activation, ndim)
    if not isinstance(x, QTensor):
        return {"left": x}
    values, scale, zero = native(x)
    shifts = {} if zero is None else {"zero": zero.reshape(zero.shape[:ndim])}
    return {"left": values, "scale": scale.reshape(scale.shape[:ndim])} | shifts


def operands(grid: ActivationGrid, ndim: int) -> dict[str, Array]:
    """Return what a kernel must be given of how it rounds: arrays [1, ..., 1], none where not
    needed.

    step, inverse: float32 scale and 1 / scale; zero: int32 code of 0.0, moved down by `shift`.
    """
    arrays = {}
    if grid.scale is not None:
        scale = jnp.asarray(grid.scale).astype(jnp.float32)
        arrays = {"step": scale, "inverse": 1 / scale}
    if grid.zero_point is not None or shift(grid.format):
        zero = 0 if grid.zero_point is None else jnp.round(jnp.asarray(grid.zero_point))
        arrays["zero"] = jnp.asarray(zero).astype(jnp.int32) - shift(grid.format)
    return {name: value.reshape((1,) * ndim) for name, value in arrays.items()}


def step_of(x: Array, refs: dict, format: Format, axes: tuple[int, ...]) -> Step:
    """Return the step of a block: the static one that the kernel was given, or that of the block's
    `axes`.
    """
    zero = refs["zero"][...] if "zero" in refs else None
    if "step" in refs:
        return Step(refs["step"][...], refs["inverse"][...], zero)
    scale = dynamic_scale(x, format, axes)
    return Step(scale, 1 / scale, zero)

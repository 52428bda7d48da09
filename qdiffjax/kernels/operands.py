"""What a kernel multiplies: codes as the machine holds them, and how activations become codes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant import (
    E4M3B11FNUZ,
    E4M3FN,
    E5M2,
    ActivationGrid,
    Format,
    IntFormat,
    QTensor,
    check_arguments,
    inverse,
    quantize,
)

FLOAT8: dict[Any, Any] = {
    E4M3FN: jnp.float8_e4m3fn,
    E5M2: jnp.float8_e5m2,
    E4M3B11FNUZ: jnp.float8_e4m3b11fnuz,
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale", "zero_point", "sums"),
    meta_fields=("format",),
)
@dataclasses.dataclass(frozen=True)
class Summed(QTensor):
    """A weight with the sums of its codes, which an operand with a zero point asks for.

        sum_k (a_k - z) w_k = sum_k a_k w_k - z sum_k w_k

    Attributes:
      sums: int32, over all that a product sums; the rank of codes.
    """

    sums: Array


def summed(w: QTensor, axes: tuple[int, ...]) -> QTensor:
    """Return w with the sums of its codes over axes; as it is where they are not integers."""
    if not is_integer(w.format) or native(w).zero is not None:
        return w
    sums = jnp.sum(widened(native(w).values), axes, jnp.int32, keepdims=True)
    return Summed(w.codes, w.scale, w.zero_point, w.format, sums)


class Native(NamedTuple):
    """Codes in a dtype that the machine multiplies, and their zero.

    x ≈ scale * (values - zero); values int8, int4 or an 8-bit float [*shape]; zero int32
    [*groups], or None for no shift.
    """

    values: Array
    scale: Array
    zero: Array | None


def is_integer(format: Format) -> bool:
    """Whether sums of products of such codes are integers."""
    return isinstance(format, IntFormat)


def shift(format: Format) -> int:
    """Return the distance by which codes move down so that they fit int8."""
    return 128 if isinstance(format, IntFormat) and not format.signed and format.bits == 8 else 0


def native(q: QTensor) -> Native:
    """Return the codes of `q` in a machine's dtype.

    Unsigned 8-bit codes move down by 128, and their zero with them: the same number exactly.

    Raises:
      ValueError: a format that no kernel multiplies.
    """
    check_format(q.format)
    scale = q.scale.astype(jnp.float32)
    if not isinstance(q.format, IntFormat):
        return Native(jax.lax.bitcast_convert_type(q.codes, FLOAT8[q.format]), scale, None)
    zero = None if q.zero_point is None else q.zero_point.astype(jnp.int32)
    if not shift(q.format):
        codes = q.codes if q.codes.dtype == jnp.int4 else q.codes.astype(jnp.int8)
        return Native(codes, scale, zero)
    shifted = jax.lax.bitcast_convert_type(q.codes ^ jnp.uint8(128), jnp.int8)
    zero = jnp.int32(-128) if zero is None else zero - 128
    return Native(shifted, scale, jnp.broadcast_to(zero, scale.shape))


def widened(values: Array) -> Array:
    """Return int4 as int8, since no CPU or GPU multiplies int4; fused into the product."""
    return values.astype(jnp.int8) if values.dtype == jnp.int4 else values


def is_multiplied(format: Format) -> bool:
    """Whether some kernel multiplies codes of a format."""
    if isinstance(format, IntFormat):
        return format.is_static and format.bits <= 8 and not format.is_binary
    return format in FLOAT8


def check_format(format: Format) -> None:
    """Raise ValueError for a format that no kernel multiplies."""
    require(
        is_multiplied(format), "format", got=format,
        expected="integers of 2 to 8 bits, E4M3FN, E5M2 or E4M3B11FNUZ",
        remedy="other formats are simulated by quant.fake_quant",
    )  # fmt: skip


def quantized(x: Array, grid: ActivationGrid, axes: tuple[int, ...]) -> QTensor:
    """Return the codes of a real operand; `axes` share a scale where it is dynamic.

    Bit-identical to the codes that `fake_quant` with the same scale rounds to.
    """
    scale, zero_point = grid.parameters(x, axes)
    return quantize(x, scale, zero_point, format=grid.format)


def cropped(
    x, grid: ActivationGrid | None, window: dict
) -> tuple[Any, ActivationGrid | None, dict]:
    """Cut off what negative padding leaves out: XLA on a CPU reads beyond the image there.

    Return x [B, *space, K], how it becomes codes, and the window, whose padding is not negative.
    What is rounded by its own range becomes codes before.
    """
    padding = window["padding"]
    if isinstance(padding, str) or all(n >= 0 for pair in padding for n in pair):
        return x, grid, window
    if grid is not None and grid.scale is None:
        x, grid = quantized(x, grid, tuple(range(1, x.ndim))), None
    values, kept = x.codes if isinstance(x, QTensor) else x, []
    for axis, (low, high) in enumerate(padding, 1):
        start = min(max(-low, 0), values.shape[axis])
        stop = max(values.shape[axis] - max(-high, 0), start)
        # Where nothing is left of the image, all that the window sees is padding.
        total = low + values.shape[axis] + high
        kept.append((max(low, 0), max(high, 0)) if stop > start else (total, 0))
        values = jax.lax.slice_in_dim(values, start, stop, axis=axis)
    x = dataclasses.replace(x, codes=values) if isinstance(x, QTensor) else values
    return x, grid, window | {"padding": tuple(kept)}


def missing(x: Array, axes: tuple[int, ...]) -> Array:
    """Return whether any of x over `axes`, kept with length 1, is NaN, which codes cannot hold."""
    return jnp.any(jnp.isnan(x), axes, keepdims=True)


def mark_missing(y: Array, is_missing: Array, act_fn: Callable | None) -> Array:
    """Return y [*shape], and what is made of NaN where something is missing."""
    nan = jnp.full((), jnp.nan, jnp.float32)
    value = nan if act_fn is None else act_fn(nan)
    return jnp.where(is_missing, value.astype(y.dtype), y)


def rounded_codes(x: Array, grid: ActivationGrid, axes: tuple[int, ...]) -> Native:
    """Return native(quantized(x, grid, axes)), on a CPU in fewer operations; NaN has no code."""
    if not isinstance(grid.format, IntFormat) or x.dtype == jnp.float64:
        return native(quantized(x, grid, axes))
    check_format(grid.format)
    scale, zero_point = grid.parameters(x, axes)
    scale = scale.astype(jnp.float32)
    check_arguments(x, scale, zero_point, grid.format)
    move = shift(grid.format)
    zero = jnp.int32(0) if zero_point is None else jnp.round(zero_point).astype(jnp.int32)
    low, high = (
        jnp.asarray(q - zero).astype(jnp.float32) for q in (grid.format.low, grid.format.high)
    )
    zero = zero - move if move else zero
    v = x.astype(jnp.float32) * inverse(scale)
    bounds = (grid.format.qmin - move, grid.format.qmax - move)
    codes = jax.lax.platform_dependent(
        v, low, high, zero, cpu=_codes_on_cpu,
        default=functools.partial(_codes_anywhere, bounds=bounds),
    )  # fmt: skip
    is_centered = zero_point is None and not move
    return Native(codes, scale, None if is_centered else jnp.broadcast_to(zero, scale.shape))


def _codes_anywhere(v, low, high, zero, *, bounds: tuple[Any, Any]):
    """Bounds after the shift are constants; those before are data, each a launch on a GPU."""
    shifted = jnp.round(v) + zero.astype(jnp.float32)
    return jnp.clip(shifted, *map(jnp.float32, bounds)).astype(jnp.int8)


def _codes_on_cpu(v, low, high, zero):
    """Adding 1.5 * 2^23 to a float32 below 2^22 rounds it to even, and leaves the integer in the
    low bits, where no conversion with its checks is needed: a third of the time.

    For CPUs alone: XLA compiled this for an H200 (JAX 0.11.2) such that every code was -1.
    """
    v = jnp.where(v > low, v, low)
    v = jnp.where(v < high, v, high)
    bits = jax.lax.bitcast_convert_type(v + jnp.float32(1.5 * 2**23), jnp.int32)
    return (bits + (zero - 0x4B400000)).astype(jnp.int8)


def narrow(w: QTensor) -> QTensor:
    """Store codes of at most 4 bits as int4, two to a byte where the device packs them.

    Convert them to int8 before a product: no CPU or GPU multiplies int4 (a GPU silently takes
    32-bit integers, XLA on CPU refuses).
    """
    if isinstance(w.format, IntFormat) and w.format.signed and w.format.bits <= 4:
        return dataclasses.replace(w, codes=w.codes.astype(jnp.int4))
    return w

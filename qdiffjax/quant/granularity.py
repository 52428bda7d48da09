"""Granularity: how the shape of a scale divides an array, and the checks every quantizer shares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_numbers, require
from qdiffjax._typing import Array

Shape = tuple[int, ...]


def compute_dtype(x: Array) -> jnp.dtype:
    """Return the arithmetic dtype for x: float32, or float64 if x is float64.

    In bfloat16 arithmetic x / scale flips a few percent of the codes.
    """
    require(
        jnp.issubdtype(x.dtype, jnp.floating),
        "x",
        got=x.dtype,
        expected="a real floating dtype",
        remedy="cast x first",
        error=TypeError,
    )
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def per_tensor(x: Array) -> Shape:
    """Return the scale shape with one scale for the whole of x."""
    return (1,) * jnp.ndim(x)


def per_channel(x: Array, channel_axis: int | tuple[int, ...]) -> Shape:
    """Return the scale shape with one scale for each index of the channel axis (or axes).

    Raises:
      ValueError: x has no such axis.
    """
    axes = channel_axis if isinstance(channel_axis, tuple | list) else (channel_axis,)
    kept = {axis_of(jnp.shape(x), a) for a in axes}
    return tuple(n if a in kept else 1 for a, n in enumerate(jnp.shape(x)))


def per_group(x: Array, axis: int, group_size: int) -> Shape:
    """Return the scale shape with one scale for each group_size neighbours along axis.

    Every index of the other axes keeps its own scales.

    Raises:
      ValueError: x has no such axis, or group_size does not divide it.
    """
    return divided(jnp.shape(x), axis, group_size, "group_size")


def per_token(x: Array) -> Shape:
    """Return the scale shape with one scale for each vector along the last axis."""
    return (*jnp.shape(x)[:-1], 1)


def divided(shape: Shape, axis: int, size: int, name: str) -> Shape:
    """Return the shape with one scale for each `size` neighbours along an axis; `name` is that of
    the size.

    Raises:
      ValueError: there is no such axis, or the size does not divide it.
    """
    check_count(name, size)
    groups, axis = list(shape), axis_of(shape, axis)
    require(
        groups[axis] % size == 0, name, got=f"{size} for axis {axis} of x {shape}",
        expected=f"a divisor of {groups[axis]}",
        remedy="pad the axis with zeros (jnp.pad), or choose another size",
    )  # fmt: skip
    groups[axis] //= size
    return tuple(groups)


def axis_of(shape: Shape, axis: int) -> int:
    """Return the axis counted from the front; raises ValueError if there is none."""
    require(
        isinstance(axis, int | np.integer) and -len(shape) <= axis < len(shape),
        "axis, channel_axis",
        got=f"{axis!r} for x of shape {shape}",
        expected="one of its axes",
        remedy="count them from 0, or from -1 at the end",
    )
    return axis % len(shape)


def check_divides(shape: Shape, scale_shape: Shape, name: str = "scale") -> None:
    """Raise ValueError unless scale_shape has the rank of shape and each axis divides it."""
    require(
        len(shape) == len(scale_shape) and all(
        g >= 1 and n % g == 0 for n, g in zip(shape, scale_shape, strict=True)
    ), name, got=f"shape {scale_shape} for x of shape {shape}",
        expected="the same rank and every axis a divisor of that of x",
        remedy="use per_tensor, per_channel, per_group or per_token (per tensor is "
        f"{(1,) * len(shape)})",
    )  # fmt: skip


def check_like(name: str, a: Array, x: Array, remedy: str) -> None:
    """Raise ValueError unless there is an element of a for each element of x [*shape]."""
    check_numbers(name, a, least_size=0, finite=False)
    require(
        jnp.shape(a) == jnp.shape(x),
        name,
        got=f"shape {jnp.shape(a)} for x of shape {jnp.shape(x)}",
        expected="the same",
        remedy=remedy,
    )


def check_positive(scale: Array) -> None:
    """Raise ValueError if a concrete scale has an entry that is not positive and finite."""
    require(
        concrete_all(lambda s: (s > 0) & jnp.isfinite(s), scale),
        "scale",
        got=scale,
        expected="positive finite steps",
        remedy="calibration returns 1 for an all-zero channel",
    )


def check_finite(x: Array) -> None:
    """Raise ValueError if a concrete x holds NaN or infinity."""
    require(
        concrete_all(jnp.isfinite, x), "x", got="NaN or infinity in calibration data",
        expected="finite numbers", remedy="find the layer that overflows, or mask those samples "
        "out before calibrating",
    )  # fmt: skip


def concrete_all(test_fn, x: Any) -> bool:
    """Whether test_fn holds for every element of x; tracers are trusted."""
    if isinstance(x, jax.core.Tracer):
        return True
    with jax.ensure_compile_time_eval():  # a constant may be met while something else is traced
        return bool(jnp.all(test_fn(x)))


def inverse(scale: Array) -> Array:
    """Return 1 / scale [*groups], to multiply by.

    XLA turns a division by a broadcast or constant operand into this product, but not others,
    which would let a granularity, jit or a closed-over scale move ties. Written out, all agree;
    for a scale that is a power of two it is exact.
    """
    return 1 / scale


def saturated(x: Array, dtype) -> Array:
    """Return x [*shape] as dtype, what lies beyond its largest number as that, NaN as NaN.

    A grid reaches up to half a step past the data that it covers, which float16 may not.
    """
    largest = jnp.asarray(min(float(jnp.finfo(d).max) for d in (dtype, x.dtype)), x.dtype)
    return jnp.clip(x, -largest, largest).astype(dtype)


def divide_small(x: Array, y: Array) -> Array:
    """Return x / y [*groups], correctly rounded whether or not the compiler knows y."""
    return x / jax.lax.optimization_barrier(jnp.broadcast_to(y, x.shape))


def expand(param: Array, shape: Shape) -> Array:
    """Return param [*groups] so that it broadcasts against an array [*shape] of the same rank.

    Shared (1) and full axes stay as they are; only true groups are spelled out, by a broadcast
    and a reshape that XLA fuses into the consumer. Scalars pass.
    """
    if param.ndim == 0 or all(g in (1, n) for n, g in zip(shape, param.shape, strict=True)):
        return param
    pairs = [(g, 1 if g == 1 else n // g) for n, g in zip(shape, param.shape, strict=True)]
    column = param.reshape([size for g, _ in pairs for size in (g, 1)])
    wide = jnp.broadcast_to(column, [size for pair in pairs for size in pair])
    return wide.reshape([g * n for g, n in pairs])


def group(x: Array, scale_shape: Shape) -> tuple[Array, Shape]:
    """Split each axis n of x into (g, n / g); also return the axes to reduce for [*scale_shape]."""
    check_divides(x.shape, scale_shape)
    pairs = [(g, n // g) for n, g in zip(x.shape, scale_shape, strict=True)]
    return x.reshape([size for pair in pairs for size in pair]), tuple(range(1, 2 * x.ndim, 2))


def granules(x: Array, scale_shape: Shape) -> tuple[Array, Shape]:
    """Apply `group` to x in the dtype of arithmetic."""
    return group(x.astype(compute_dtype(x)), scale_shape)


def clipped_steps(x: Array, scale: Array, zero_point: Array | None, format: Any) -> Array:
    """Return x / scale [*shape], clipped to the codes of a format less the zero point.

    In the dtype of x, which is one of arithmetic.
    """
    zero = jnp.zeros((), x.dtype) if zero_point is None else zero_point.astype(x.dtype)
    low, high = (
        expand(jnp.asarray(end).astype(x.dtype) - zero, x.shape)
        for end in (format.low, format.high)
    )
    return jnp.clip(in_steps(x, scale.astype(x.dtype)), low, high)


def normal_or_one(scale: Array) -> Array:
    """Replace scales below the normal floats by 1: dividing by a subnormal may give inf.

    That of data with NaN stays NaN, under tracing too, and with it all that it scales.
    """
    return jnp.where(scale < jnp.finfo(scale.dtype).tiny, jnp.ones_like(scale), scale)


def normal_or_least(scale: Array) -> Array:
    """Replace scales that are not normal floats by the least that is, for a grid without zero."""
    return jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def in_steps(x: Array, scale: Array) -> Array:
    """Return x / scale [*shape], in the dtype of scale [*groups]."""
    return x.astype(scale.dtype) * expand(inverse(scale), x.shape)

"""Granularities, ranges of data, and the grid that covers a range."""

import operator

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant.formats.integers import Format, IntFormat
from qdiffjax.quant.granularity import (
    Shape,
    check_finite,
    compute_dtype,
    concrete_all,
    divide_small,
    group,
)

Grid = tuple[Array, Array | None]
MOST_STEPS_FROM_ZERO = 2.0**20


def per_tensor(x: Array) -> Shape:
    """Return the scale shape with one scale for the whole of x."""
    return (1,) * jnp.ndim(x)


def per_channel(x: Array, channel_axis: int | tuple[int, ...]) -> Shape:
    """Return the scale shape with one scale for each index of the channel axis (or axes).

    Raises:
      ValueError: x has no such axis.
    """
    axes = (channel_axis,) if isinstance(channel_axis, int) else channel_axis
    kept = {_axis_of(x, operator.index(a)) for a in axes}
    return tuple(n if a in kept else 1 for a, n in enumerate(jnp.shape(x)))


def per_group(x: Array, axis: int, group_size: int) -> Shape:
    """Return the scale shape with one scale for each group_size neighbours along axis.

    Every index of the other axes keeps its own scales.

    Raises:
      ValueError: x has no such axis, or group_size does not divide it.
    """
    shape, axis = list(jnp.shape(x)), _axis_of(x, axis)
    if group_size < 1 or shape[axis] % group_size:
        raise ValueError(
            f"group_size: got {group_size} for axis {axis} of x {tuple(shape)}, expected a "
            f"divisor of {shape[axis]}; pad the axis or choose another size."
        )
    shape[axis] //= group_size
    return tuple(shape)


def per_token(x: Array) -> Shape:
    """Return the scale shape with one scale for each vector along the last axis."""
    return (*jnp.shape(x)[:-1], 1)


def scale_from_range(
    low: Array,
    high: Array,
    *,
    qmin: float | Array,
    qmax: float | Array,
    symmetric: bool,
    overhang: float | Array = 0.0,
    include_zero: bool = True,
) -> Grid:
    """Grid that covers low..high, in the dtype of the range.

        symmetric:  scale = max(|low|, |high|) / (qmax + h),      zero_point None
        affine:     scale = (high - low) / (qmax - qmin + 2 h),   range widened to include 0
                    zero_point = clip(round(qmin - h - low / scale), qmin, qmax)

    with h = overhang. Zero is always a grid point. A range of zero (or too small for a normal
    float) gives scale 1, so that Q(0) = 0 exactly and nothing divides by zero. An unsigned
    symmetric grid assumes data >= 0.

    Without include_zero the range is not widened and the zero point not clipped: data far from
    zero keep all their codes. Only data more than 2^20 steps from zero, whose codes float32
    cannot tell, are widened to zero after all.

    Args:
      low: lower ends, in units of x [*groups].
      high: upper ends, in units of x [*groups].
      qmin: smallest code or grid value, scalar or [*groups]; may be traced.
      qmax: largest code or grid value, scalar or [*groups]; may be traced.
      symmetric: whether the grid is symmetric about 0.
      overhang: steps by which the range reaches past the last codes; at most 1/2 clips nothing
        by more than half a step.
      include_zero: whether an affine grid covers 0 even where the data do not.

    Returns:
      scale [*groups] and zero_point, int32 [*groups] or None.

    Raises:
      ValueError: concrete ends that are not finite or descend, or codes that do.
    """
    check_ascend("low, high", low, high)
    check_ascend("qmin, qmax", qmin, qmax)
    qmin, qmax, h = (jnp.asarray(q).astype(low.dtype) for q in (qmin, qmax, overhang))
    if symmetric:
        return safe(divide_small(jnp.maximum(jnp.abs(low), jnp.abs(high)), qmax + h)), None
    num_steps = qmax - qmin + 2 * h
    wide = jnp.minimum(low, 0), jnp.maximum(high, 0)
    if include_zero:
        low, high = wide
    else:
        far = jnp.maximum(high, -low) * num_steps > MOST_STEPS_FROM_ZERO * (high - low)
        low, high = (jnp.where(far, w, end) for w, end in zip(wide, (low, high), strict=True))
    scale = safe(divide_small(high - low, num_steps))
    zero_point = jnp.round(qmin - h - low / scale)
    if include_zero:
        zero_point = jnp.clip(zero_point, qmin, qmax)
    return scale, zero_point.astype(jnp.int32)


def minmax_range(x: Array, scale_shape: Shape) -> tuple[Array, Array]:
    """Smallest and largest element of each granule [*scale_shape], float32 or float64."""
    grouped, axes = group(x.astype(compute_dtype(x)), scale_shape)
    return jnp.min(grouped, axes), jnp.max(grouped, axes)


def quantile_range(x: Array, scale_shape: Shape, quantile: float) -> tuple[Array, Array]:
    """Quantiles 1 - quantile and quantile of each granule [*scale_shape], interpolated.

    Raises:
      ValueError: quantile outside 0..1.
    """
    check_quantile(quantile)
    grouped, axes = group(x.astype(compute_dtype(x)), scale_shape)
    low, high = jnp.quantile(grouped, jnp.asarray([1 - quantile, quantile], grouped.dtype), axes)
    return low, high


def absmax(
    x: Array, *, format: Format, scale_shape: Shape | None = None, overhang: float = 0.0
) -> Grid:
    """Symmetric scale that clips nothing: scale = max|x| / (high + overhang).

    Args:
      x: data [*shape].
      format: the numbers available, high the largest; its fields may be traced.
      scale_shape: granularity; None = per tensor.
      overhang: steps by which max|x| lies past the last code; see `scale_from_range`.

    Returns:
      scale [*scale_shape] in units of x, and None.

    Raises:
      ValueError: concrete data that are not finite, no data, or shapes that do not divide.
    """
    x, shape = prepare(x, scale_shape)
    return grid_of(minmax_range(x, shape), format, symmetric=True, overhang=overhang)


def covering(x: Array, *, format: Format, scale_shape: Shape | None = None) -> Grid:
    """Least symmetric scale whose own two ends cover the data: max(min x / low, max x / high).

    It differs from `absmax` on grids that reach further down than up, such as -8..7, for data
    that do too (torchao's SYMMETRIC_NO_CLIPPING_ERR). An end at 0 is assumed not to be needed:
    unsigned formats take data >= 0. Arguments and errors as for `absmax`.
    """
    x, shape = prepare(x, scale_shape)
    low, high = minmax_range(x, shape)
    ends = (jnp.asarray(end).astype(low.dtype) for end in (format.low, format.high))
    below, above = (
        jnp.where(end == 0, 0, divide_small(value, jnp.where(end == 0, 1, end)))
        for value, end in zip((low, high), ends, strict=True)
    )
    return safe(jnp.maximum(below, above)), None


def minmax(
    x: Array,
    *,
    format: IntFormat,
    scale_shape: Shape | None = None,
    overhang: float = 0.0,
    include_zero: bool = True,
) -> Grid:
    """Affine grid over min(x, 0)..max(x, 0); arguments and errors as for `absmax`.

    Including zero costs nothing on data that straddle it, and without it the zero point of
    data far from zero falls outside the codes; see `scale_from_range`.

    Raises:
      ValueError: also for a format that is not an integer grid, or is binary.
    """
    x, shape = prepare(x, scale_shape)
    check_affine(format)
    ends = {"overhang": overhang, "include_zero": include_zero}
    return grid_of(minmax_range(x, shape), format, symmetric=False, **ends)


def percentile(
    x: Array,
    *,
    format: Format,
    scale_shape: Shape | None = None,
    quantile: float = 0.999,
    symmetric: bool = True,
    overhang: float = 0.0,
    include_zero: bool = True,
) -> Grid:
    """Grid that clips outliers: the range is a quantile of the data, interpolated linearly.

    Symmetric: `quantile` of |x|. Affine: quantiles 1 - quantile and quantile of x, widened to
    include zero. Other arguments and errors as for `absmax` and `minmax`.
    """
    x, shape = prepare(x, scale_shape)
    if not symmetric:
        check_affine(format)
    low, high = quantile_range(jnp.abs(x) if symmetric else x, shape, quantile)
    low = -high if symmetric else low
    ends = {"overhang": overhang, "include_zero": include_zero}
    return grid_of((low, high), format, symmetric=symmetric, **ends)


def grid_of(ends: tuple[Array, Array], format: Format, **kwargs) -> Grid:
    """`scale_from_range` with the ends of a format."""
    return scale_from_range(*ends, qmin=format.low, qmax=format.high, **kwargs)


def prepare(x, scale_shape: Shape | None) -> tuple[Array, Shape]:
    """Refuse no data, and concrete data that are not finite; fill in the default granularity."""
    x = jnp.asarray(x)
    if x.size == 0:
        raise ValueError(f"x: got shape {x.shape}, expected data to calibrate on, not none.")
    check_finite(x)
    return x, per_tensor(x) if scale_shape is None else tuple(scale_shape)


def check_affine(format: Format) -> None:
    """Raise ValueError unless the format has integer codes that a zero point can shift."""
    if not isinstance(format, IntFormat):
        raise ValueError(
            f"format: got {format!r} for an affine grid, expected IntFormat; other grids cannot "
            "shift: use absmax or a symmetric search."
        )
    if format.is_binary:
        raise ValueError(
            "format: got {-1, +1} for an affine grid, expected at least 2 bits or unsigned; "
            "use absmax or a symmetric mse."
        )


def check_quantile(quantile: float) -> None:
    """Raise ValueError unless quantile is in 0..1."""
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile: got {quantile}, expected 0..1, such as 0.999 for 99.9 %.")


def check_ascend(names: str, low, high) -> None:
    """Raise ValueError unless low <= high, both finite, where they are known."""
    if not (concrete_all(jnp.isfinite, low) and concrete_all(jnp.isfinite, high)):
        raise ValueError(f"{names}: got NaN or infinity, expected finite ends; see check_finite.")
    if not concrete_all(lambda gap: gap >= 0, jnp.subtract(*jnp.broadcast_arrays(high, low))):
        raise ValueError(f"{names}: got {low}, {high}, expected low <= high; swap them.")


def _axis_of(x, axis: int) -> int:
    """Axis counted from the front."""
    if not -jnp.ndim(x) <= axis < jnp.ndim(x):
        raise ValueError(f"axis: got {axis} for x of shape {jnp.shape(x)}, expected one of its.")
    return axis % jnp.ndim(x)


def safe(scale: Array) -> Array:
    """Replace scales that are not normal floats by 1: dividing by a subnormal may give inf."""
    return jnp.where(scale >= jnp.finfo(scale.dtype).tiny, scale, jnp.ones_like(scale))

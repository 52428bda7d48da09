"""Ranges of data, and the grid that covers a range."""

import jax.numpy as jnp

from qdiffjax._checks import NOT_NEGATIVE, SHARE, check_numbers, checked, require
from qdiffjax._typing import Array
from qdiffjax.quant.formats import Format, IntFormat, check_equal_steps, is_binary
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.formats.integers import usable_scale
from qdiffjax.quant.granularity import (
    Shape,
    check_finite,
    compute_dtype,
    concrete_all,
    divide_small,
    granules,
    normal_or_one,
    per_tensor,
)

Grid = tuple[Array, Array | None]
MOST_STEPS_FROM_ZERO = 2.0**20
UNSHIFTABLE = "other grids cannot shift: use absmax or a symmetric search, not an affine grid"


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
    """Return the grid that covers low..high, in the dtype of the range.

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
        return normal_or_one(divide_small(jnp.maximum(jnp.abs(low), jnp.abs(high)), qmax + h)), None
    num_steps = qmax - qmin + 2 * h
    wide = jnp.minimum(low, 0), jnp.maximum(high, 0)
    if include_zero:
        low, high = wide
    else:
        far = jnp.maximum(high, -low) > MOST_STEPS_FROM_ZERO * _step(low, high, num_steps)
        low, high = (jnp.where(far, w, end) for w, end in zip(wide, (low, high), strict=True))
    scale = normal_or_one(_step(low, high, num_steps))
    zero_point = jnp.round(qmin - h - low / scale)
    if include_zero:
        zero_point = jnp.clip(zero_point, qmin, qmax)
    return scale, zero_point.astype(jnp.int32)


def _step(low, high, num_steps):
    """Return (high - low) / num_steps; in halves, since the difference of finite ends may not be
    finite, and no more than the largest number for ends that are.
    """
    step = divide_small(high / 2 - low / 2, num_steps / 2)
    is_finite = jnp.isfinite(low) & jnp.isfinite(high)
    return jnp.where(is_finite, jnp.minimum(step, jnp.finfo(step.dtype).max), step)


def minmax_range(x: Array, scale_shape: Shape) -> tuple[Array, Array]:
    """Return smallest and largest element of each granule [*scale_shape], float32 or float64."""
    grouped, axes = granules(x, scale_shape)
    return jnp.min(grouped, axes), jnp.max(grouped, axes)


@checked(quantile=SHARE)
def quantile_range(x: Array, scale_shape: Shape, quantile: float) -> tuple[Array, Array]:
    """Return the quantiles 1 - quantile and quantile of each granule [*scale_shape], interpolated.

    Raises:
      ValueError: quantile outside 0..1.
    """
    grouped, axes = granules(x, scale_shape)
    low, high = jnp.quantile(grouped, jnp.asarray([1 - quantile, quantile], grouped.dtype), axes)
    return low, high


@checked(format=check_number_format, overhang=NOT_NEGATIVE)
def absmax(
    x: Array, *, format: Format, scale_shape: Shape | None = None, overhang: float = 0.0
) -> Grid:
    """Return the symmetric scale that clips nothing: scale = max|x| / (high + overhang).

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


@checked(format=check_number_format)
def covering(x: Array, *, format: Format, scale_shape: Shape | None = None) -> Grid:
    """Return the least symmetric scale whose own two ends cover the data.

        scale = max(min x / low, max x / high)

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
    return usable_scale(jnp.maximum(below, above), format), None


@checked(format=check_number_format, overhang=NOT_NEGATIVE)
def minmax(
    x: Array,
    *,
    format: IntFormat,
    scale_shape: Shape | None = None,
    overhang: float = 0.0,
    include_zero: bool = True,
) -> Grid:
    """Return the affine grid over min(x, 0)..max(x, 0); arguments and errors as for `absmax`.

    Including zero costs nothing on data that straddle it, and without it the zero point of
    data far from zero falls outside the codes; see `scale_from_range`.

    Raises:
      ValueError: also for a format that is not an integer grid, or is binary.
    """
    x, shape = prepare(x, scale_shape)
    check_equal_steps(format, UNSHIFTABLE)
    ends = {"overhang": overhang, "include_zero": include_zero}
    return grid_of(minmax_range(x, shape), format, symmetric=False, **ends)


@checked(format=check_number_format, quantile=SHARE, overhang=NOT_NEGATIVE)
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
    """Return grid that clips outliers: the range is a quantile of the data, interpolated linearly.

    Symmetric: `quantile` of |x|. Affine: quantiles 1 - quantile and quantile of x, widened to
    include zero. Other arguments and errors as for `absmax` and `minmax`.
    """
    x, shape = prepare(x, scale_shape)
    if not symmetric:
        check_equal_steps(format, UNSHIFTABLE)
    low, high = quantile_range(jnp.abs(x) if symmetric else x, shape, quantile)
    low = -high if symmetric else low
    ends = {"overhang": overhang, "include_zero": include_zero}
    return grid_of((low, high), format, symmetric=symmetric, **ends)


def grid_of(ends: tuple[Array, Array], format: Format, **kwargs) -> Grid:
    """Apply `scale_from_range` with the ends of a format; see `usable_scale` for the binary one."""
    scale, zero_point = scale_from_range(*ends, qmin=format.low, qmax=format.high, **kwargs)
    if is_binary(format):
        absmax = jnp.maximum(*map(jnp.abs, ends))
        scale = jnp.where(absmax > 0, scale, usable_scale(jnp.zeros_like(scale), format))
    return scale, zero_point


def prepare(x, scale_shape: Shape | None) -> tuple[Array, Shape]:
    """Refuse no data, and concrete data that are not finite; fill in the default granularity."""
    check_numbers("x", x, least_size=0, finite=False)
    x = jnp.asarray(x)
    require(x.size > 0, "x", got=f"shape {x.shape}", expected="data to calibrate on, not none",
            remedy="leave empty sites out")  # fmt: skip
    compute_dtype(x)
    check_finite(x)
    shape = per_tensor(x) if scale_shape is None else scale_shape
    require(isinstance(shape, tuple | list), "scale_shape", got=repr(shape), expected="a shape",
            remedy="see per_tensor and per_channel", error=TypeError)  # fmt: skip
    return x, tuple(shape)


def check_ascend(names: str, low, high) -> None:
    """Raise ValueError unless low <= high, both finite, where they are known."""
    require(
        concrete_all(jnp.isfinite, low) and concrete_all(jnp.isfinite, high),
        names,
        got="NaN or infinity",
        expected="finite ends",
        remedy="look for the layer that overflows",
    )
    gap = jnp.subtract(*jnp.broadcast_arrays(high, low))
    require(
        concrete_all(lambda gap: gap >= 0, gap),
        names,
        got=(low, high),
        expected="low <= high",
        remedy="swap them",
    )

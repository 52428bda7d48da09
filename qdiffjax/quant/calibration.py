"""From data to (scale, zero_point).

Every calibrator is `fn(x, *, format, scale_shape=None, ...) -> (scale, zero_point | None)`, both
[*scale_shape], so that `fake_quant(x, *absmax(x, format=f), format=f)` reads as it works. The
granularity is the shape of the scale that is wanted; `per_tensor` and its kin compute it.
A range observed once serves every width: `minmax_range`, then `scale_from_range`.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant._granularity import Shape, check_finite, compute_dtype, divide_small, group
from qdiffjax.quant.formats import IntFormat
from qdiffjax.quant.qtensor import quantization_error

Grid = tuple[Array, Array | None]
MSE_RATIOS = np.arange(80, 0, -1) / 80  # widest first, so that ties keep the wider range


def per_tensor(x: Array) -> Shape:
    """Return the scale shape with one scale for the whole of x."""
    return (1,) * jnp.ndim(x)


def per_channel(x: Array, channel_axis: int | tuple[int, ...]) -> Shape:
    """Return the scale shape with one scale for each index of the channel axis (or axes)."""
    axes = (channel_axis,) if isinstance(channel_axis, int) else channel_axis
    kept = {operator.index(a) % jnp.ndim(x) for a in axes}
    return tuple(n if a in kept else 1 for a, n in enumerate(jnp.shape(x)))


def per_group(x: Array, axis: int, group_size: int) -> Shape:
    """Return the scale shape with one scale for each group_size neighbours along axis.

    Every index of the other axes keeps its own scales.

    Raises:
      ValueError: group_size does not divide the axis.
    """
    shape = list(jnp.shape(x))
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
    low: Array, high: Array, *, qmin: int | Array, qmax: int | Array, symmetric: bool
) -> Grid:
    """Grid that covers low..high, in the dtype of the range.

        symmetric:  scale = max(|low|, |high|) / qmax,         zero_point None
        affine:     scale = (high - low) / (qmax - qmin),      range widened to include 0
                    zero_point = clip(round(qmin - low / scale), qmin, qmax)

    Zero is always a grid point. A range of zero (or too small for a normal float) gives
    scale 1, so that Q(0) = 0 exactly and nothing divides by zero. An unsigned symmetric grid
    assumes data >= 0.

    Args:
      low: lower ends, in units of x [*groups].
      high: upper ends, in units of x [*groups].
      qmin: smallest code, scalar or [*groups]; may be traced.
      qmax: largest code, scalar or [*groups]; may be traced.
      symmetric: whether the grid is symmetric about 0.

    Returns:
      scale [*groups] and zero_point, int32 [*groups] or None.
    """
    qmin, qmax = (jnp.asarray(q).astype(low.dtype) for q in (qmin, qmax))
    if symmetric:
        return _safe(divide_small(jnp.maximum(jnp.abs(low), jnp.abs(high)), qmax)), None
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    scale = _safe(divide_small(high - low, qmax - qmin))
    return scale, jnp.clip(jnp.round(qmin - low / scale), qmin, qmax).astype(jnp.int32)


def minmax_range(x: Array, scale_shape: Shape) -> tuple[Array, Array]:
    """Smallest and largest element of each granule [*scale_shape], float32 or float64."""
    grouped, axes = group(x.astype(compute_dtype(x)), scale_shape)
    return jnp.min(grouped, axes), jnp.max(grouped, axes)


def quantile_range(x: Array, scale_shape: Shape, quantile: float) -> tuple[Array, Array]:
    """Quantiles 1 - quantile and quantile of each granule [*scale_shape], interpolated."""
    grouped, axes = group(x.astype(compute_dtype(x)), scale_shape)
    low, high = jnp.quantile(grouped, jnp.asarray([1 - quantile, quantile], grouped.dtype), axes)
    return low, high


def absmax(x: Array, *, format: IntFormat, scale_shape: Shape | None = None) -> Grid:
    """Symmetric scale that clips nothing: scale = max|x| / qmax.

    Args:
      x: data [*shape].
      format: the codes available; its bits may be traced.
      scale_shape: granularity; None = per tensor.

    Returns:
      scale [*scale_shape] in units of x, and None.

    Raises:
      ValueError: concrete data that are not finite, or shapes that do not divide.
    """
    x, shape = _prepare(x, scale_shape)
    low, high = minmax_range(x, shape)
    return scale_from_range(low, high, qmin=format.qmin, qmax=format.qmax, symmetric=True)


def minmax(x: Array, *, format: IntFormat, scale_shape: Shape | None = None) -> Grid:
    """Affine grid over min(x, 0)..max(x, 0); arguments and errors as for `absmax`.

    Including zero costs nothing on data that straddle it, and without it the zero point of
    data far from zero would fall outside the codes.
    """
    x, shape = _prepare(x, scale_shape)
    _refuse_binary(format)
    low, high = minmax_range(x, shape)
    return scale_from_range(low, high, qmin=format.qmin, qmax=format.qmax, symmetric=False)


def percentile(
    x: Array,
    *,
    format: IntFormat,
    scale_shape: Shape | None = None,
    quantile: float = 0.999,
    symmetric: bool = True,
) -> Grid:
    """Grid that clips outliers: the range is a quantile of the data, interpolated linearly.

    Symmetric: `quantile` of |x|. Affine: quantiles 1 - quantile and quantile of x, widened to
    include zero. Other arguments and errors as for `absmax`.
    """
    x, shape = _prepare(x, scale_shape)
    if not symmetric:
        _refuse_binary(format)
    low, high = quantile_range(jnp.abs(x) if symmetric else x, shape, quantile)
    low = -high if symmetric else low
    return scale_from_range(low, high, qmin=format.qmin, qmax=format.qmax, symmetric=symmetric)


def mse(
    x: Array,
    *,
    format: IntFormat,
    scale_shape: Shape | None = None,
    symmetric: bool = True,
    ratios=MSE_RATIOS,
) -> Grid:
    """Grid with the least mean squared error among shrunken ranges, for each granule.

        argmin over r of  mean (Q_r(x) - x)^2,   Q_r calibrated on r * (min, max)

    The default grid r = 1, 79/80, ..., 1/80 is tried one after another, so that memory stays
    that of one copy of x. The binary format needs no search: its optimum is scale = mean |x|
    (Rastegari et al. 2016, section 3.1). Other arguments and errors as for `absmax`.

    Args:
      x: data [*shape].
      format: the codes available; its bits may be traced.
      scale_shape: granularity; None = per tensor.
      symmetric: whether the grid is symmetric about 0.
      ratios: fractions of the full range to try [num_ratios]; ties keep the first.
    """
    x, shape = _prepare(x, scale_shape)
    low, high = minmax_range(x, shape)
    if format.is_binary:
        if not symmetric:
            _refuse_binary(format)
        grouped, axes = group(jnp.abs(x).astype(low.dtype), shape)
        return _safe(jnp.mean(grouped, axes)), None

    def grid(ratio):
        q = {"qmin": format.qmin, "qmax": format.qmax}
        return scale_from_range(low * ratio, high * ratio, **q, symmetric=symmetric)

    def keep_better(best, ratio):
        candidate = grid(ratio)
        error = _mean_squared_error(x, candidate, format)
        is_better = error < best[0]
        better = jax.tree.map(lambda n, o: jnp.where(is_better, n, o), candidate, best[1])
        return (jnp.minimum(error, best[0]), better), None

    ratios = jnp.asarray(ratios, low.dtype)
    first = grid(ratios[0])
    start = (_mean_squared_error(x, first, format), first)
    (_, best), _ = jax.lax.scan(keep_better, start, ratios[1:])
    return best


def _mean_squared_error(x, grid, format):
    errors = quantization_error(x, *grid, format=format, round_fn=rounding.nearest_even)
    grouped, axes = group(errors**2, grid[0].shape)
    return jnp.mean(grouped, axes)


def _prepare(x, scale_shape):
    x = jnp.asarray(x)
    check_finite(x)
    return x, per_tensor(x) if scale_shape is None else tuple(scale_shape)


def _refuse_binary(format):
    if format.is_binary:
        raise ValueError(
            "format: got {-1, +1} for an affine grid, expected at least 2 bits or unsigned; "
            "use absmax or a symmetric mse."
        )


def _safe(scale):
    """Replace scales that are not normal floats by 1: dividing by a subnormal may give inf."""
    return jnp.where(scale >= jnp.finfo(scale.dtype).tiny, scale, jnp.ones_like(scale))

"""Ranges found by trying shrunken ones: mean squared and Lp error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant._granularity import Shape, concrete_all, group
from qdiffjax.quant.calibration.moments import binary_fit
from qdiffjax.quant.calibration.ranges import Grid, check_affine, grid_of, minmax_range, prepare
from qdiffjax.quant.formats import Format, IntFormat
from qdiffjax.quant.qtensor import quantization_error

RATIOS = np.arange(80, 0, -1) / 80  # widest first, so that ties keep the wider range


def mse(x: Array, *, format: Format, scale_shape: Shape | None = None, **options) -> Grid:
    """Grid with the least mean squared error among shrunken ranges: `lp` with p = 2.

    The binary format needs no search: its optimum is scale = mean |x| (Rastegari et al. 2016,
    section 3.1). Options, results and errors as for `lp`.
    """
    is_binary = isinstance(format, IntFormat) and format.is_binary
    if is_binary and options.get("symmetric", True):
        return binary_fit(x, scale_shape=scale_shape)
    return lp(x, format=format, scale_shape=scale_shape, p=2.0, **options)


def lp(
    x: Array,
    *,
    format: Format,
    scale_shape: Shape | None = None,
    p: float = 2.4,
    symmetric: bool = True,
    ratios=RATIOS,
    overhang: float = 0.0,
    include_zero: bool = True,
) -> Grid:
    """Grid with the least mean |error|^p among shrunken ranges, for each granule.

        argmin over r of  mean |Q_r(x) - x|^p,   Q_r calibrated on r * (min, max)

    The default p is that of Q-Diffusion (Li et al. 2023) and Q-DiT (Chen et al. 2024), in their
    code; theirs are also ratios = 1 - i / 100, i < 80, and 1 - i / 1000, i < 100. The default
    ratios 1, 79/80, ..., 1/80 are tried one after another, so that memory stays that of one
    copy of x.

    Args:
      x: data [*shape].
      format: the numbers available; its fields may be traced.
      scale_shape: granularity; None = per tensor.
      p: power of the error; 2 = `mse`, larger spares the outliers.
      symmetric: whether the grid is symmetric about 0; affine needs `IntFormat`.
      ratios: fractions of the full range to try [num_ratios]; ties keep the first.
      overhang: see `scale_from_range`.
      include_zero: see `scale_from_range`.

    Returns:
      scale [*scale_shape] in units of x; zero_point, int32 [*scale_shape] or None.

    Raises:
      ValueError: concrete data that are not finite, shapes that do not divide, an affine grid
        for a format that is not an integer grid or is binary, ratios or p that are not positive.
    """
    x, shape = prepare(x, scale_shape)
    if p <= 0:
        raise ValueError(f"p: got {p}, expected a positive power of the error, such as 2 or 2.4.")
    if not symmetric:
        check_affine(format)
    full = minmax_range(x, shape)
    ends = {"symmetric": symmetric, "overhang": overhang, "include_zero": include_zero}

    def error(low, high):
        grid = grid_of((low, high), format, **ends)
        errors = quantization_error(x, *grid, format=format, round_fn=rounding.nearest_even)
        return _mean_power(errors, p, shape)

    ratio = best_ratio(*full, error, ratios)
    return grid_of((full[0] * ratio, full[1] * ratio), format, **ends)


def best_ratio(
    low: Array, high: Array, error_fn: Callable[[Array, Array], Array], ratios=RATIOS
) -> Array:
    """Fraction r of the range low..high with the least error_fn(r low, r high) [*groups].

    Args:
      low: lower ends of the full range [*groups].
      high: upper ends of the full range [*groups].
      error_fn: ends [*groups] -> error [*groups] >= 0.
      ratios: fractions to try [num_ratios]; ties keep the first.

    Raises:
      ValueError: no ratios, or concrete ones that are not positive.
    """
    ratios = jnp.asarray(ratios, low.dtype)
    if not ratios.size or not concrete_all(lambda r: r > 0, ratios):
        raise ValueError(f"ratios: got {ratios}, expected positive fractions of the full range.")

    def keep_better(best, ratio):
        error = error_fn(low * ratio, high * ratio)
        is_better = error < best[0]
        return (jnp.minimum(error, best[0]), jnp.where(is_better, ratio, best[1])), None

    start = (jnp.full_like(low, jnp.inf), jnp.broadcast_to(ratios[0], low.shape))
    (_, ratio), _ = jax.lax.scan(keep_better, start, ratios)
    return ratio


def _mean_power(errors: Array, p: float, shape: Shape) -> Array:
    powers = errors**2 if p == 2 else jnp.abs(errors) ** p
    grouped, axes = group(powers, shape)
    return jnp.mean(grouped, axes)

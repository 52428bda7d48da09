"""Ranges found by trying shrunken ones: mean squared and Lp error, divergence of histograms."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import NOT_NEGATIVE, POSITIVE, check_count, checked, require
from qdiffjax._typing import Array
from qdiffjax.quant import qtensor, rounding
from qdiffjax.quant.calibration import moments, ranges
from qdiffjax.quant.formats import Format, check_equal_steps, is_binary
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.granularity import (
    Shape,
    compute_dtype,
    concrete_all,
    expand,
    group,
    normal_or_one,
)

RATIOS = np.arange(80, 0, -1) / 80  # widest first, so that ties keep the wider range


@checked(format=check_number_format)
def mse(x: Array, *, format: Format, scale_shape: Shape | None = None, **options) -> ranges.Grid:
    """Return the grid with the least mean squared error among shrunken ranges: `lp` with p = 2.

    The binary format needs no search: its optimum is scale = mean |x| (Rastegari et al. 2016,
    section 3.1). Options, results and errors as for `lp`.
    """
    if is_binary(format) and options.get("symmetric", True):
        return moments.binary_fit(x, scale_shape=scale_shape)
    return lp(x, format=format, scale_shape=scale_shape, p=2.0, **options)


@checked(format=check_number_format, p=POSITIVE, ratios=POSITIVE, overhang=NOT_NEGATIVE)
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
) -> ranges.Grid:
    """Return the grid with the least mean |error|^p among shrunken ranges, for each granule.

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
    x, shape = ranges.prepare(x, scale_shape)
    if not symmetric:
        check_equal_steps(format, ranges.UNSHIFTABLE)
    full = ranges.minmax_range(x, shape)
    ends = {"symmetric": symmetric, "overhang": overhang, "include_zero": include_zero}

    def error(low, high):
        grid = ranges.grid_of((low, high), format, **ends)
        errors = qtensor.quantization_error(x, *grid, format=format)
        return jnp.mean(*group(errors**2 if p == 2 else jnp.abs(errors) ** p, shape))

    ratio = best_ratio(*full, error, ratios)
    return ranges.grid_of((full[0] * ratio, full[1] * ratio), format, **ends)


def best_ratio(
    low: Array, high: Array, error_fn: Callable[[Array, Array], Array], ratios=RATIOS
) -> Array:
    """Return fraction r of the range low..high with the least error_fn(r low, r high) [*groups].

    Args:
      low: lower ends of the full range [*groups].
      high: upper ends of the full range [*groups].
      error_fn: ends [*groups] -> error [*groups] >= 0.
      ratios: fractions to try [num_ratios]; ties keep the first.

    Raises:
      ValueError: no ratios, or concrete ones that are not positive.
    """
    ratios = jnp.asarray(ratios, low.dtype)
    require(
        ratios.size and concrete_all(lambda r: r > 0, ratios),
        "ratios",
        got=ratios,
        expected="positive fractions of the full range",
        remedy="such as numpy.arange(80, 0, -1) / 80",
    )

    def keep_better(best, ratio):
        error = error_fn(low * ratio, high * ratio)
        is_better = error < best[0]
        return (jnp.minimum(error, best[0]), jnp.where(is_better, ratio, best[1])), None

    start = (jnp.full_like(low, jnp.inf), jnp.broadcast_to(ratios[0], low.shape))
    (_, ratio), _ = jax.lax.scan(keep_better, start, ratios)
    return ratio


@checked(format=check_number_format, num_bins=check_count, overhang=NOT_NEGATIVE)
def kl(
    x: Array,
    *,
    format: Format,
    scale_shape: Shape | None = None,
    num_bins: int = 2048,
    overhang: float = 0.0,
) -> ranges.Grid:
    """Return the symmetric grid whose quantized histogram of |x| is nearest the histogram in
    divergence.

    The range is `kl_ratio` of max|x|, from a histogram of |x| in num_bins equal bins. Exact zeros,
    such as those behind a ReLU, are not counted: they are on every grid, whatever its range, but
    would outweigh all else.

    Args:
      x: data [*shape].
      format: static.
      scale_shape: granularity; None = per tensor.
      num_bins: bins of the histogram; at least the number of levels >= 0.
      overhang: see `scale_from_range`.

    Returns:
      scale [*scale_shape] in units of x, and None.

    Raises:
      TypeError: a format that is not static.
      ValueError: fewer bins than levels; concrete data that are not finite; shapes that do
        not divide.
    """
    first_candidate(format, num_bins)
    x, shape = ranges.prepare(x, scale_shape)
    counts, top = magnitude_histogram(x, shape, num_bins)
    counts = without_zeros(counts, count_zeros(x, shape))
    end = top * kl_ratio(counts, format=format).astype(top.dtype)
    return ranges.grid_of((-end, end), format, symmetric=True, overhang=overhang)


def kl_ratio(counts: Array, *, format: Format) -> Array:
    """Return the fraction of a histogram of magnitudes that a quantizer should cover [*groups].

        argmin over i of  KL(P_i || Q_i),    ratio = i / num_bins    (ties: the widest)

    P_i is the first i bins with the rest added to the last one. Q_i gives each cell of the
    quantizer over those i bins its own counts, spread evenly over the bins that are not empty;
    the tail is not in Q_i, so that clipping costs. An i whose last bin is empty while the tail
    is not has infinite divergence. i begins at the number of levels, where Q_i has no fewer
    parameters than P_i.

    Migacz 2017, "8-bit inference with TensorRT" (GTC S7310), entropy calibration. There the
    cells are i / 128 equal runs of bins; here they are those of the format under nearest
    rounding, its first and last half as wide, so that every format has its own.

    Args:
      counts: histogram of |x| in equal bins from 0 [*groups, num_bins].
      format: static.

    Raises:
      TypeError: a format that is not static.
      ValueError: fewer bins than levels.
    """
    num_bins = counts.shape[-1]
    candidates = jnp.arange(num_bins, first_candidate(format, num_bins) - 1, -1, jnp.int32)
    rows = counts.reshape(-1, num_bins).astype(jnp.float32)

    def best(row):
        divergences = jax.lax.map(lambda i: _divergence(row, i, format), candidates)
        return candidates[jnp.argmin(divergences)]

    ratio = jax.lax.map(best, rows).astype(jnp.float32) / num_bins
    return ratio.reshape(counts.shape[:-1])


def first_candidate(format: Format, num_bins: int) -> int:
    """Return the least number of bins worth a try: that of the levels >= 0; raise if none is."""
    require(
        format.is_static, "format", got="traced fields", expected="a static format",
        remedy="use mse for those", error=TypeError,
    )  # fmt: skip
    num_levels = int(np.sum(format.levels() >= 0))
    require(
        num_bins >= num_levels, "num_bins", got=f"{num_bins} for {num_levels} levels >= 0",
        expected="at least as many", remedy="use more bins, or mse for wide formats",
    )  # fmt: skip
    return num_levels


def magnitude_histogram(x: Array, scale_shape: Shape, num_bins: int) -> tuple[Array, Array]:
    """Return the histogram of |x| on 0..max|x| [*scale_shape, num_bins], and max|x| [*scale_shape].

    Counts are int32; max|x| itself falls into the last bin.
    """
    size = jnp.abs(x.astype(compute_dtype(x)))
    top = jnp.max(*group(size, scale_shape))
    bins = jnp.floor(size * expand(num_bins / normal_or_one(top), x.shape)).astype(jnp.int32)
    return count_bins(jnp.clip(bins, 0, num_bins - 1), scale_shape, num_bins), top


def count_zeros(x: Array, scale_shape: Shape) -> Array:
    """Return the number of exact zeros in each granule, int32 [*scale_shape]."""
    grouped, axes = group(x == 0, scale_shape)
    return jnp.sum(grouped, axes, jnp.int32)


def without_zeros(counts: Array, zeros: Array) -> Array:
    """Take zeros [*scale_shape] out of the first bin of magnitudes [*scale_shape, num_bins]."""
    return counts.at[..., 0].add(-zeros)


def count_bins(bins: Array, scale_shape: Shape, num_bins: int) -> Array:
    """Return how often each bin index occurs in each granule, int32 [*scale_shape, num_bins].

    Args:
      bins: indices in 0..num_bins - 1 [*shape].
      scale_shape: granularity.
      num_bins: number of bins.
    """
    granules = jnp.arange(np.prod(scale_shape, dtype=int), dtype=jnp.int32).reshape(scale_shape)
    index = (expand(granules, bins.shape) * num_bins + bins).reshape(-1)
    flat = jnp.zeros(granules.size * num_bins, jnp.int32).at[index].add(1)
    return flat.reshape(*scale_shape, num_bins)


def _divergence(counts: Array, num_kept: Array, format: Format) -> Array:
    """Return KL(P_i || Q_i) in nats [] for i = num_kept of the bins of counts [num_bins]."""
    bins = jnp.arange(counts.size, dtype=jnp.int32)
    kept = jnp.where(bins < num_kept, counts, 0)
    tail = jnp.sum(counts) - jnp.sum(kept)
    p = jnp.where(bins == num_kept - 1, kept + tail, kept)
    q = spread(kept, _cells(bins, num_kept, format))
    p, q = p / normal_or_one(jnp.sum(p)), q / normal_or_one(jnp.sum(q))
    terms = jnp.where(p > 0, p * (jnp.log(jnp.where(p > 0, p, 1)) - jnp.log(q)), 0)
    return jnp.sum(terms)


def _cells(bins: Array, num_kept: Array, format: Format) -> Array:
    """Return index of the quantizer's cell that holds the centre of each bin, int32 [num_bins]."""
    step = jnp.asarray(format.high).astype(jnp.float32) / num_kept.astype(jnp.float32)
    values = format.round((bins.astype(jnp.float32) + 0.5) * step, rounding.nearest_even)
    is_new = jnp.concatenate([jnp.zeros(1, bool), values[1:] != values[:-1]])
    return jnp.cumsum(is_new, dtype=jnp.int32)


def spread(counts: Array, cells: Array) -> Array:
    """Replace counts [num_bins] by their mean over the bins of a cell that are not empty."""
    occupied = counts > 0
    total = jnp.zeros_like(counts).at[cells].add(counts)
    number = jnp.zeros_like(counts).at[cells].add(occupied.astype(counts.dtype))
    return jnp.where(occupied, total[cells] / jnp.maximum(number[cells], 1), 0)

"""Calibration as the data pass by: ranges accumulated batch after batch.

An observer is a record of pure functions over a state that is a pytree of arrays, so that the
state can be carried by a scan over batches, or have a leading axis of steps and be scanned or
vmapped over, one observer for each:

    state = observer.init(scale_shape)                    # the shape is the granularity
    state = observer.update(state, x)                     # as often as there are data
    low, high = observer.finalize(state)                  # both [*scale_shape]
    scale, zero_point = scale_from_range(low, high, ...)  # any width, later

Concrete data that are not finite are refused with a ValueError, as is an x whose shape the
granularity does not divide. Nothing observed is the range 0..0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._checks import SHARE, check_callable, check_count, check_number, checked, require
from qdiffjax._typing import Array
from qdiffjax.quant.calibration import ranges, search
from qdiffjax.quant.formats import Format, check_equal_steps
from qdiffjax.quant.granularity import Shape, compute_dtype, expand
from qdiffjax.quant.qtensor import quantization_error

LEAST_EXPONENT = -100  # of the width of a histogram: all-zero data, and no overflow in 1 / width


class Observer(NamedTuple):
    """Functions that watch data.

    Attributes:
      init: scale_shape -> state, having seen nothing.
      update: (state, x [*shape]) -> state.
      finalize: state -> (low, high), in units of x [*scale_shape].
      merge: (state, state) -> state of all data of both; None where their order matters.
    """

    init: Callable[[Shape], Any]
    update: Callable[[Any, Array], Any]
    finalize: Callable[[Any], tuple[Array, Array]]
    merge: Callable[[Any, Any], Any] | None = None


class RangeState(NamedTuple):
    """Ends of what was seen, float32 [*scale_shape], and the number of batches, int32 []."""

    low: Array
    high: Array
    num_batches: Array


def running_minmax() -> Observer:
    """Observe the least and the largest number ever seen; finalize gives them."""
    return Observer(empty_range, widen, seen_range, merge_ranges)


def ema_minmax(momentum: float = 0.95) -> Observer:
    """Observe the exponential moving average of the range of each batch.

        low <- m low + (1 - m) min(x),   high <- m high + (1 - m) max(x),   first: min(x), max(x)

    with Q-Diffusion's momentum (Li et al. 2023, in its code). The first batch is the initial
    value and there is no bias correction, as there; its weight after n batches is m^(n - 1).
    The order of batches matters, so there is no merge. The result clips: it is no bound.

    Raises:
      ValueError: momentum outside [0, 1).
    """
    check_number("momentum", momentum, least=0, below=1, remedy="such as 0.95")

    def update(state, x):
        ends = _range_of(x, state.low.shape)
        m = jnp.where(state.num_batches == 0, 0.0, momentum).astype(jnp.float32)
        # An empty range is infinite, and 0 * inf is not 0.
        old = (jnp.where(state.num_batches == 0, 0.0, end) for end in state[:2])
        low, high = (m * a + (1 - m) * b for a, b in zip(old, ends, strict=True))
        return RangeState(low, high, state.num_batches + 1)

    return Observer(empty_range, update, seen_range)


def empty_range(scale_shape: Shape) -> RangeState:
    """Return the state of an observer that has seen nothing."""
    nothing = jnp.full(scale_shape, jnp.inf, jnp.float32)
    return RangeState(nothing, -nothing, jnp.zeros((), jnp.int32))


def _range_of(x, scale_shape):
    low, high = ranges.minmax_range(*ranges.prepare(x, scale_shape))
    return low.astype(jnp.float32), high.astype(jnp.float32)


def widen(state: RangeState, x: Array) -> RangeState:
    """Add a batch."""
    low, high = _range_of(x, state.low.shape)
    return merge_ranges(state, RangeState(low, high, jnp.ones((), jnp.int32)))


def merge_ranges(a: RangeState, b: RangeState) -> RangeState:
    """Return the range of all data of both."""
    low, high = jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)
    return RangeState(low, high, a.num_batches + b.num_batches)


def seen_range(state: RangeState) -> tuple[Array, Array]:
    """Return the ends of what was seen [*scale_shape]; 0..0 if nothing was."""
    is_empty = jnp.isinf(state.low) & jnp.isinf(state.high) & (state.low > state.high)
    low, high = (jnp.where(is_empty, 0.0, end) for end in state[:2])
    return low, high


class HistogramState(NamedTuple):
    """Counts in equal bins on [-2^exponent, 2^exponent), with the exact range beside them.

    Attributes:
      exponent: int32 [*scale_shape]; 2^exponent is the least power above max|x|.
      counts: int32 [*scale_shape, num_bins]; overflows at 2^31 elements in one bin.
      range: ends of what was seen.
      zeros: int32 [*scale_shape], exact zeros among the counts.
    """

    exponent: Array
    counts: Array
    range: RangeState
    zeros: Array


def histogram_observer(
    finalize: Callable[[HistogramState], tuple[Array, Array]], *, num_bins: int = 4096
) -> Observer:
    """Observe a histogram whose range doubles as needed; finalize chooses a range from it.

    Bins are nested: a range twice as wide merges bins in pairs about zero, so that the counts
    never depend on the order of the data, and equal those of all data at once, exactly. Up to
    half of the bins are beyond the data.

    Args:
      finalize: such as `percentile_range`, or `functools.partial(mse_range, format=format)`.
      num_bins: an even number of bins, half of them for negative numbers.

    Raises:
      ValueError: num_bins odd or below 2.
    """
    check_callable("finalize", finalize, "state -> (low, high)")
    check_count("num_bins", num_bins, least=2)
    require(num_bins % 2 == 0, "num_bins", got=num_bins, expected="an even number",
            remedy="such as 4096")  # fmt: skip
    init = functools.partial(_empty_histogram, num_bins=num_bins)
    return Observer(init, _count, finalize, _merge_histograms)


@checked(quantile=SHARE)
def percentile_range(
    state: HistogramState, *, quantile: float = 0.999, symmetric: bool = False
) -> tuple[Array, Array]:
    """Return the quantiles 1 - quantile and quantile of a histogram [*scale_shape].

    Numbers are taken as evenly spread over their bin, so that the error is at most one bin.
    Symmetric: `quantile` of |x|, and its negative.

    Raises:
      ValueError: quantile outside 0..1.
    """
    if symmetric:
        counts, width = _magnitudes(state)
        high = jnp.minimum(_quantile(counts, quantile) * width, _absmax(state))
        return -high, high
    width, half = _bin_width(state), state.counts.shape[-1] // 2
    ends = ((_quantile(state.counts, q) - half) * width for q in (1 - quantile, quantile))
    low, high = (jnp.clip(end, *seen_range(state.range)) for end in ends)
    return low, high


def mse_range(
    state: HistogramState,
    *,
    format: Format,
    symmetric: bool = True,
    p: float = 2.0,
    ratios=search.RATIOS,
    **ends,
) -> tuple[Array, Array]:
    """Return the shrunken range of least mean |error|^p [*scale_shape], as `calibration.lp`.

    Each bin counts as its centre, which is right where bins are narrow against the steps.

    Args:
      state: of `histogram_observer`.
      format: the numbers that will be used; its fields may be traced.
      symmetric: whether the grid is symmetric about 0; affine needs `IntFormat`.
      p: power of the error.
      ratios: fractions of the full range to try [num_ratios]; ties keep the first.
      **ends: overhang and include_zero, see `scale_from_range`.

    Raises:
      ValueError: an affine grid for a format that is not an integer grid or is binary.
    """
    if not symmetric:
        check_equal_steps(format, ranges.UNSHIFTABLE)
    num_bins = state.counts.shape[-1]
    bins = jnp.arange(num_bins, dtype=jnp.float32) - (num_bins / 2 - 0.5)
    width = _bin_width(state)[..., None]
    centres = jnp.broadcast_to(bins, state.counts.shape) * width
    weights = state.counts.astype(jnp.float32)

    def error(low, high):
        grid = ranges.grid_of((low, high), format, symmetric=symmetric, **ends)
        scale, zero = jax.tree.map(lambda g: g[..., None], grid)
        errors = jnp.abs(quantization_error(centres, scale, zero, format=format))
        return jnp.sum(weights * (errors / width) ** p, -1)  # bins: squares cannot underflow

    low, high = seen_range(state.range)
    ratio = search.best_ratio(low, high, error, ratios)
    return low * ratio, high * ratio


def kl_range(state: HistogramState, *, format: Format) -> tuple[Array, Array]:
    """Return the symmetric range of least divergence of |x| [*scale_shape], as `calibration.kl`.

    Half the bins of the observer, for |x|, must be at least as many as the levels >= 0.
    """
    counts, width = _magnitudes(state)
    counts = search.without_zeros(counts, state.zeros)
    end = search.kl_ratio(counts, format=format) * width * counts.shape[-1]
    high = jnp.minimum(end, _absmax(state))
    return -high, high


def _empty_histogram(scale_shape: Shape, *, num_bins: int) -> HistogramState:
    counts = jnp.zeros((*scale_shape, num_bins), jnp.int32)
    exponent = jnp.full(scale_shape, LEAST_EXPONENT, jnp.int32)
    zeros = jnp.zeros(scale_shape, jnp.int32)
    return HistogramState(exponent, counts, empty_range(scale_shape), zeros)


def _count(state: HistogramState, x: Array) -> HistogramState:
    """Add a batch: its own histogram, merged."""
    x = jnp.asarray(x)
    shape, num_bins = state.exponent.shape, state.counts.shape[-1]
    seen = widen(empty_range(shape), x)
    _, exponent = jnp.frexp(jnp.maximum(-seen.low, seen.high))
    exponent = jnp.maximum(exponent.astype(jnp.int32), LEAST_EXPONENT)
    half = num_bins // 2
    inverse_width = jnp.ldexp(jnp.full(shape, half, compute_dtype(x)), -exponent)  # exact
    bins = jnp.floor(x.astype(inverse_width.dtype) * expand(inverse_width, x.shape))
    bins = jnp.clip(bins.astype(jnp.int32) + half, 0, num_bins - 1)
    counts = search.count_bins(bins, shape, num_bins)
    zeros = search.count_zeros(x, shape)
    return _merge_histograms(state, HistogramState(exponent, counts, seen, zeros))


def _merge_histograms(a: HistogramState, b: HistogramState) -> HistogramState:
    exponent = jnp.maximum(a.exponent, b.exponent)
    counts = _coarsen(a.counts, exponent - a.exponent) + _coarsen(b.counts, exponent - b.exponent)
    return HistogramState(exponent, counts, merge_ranges(a.range, b.range), a.zeros + b.zeros)


def _coarsen(counts: Array, doublings: Array) -> Array:
    """Return the counts [*groups, num_bins] after the range has doubled that often [*groups]."""
    num_bins = counts.shape[-1]
    half = num_bins // 2
    shift = jnp.minimum(doublings, 31)[..., None]
    bins = jnp.arange(num_bins, dtype=jnp.int32) - half
    target = jnp.right_shift(jnp.broadcast_to(bins, counts.shape), shift) + half  # floor
    row = jnp.arange(doublings.size, dtype=jnp.int32)[:, None]
    flat = jnp.zeros((doublings.size, num_bins), jnp.int32)
    target, rows = target.reshape(-1, num_bins), counts.reshape(-1, num_bins)
    return flat.at[row, target].add(rows).reshape(counts.shape)


def _bin_width(state: HistogramState) -> Array:
    return jnp.ldexp(jnp.float32(2 / state.counts.shape[-1]), state.exponent)


def _magnitudes(state: HistogramState) -> tuple[Array, Array]:
    """Return counts of |x| [*scale_shape, num_bins / 2], and the width of a bin [*scale_shape]."""
    half = state.counts.shape[-1] // 2
    negative, positive = jnp.split(state.counts, [half], -1)
    return positive + negative[..., ::-1], _bin_width(state)


def _absmax(state: HistogramState) -> Array:
    low, high = seen_range(state.range)
    return jnp.maximum(-low, high)


def _quantile(counts: Array, quantile: float) -> Array:
    """Return position, in bins from the left edge, below which a fraction of the counts lies."""
    counts = counts.astype(jnp.float32)
    below = jnp.cumsum(counts, -1)
    target = quantile * below[..., -1:]
    index = jnp.sum(below < target, -1, keepdims=True)
    index = jnp.minimum(index, counts.shape[-1] - 1)
    here = jnp.take_along_axis(counts, index, -1)
    before = jnp.take_along_axis(below, index, -1) - here
    part = jnp.clip((target - before) / jnp.maximum(here, 1), 0, 1)
    return (index.astype(jnp.float32) + part)[..., 0]

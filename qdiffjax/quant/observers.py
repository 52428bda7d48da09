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

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant._granularity import Shape
from qdiffjax.quant.calibration import ranges


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
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: got {momentum}, expected 0 <= momentum < 1, such as 0.95.")

    def update(state, x):
        ends = _range_of(x, state.low.shape)
        m = jnp.where(state.num_batches == 0, 0.0, momentum).astype(jnp.float32)
        # An empty range is infinite, and 0 * inf is not 0.
        old = (jnp.where(state.num_batches == 0, 0.0, end) for end in state[:2])
        low, high = (m * a + (1 - m) * b for a, b in zip(old, ends, strict=True))
        return RangeState(low, high, state.num_batches + 1)

    return Observer(empty_range, update, seen_range)


def empty_range(scale_shape: Shape) -> RangeState:
    """State of an observer that has seen nothing."""
    nothing = jnp.full(scale_shape, jnp.inf, jnp.float32)
    return RangeState(nothing, -nothing, jnp.zeros((), jnp.int32))


def _range_of(x, scale_shape):
    x, shape = ranges.prepare(x, scale_shape)
    low, high = ranges.minmax_range(x, shape)
    return low.astype(jnp.float32), high.astype(jnp.float32)


def widen(state: RangeState, x: Array) -> RangeState:
    """Add a batch."""
    low, high = _range_of(x, state.low.shape)
    return merge_ranges(state, RangeState(low, high, jnp.ones((), jnp.int32)))


def merge_ranges(a: RangeState, b: RangeState) -> RangeState:
    """Range of all data of both."""
    low, high = jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high)
    return RangeState(low, high, a.num_batches + b.num_batches)


def seen_range(state: RangeState) -> tuple[Array, Array]:
    """Ends of what was seen [*scale_shape]; 0..0 if nothing was."""
    is_empty = jnp.isinf(state.low) & jnp.isinf(state.high) & (state.low > state.high)
    low, high = (jnp.where(is_empty, 0.0, end) for end in state[:2])
    return low, high

"""Rounding that keeps the sums of an array: what activations with a mean see of a weight."""

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant.formats import IntFormat
from qdiffjax.quant.granularity import (
    Shape,
    check_divides,
    clipped_steps,
    compute_dtype,
    expand,
    granules,
)


def keep_sums(
    x: Array, scale: Array, zero_point: Array | None = None, *, format: IntFormat, sum_shape: Shape
) -> Array:
    """Round x to a grid such that the sum of each of its granules stays, to half a step.

        r_i = round(v_i) - f_i,   v = x / scale,   n = round(sum_i (round(v_i) - v_i))

    where f_i = sign(n) for the |n| elements that rounding moved farthest that way, and else 0. An
    element moves by less than a step. Errors of a weight that multiplies activations with mean mu
    add up to mu times the sum of its errors: rounded to nearest, K weights leave about
    mu sqrt(K / 12) steps of it, the same for every sample and step; here mu / 2 at most.
    The constraint on channels in SQuant (Guo et al. 2022, eq. 11), which needs no data.

    Args:
      x: real array [*shape].
      scale: positive steps [*groups].
      zero_point: integers [*groups], or None for symmetric.
      format: the codes available; its bits may be traced.
      sum_shape: whose sums stay: the rank of x, each axis divides that of x and is a multiple of
        that of scale.

    Returns:
      Real numbers on the grid [*shape], float32 (float64 for float64 x): rounding them to nearest
      gives their own codes.
    """
    shape = tuple(sum_shape) if isinstance(sum_shape, tuple | list) else ()
    check_divides(x.shape, shape, "sum_shape")
    x = x.astype(compute_dtype(x))
    steps, axes = granules(clipped_steps(x, scale, zero_point, format), sum_shape)
    kept = [a for a in range(steps.ndim) if a not in axes]
    rows = steps.transpose(*kept, *axes)
    flat = rows.reshape(*(steps.shape[a] for a in kept), -1)
    nearest = jnp.round(flat)
    errors = nearest - flat
    excess = jnp.round(jnp.sum(errors, -1, keepdims=True))
    order = jnp.argsort(-errors * jnp.sign(excess), axis=-1)
    rank = jnp.argsort(order, axis=-1).astype(x.dtype)
    moved = nearest - jnp.where(rank < jnp.abs(excess), jnp.sign(excess), 0)
    back = sorted(range(steps.ndim), key=(*kept, *axes).__getitem__)
    codes = moved.reshape(rows.shape).transpose(back).reshape(x.shape)
    return codes * expand(scale.astype(x.dtype), x.shape)

"""Products of two arrays of codes over any axes, such as queries and keys; XLA everywhere."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels import integers
from qdiffjax.kernels.operands import Native, widened


def dot_general(
    a: Native, b: Native, dimension_numbers: integers.Dims, *, out_dtype=jnp.float32
) -> Array:
    """Return sum_k a_hat b_hat [*batch, *free of a, *free of b], codes multiplied as codes.

        sum_k s_a (q_a - z_a) s_b (q_b - z_b)
            = s_a s_b (sum q_a q_b - z_a sum q_b - z_b sum q_a + K z_a z_b)

    Exact up to the scales: sums are int32, right while |result| / (s_a s_b) < 2^31, that is for
    K < 33 000 codes of 8 bits.

    Args:
      a, b: codes; scales and zero points that do not vary along what is summed.
      dimension_numbers: as `lax.dot_general`.
      out_dtype: of the result.
    """
    pair = a, b
    left, right = values = [widened(operand.values) for operand in pair]
    is_integer = left.dtype == right.dtype == jnp.int8
    if not is_integer and left.dtype != right.dtype:
        left, right = (_centered(operand) for operand in pair)
        pair = a._replace(zero=None), b._replace(zero=None)
    if is_integer:
        y = integers.dot_general(left, right, dimension_numbers, is_weight=False)
    else:
        y = jax.lax.dot_general(left, right, dimension_numbers, preferred_element_type=jnp.float32)
    layouts = [layout(i, (left, right), dimension_numbers) for i in (0, 1)]
    zeros = [
        None if p.zero is None else laid(p.zero) for p, laid in zip(pair, layouts, strict=True)
    ]
    for i, zero in enumerate(zeros):
        if zero is not None:
            other, summed = values[1 - i], dimension_numbers[0][1 - i]
            y = y - zero * layouts[1 - i](jnp.sum(other, summed, jnp.int32, keepdims=True))
    if zeros[0] is not None and zeros[1] is not None:
        k = math.prod(left.shape[axis] for axis in dimension_numbers[0][0])
        y = y + k * zeros[0] * zeros[1]
    scale = layouts[0](a.scale) * layouts[1](b.scale)
    return (scale.astype(jnp.float32) * y.astype(jnp.float32)).astype(out_dtype)


def _centered(operand: Native) -> Array:
    values = widened(operand.values).astype(jnp.float32)
    return values if operand.zero is None else values - operand.zero.astype(jnp.float32)


def layout(index: int, operands, dims: integers.Dims) -> Callable[[Array], Array]:
    """Map a granule array of one operand, 1 long where it is summed, to the axes of the result."""
    contract, batch = dims[0][index], dims[1][index]
    ndims = [operand.ndim for operand in operands]
    free = [a for a in range(ndims[index]) if a not in (*contract, *batch)]
    num_others = ndims[1 - index] - len(contract) - len(batch)

    def laid(granules: Array) -> Array:
        moved = granules.transpose(*batch, *free, *contract)
        kept = moved.shape[: len(batch) + len(free)]
        ones = (1,) * num_others
        shape = (*kept, *ones) if index == 0 else (*kept[: len(batch)], *ones, *kept[len(batch) :])
        return moved.reshape(shape)

    return laid

"""Products of two arrays of codes over any axes, such as queries and keys; XLA everywhere."""

import math

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels.operands import is_integer, native, widened
from qdiffjax.quant import QTensor, dequantize

Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def dot_general(a: QTensor, b: QTensor, dimension_numbers: Dims, *, out_dtype=jnp.float32) -> Array:
    """Return sum_k a_hat b_hat [*batch, *free of a, *free of b], codes multiplied as codes.

        sum_k s_a (q_a - z_a) s_b (q_b - z_b)
            = s_a s_b (sum q_a q_b - z_a sum q_b - z_b sum q_a + K z_a z_b)

    Exact up to the scales: sums are int32, right while |result| / (s_a s_b) < 2^31, that is for
    K < 33 000 codes of 8 bits.

    Args:
      a, b: codes; one zero point each; scales that do not vary along what is summed.
      dimension_numbers: as `lax.dot_general`.
      out_dtype: of the result.
    """
    if is_integer(a.format) != is_integer(b.format):
        y = jax.lax.dot_general(dequantize(a), dequantize(b), dimension_numbers)
        return y.astype(out_dtype)
    pair = native(a), native(b)
    left, right = values = [widened(operand.values) for operand in pair]
    sums = jnp.int32 if is_integer(a.format) else jnp.float32
    y = jax.lax.dot_general(left, right, dimension_numbers, preferred_element_type=sums)
    layouts = [_layout(i, (a, b), dimension_numbers) for i in (0, 1)]
    zeros = [None if p.zero is None else p.zero.reshape((1,) * y.ndim) for p in pair]
    for i, zero in enumerate(zeros):
        if zero is not None:
            other, summed = values[1 - i], dimension_numbers[0][1 - i]
            y = y - zero * layouts[1 - i](jnp.sum(other, summed, jnp.int32, keepdims=True))
    if zeros[0] is not None and zeros[1] is not None:
        k = math.prod(a.shape[axis] for axis in dimension_numbers[0][0])
        y = y + k * zeros[0] * zeros[1]
    scale = layouts[0](pair[0].scale) * layouts[1](pair[1].scale)
    return (scale.astype(jnp.float32) * y.astype(jnp.float32)).astype(out_dtype)


def _layout(index: int, operands, dims: Dims):
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

"""Products of a block of rows with a block of columns, both in vector memory.

`refs` are those of the right operand: "right" [K, N] (codes), "right_scale" [groups, N], and, where
they are needed, "right_zero" [groups, N] (the code of 0.0) and "sums" [groups, N] (of the codes of
each group, int32).
"""

import functools

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels.operands import FLOAT8, is_integer, widened
from qdiffjax.quant import Format


def of_codes(left: Array, zero: Array | None, refs: dict, format: Format) -> Array:
    """Return float32 sum_k (left - zero) w_hat [M, N]; integer sums are exact.

    Args:
      left: codes [M, K], int8 or an 8-bit float.
      zero: int32 code of 0.0 in `left`, [M, 1] or [1, 1], or None.
      refs: of the right operand.
      format: of the right operand.
    """
    right, scale = read(refs["right"][...], format), refs["right_scale"][...]
    groups = scale.shape[0]
    size = left.shape[1] // groups
    parts = []
    for g in range(groups):
        span = slice(g * size, (g + 1) * size)
        y = _centered(left[:, span], zero, right[span], g, refs)
        parts.append(scale[g : g + 1] * y.astype(jnp.float32))
    return functools.reduce(jnp.add, parts)


def _centered(left, zero, right, g: int, refs: dict) -> Array:
    """Return sum_k (left - zero) (right - its zero) over group g, int32 or float32."""
    integer = left.dtype == jnp.int8
    y = dot(left, right, jnp.int32 if integer else jnp.float32)
    if zero is not None:
        y -= zero * refs["sums"][g : g + 1]
    if "right_zero" in refs:
        rows = jnp.sum(left.astype(jnp.int32), 1, jnp.int32, keepdims=True)
        rows = rows if zero is None else rows - zero * left.shape[1]
        y -= rows * refs["right_zero"][g : g + 1]
    return y


def of_reals(left: Array, refs: dict, format: Format) -> Array:
    """Return float32 left w_hat [M, N]: the scale of columns after the product, others before."""
    right, scale = read(refs["right"][...], format), refs["right_scale"][...]
    if scale.shape[0] == 1 and "right_zero" not in refs:
        return scale * dot(left, right.astype(left.dtype), jnp.float32)
    groups = scale.shape[0]
    grouped = right.astype(jnp.float32).reshape(groups, -1, right.shape[1])
    if "right_zero" in refs:
        grouped -= refs["right_zero"][...].astype(jnp.float32)[:, None]
    weight = (scale[:, None] * grouped).reshape(right.shape)
    return dot(left, weight.astype(left.dtype), jnp.float32)


def read(right: Array, format: Format) -> Array:
    """Return the codes in the dtype that the chip multiplies: 4 bits as int8, bytes of floats as
    floats.
    """
    if is_integer(format):
        return widened(right)
    return (
        jax.lax.bitcast_convert_type(right, FLOAT8[format]) if right.dtype == jnp.uint8 else right
    )


def sums(values: Array, groups: int) -> Array:
    """Return int32 sums of the codes [K, N] over each group of rows [groups, N], by the matrix
    unit.
    """
    by_group = widened(values).reshape(groups, -1, values.shape[1])
    ones = jnp.ones((groups, 8, by_group.shape[1]), jnp.int8)
    batched = (((2,), (1,)), ((0,), (0,)))
    return jax.lax.dot_general(ones, by_group, batched, preferred_element_type=jnp.int32)[:, 0]


def dot(left: Array, right: Array, sums) -> Array:
    """Return left [M, K] right [K, N] with sums of that dtype; unlike 8-bit floats as bfloat16."""
    if left.dtype != right.dtype:
        left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return jax.lax.dot(left, right, preferred_element_type=sums)

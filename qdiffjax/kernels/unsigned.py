"""Matrix product of uint8 and int8 with int32 accumulation.

XLA's CPU backend has a fast instruction for it, but `lax.dot_general` widens both operands to int32
first (JAX 0.10 to 0.11), which takes twenty times as long; this primitive keeps the bytes. It has
no derivative: those who multiply codes have rules of their own.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import batching, mlir

from qdiffjax._typing import Array

dot_p = jex_core.Primitive("unsigned_dot_general")


def dot_general(left: Array, right: Array, dimension_numbers) -> Array:
    """Return int32 sums of products of uint8 and int8; axes as `lax.dot_general`, as tuples."""
    return dot_p.bind(left, right, dimension_numbers=dimension_numbers)


def _widened(left, right, *, dimension_numbers):
    return jax.lax.dot_general(left.astype(jnp.int32), right.astype(jnp.int32), dimension_numbers)


def _aval(left, right, *, dimension_numbers):
    widened = functools.partial(_widened, dimension_numbers=dimension_numbers)
    return jax.make_jaxpr(widened)(left, right).out_avals[0]


def _lower(ctx, left, right, *, dimension_numbers):
    (left_sum, right_sum), (left_batch, right_batch) = dimension_numbers
    axes = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=list(left_batch), rhs_batching_dimensions=list(right_batch),
        lhs_contracting_dimensions=list(left_sum), rhs_contracting_dimensions=list(right_sum),
    )  # fmt: skip
    result = mlir.aval_to_ir_type(ctx.module_context, ctx.avals_out[0])
    return [stablehlo.dot_general(result, left, right, axes)]


def _batch(operands, axes, *, dimension_numbers):
    """A vmapped axis goes first: a batch axis if both operands have one, else free."""
    contract, batch = dimension_numbers
    left, right = (
        a if n is None else jnp.moveaxis(a, n, 0) for a, n in zip(operands, axes, strict=True)
    )

    def behind(dims):
        return tuple(d if n is None else _up(d) for d, n in zip(dims, axes, strict=True))

    contract, batch = behind(contract), behind(batch)
    if None not in axes:
        return dot_general(left, right, (contract, ((0, *batch[0]), (0, *batch[1])))), 0
    kept = operands[0].ndim - len(contract[0]) if axes[0] is None else len(batch[0])
    return dot_general(left, right, (contract, batch)), kept


def _up(dims):
    return tuple(d + 1 for d in dims)


dot_p.def_impl(jax.jit(dot_general, static_argnums=2))
dot_p.def_abstract_eval(_aval)
mlir.register_lowering(dot_p, mlir.lower_fun(_widened, multiple_results=False))
mlir.register_lowering(dot_p, _lower, platform="cpu")
batching.primitive_batchers[dot_p] = _batch

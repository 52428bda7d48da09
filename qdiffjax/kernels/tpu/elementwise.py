"""Rounding alone on a TPU: to the nearest number of a format, or to codes at random."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from qdiffjax._typing import Array
from qdiffjax.kernels import reference
from qdiffjax.kernels.operands import is_integer, is_multiplied
from qdiffjax.kernels.tpu import prologue
from qdiffjax.kernels.tpu.grid import Blocks, Operand, call, fitted, of_device
from qdiffjax.quant import IntFormat, check_arguments
from qdiffjax.quant.granularity import saturated


def rounded(
    x, scale, zero_point, *, format, interpret: Any = False, blocks: Blocks | None = None
) -> Array:
    """Round as `reference.rounded`: integers of 2 to 8 bits and 8-bit floats; others go there.

    So do float64 and scales that vary along more than rows or the last axis.
    """
    x, scale = jnp.asarray(x), jnp.asarray(scale)
    zero = None if zero_point is None else jnp.broadcast_to(jnp.asarray(zero_point), scale.shape)
    if not (_fits(format, x) and _is_matrix(scale.shape, x.shape)):
        return reference.rounded(x, scale, zero_point, format=format)
    check_arguments(x, scale, zero_point, format)
    scale = scale.astype(jnp.float32)
    grid = {"step": scale, "inverse": 1 / scale}
    if zero is not None:
        grid["zero"] = jnp.round(zero).astype(jnp.int32)
    body = functools.partial(_round, format)
    return _elementwise(body, {"x": x}, grid, x.dtype, interpret, blocks)


def stochastic_codes(
    x, scale, bits, *, format, interpret: Any = False, blocks: Blocks | None = None
) -> Array:
    """Round as `reference.stochastic_codes`: integers of 2 to 8 bits; the rest goes there."""
    x, scale = jnp.asarray(x), jnp.asarray(scale)
    is_known = isinstance(format, IntFormat) and _fits(format, x)
    if not (is_known and _is_matrix(scale.shape, x.shape)):
        return reference.stochastic_codes(x, scale, bits, format=format)
    check_arguments(x, scale, None, format)
    arrays = {"x": x, "bits": jax.lax.bitcast_convert_type(bits, jnp.int32)}
    grid = {"inverse": 1 / scale.astype(jnp.float32)}
    body = functools.partial(_round_at_random, format)
    codes = _elementwise(body, arrays, grid, jnp.int8, interpret, blocks)
    if not prologue.shift(format):
        return codes.astype(format.storage_dtype)
    return jax.lax.bitcast_convert_type(codes, jnp.uint8) ^ jnp.uint8(128)


def _round(format: Any, refs: dict) -> None:
    x, scale = refs["x"][...].astype(jnp.float32), refs["step"][...]
    step = prologue.Step(scale, refs["inverse"][...], None)
    if is_integer(format):
        zero = refs["zero"][...].astype(jnp.float32) if "zero" in refs else jnp.float32(0)
        q = prologue.whole_steps(x * step.inverse, format.low - zero, format.high - zero)
    else:
        q = prologue.codes(x, step, format)
    y = saturated(scale * q.astype(jnp.float32), refs["out"].dtype)
    refs["out"][...] = jnp.where(x == x, y, jnp.nan)


def _round_at_random(format: IntFormat, refs: dict) -> None:
    """Return floor(v) + [u >= 1 - frac(v)], as `rounding.stochastic`, u from the upper 24 bits."""
    v = refs["x"][...].astype(jnp.float32) * refs["inverse"][...]
    u = jax.lax.shift_right_logical(refs["bits"][...], np.int32(8)).astype(jnp.float32) * 2.0**-24
    low = jnp.floor(v)
    q = low + jnp.where(u >= 1 - (v - low), 1.0, 0.0)
    q = jnp.clip(jnp.where(q == q, q, 0.0), float(format.low), float(format.high))
    refs["out"][...] = (q - prologue.shift(format)).astype(jnp.int32).astype(jnp.int8)


def _fits(format: Any, x: Array) -> bool:
    """Whether the kernels know the format and the dtype of x."""
    is_array = x.ndim > 0 and x.size > 0 and x.dtype in (jnp.float32, jnp.bfloat16)
    return is_array and is_multiplied(format)


def _is_matrix(groups: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether scales [*groups] of x [*shape] vary along all rows, or the last axis, or not."""
    is_shared = all(g == 1 for g in groups[:-1])
    by_column = is_shared and groups[-1:] in ((1,), shape[-1:])
    by_row = groups[:-1] == shape[:-1] and groups[-1:] == (1,)
    return len(groups) == len(shape) and (by_column or by_row)


def _elementwise(body, arrays: dict, grid: dict, dtype, interpret, blocks) -> Array:
    """Run a body on arrays [*shape] and what broadcasts against them, all as matrices."""
    blocks = of_device() if blocks is None else blocks
    shape = arrays["x"].shape
    m, columns = math.prod(shape[:-1]), shape[-1]
    width = fitted(max(blocks.columns, 1024), columns, 128)
    rows = fitted(max(32, min(blocks.rows, 2**18 // width // 32 * 32)), m, 32)

    def operand(a):
        a = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        block = tuple(min(n, b) for n, b in zip(a.shape, (rows, width), strict=True))
        row, column = (int(n > 1) for n in a.shape)
        return Operand(a, block, lambda i, j: (i * row, j * column))

    operands = {name: operand(a) for name, a in (arrays | grid).items()}
    out = Operand(jax.ShapeDtypeStruct((m, columns), dtype), (rows, width), lambda i, j: (i, j))
    steps = (pl.cdiv(m, rows), pl.cdiv(columns, width))
    return call(body, steps, operands, out, interpret, blocks).reshape(shape)

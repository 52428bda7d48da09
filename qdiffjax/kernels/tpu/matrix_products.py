"""Matrix products of codes on a TPU: one kernel, in which real activations become codes.

A step of the grid takes a block of rows of x and of columns of w, both with all of K: sums stay in
the matrix unit, a token's largest entry is known, and a block of x becomes codes once, for all
columns. Real activations cross the memory of the chip once, as they are. Where one block holds all
columns, the compiler rounds and multiplies at once, so that rounding costs little.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qdiffjax._typing import Array
from qdiffjax.kernels import reference, xla
from qdiffjax.kernels.operands import is_integer, native, quantized
from qdiffjax.kernels.tpu import products, prologue
from qdiffjax.kernels.tpu.grid import (
    Blocks,
    Operand,
    by_columns,
    by_rows,
    call,
    fitted,
    of_device,
)
from qdiffjax.quant import ActivationGrid, QTensor


class Job(NamedTuple):
    """What a kernel knows before it sees numbers.

    rounds: whether it rounds a real x to `left` first; left: format of the codes of x, None where
    x stays real; right: format of w; act_fn: of the epilogue.
    """

    rounds: bool
    left: Any
    right: Any
    act_fn: Any


def job_of(x, w: QTensor, activation: ActivationGrid | None, act_fn) -> Job:
    """Return the job that x, w and activation make."""
    left = x.format if isinstance(x, QTensor) else activation and activation.format
    return Job(activation is not None, left, w.format, act_fn)


def matmul(
    x, w: QTensor, *, activation: ActivationGrid | None, bias, act_fn, out_dtype,
    interpret: Any = False, blocks: Blocks | None = None,
) -> Array:  # fmt: skip
    """Multiply as `reference.matmul`. What vector memory cannot hold with all of K goes to
    `xla.matmul`.

    Activations in float64, or with other grids than one scale for all or for each token, are
    rounded before the kernel. An act_fn must not hold arrays of its own.
    """
    if activation is not None and not prologue.fits(x, activation):
        x, activation = quantized(x, activation, (1,)), None
    blocks = of_device() if blocks is None else blocks
    job = job_of(x, w, activation, act_fn)
    shape = _block(x, w, job, blocks)
    if shape is None:
        return xla.matmul(
            x, w, activation=activation, bias=bias, act_fn=act_fn, out_dtype=out_dtype
        )
    rows, columns = shape
    left = prologue.left_operands(x, activation)
    right = _right(w, bias, job, shifted="zero" in left)
    operands = {name: by_rows(a, rows) for name, a in left.items()}
    operands |= {name: by_columns(a, columns) for name, a in right.items()}
    (m, k), n = x.shape, w.shape[1]
    out = Operand(jax.ShapeDtypeStruct((m, n), out_dtype), shape, lambda i, j: (i, j))
    scratch = {}
    if job.rounds:
        codes = pltpu.VMEM((rows, k), prologue.code_dtype(job.left))
        scratch = {"codes": codes, "scale": pltpu.VMEM((rows, 1), jnp.float32)}
    grid = (pl.cdiv(m, rows), pl.cdiv(n, columns))
    return call(functools.partial(_body, job), grid, operands, out, interpret, blocks, scratch)


def _right(w: QTensor, bias, job: Job, shifted: bool) -> dict[str, Array]:
    """Return the operands that belong to w and to the epilogue; sums of codes where those of x are
    shifted.
    """
    values, scale, zero = native(w) if is_integer(w.format) else (w.codes, w.scale, None)
    n = w.shape[1]
    arrays = {"right": values, "right_scale": jnp.broadcast_to(scale, (scale.shape[0], n))}
    if zero is not None:
        arrays["right_zero"] = jnp.broadcast_to(zero, arrays["right_scale"].shape)
    if shifted and multiplies_codes(job, arrays):
        arrays["sums"] = products.sums(values, scale.shape[0])
    return arrays if bias is None else arrays | {"bias": bias.reshape(1, n)}


def multiplies_codes(job: Job, refs: dict) -> bool:
    """Whether codes multiply codes; otherwise both operands become real numbers first.

    Not for integers with floats, and not where groups of w have zero points of their own.
    """
    if job.left is None or is_integer(job.left) != is_integer(job.right):
        return False
    return refs["right_scale"].shape[0] == 1 or "right_zero" not in refs


def _body(job: Job, refs: dict) -> None:
    if job.rounds:
        pl.when(pl.program_id(1) == 0)(lambda: _round(job, refs))
    left = refs["codes" if job.rounds else "left"][...]
    scale = refs["scale"][...] if "scale" in refs else None
    zero = refs["zero"][...] if "zero" in refs else None
    y = _product(job, left, scale, zero, refs)
    bias = refs["bias"][...] if "bias" in refs else None
    refs["out"][...] = reference.finish(y, bias, job.act_fn, refs["out"].dtype)


def _round(job: Job, refs: dict) -> None:
    """Round the block of x to codes that stay for all blocks of columns; 32 rows at a time."""
    rows = refs["left"].shape[0]
    for start in range(0, rows, 32):
        part = slice(start, min(start + 32, rows))
        x = refs["left"][part].astype(jnp.float32)
        step = prologue.step_of(x, refs, job.left, (1,))
        refs["codes"][part] = prologue.codes(x, step, job.left)
        refs["scale"][part] = jnp.broadcast_to(step.scale, (x.shape[0], 1))


def _product(job: Job, left, scale, zero, refs: dict) -> Array:
    if job.left is None:
        return products.of_reals(left, refs, job.right)
    if multiplies_codes(job, refs):
        return scale * products.of_codes(left, zero, refs, job.right)
    real = left.astype(jnp.float32)
    real = real if zero is None else real - zero.astype(jnp.float32)
    return products.of_reals(scale * real, refs, job.right)


def _block(x, w: QTensor, job: Job, blocks: Blocks) -> tuple[int, int] | None:
    """Return the rows and columns of a block that vector memory can hold with all of K, or None.

    Operands are held twice, one being loaded while the other is used. Rows give way first.
    """
    (m, k), n = x.shape, w.shape[1]
    real = 0 if isinstance(x, QTensor) else x.dtype.itemsize
    rows, columns = blocks.rows, blocks.columns
    while True:
        shape = (fitted(rows, m, 32), fitted(columns, n, 128))
        left = shape[0] * k * (2 * max(real, 1) + 4 * job.rounds + (job.left is None) * 2)
        right = k * shape[1] * (2 + 4 * (job.left is None or w.scale.shape[0] > 1))
        if left + right + 16 * shape[0] * shape[1] <= blocks.vmem:
            return shape
        if rows <= 64 and columns <= 128:
            return None
        fewer = rows > 128 or columns <= 128
        rows, columns = (rows // 2, columns) if fewer else (rows, columns // 2)

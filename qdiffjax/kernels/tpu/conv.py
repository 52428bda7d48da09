"""Convolutions of codes on a TPU: products of shifted copies of an image, made in vector memory.

The compiler's own convolution multiplies 8-bit codes no faster than bfloat16; its matrix product
does. A step of the grid holds whole images and a block of output channels. For the first block the
image is rounded, bordered with the code of 0.0, and copied once for each shift of the window, so
that every copy is a matrix [pixels, K] that a product can take as it lies there:

    y[p] = sum over taps t of copy_t[p] w_t.

Where rows of the output fill whole registers (32 codes), copies for shifts along a row are enough,
since moving by rows is a matter of the start.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qdiffjax._typing import Array
from qdiffjax.kernels import xla
from qdiffjax.kernels.integers import paddings
from qdiffjax.kernels.operands import Activation, is_integer, native, quantized
from qdiffjax.kernels.reference import finish
from qdiffjax.kernels.tpu import images, products, prologue
from qdiffjax.kernels.tpu.blocks import Blocks, fitted, of_device
from qdiffjax.kernels.tpu.call import Operand, Run, call
from qdiffjax.kernels.tpu.matmul import Job, job_of
from qdiffjax.kernels.tpu.window import Window, up, window_of
from qdiffjax.quant import QTensor


def conv(
    x, w: QTensor, *, activation: Activation | None, window: dict, bias, act_fn, out_dtype,
    interpret: Any = False, blocks: Blocks | None = None,
) -> Array:  # fmt: skip
    """As `reference.conv`, for windows of images without dilation.

    The rest goes to `xla.conv`: other ranks, dilation, groups of channels, fewer than 8 channels,
    negative padding, integers with floats, images that vector memory cannot hold whole. An
    activation in float64 is rounded before the kernel.
    """
    fallback = functools.partial(
        xla.conv, x, w, activation=activation, window=window, bias=bias, act_fn=act_fn,
        out_dtype=out_dtype,
    )  # fmt: skip
    blocks = of_device() if blocks is None else blocks
    job = job_of(x, w, activation, act_fn)
    if not _takes(x, w, window, job):
        return fallback()
    sizes = window_of(x.shape, w.shape, window)
    if activation is not None and not prologue.fits(x, activation):
        x, activation = quantized(x, activation, (1, 2, 3)), None
        job = job_of(x, w, activation, act_fn)
    shape = _block(x, w, job, sizes, blocks)
    if shape is None:
        return fallback()
    operands = _left(x, activation, shape[0])
    operands |= _right(w, bias, shape[1], shifted="zero" in operands)
    return _run(job, sizes, operands, shape, out_dtype, Run(interpret, blocks.vmem))


def _takes(x, w: QTensor, window: dict, job: Job) -> bool:
    """Whether the kernel does this convolution at all."""
    if x.ndim != 4 or window.get("feature_group_count", 1) != 1 or x.shape[-1] < 8:
        return False
    if any(d != 1 for d in window.get("rhs_dilation") or ()):
        return False
    if any(n < 0 for pair in paddings(x.shape, w.shape, window) for n in pair):
        return False
    if is_integer(w.format) and native(w).zero is not None:
        return False
    return job.left is None or is_integer(job.left) == is_integer(job.right)


def _run(job: Job, window: Window, operands, shape, out_dtype, run: Run) -> Array:
    count, columns = shape
    (batch, *_, k), n = operands["left"].array.shape, operands["right"].array.shape[-1]
    out = Operand(
        jax.ShapeDtypeStruct((batch, *window.out, n), out_dtype), (count, *window.out, columns),
        lambda i, j: (i, 0, 0, j),
    )  # fmt: skip
    wide, narrow = _dtypes(job, operands["left"].array.dtype)
    scratch = {
        "padded": pltpu.VMEM((pl.cdiv(k, images.LANES), *window.padded, images.LANES), wide),
        "copies": pltpu.VMEM((len(window.copies), count * window.copy_rows, k), narrow),
        "scales": pltpu.VMEM((count, 1, 1), jnp.float32),
    }
    grid = (pl.cdiv(batch, count), pl.cdiv(n, columns))
    return call(functools.partial(_body, job, window), grid, operands, out, run, scratch)


def _dtypes(job: Job, dtype) -> tuple:
    """Dtype of the bordered image, 4 bytes wide so that it shifts freely, and of its copies."""
    if job.left is None:
        return jnp.float32, dtype
    return jnp.int32 if is_integer(job.left) else jnp.float32, prologue.code_dtype(job.left)


def _left(x, activation: Activation | None, images: int) -> dict[str, Operand]:
    """Operands that belong to x: itself, and how it is scaled."""
    if activation is not None:
        given = prologue.operands(activation, 3)
    elif isinstance(x, QTensor):
        x, scale, zero = native(x)
        given = {"scale": scale[..., 0]} | ({} if zero is None else {"zero": zero[..., 0]})
    else:
        given = {}
    return {name: _of_images(a, images) for name, a in ({"left": x} | given).items()}


def _right(w: QTensor, bias, columns: int, shifted: bool) -> dict[str, Operand]:
    """Operands that belong to w and to the epilogue; sums of codes where those of x are shifted."""
    values = native(w).values if is_integer(w.format) else w.codes
    n = w.shape[-1]
    flat = values.reshape(-1, n)
    given = {
        "right": values.reshape(-1, *values.shape[2:]),
        "right_scale": jnp.broadcast_to(w.scale.reshape(1, -1), (1, n)),
    }
    if shifted:
        given["sums"] = products.sums(flat, 1)
    if bias is not None:
        given["bias"] = bias.reshape(1, n)
    return {name: _of_columns(a, columns) for name, a in given.items()}


def _of_images(a: Array, images: int) -> Operand:
    rest = (0,) * (a.ndim - 1)
    if a.shape[0] == 1:
        return Operand(a, a.shape, lambda i, j: (0, *rest))
    return Operand(a, (images, *a.shape[1:]), lambda i, j: (i, *rest))


def _of_columns(a: Array, columns: int) -> Operand:
    rest = (0,) * (a.ndim - 1)
    return Operand(a, (*a.shape[:-1], columns), lambda i, j: (*rest, j))


def _body(job: Job, window: Window, refs: dict) -> None:
    count = refs["left"].shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        for image in range(count):
            images.border(job, window, refs, image)
            images.copy(window, refs, image)

    for image in range(count):
        y = _taps(job, window, refs, image)
        if "sums" in refs:
            y -= images.of_image(refs["zero"], image) * refs["sums"][...]
        y = refs["right_scale"][...] * y.astype(jnp.float32)
        y = y if job.left is None else refs["scales"][image] * y
        bias = refs["bias"][...] if "bias" in refs else None
        y = finish(y, bias, job.act_fn, refs["out"].dtype)
        y = y.reshape(window.rows // window.width, window.width, -1)
        refs["out"][image] = y[: window.out[0], : window.out[1]]


def _taps(job: Job, window: Window, refs: dict, image: int) -> Array:
    """Sum over taps of copy times weight [rows, N], int32 or float32."""
    sums = jnp.int32 if job.left is not None and is_integer(job.left) else jnp.float32
    first, parts = image * window.copy_rows, []
    for tap in range(refs["right"].shape[0]):
        dy, dx = divmod(tap, window.kernel[1])
        copy, start = (dx, first + dy * window.width) if window.by_row else (tap, first)
        left = refs["copies"][copy, start : start + window.rows]
        right = products.read(refs["right"][tap], job.right)
        right = right.astype(left.dtype) if job.left is None else right
        parts.append(products.dot(left, right, sums))
    return functools.reduce(jnp.add, parts)


def _block(x, w: QTensor, job: Job, window: Window, blocks: Blocks) -> tuple[int, int] | None:
    """Images and columns of a block that vector memory can hold, or None."""
    batch, k, n = x.shape[0], up(x.shape[-1], 128), w.shape[-1]
    dtype = x.codes.dtype if isinstance(x, QTensor) else x.dtype
    code = dtype.itemsize if job.left is None else 1
    images, columns = min(batch, max(1, blocks.rows // window.rows)), blocks.columns
    while True:
        block = fitted(columns, n, 128)
        pixels = window.image[0] * up(window.image[1], 32 // dtype.itemsize)
        each = 2 * pixels * k * dtype.itemsize
        each += len(window.copies) * window.copy_rows * k * code
        each += window.rows * up(block, 128) * 12
        padded = window.padded[0] * up(window.padded[1], 8) * k * 4
        right = math.prod(w.shape[:2]) * k * up(block, 128) * (4 if job.left is None else 2)
        if images * each + padded + right <= blocks.vmem:
            return images, block
        if columns > 128:
            columns = columns // 2
        elif images > 1:
            images = images // 2
        else:
            return None

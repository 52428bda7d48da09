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
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qdiffjax._typing import Array
from qdiffjax.kernels import integers, reference, xla
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
from qdiffjax.kernels.tpu.matrix_products import Job, job_of
from qdiffjax.quant import ActivationGrid, QTensor

LANES = 128  # of a register


class Window(NamedTuple):
    """Sizes of a convolution, static.

    kernel, strides, low: of the window along (height, width), low being the padding before;
    image, padded, out: (height, width) of the input, of what the window sees of it, of the output;
    width: of the output in memory, a multiple of 8; rows: pixels of an output image there, a
    multiple of 32; by_row: whether copies are shifted along rows only.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    low: tuple[int, int]
    image: tuple[int, int]
    padded: tuple[int, int]
    out: tuple[int, int]
    width: int
    rows: int
    by_row: bool

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Shift (rows, columns) of each copy."""
        heights = [0] if self.by_row else range(self.kernel[0])
        return [(dy, dx) for dy in heights for dx in range(self.kernel[1])]

    @property
    def copy_height(self) -> int:
        """Rows of a copy."""
        return self.padded[0] if self.by_row else self.out[0]

    @property
    def copy_rows(self) -> int:
        """Pixels of a copy in memory."""
        return up(self.copy_height * self.width, 32)


def window_of(x_shape, w_shape, window: dict) -> Window:
    """Return the sizes of a convolution of x [B, H, W, K] with w [h, w, K, N]."""
    kernel, strides = (w_shape[0], w_shape[1]), tuple(window["window_strides"])
    pads = integers.paddings(x_shape, w_shape, window)
    image = x_shape[1], x_shape[2]
    height, width = (
        (n + lo + hi - k) // s + 1
        for n, (lo, hi), k, s in zip(image, pads, kernel, strides, strict=True)
    )
    out, width = (height, width), up(width, 8)
    seen = [(n - 1) * s + k for n, s, k in zip((out[0], width), strides, kernel, strict=True)]
    rows, columns = (max(s, lo + n) for s, (lo, _), n in zip(seen, pads, image, strict=True))
    by_row = width % 32 == 0 and strides[0] == 1
    low = (pads[0][0], pads[1][0])
    return Window(
        kernel, strides, low, image, (rows, columns), out, width, up(out[0] * width, 32), by_row
    )


def up(n: int, unit: int) -> int:
    """Return the smallest multiple of unit that is at least n."""
    return -(-n // unit) * unit


def of_image(ref, image: int):
    """Return the block [1, 1] of one image; shared by all where there is one."""
    return ref[image if ref.shape[0] > 1 else 0]


def border(job: Job, window: Window, refs: dict, image: int) -> None:
    """Write the image, rounded and still wide, into a border of zeros."""
    padded, left = refs["padded"], refs["left"]
    (top, begin), (height, width) = window.low, window.image
    zero = of_image(refs["zero"], image) if "zero" in refs else jnp.zeros((1, 1), padded.dtype)
    blank = jnp.broadcast_to(zero.astype(padded.dtype), padded.shape[2:])
    for part, row in itertools.product(range(padded.shape[0]), range(padded.shape[1])):
        padded[part, row] = blank
    step = _step(job, refs, image)
    for row in range(height):
        values = left[image, row]
        if job.rounds:
            values = values.astype(jnp.float32)
            wide = prologue.integers if is_integer(job.left) else prologue.steps
            values = wide(values, step, job.left)
        for part, lanes in enumerate(_lanes(left.shape[-1])):
            size = lanes.stop - lanes.start
            place = (part, top + row, slice(begin, begin + width), slice(0, size))
            padded[place] = values[:, lanes].astype(padded.dtype)


def _step(job: Job, refs: dict, image: int):
    """Return the step of one image, whose scale is kept for the epilogue."""
    if job.left is None:
        return None
    if not job.rounds:
        refs["scales"][image] = of_image(refs["scale"], image)
        return None
    zero = of_image(refs["zero"], image) if "zero" in refs else None
    if "step" in refs:
        step = prologue.Step(refs["step"][0], refs["inverse"][0], zero)
    else:
        rows = [jnp.abs(refs["left"][image, row].astype(jnp.float32))
                for row in range(refs["left"].shape[1])]  # fmt: skip
        scale = prologue.dynamic_scale(functools.reduce(jnp.maximum, rows), job.left, (0, 1))
        step = prologue.Step(scale, 1 / scale, zero)
    refs["scales"][image] = step.scale
    return step


def _lanes(channels: int) -> list[slice]:
    """Return the channels, as many at a time as a register has lanes: strided reads need that."""
    return [slice(i, min(i + LANES, channels)) for i in range(0, channels, LANES)]


def copy(window: Window, refs: dict, image: int) -> None:
    """Write the shifted copies of the bordered image, narrow, whole registers at a time."""
    at_once = 32 // math.gcd(window.width, 32)
    tops = range(0, window.copy_height, at_once)
    lanes = enumerate(_lanes(refs["copies"].shape[-1]))
    for (i, shift), top, lane in itertools.product(enumerate(window.copies), tops, lanes):
        rows = range(top, min(top + at_once, window.copy_height))
        _copy_rows(window, refs, image, i, shift, rows, lane)


def _copy_rows(window: Window, refs: dict, image: int, i: int, shift, rows, lane) -> None:
    (dy, dx), (down, along), (part, lanes) = shift, window.strides, lane
    columns = pl.ds(dx, window.width, stride=along) if along > 1 else pl.ds(dx, window.width)
    here = pl.ds(part, 1)  # the interpreter wants all indices of a strided read to be slices
    values = [refs["padded"][here, pl.ds(dy + down * row, 1), columns] for row in rows]
    flat = jnp.concatenate(values).reshape(len(values) * window.width, LANES)
    start = image * window.copy_rows + rows.start * window.width
    place = (i, slice(start, start + flat.shape[0]), lanes)
    refs["copies"][place] = flat[:, : lanes.stop - lanes.start].astype(refs["copies"].dtype)


def conv(
    x, w: QTensor, *, activation: ActivationGrid | None, window: dict, bias, act_fn, out_dtype,
    interpret: Any = False, blocks: Blocks | None = None,
) -> Array:  # fmt: skip
    """Convolve as `reference.conv`, for windows of images without dilation.

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
    count, columns = shape
    left = prologue.left_operands(x, activation)
    right = _right(w, bias, shifted="zero" in left)
    operands = {name: by_rows(a, count) for name, a in left.items()}
    operands |= {name: by_columns(a, columns) for name, a in right.items()}
    (batch, *_, k), n = x.shape, w.shape[-1]
    out = Operand(
        jax.ShapeDtypeStruct((batch, *sizes.out, n), out_dtype), (count, *sizes.out, columns),
        lambda i, j: (i, 0, 0, j),
    )  # fmt: skip
    wide, narrow = _dtypes(job, left["left"].dtype)
    scratch = {
        "padded": pltpu.VMEM((pl.cdiv(k, LANES), *sizes.padded, LANES), wide),
        "copies": pltpu.VMEM((len(sizes.copies), count * sizes.copy_rows, k), narrow),
        "scales": pltpu.VMEM((count, 1, 1), jnp.float32),
    }
    grid, body = (pl.cdiv(batch, count), pl.cdiv(n, columns)), functools.partial(_body, job, sizes)
    return call(body, grid, operands, out, interpret, blocks, scratch)


def _takes(x, w: QTensor, window: dict, job: Job) -> bool:
    """Whether the kernel does this convolution at all."""
    if x.ndim != 4 or any(d != 1 for d in window.get("rhs_dilation") or ()):
        return False
    return (
        window.get("feature_group_count", 1) == 1
        and x.shape[-1] >= 8
        and all(n >= 0 for pair in integers.paddings(x.shape, w.shape, window) for n in pair)
        and not (is_integer(w.format) and native(w).zero is not None)
        and (job.left is None or is_integer(job.left) == is_integer(job.right))
    )


def _dtypes(job: Job, dtype) -> tuple:
    """Return the dtype of the bordered image, 4 bytes wide so that it shifts freely, and of its
    copies.
    """
    if job.left is None:
        return jnp.float32, dtype
    return jnp.int32 if is_integer(job.left) else jnp.float32, prologue.code_dtype(job.left)


def _right(w: QTensor, bias, shifted: bool) -> dict[str, Array]:
    """Return the operands that belong to w and to the epilogue; sums of codes where those of x are
    shifted.
    """
    values = native(w).values if is_integer(w.format) else w.codes
    n = w.shape[-1]
    arrays = {
        "right": values.reshape(-1, *values.shape[2:]),
        "right_scale": jnp.broadcast_to(w.scale.reshape(1, -1), (1, n)),
    }
    if shifted:
        arrays["sums"] = products.sums(values.reshape(-1, n), 1)
    return arrays if bias is None else arrays | {"bias": bias.reshape(1, n)}


def _body(job: Job, window: Window, refs: dict) -> None:
    count = refs["left"].shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        for image in range(count):
            border(job, window, refs, image)
            copy(window, refs, image)

    for image in range(count):
        y = _taps(job, window, refs, image)
        if "sums" in refs:
            y -= of_image(refs["zero"], image) * refs["sums"][...]
        y = refs["right_scale"][...] * y.astype(jnp.float32)
        y = y if job.left is None else refs["scales"][image] * y
        bias = refs["bias"][...] if "bias" in refs else None
        y = reference.finish(y, bias, job.act_fn, refs["out"].dtype)
        y = y.reshape(window.rows // window.width, window.width, -1)
        refs["out"][image] = y[: window.out[0], : window.out[1]]


def _taps(job: Job, window: Window, refs: dict, image: int) -> Array:
    """Return the sum over taps of copy times weight [rows, N], int32 or float32."""
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
    """Return the images and columns of a block that vector memory can hold, or None."""
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

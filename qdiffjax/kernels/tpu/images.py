"""Images in vector memory: rounded, bordered with zeros, copied for the shifts of a window."""

import functools
import itertools
import math

import jax.numpy as jnp
from jax.experimental import pallas as pl

from qdiffjax.kernels.operands import is_integer
from qdiffjax.kernels.tpu import prologue
from qdiffjax.kernels.tpu.matmul import Job
from qdiffjax.kernels.tpu.window import Window

LANES = 128


def of_image(ref, image: int):
    """Block [1, 1] of one image; shared by all where there is one."""
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
    """Step of one image, whose scale is kept for the epilogue."""
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
    """The channels, as many at a time as a register has lanes: strided reads need that."""
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

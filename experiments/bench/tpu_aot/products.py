"""Parts of `experiments.bench.tpu_aot`: functions to compile, and their cost for a TPU."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax import hardware, kernels
from qdiffjax.hardware.ahead import tpu
from qdiffjax.kernels.tpu.grid import TABLE
from qdiffjax.quant import E4M3FN, E5M2, ActivationGrid, IntFormat, QTensor

S = jax.ShapeDtypeStruct
BF16, F32 = jnp.bfloat16, jnp.float32
INT8, UINT8, INT4 = IntFormat(8), IntFormat(8, signed=False), IntFormat(4)
# Multiply-adds of bfloat16 in a cycle of a core: its matrix units, as wide as they are.
MACS = {"v5e": 4 * 128**2}


class Way(NamedTuple):
    """Operands of a product: format of x (None: bfloat16), of w; whether x has a static scale."""

    x: Any
    w: Any
    static: bool = True


WAYS = {
    "W8A8 static": Way(INT8, INT8),
    "W8A8 dynamic": Way(INT8, INT8, False),
    "W8A8 affine": Way(UINT8, INT8),
    "W4A8 static": Way(INT8, INT4),
    "W8A16": Way(None, INT8),
    "W4A16": Way(None, INT4),
    "e4m3": Way(E4M3FN, E4M3FN),
    "e5m2": Way(E5M2, E5M2),
}


class Shape(NamedTuple):
    """A product: x, w, and what its multiply-adds and bytes (of bfloat16 in and out) are."""

    x: tuple[int, ...]
    w: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        """Of a matrix product, or a convolution that keeps the size."""
        return (*self.x[:-1], self.w[-1])

    @property
    def macs(self) -> int:
        """Multiply-adds, borders included."""
        return math.prod(self.x[:-1]) * math.prod(self.w)


def shape_of(text: str) -> Shape:
    """Read "MxKxN", a matrix product, or "BxHxWxKxN", a 3 x 3 convolution.

    Raises:
      ValueError: neither.
    """
    numbers = [int(n) for n in text.split("x")]
    if len(numbers) == 3:
        m, k, n = numbers
        return Shape((m, k), (k, n))
    if len(numbers) == 5:
        *image, k, n = numbers
        return Shape((*image, k), (3, 3, k, n))
    raise ValueError(f"got shape {text}, expected MxKxN or BxHxWxKxN.")


def real_cost(shape: Shape, chip: str) -> tpu.TpuCost:
    """The product by XLA in bfloat16, with a bias."""

    def run(x, w, b):
        b = b.astype(F32)
        if x.ndim == 2:
            return (jnp.dot(x, w, preferred_element_type=F32) + b).astype(BF16)
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims) + (
            b.astype(BF16)
        )

    return tpu.tpu_cost(run, S(shape.x, BF16), S(shape.w, BF16), S(shape.w[-1:], F32),
                        topology=chip)  # fmt: skip


def code_cost(shape: Shape, way: Way, chip: str, path: kernels.Path | None = None) -> tpu.TpuCost:
    """The product of codes, with a bias; x and the result are bfloat16 in memory."""
    path = kernels.tpu_path(blocks=TABLE[chip]) if path is None else path
    product = kernels.matmul if len(shape.x) == 2 else kernels.conv
    scale, zero = S((), F32), S((), jnp.int32)

    def run(x, codes, w_scale, bias, scale, zero):
        affine = way.x is UINT8
        activation = way.x and ActivationGrid(
            way.x, scale if way.static else None, zero if affine else None
        )
        w = QTensor(codes, w_scale, None, way.w)
        return product(x, w, activation=activation, bias=bias, out_dtype=BF16, path=path)

    codes = S(shape.w, jnp.int4 if way.w is INT4 else way.w.storage_dtype)
    w_scale = S((1,) * (len(shape.w) - 1) + shape.w[-1:], F32)
    return tpu.tpu_cost(run, S(shape.x, BF16), codes, w_scale, S(shape.w[-1:], F32), scale, zero,
                        topology=chip)  # fmt: skip


def rounding_cost(name: str, chip: str) -> tpu.TpuCost:
    """Rounding alone of [4096, 1280]: nearest, or at random."""
    path = kernels.tpu_path(blocks=TABLE[chip])
    x, scale, bits = S((4096, 1280), BF16), S((1, 1280), F32), S((4096, 1280), jnp.uint32)
    if name == "rounded":
        run: Callable = functools.partial(kernels.rounded, format=INT8, path=path)
        return tpu.tpu_cost(run, x, scale, topology=chip)
    run = functools.partial(kernels.stochastic_codes, format=INT8, path=path)
    return tpu.tpu_cost(run, x, scale, bits, topology=chip)


def floor(shape: Shape, way: Way | None, chip: str) -> float:
    """Cycles below which no schedule can be: all multiply-adds, or every byte once."""
    (peak,) = (c for c in hardware.CHIPS if c.name == chip)
    clock = peak.rates["bf16"] / (2 * MACS[chip])
    weight_bytes = 2 if way is None else way.w.bits / 8
    num_bytes = 2 * math.prod(shape.x) + 2 * math.prod(shape.out)
    num_bytes += weight_bytes * math.prod(shape.w)
    rate = MACS[chip] * (2 if way is not None and way.x in (INT8, UINT8) else 1)
    return max(shape.macs / rate, num_bytes / peak.bandwidth * clock)


def is_product(op: tpu.Op) -> bool:
    """Whether an operation multiplies matrices, or is a kernel."""
    return op.kind == "bundles" or op.source.endswith(("dot_general", "conv_general_dilated"))


def reason(error: str) -> str:
    """The compiler's words that say what it cannot do, or its first line."""
    for word in ("Mosaic", "Not Implemented", "RESOURCE_EXHAUSTED"):
        if word in error:
            return error[error.rindex(word) :].splitlines()[0][:160].strip()
    return error.splitlines()[0][:160]

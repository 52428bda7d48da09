"""Parts of `experiments.bench.tpu_aot`: functions to compile, and their cost for a TPU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench.products import Product, multiply
from qdiffjax import hardware, kernels
from qdiffjax._checks import require
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


def shape_of(text: str) -> Product:
    """Read "MxKxN", a matrix product, or "BxHxWxKxN", a 3 x 3 convolution.

    Raises:
      ValueError: neither.
    """
    numbers = text.split("x")
    require(len(numbers) in (3, 5) and all(n.isdigit() for n in numbers), "shapes", got=text,
            expected="MxKxN or BxHxWxKxN",
            remedy="write it as 256x1024x1024")  # fmt: skip
    *rows, k, n = map(int, numbers)
    return Product((*rows, k), (k, n) if len(rows) == 1 else (3, 3, k, n))


def real_cost(shape: Product, chip: str) -> tpu.TpuCost:
    """Return the cost of the product by XLA in bfloat16, with a bias."""
    dtype = F32 if len(shape.x) == 2 else BF16

    def run(x, w, b):
        return (multiply(x, w, dtype) + b.astype(dtype)).astype(BF16)

    return tpu.tpu_cost(run, S(shape.x, BF16), S(shape.w, BF16), S(shape.w[-1:], F32),
                        topology=chip)  # fmt: skip


def code_cost(shape: Product, way: Way, chip: str, path: kernels.Path | None = None) -> tpu.TpuCost:
    """Return the cost of the product of codes with a bias; x and result are bfloat16."""
    path = kernels.tpu_path(blocks=TABLE[chip]) if path is None else path
    product = kernels.matmul if len(shape.x) == 2 else kernels.conv
    scale, zero = S((), F32), S((), jnp.int32)

    def run(x, codes, w_scale, bias, scale, zero):
        grid = scale if way.static else None, zero if way.x is UINT8 else None
        activation = way.x and ActivationGrid(way.x, *grid)
        w = QTensor(codes, w_scale, None, way.w)
        return product(x, w, activation=activation, bias=bias, out_dtype=BF16, path=path)

    codes = S(shape.w, jnp.int4 if way.w is INT4 else way.w.storage_dtype)
    w_scale = S((1,) * (len(shape.w) - 1) + shape.w[-1:], F32)
    return tpu.tpu_cost(run, S(shape.x, BF16), codes, w_scale, S(shape.w[-1:], F32), scale, zero,
                        topology=chip)  # fmt: skip


def rounding_cost(name: str, chip: str) -> tpu.TpuCost:
    """Return the cost of rounding alone of [4096, 1280]: nearest, or at random."""
    path = kernels.tpu_path(blocks=TABLE[chip])
    x, scale, bits = S((4096, 1280), BF16), S((1, 1280), F32), S((4096, 1280), jnp.uint32)
    fn: Callable = kernels.rounded if name == "rounded" else kernels.stochastic_codes
    args = (x, scale) if name == "rounded" else (x, scale, bits)
    return tpu.tpu_cost(functools.partial(fn, format=INT8, path=path), *args, topology=chip)


def floor(shape: Product, way: Way | None, chip: str) -> float:
    """Return cycles that no schedule goes below: all multiply-adds, or every byte once."""
    (peak,) = (c for c in hardware.CHIPS if c.name == chip)
    clock = peak.rates["bf16"] / (2 * MACS[chip])
    num_bytes = shape.bytes(16, 16 if way is None else way.w.bits)
    rate = MACS[chip] * (2 if way is not None and way.x in (INT8, UINT8) else 1)
    return max(shape.flops / 2 / rate, num_bytes / peak.bandwidth * clock)


def is_product(op: tpu.Op) -> bool:
    """Return whether an operation multiplies matrices, or is a kernel."""
    return op.kind == "bundles" or op.source.endswith(("dot_general", "conv_general_dilated"))


def reason(error: str) -> str:
    """Return the compiler's words that say what it cannot do, or its first line."""
    words = ("Mosaic", "Not Implemented", "RESOURCE_EXHAUSTED")
    told = next((error[error.rindex(word) :] for word in words if word in error), error)
    return told.splitlines()[0][:160].strip()

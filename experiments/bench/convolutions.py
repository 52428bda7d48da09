"""A convolution of float32 numbers written in several ways, on the shapes of small UNets.

    python -m experiments.bench.convolutions

All ways run once in each round, so that ratios are of one moment; the last column is CPU time,
which holds on a busy machine. On a CPU also with other settings of XLA's: without YNNPACK, which
convolves by default, and with LLVM at level 1. The ways that begin with W8A8 start from float32
images too and round them, with weights rounded before; "XLA's" is its own convolution of int8.
torch is optional.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import command, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import kernels
from qdiffjax.kernels.operands import rounded_codes
from qdiffjax.quant import ActivationGrid, IntFormat, QTensor, calibration, quantize

# (batch, side, channels in, channels out, kernel): the shipped UNet's, then larger ones.
SHAPES = (
    (64, 14, 4, 32, 3), (64, 14, 32, 32, 3), (64, 14, 64, 32, 3), (64, 7, 64, 64, 3),
    (64, 7, 128, 64, 3), (64, 14, 64, 32, 1), (16, 16, 64, 64, 3), (16, 16, 128, 128, 3),
)  # fmt: skip
INT8 = IntFormat(8)
STATIC = ActivationGrid(INT8, np.float32(5 / 127))  # of numbers from a normal distribution
NO_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
LEVEL_1 = {"xla_backend_optimization_level": 1}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    num_rounds: int = option(50, "Number of runs of each way.", least=1)


def convolve(x, kernel, layout=("NHWC", "HWIO", "NHWC"), **kwargs):
    """Convolve by XLA with stride 1; the result has the size of x."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, **kwargs
    )


def channels_first(x, kernel):
    """Convolve in the layout [b, c, h, w], both transpositions included."""
    y = convolve(x.transpose(0, 3, 1, 2), kernel, ("NCHW", "HWIO", "NCHW"))
    return y.transpose(0, 2, 3, 1)


def shifts(x, size: int):
    """Return the size^2 shifted images, one for each kernel element, with zeros outside."""
    pad, (_, h, w, _) = size // 2, x.shape
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]


def shifted_products(x, kernel):
    """Sum a matrix product for each element of the kernel."""
    weights = kernel.reshape(-1, *kernel.shape[2:])
    return sum(y @ w for y, w in zip(shifts(x, kernel.shape[0]), weights, strict=True))


def im2col(x, kernel):
    """Multiply once, with all shifted images side by side."""
    return jnp.concatenate(shifts(x, kernel.shape[0]), -1) @ kernel.reshape(-1, kernel.shape[3])


def padded_channels(x, kernel):
    """Convolve with zero channels up to a multiple of 16, one AVX-512 register."""
    more = -x.shape[3] % 16
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
    return convolve(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0))))


def split_batch(x, kernel):
    """Convolve two halves of the batch."""
    return jnp.concatenate([convolve(part, kernel) for part in jnp.split(x, 2)])


def bfloat16(x, kernel):
    """Convolve operands that are rounded to bfloat16; the result is float32."""
    return convolve(
        x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    )


def int8(x, w: QTensor):
    """Convolve codes of 8 bits with one scale for all images, by XLA's convolution of int8."""
    codes = rounded_codes(x, STATIC, (1, 2, 3))
    y = convolve(codes.values, w.codes, preferred_element_type=jnp.int32)
    return codes.scale * w.scale * y.astype(jnp.float32)


WAYS: dict[str, tuple[Callable, dict[str, Any] | None]] = {
    "XLA": (convolve, None),
    "XLA without YNNPACK": (convolve, NO_YNNPACK),
    "XLA, LLVM level 1": (convolve, LEVEL_1),
    "channels first": (channels_first, None),
    "channels padded to 16": (padded_channels, None),
    "batch in two halves": (split_batch, None),
    "shifted products": (shifted_products, None),
    "im2col": (im2col, None),
    "bfloat16": (bfloat16, None),
}
# Codes of 8 bits: one scale for all images, or one for each from its largest entry.
CODED: dict[str, Callable] = {
    "W8A8 static": functools.partial(kernels.conv, activation=STATIC),
    "W8A8 dynamic": functools.partial(kernels.conv, activation=ActivationGrid(INT8)),
    "W8A8 static, XLA's": int8,
}


def turns(x, kernel) -> dict[str, Callable[[], Any]]:
    """Compile every way that this machine has."""
    is_cpu, weight = jax.default_backend() == "cpu", coded(kernel)
    fns = {name: (jax.jit(fn, compiler_options=options), x, kernel)
           for name, (fn, options) in WAYS.items() if is_cpu or not options}  # fmt: skip
    fns |= {name: (jax.jit(fn), x, weight) for name, fn in CODED.items()}
    ours = {name: functools.partial(timing.finish, *call) for name, call in fns.items()}
    return ours | timing.available({"torch": lambda: torch_turn(x, kernel)})[0]


def coded(kernel) -> QTensor:
    """Return the codes of a kernel, with a scale for each output channel."""
    scale, _ = calibration.absmax(kernel, format=INT8, scale_shape=(1, 1, 1, kernel.shape[-1]))
    return quantize(kernel, scale, format=INT8)


def torch_turn(x, kernel) -> Callable[[], Any]:
    """Return the convolution in torch, channels-last; raise ImportError without torch."""
    import torch

    there = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))  # strided as channels-last is
    weight = torch.from_numpy(np.array(kernel).transpose(3, 2, 0, 1).copy())
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(there, weight, padding=weight.shape[2] // 2)


def run(config: Config, *, progress: bool = False, shapes=SHAPES):
    """Return `seconds` and `cpu_seconds` [rounds, rows], and a row for each shape and way."""
    rows: list[dict[str, Any]] = []
    seconds = []
    for shape in shapes:
        batch, side, c_in, c_out, size = shape
        k_x, k_w = jax.random.split(jax.random.key(0))
        x = jax.random.normal(k_x, (batch, side, side, c_in), jnp.float32)
        kernel = jax.random.normal(k_w, (size, size, c_in, c_out), jnp.float32)
        *both, each = timing.compare(turns(x, kernel), config.num_rounds)
        flops = 2 * batch * side**2 * size**2 * c_in * c_out
        rows += [
            {"shape": shape, "way": t.name, "milliseconds": t.milliseconds, "over_xla": t.ratio,
             "best_gflops": flops / t.wall.min() / 1e9,
             "best_cpu_milliseconds": 1e3 * t.cpu.min()}
            for t in each
        ]  # fmt: skip
        seconds.append(both)
    wall, cpu = (np.concatenate(parts, axis=1) for parts in zip(*seconds, strict=True))
    return {"seconds": wall, "cpu_seconds": cpu}, rows


COLUMNS = (
    ("way", lambda r: r["way"]), ("ms", tables.numbers("milliseconds")),
    ("x XLA", tables.numbers("over_xla")), ("GFLOP/s\nat best", tables.numbers("best_gflops")),
    ("CPU ms\nat best", tables.numbers("best_cpu_milliseconds")),
)  # fmt: skip


EXPERIMENT = command.experiment(
    Config, run, table=lambda rows: tables.grouped(rows, "shape", COLUMNS)
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))

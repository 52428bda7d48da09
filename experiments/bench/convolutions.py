"""A convolution of float32 numbers written in several ways, on the shapes of small UNets.

    python -m experiments.bench.convolutions

All ways run once in each round, so that ratios are of one moment; the last column is CPU time,
which holds on a busy machine. On a CPU also with other settings of XLA's: without YNNPACK, which
convolves by default, and with LLVM at level 1. The ways that begin with W8A8 start from float32
images too and round them, with weights rounded before; "XLA's" is its own convolution of int8.
torch is optional.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import old_command as command
from experiments.harness import timing
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
    """What to run."""

    num_rounds: int = 50


HELP = {"num_rounds": "runs of each"}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if config.num_rounds < 1:
        raise ValueError("num-rounds must be at least 1.")


def convolve(x, kernel, layout=("NHWC", "HWIO", "NHWC"), **kwargs):
    """The convolution as XLA has it, stride 1, same size."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, **kwargs
    )


def channels_first(x, kernel):
    """In the layout [b, c, h, w], there and back included."""
    y = convolve(x.transpose(0, 3, 1, 2), kernel, ("NCHW", "HWIO", "NCHW"))
    return y.transpose(0, 2, 3, 1)


def shifts(x, size: int):
    """The size^2 shifted images that a kernel element each sees, zeros outside."""
    pad, (_, h, w, _) = size // 2, x.shape
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]


def shifted_products(x, kernel):
    """A matrix product for each element of the kernel, summed."""
    weights = kernel.reshape(-1, *kernel.shape[2:])
    return sum(y @ w for y, w in zip(shifts(x, kernel.shape[0]), weights, strict=True))


def im2col(x, kernel):
    """One matrix product with all shifted images side by side."""
    return jnp.concatenate(shifts(x, kernel.shape[0]), -1) @ kernel.reshape(-1, kernel.shape[3])


def padded_channels(x, kernel):
    """Zero channels up to a multiple of 16, one AVX-512 register."""
    more = -x.shape[3] % 16
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
    return convolve(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0))))


def split_batch(x, kernel):
    """Two halves of the batch."""
    return jnp.concatenate([convolve(part, kernel) for part in jnp.split(x, 2)])


def bfloat16(x, kernel):
    """Operands rounded to bfloat16, result float32."""
    return convolve(
        x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    )


def static(x, w: QTensor):
    """Codes of 8 bits, one scale for all images."""
    return kernels.conv(x, w, activation=STATIC)


def dynamic(x, w: QTensor):
    """Codes of 8 bits, a scale for each image from its largest entry."""
    return kernels.conv(x, w, activation=ActivationGrid(INT8))


def int8(x, w: QTensor):
    """As `static`, by XLA's convolution of int8."""
    codes = rounded_codes(x, STATIC, (1, 2, 3))
    y = convolve(codes.values, w.codes, preferred_element_type=jnp.int32)
    return codes.scale * w.scale * y.astype(jnp.float32)


WAYS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "XLA": (convolve, {}),
    "XLA without YNNPACK": (convolve, NO_YNNPACK),
    "XLA, LLVM level 1": (convolve, LEVEL_1),
    "channels first": (channels_first, {}),
    "channels padded to 16": (padded_channels, {}),
    "batch in two halves": (split_batch, {}),
    "shifted products": (shifted_products, {}),
    "im2col": (im2col, {}),
    "bfloat16": (bfloat16, {}),
}
CODED = {"W8A8 static": static, "W8A8 dynamic": dynamic, "W8A8 static, XLA's": int8}


def turns(x, kernel) -> dict[str, Callable[[], Any]]:
    """Compile every way that this machine has."""
    found: dict[str, Callable[[], Any]] = {}
    for name, (fn, options) in WAYS.items():
        if options and jax.default_backend() != "cpu":
            continue
        run = jax.jit(fn, compiler_options=options or None)
        found[name] = functools.partial(_wait, run, x, kernel)
    weight = coded(kernel)
    for name, fn in CODED.items():
        found[name] = functools.partial(_wait, jax.jit(fn), x, weight)
    with contextlib.suppress(ImportError):
        found["torch"] = torch_turn(x, kernel)
    return found


def coded(kernel) -> QTensor:
    """Codes of a kernel, a scale for each output channel."""
    scale, _ = calibration.absmax(kernel, format=INT8, scale_shape=(1, 1, 1, kernel.shape[-1]))
    return quantize(kernel, scale, format=INT8)


def _wait(fn, *args):
    return jax.block_until_ready(fn(*args))


def torch_turn(x, kernel) -> Callable[[], Any]:
    """The convolution in torch, channels-last; raises ImportError without torch."""
    import torch

    there = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))  # strided as channels-last is
    weight = torch.from_numpy(np.array(kernel).transpose(3, 2, 0, 1).copy())
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(there, weight, padding=weight.shape[2] // 2)


def run(config: Config, *, progress: bool = False, shapes=SHAPES):
    """Return `seconds` and `cpu_seconds` [rounds, rows], and a row for each shape and way."""
    rows: list[dict[str, Any]] = []
    columns = []
    for shape in shapes:
        batch, side, c_in, c_out, size = shape
        k_x, k_w = jax.random.split(jax.random.key(0))
        x = jax.random.normal(k_x, (batch, side, side, c_in), jnp.float32)
        kernel = jax.random.normal(k_w, (size, size, c_in, c_out), jnp.float32)
        fns = turns(x, kernel)
        wall, cpu = timing.interleave(fns, config.num_rounds)
        flops = 2 * batch * side**2 * size**2 * c_in * c_out
        for name, column, on_cpu in zip(fns, wall.T, cpu.T, strict=True):
            rows.append({
                "shape": shape, "way": name, "milliseconds": 1e3 * float(np.median(column)),
                "over_xla": float(np.median(column / wall[:, 0])),
                "best_gflops": flops / float(column.min()) / 1e9,
                "best_cpu_milliseconds": 1e3 * float(on_cpu.min()),
            })  # fmt: skip
        columns.append((wall, cpu))
    seconds, cpu_seconds = (np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}, rows


def print_rows(rows) -> None:
    """Print a line a shape and way."""
    for row in rows:
        print(f"{row['shape']!s:22s} {row['way']:22s} {row['milliseconds']:7.3f} ms "
              f"{row['over_xla']:5.2f} x XLA, best {row['best_gflops']:6.1f} GFLOP/s"
              f"  {row['best_cpu_milliseconds']:7.3f} CPU ms")  # fmt: skip


EXPERIMENT = command.Experiment(
    "bench_convolutions", __doc__ or "", Config, HELP, check, run, print_rows=print_rows,
    resumes=False,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())

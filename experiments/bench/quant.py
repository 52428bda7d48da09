"""What fake quantization costs, against copying the same array: the least that memory allows.

    python -m experiments.bench.quant

Every format runs once in each round, in random order, and so do two ways of reading the array
once and writing as much: XLA's copy, which on CPU is one core's memcpy, and a negation, which is
split over cores as the quantizers are. Each ratio is to the faster of the two in the same round
(so rather too large than too small); medians over rounds. All allocate their output. Integer,
float and codebook formats have constant scales; block formats compute theirs from the data. With
qwix installed (the extra `peers`), its quantize-and-dequantize runs as well.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import old_command as command
from experiments.harness import timing
from qdiffjax import quant


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    size: int = 4096
    num_rounds: int = 20


HELP = {"size": "side of the array, a multiple of 32", "num_rounds": "runs of every format"}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if config.num_rounds < 1 or config.size < 32 or config.size % 32:
        raise ValueError("num-rounds must be at least 1, size a positive multiple of 32.")


def integer(bits: int, scale_shape_fn, symmetric: bool = True) -> Callable:
    """Make a quantizer whose scale is a constant, calibrated once, as in a sampler."""
    format = quant.IntFormat(bits) if symmetric else quant.IntFormat(bits, signed=False)

    def make(x):
        calibrate = quant.absmax if symmetric else quant.minmax
        grid = calibrate(x, format=format, scale_shape=scale_shape_fn(x))
        return jax.jit(lambda x: quant.fake_quant(x, *grid, format=format))

    return make


def scaled(format: quant.Format) -> Callable:
    """Make a quantizer with one constant scale."""

    def make(x):
        scale, _ = quant.absmax(x, format=format)
        return jax.jit(lambda x: quant.fake_quant(x, scale, format=format))

    return make


def block(format: quant.BlockFormat) -> Callable:
    """Make a quantizer that computes its scales from the data, as block formats do."""
    return lambda x: jax.jit(functools.partial(quant.fake_quant_block, format=format))


def qwix(qtype: str) -> Callable:
    """Make the peer's quantizer: per-channel scales from the data, quantize, dequantize."""

    def make(x):
        from qwix._src.core import qarray

        how = qarray.HowToQuantize(qtype=qtype, channelwise_axes=(1,))
        return jax.jit(lambda x: qarray.dequantize(qarray.quantize(x, how)))

    return make


CHANNEL = functools.partial(quant.per_channel, channel_axis=1)
GROUP = functools.partial(quant.per_group, axis=1, group_size=32)
COPIES = 2  # the first of the cases
CASES: dict[str, Callable] = {
    "copy": lambda x: jax.jit(jnp.copy),
    "negation": lambda x: jax.jit(jnp.negative),
    "int8 per channel": integer(8, CHANNEL),
    "int4 per channel": integer(4, CHANNEL),
    "uint8 affine per channel": integer(8, CHANNEL, symmetric=False),
    "int4 per group of 32": integer(4, GROUP),
    "int8 per token": integer(8, quant.per_token),
    "e4m3fn": scaled(quant.E4M3FN),
    "e2m1": scaled(quant.E2M1),
    "nf4": scaled(quant.nf4()),
    "MXFP8 e4m3": block(quant.MXFP8_E4M3),
    "MXFP4": block(quant.MXFP4),
    "MXINT8": block(quant.MXINT8),
    "NVFP4": block(quant.NVFP4),
    "qwix int8 per channel, dynamic": qwix("int8"),
}


def run(config: Config, *, progress: bool = False):
    """Return `seconds` [num_rounds, cases] on a float32 array [size, size], and a row a case."""
    x = jax.random.normal(jax.random.key(0), (config.size, config.size), jnp.float32)
    fns = {}
    for name, make in CASES.items():
        try:
            fns[name] = make(x)
            jax.block_until_ready(fns[name](x))
        except ImportError:  # the peer is an extra
            fns.pop(name, None)
    turns = {name: functools.partial(_finish, fn, x) for name, fn in fns.items()}
    seconds, _ = timing.interleave(turns, config.num_rounds)
    ratios = seconds / seconds[:, :COPIES].min(1, keepdims=True)
    rows = [
        {"format": name, "milliseconds": 1e3 * float(np.median(seconds[:, i])),
         "over_copy": float(np.median(ratios[:, i])), "over_copy_min": float(ratios[:, i].min()),
         "over_copy_max": float(ratios[:, i].max())}
        for i, name in enumerate(fns)
    ]  # fmt: skip
    return {"seconds": seconds}, rows


def _finish(fn, x) -> None:
    jax.block_until_ready(fn(x))


def print_rows(rows) -> None:
    """Print a line a format."""
    for row in rows:
        print(f"{row['format']:32s} {row['milliseconds']:8.2f} ms  {row['over_copy']:6.2f} x copy"
              f"  ({row['over_copy_min']:.2f} to {row['over_copy_max']:.2f})")  # fmt: skip


EXPERIMENT = command.Experiment(
    "bench_quant", __doc__ or "", Config, HELP, check, run, print_rows=print_rows, resumes=False
)


def main(argv=None) -> int:
    """Run, print the table, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())

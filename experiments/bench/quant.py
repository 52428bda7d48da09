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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness import command, timing
from experiments.harness.command import option
from qdiffjax import _tables as tables
from qdiffjax import quant
from qdiffjax._checks import require


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    size: int = option(4096, "Side of the array, a multiple of 32.", least=32)
    num_rounds: int = option(20, "Number of runs of every format.", least=1)

    def check(self) -> None:
        """Refuse sizes that no block divides."""
        require(
            self.size % 32 == 0,
            "size",
            got=self.size,
            expected="a positive multiple of 32",
            remedy="round it up",
        )


INT8, INT4, UINT8 = quant.IntFormat(8), quant.IntFormat(4), quant.IntFormat(8, signed=False)


def constant(format: quant.Format, scale_shape_fn=quant.per_tensor) -> Callable:
    """Make a quantizer whose scale is a constant, calibrated once, as in a sampler."""

    def make(x):
        calibrate: Any = quant.minmax if format == UINT8 else quant.absmax
        grid = calibrate(x, format=format, scale_shape=scale_shape_fn(x))
        return lambda x: quant.fake_quant(x, *grid, format=format)

    return make


def block(format: quant.BlockFormat) -> Callable:
    """Make a quantizer that computes its scales from the data, as block formats do."""
    return lambda x: functools.partial(quant.fake_quant_block, format=format)


def qwix(x) -> Callable:
    """Make the peer's quantizer: per-channel scales from the data, quantize, dequantize."""
    from qwix._src.core import qarray

    recipe = qarray.HowToQuantize(qtype="int8", channelwise_axes=(1,))
    return lambda x: qarray.dequantize(qarray.quantize(x, recipe))


CHANNEL = functools.partial(quant.per_channel, channel_axis=1)
GROUP = functools.partial(quant.per_group, axis=1, group_size=32)
COPIES = ("copy", "negation")
# array -> the function to time
CASES: dict[str, Callable] = {
    "copy": lambda x: jnp.copy,
    "negation": lambda x: jnp.negative,
    "int8 per channel": constant(INT8, CHANNEL),
    "int4 per channel": constant(INT4, CHANNEL),
    "uint8 affine per channel": constant(UINT8, CHANNEL),
    "int4 per group of 32": constant(INT4, GROUP),
    "int8 per token": constant(INT8, quant.per_token),
    "e4m3fn": constant(quant.E4M3FN),
    "e2m1": constant(quant.E2M1),
    "nf4": constant(quant.nf4()),
    "MXFP8 e4m3": block(quant.MXFP8_E4M3),
    "MXFP4": block(quant.MXFP4),
    "MXINT8": block(quant.MXINT8),
    "NVFP4": block(quant.NVFP4),
    "qwix int8 per channel, dynamic": qwix,
}


def run(config: Config, *, progress: bool = False):
    """Return `seconds` [num_rounds, cases] on a float32 array [size, size], and a row a case."""
    x = jax.random.normal(jax.random.key(0), (config.size, config.size), jnp.float32)
    makers = {name: functools.partial(make, x) for name, make in CASES.items()}
    fns, _ = timing.available(makers)  # the peer is an extra
    turns = {k: functools.partial(timing.finish, jax.jit(fn), x) for k, fn in fns.items()}
    seconds, _, each = timing.compare(turns, config.num_rounds, base=COPIES)
    rows = [
        {"format": t.name, "milliseconds": t.milliseconds, "over_copy": t.ratio,
         "over_copy_min": min(t.wall / t.base), "over_copy_max": max(t.wall / t.base)}
        for t in each
    ]  # fmt: skip
    return {"seconds": seconds}, rows


COLUMNS = (
    ("format", lambda r: r["format"]), ("ms", tables.numbers("milliseconds")),
    ("x copy", tables.numbers("over_copy")), ("least", tables.numbers("over_copy_min")),
    ("most", tables.numbers("over_copy_max")),
)  # fmt: skip
EXPERIMENT = command.experiment(
    Config,
    run,
    table=lambda rows: [tables.columns(rows, COLUMNS)],
)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))

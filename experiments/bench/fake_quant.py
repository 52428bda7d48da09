"""What simulating quantization costs: a fake-quantized W8A8 sampler against the float one.

    python -m experiments.bench.fake_quant

Both take turns on the same noise, after compilation; the ratio of each pair of runs is taken, so
that it holds when the machine's speed drifts.
"""

import dataclasses
import functools

import jax
import numpy as np

from experiments.harness import command, subject, timing
from experiments.harness.command import option
from qdiffjax import diffusion
from qdiffjax.precision import full_call, quantized_call


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    checkpoint: str = subject.checkpoint()
    num_steps: int = option(20, "Steps of DDIM.", least=1)
    num_samples: int = option(64, "Number of samples of a run.", least=1)
    num_pairs: int = option(10, "Number of pairs of runs.", least=1)


def run(config: Config, *, progress: bool = False):
    """Return `seconds` [num_pairs, 2] of (float, quantized) runs, and their ratio."""
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    study = subject.prepare(config.checkpoint, steps_of, ("*",), 0)
    steps = steps_of(study.denoiser.schedule)
    x_T = subject.noise(study.denoiser, config.num_samples, 0)
    q = study.quantized(8, 8)
    turns = {
        name: functools.partial(timing.finish, jax.jit(timing.scan(call_of, steps)), q, x_T)
        for name, call_of in (("float", full_call), ("quantized", quantized_call))
    }
    seconds, _, (plain, quantized) = timing.compare(turns, config.num_pairs)
    ratios = quantized.wall / quantized.base
    row = {
        "float_seconds": np.median(plain.wall), "quantized_seconds": np.median(quantized.wall),
        "ratio": quantized.ratio, "ratio_min": ratios.min(), "ratio_max": ratios.max(),
    }  # fmt: skip
    return {"seconds": seconds}, [row]


EXPERIMENT = command.experiment(Config, run)

if __name__ == "__main__":
    raise SystemExit(command.main(EXPERIMENT))

"""What simulating quantization costs: a fake-quantized W8A8 sampler against the float one.

    python -m experiments.bench.fake_quant

Both run in turn on the same noise, after compilation; the ratio of each pair of runs is taken, so
that it holds when the machine's speed drifts.
"""

import dataclasses
import sys
import time

import jax
import numpy as np

from experiments.harness import old_command as command
from experiments.harness import subject
from qdiffjax import diffusion
from qdiffjax.precision import full_call, quantized_call


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    num_steps: int = 20
    num_samples: int = 64
    num_pairs: int = 10


HELP = {
    "checkpoint": "folder or shipped name",
    "num_steps": "sampler steps",
    "num_samples": "samples of a run",
    "num_pairs": "pairs of runs",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    if min(config.num_steps, config.num_samples, config.num_pairs) < 1:
        raise ValueError("steps, samples and pairs must be at least 1.")


def run(config: Config, *, progress: bool = False):
    """Return `seconds` [num_pairs, 2] of (float, quantized) runs, and their ratio."""
    steps_of = lambda s: diffusion.ddim(s, config.num_steps)  # noqa: E731
    study = subject.prepare(config.checkpoint, steps_of, ("*",), 0)
    steps = steps_of(study.denoiser.schedule)
    x_T = subject.noise(study.denoiser, config.num_samples, 0)
    q = study.quantized(8, 8)
    fns = [
        jax.jit(lambda q, x, call=call: diffusion.sample(call(q), x, steps).x_0)
        for call in (full_call, quantized_call)
    ]
    seconds = np.zeros((config.num_pairs + 1, 2))
    for row in seconds:  # the first pair compiles
        for i, fn in enumerate(fns):
            start = time.perf_counter()
            jax.block_until_ready(fn(q, x_T))
            row[i] = time.perf_counter() - start
    return {"seconds": seconds[1:]}, [summary(seconds[1:])]


def summary(seconds) -> dict[str, float]:
    """Medians of both, and of the ratios of pairs with their range."""
    ratios = seconds[:, 1] / seconds[:, 0]
    (float_seconds, quantized_seconds), ratio = np.median(seconds, axis=0), np.median(ratios)
    return {
        "float_seconds": float(float_seconds), "quantized_seconds": float(quantized_seconds),
        "ratio": float(ratio), "ratio_min": float(ratios.min()), "ratio_max": float(ratios.max()),
    }  # fmt: skip


EXPERIMENT = command.Experiment(
    "bench_fake_quant", __doc__ or "", Config, HELP, check, run, resumes=False
)


def main(argv=None) -> int:
    """Run, print the ratio, write the results."""
    return command.main(EXPERIMENT, argv)


if __name__ == "__main__":
    sys.exit(main())

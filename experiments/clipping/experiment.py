"""The exponential error that is real: a pixel of the noise beyond the calibrated range.

    python -m experiments.clipping                    the shipped UNet
    python -m experiments.clipping --checkpoint fashion_dit

Static ranges come from a few calibration runs. At the noise end eps is nearly x_t, pixel by pixel.
Where a pixel lies beyond the range of the network's input or output it is clipped: too little noise
is predicted, and the answer does not depend on the pixel any more. What was missed then grows as
the sampler scales x,

    error(t) = excess * alpha_t / alpha_T,

up to 1 / alpha_T of it in the sample (157 for the linear schedule), whatever the bits. Both runs
are compared with the full-precision one on the same noise: with the calibrated ranges of input and
output, and with ranges that are wider by the factor `widen`.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.clipping import plots
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import compiling, diffusion, results
from qdiffjax._checks import require
from qdiffjax.analysis.errors import prediction
from qdiffjax.precision import check_bits, quantized_call

ENDS = ("input", "output")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    bits: int = option(8, "Width of weights and activations.", each=check_bits)
    num_steps: int = option(20, "Steps of DDIM.", least=1)
    num_samples: int = option(64, "Number of samples.", least=2)
    widen: float = option(1.5, "Factor on the ranges of the network's input and output.", above=1)
    sites: tuple[str, ...] = option(
        subject.ALL_BUT_LAST, "Globs of the sites to quantize, input and output among them."
    )
    seed: int = command.seed()


def excess(x, low: float, high: float) -> np.ndarray:
    """Return how far the pixels of x leave the range, signed, zero inside [*shape]."""
    x = np.asarray(x, np.float64)
    return np.maximum(x - high, 0) + np.minimum(x - low, 0)


def common_range(q) -> tuple[float, float]:
    """Return the range that neither the network's input nor its output clips.

    Raises:
      ValueError: one of them is not quantized.
    """
    require(set(ENDS) <= set(q.site_inputs), "sites", got=list(q.site_inputs),
            expected=f"{' and '.join(ENDS)} among them",
            remedy="choose --sites that hold both ends")  # fmt: skip
    grids = [q.site_inputs[name].activations[0] for name in ENDS]
    lows, highs = ([(float(getattr(grid.format, edge)) - float(grid.zero_point)) * float(grid.scale)
                    for grid in grids] for edge in ("qmin", "qmax"))  # fmt: skip
    return max(lows), min(highs)


def most_clipped(outside) -> tuple[int, int]:
    """Return (sample, pixel) furthest out of the range, of an excess [samples, pixels]."""
    sample, pixel = np.unravel_index(np.argmax(np.abs(outside)), outside.shape)
    return int(sample), int(pixel)


def compare(errors, outside, alphas, worst: tuple[int, int]) -> tuple[dict, dict[str, Any]]:
    """Return (arrays, row) of the errors of one run.

    Args:
      errors: along the run [steps + 1, samples, pixels].
      outside: excess of the initial noise [samples, pixels].
      alphas: of the schedule, along the run [steps + 1].
      worst: sample and pixel that are looked at.
    """
    sample, pixel = worst
    final = np.asarray(prediction.root_mean_square(errors[-1]), np.float64)
    clipped = np.abs(outside).max(axis=1)
    law = outside[sample, pixel] * alphas / alphas[0]
    arrays = {"errors": final, "excess": clipped, "law": law,
              "pixel_error": np.asarray(errors[:, sample, pixel])}  # fmt: skip
    row = {
        "clipped": int(np.sum(clipped > 0)), "sample": sample,
        "excess": float(outside[sample, pixel]), "pixel_error": float(errors[-1, sample, pixel]),
        "law": float(law[-1]), "worst_sample": int(np.argmax(final)),
        "error_max": float(np.max(final)), "error_median": float(np.median(final)),
        "error_rms": float(np.sqrt(np.mean(final**2))),
    }  # fmt: skip
    return arrays, row


def run(config: Config, **options):
    """Return arrays and rows, of the calibrated range and of the widened; touches no file.

    Arrays of either: errors and excess [samples], pixel_error and law [steps + 1] of the most
    clipped pixel. Options as `command.parts`.
    """
    steps_of = functools.partial(diffusion.ddim, num_steps=config.num_steps)
    study, steps, _, x_T, full = subject.run_in_full(config, steps_of)
    times = np.r_[steps.t[0], steps.s].astype(int)
    alphas, xs = study.denoiser.schedule.exact(times).alpha, full.xs
    sample = compiling.compiled(lambda q: diffusion.sample(quantized_call(q), x_T, steps).xs)

    def outside(low, high):
        return excess(xs[0], low, high).reshape(config.num_samples, -1)

    studies = {"calibrated": study, "widened": study.widened(config.widen)}
    worst = most_clipped(outside(*common_range(study.quantized(config.bits, config.bits))))

    def measure(name: str):
        q = studies[name].quantized(config.bits, config.bits)
        low, high = common_range(q)
        errors = (sample(q) - xs).reshape(config.num_steps + 1, config.num_samples, -1)
        arrays, row = compare(errors, outside(low, high), alphas, worst)
        return arrays, {"range": name, "low": low, "high": high} | row

    mark = results.fingerprint(dataclasses.asdict(config), study.mark())
    done = command.parts(studies, measure, mark, **options)
    arrays = command.by_part(done) | {"t": np.asarray(steps.t)}
    return arrays, [row for _, row in done.values()]


EXPERIMENT = command.experiment(Config, run, plots=plots)

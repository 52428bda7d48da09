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
from typing import Any

import numpy as np

from experiments.clipping import plots
from experiments.harness import command, store, subject
from qdiffjax import compiling, diffusion
from qdiffjax.analysis.errors import prediction
from qdiffjax.precision import calibration, quantized_call
from qdiffjax.precision.recipe import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    bits: int = 8
    num_steps: int = 20
    num_samples: int = 64
    widen: float = 1.5
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    seed: int = 0


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "bits": "of weights and activations",
    "num_steps": "steps of DDIM",
    "num_samples": "samples",
    "widen": "factor on the ranges of the network's input and output",
    "sites": "globs of the sites to quantize, input and output among them",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    check_bits(config.bits)
    if config.num_samples < 2 or config.num_steps < 1 or not config.widen > 1:
        raise ValueError("expected at least 2 samples and 1 step, and a range that is widened, "
                         f"got {config}.")  # fmt: skip


def excess(x, low: float, high: float) -> np.ndarray:
    """Return how far the pixels of x leave the range, signed, zero inside [*shape]."""
    x = np.asarray(x, np.float64)
    return np.maximum(x - high, 0) + np.minimum(x - low, 0)


class Study:
    """One denoiser, one width, two ranges of its input."""

    def __init__(self, config: Config):
        self.config = config
        steps_of = lambda s: diffusion.ddim(s, config.num_steps)  # noqa: E731
        self.subject = subject.prepare(config.checkpoint, steps_of, config.sites, config.seed)
        denoiser = self.subject.denoiser
        self.steps = steps_of(denoiser.schedule)
        full = diffusion.bind(denoiser.eps_fn, denoiser.params)
        x_T = subject.noise(denoiser, config.num_samples, config.seed)
        self.xs = compiling.compiled(lambda x: diffusion.sample(full, x, self.steps).xs)(x_T)
        self.pixel = self._most_clipped()
        self.sample = compiling.compiled(
            lambda q: diffusion.sample(quantized_call(q), x_T, self.steps).xs
        )

    def _outside(self, q) -> tuple[np.ndarray, float, float]:
        """Excess of the initial noise [samples, pixels], and the range common to both ends."""
        grids = [q.site_inputs[name].activations[0] for name in ("input", "output")]
        lows, highs = ([(float(edge) - float(grid.zero_point)) * float(grid.scale)
                        for edge, grid in edges]
                       for edges in zip(*(((g.qmin, g), (g.qmax, g)) for g in grids),
                                        strict=True))  # fmt: skip
        low, high = max(lows), min(highs)
        return excess(self.xs[0], low, high).reshape(self.config.num_samples, -1), low, high

    def _most_clipped(self) -> tuple[int, int]:
        """(sample, pixel) furthest outside of the calibrated range."""
        outside = np.abs(self._outside(self.subject.quantized(*(self.config.bits,) * 2))[0])
        sample, pixel = np.unravel_index(np.argmax(outside), outside.shape)
        return int(sample), int(pixel)

    def mark(self) -> str:
        """Fingerprint of the run."""
        return store.fingerprint(dataclasses.asdict(self.config), self.subject.mark())

    def measure(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, row) with the calibrated or the widened ranges of the ends."""
        c, here = self.config, self.subject
        if name == "widened":
            ranges = calibration.widened(here.ranges, ("input", "output"), c.widen)
            here = dataclasses.replace(here, ranges=ranges)
        q = here.quantized(c.bits, c.bits)
        outside, low, high = self._outside(q)
        sample, pixel = self.pixel
        errors = (self.sample(q) - self.xs).reshape(c.num_steps + 1, c.num_samples, -1)
        levels = here.denoiser.schedule.exact(np.r_[self.steps.t[0], self.steps.s].astype(int))
        final = np.asarray(prediction.root_mean_square(errors[-1]), np.float64)
        clipped = np.abs(outside).max(axis=1)
        arrays = {
            "errors": final, "excess": clipped, "pixel_error": np.asarray(errors[:, sample, pixel]),
            "law": outside[sample, pixel] * levels.alpha / levels.alpha[0],
        }  # fmt: skip
        row = {
            "range": name, "low": low, "high": high, "clipped": int(np.sum(clipped > 0)),
            "sample": sample, "excess": float(outside[sample, pixel]),
            "pixel_error": float(errors[-1, sample, pixel]), "law": float(arrays["law"][-1]),
            "worst_sample": int(np.argmax(final)), "error_max": float(np.max(final)),
            "error_median": float(np.median(final)),
            "error_rms": float(np.sqrt(np.mean(final**2))),
        }  # fmt: skip
        return arrays, row


def run(config: Config, **options):
    """Return arrays and rows, of the calibrated range and of the widened; touches no file.

    Arrays of either: errors and excess [samples], pixel_error and law [steps + 1] of the most
    clipped pixel. Options as `command.parts`.
    """
    check(config)
    study = Study(config)
    names = ("calibrated", "widened")
    found = command.parts(names, study.measure, study.mark(), **options)
    arrays = command.by_part(found) | {"t": np.asarray(study.steps.t)}
    return arrays, [row for _, row in found.values()]


EXPERIMENT = command.Experiment(
    "clipping", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and the figure."""
    return command.main(EXPERIMENT, argv)

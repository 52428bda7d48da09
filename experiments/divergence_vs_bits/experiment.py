"""What quantization costs the law of the samples, against bits: every number beside its floor.

    python -m experiments.divergence_vs_bits                    the shipped UNet
    python -m experiments.divergence_vs_bits --checkpoint fashion_dit

All of one stochastic sampler, DDIM with eta = 1, which has a path KL. Weights and activations have
the same width. Full-precision and quantized samples share their noise where the estimator
profits from it (W2, MMD, energy), and are independent where it must be (KL of projections). The
floor is the same estimator on two independent halves of full-precision samples: what it says when
nothing was changed.

  W2            bracket: lower is the larger of Gelbrich and sliced, upper the coupling
  MMD^2, energy unbiased, so negative about half of the time where nothing was changed
  path KL       nats, exact chain rule, without the last step, which has no noise
  Girsanov      the same in continuous time, down to the last step with noise, from the samples
  projected KL  of low-dimensional projections of the state before the last step, by nearest
                neighbours (in the mean a lower bound of the path KL) and of Gaussian fits (not):
                leading principal directions, and the mean shift, both chosen on other samples;
                tightness is the largest by neighbours over the path KL
  shares        of the path KL and of the final squared error in the first and last tenth of the
                steps; the error's by the exact fan, and signed
  flips         nearest of ten k-means centres of full-precision samples changed; lost: some other
                full-precision sample is nearer than the sample's own twin
  worst 5 %     their share of the squared error; 5 % if all errors are equal
"""

import dataclasses

from experiments.divergence_vs_bits import plots
from experiments.divergence_vs_bits.measure import Study
from experiments.harness import old_command as command
from experiments.harness import subject
from qdiffjax.precision.recipe import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    bits: tuple[int, ...] = (8, 7, 6, 5, 4)
    num_steps: int = 20
    num_samples: int = 256
    num_chosen: int = 128
    num_kl_samples: int = 64
    num_fan_samples: int = 16
    num_resamples: int = 50
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    seed: int = 0


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "bits": "of weights and activations",
    "num_steps": "steps of DDIM with eta = 1",
    "num_samples": "samples of each of two halves",
    "num_chosen": "further samples, on which directions and centres are chosen",
    "num_kl_samples": "samples of path KL and Girsanov",
    "num_fan_samples": "samples of the exact fan, whose cost is quadratic in steps",
    "num_resamples": "bootstrap resamples",
    "sites": "globs of the sites to quantize",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    for bits in config.bits:
        check_bits(bits)
    if config.num_steps < 3:
        raise ValueError(f"got {config.num_steps} steps, expected at least 3.")
    for name, least in (("num_samples", 32), ("num_chosen", 16), ("num_kl_samples", 2),
                        ("num_fan_samples", 2), ("num_resamples", 2)):  # fmt: skip
        if getattr(config, name) < least:
            raise ValueError(f"got {name} = {getattr(config, name)}, expected at least {least}.")
    if max(config.num_kl_samples, config.num_fan_samples) > config.num_samples:
        raise ValueError(f"got more than num_samples = {config.num_samples} samples of the KL or "
                         "the fan; raise num_samples.")  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows, one row a width; touches no file.

    A row's estimates are [value, low, high] with 95 % intervals; those of `floor` are the same on
    two independent halves. Arrays: `W8A8/errors` [2 num_samples], RMS of each sample;
    `W8A8/kl_terms` [steps], nats; `W8A8/error_profile` [steps], summing to E|error|^2.
    Options as `command.parts`.
    """
    check(config)
    study = Study(config)
    names = ["floor", *(f"W{b}A{b}" for b in config.bits)]
    found = command.parts(names, study.measure, study.mark(), **options)
    arrays = {f"{name}/{key}": value for name, part in found.items()
              for key, value in part[0].items()}  # fmt: skip
    return arrays, [row for _, row in found.values()]


EXPERIMENT = command.Experiment(
    "divergence_vs_bits", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and the figure."""
    return command.main(EXPERIMENT, argv)

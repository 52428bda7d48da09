"""Where the first order of error propagation fails, said beforehand, against what happens.

    python -m experiments.first_order_failure                    the shipped UNet
    python -m experiments.first_order_failure --checkpoint fashion_dit

First order propagates local errors by the Jacobians of the full-precision run. It fails for a
sample when it misses the final error by more than the tolerance, relative to that error:

  measured   |v - delta| / |delta|, v propagated from the local errors of the quantized run
  predicted  |q| / |v|, second over first order, both from the full-precision run and a-priori
             local errors: no quantized sampler runs

One row a width: how many of the samples fail, and how many were predicted to. Then the confusion
table over all widths and samples, and the area under the ROC curve: the probability that a sample
which fails got a larger prediction than one which does not.
"""

import dataclasses

from experiments.first_order_failure import plots
from experiments.first_order_failure.measure import Study, confusion, parse_width
from experiments.harness import old_command as command
from experiments.harness import subject


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    sampler: str = "ddim"
    num_steps: int = 20
    widths: tuple[str, ...] = (
        "W10", "W9", "W8", "W7", "W6", "W5", "A10", "A9", "A8", "A7", "A6", "W8A8", "W6A6",
    )  # fmt: skip
    num_samples: int = 32
    tolerance: float = 0.25
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    seed: int = 0


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "sampler": f"one of {', '.join(subject.SAMPLERS)}",
    "num_steps": "sampler steps",
    "widths": "what is rounded to how many bits, such as W8 (weights), A8 (activations), W4A8",
    "num_samples": "samples of each width",
    "tolerance": "relative error above which first order has failed",
    "sites": "globs of the sites to quantize",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    for width in config.widths:
        parse_width(width)
    if config.sampler not in subject.SAMPLERS:
        raise ValueError(f"no sampler {config.sampler!r}; expected {', '.join(subject.SAMPLERS)}.")
    if config.num_samples < 2 or config.num_steps < 2:
        raise ValueError(f"got {config.num_samples} samples and {config.num_steps} steps, expected "
                         "at least 2 of each.")  # fmt: skip
    if not 0 < config.tolerance < 1:
        raise ValueError(f"got tolerance {config.tolerance}, expected between 0 and 1.")


def run(config: Config, **options):
    """Return arrays and rows: one row a width, then the confusion table; touches no file.

    Arrays: `<width>/measured`, `<width>/predicted` and `<width>/errors` [samples], the last the
    RMS error of each sample. Options as `command.parts`.
    """
    check(config)
    study = Study(config)
    found = command.parts(config.widths, study.measure, study.mark(), **options)
    arrays = {f"{name}/{key}": value for name, part in found.items()
              for key, value in part[0].items()}  # fmt: skip
    rows = [row for _, row in found.values()]
    return arrays, [*rows, confusion(arrays, config.tolerance)]


EXPERIMENT = command.Experiment(
    "first_order_failure", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and the figure."""
    return command.main(EXPERIMENT, argv)

"""Where along the sampler errors are damped or amplified, and for which samples.

    python -m experiments.spectra                    the shipped UNet
    python -m experiments.spectra --checkpoint fashion_dit

Along full-precision runs of DDIM, J_i is the Jacobian of step i and J_i->0 that of the rest of the
sampler; a gain is a singular value, above one errors grow. Everything is per sample: quantiles over
samples, not means.

  top gain     largest singular value of J_i, with the share of samples where it exceeds one
  whole        the same of J_i->0, beside the product of the top gains of its steps, which is what
               a worst-case bound multiplies, and the exponential of the integrated logarithmic norm
               of the probability-flow ODE
  rms gain     |J_i->0|_F / sqrt(n): what becomes of a random error of step i
  exponents    log of the top gain of the whole run, per step; and the log stretch of a random
               frame by the QR method, which so short a run does not align with the top directions
  log volume   log|det J_i| / n: the mean over directions of the log gain. Summed over steps it is
               the difference of the entropies of x_0 and x_T per dimension, where the map is
               one-to-one; negative, so volumes contract on average
  error        of the quantized run, against the sample's own rms gain: rank correlation
"""

import dataclasses

from experiments.harness import old_command as command
from experiments.harness import subject
from experiments.spectra import plots
from experiments.spectra.measure import PARTS, Study, summary
from qdiffjax.precision.recipe import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    num_steps: int = 20
    num_samples: int = 8
    num_gain_samples: int = 64
    num_values: int = 8
    num_shown: int = 3
    num_nodes: int = 12
    num_probes: int = 4
    num_starts: int = 4
    bits: int = 8
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    seed: int = 0


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "num_steps": "steps of DDIM",
    "num_samples": "samples whose spectra are computed",
    "num_gain_samples": "samples of the rms gains and of the errors",
    "num_values": "Krylov directions of a spectrum",
    "num_shown": "largest singular values that are kept, and directions of the frame",
    "num_nodes": "quadrature nodes of a log volume",
    "num_probes": "random probes of an rms gain",
    "num_starts": "states from which the whole rest of the sampler is looked at",
    "bits": "of weights and activations of the quantized run",
    "sites": "globs of the sites to quantize",
    "seed": "of everything random",
}


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    check_bits(config.bits)
    if config.num_steps < 2 or config.num_probes < 2 or config.num_samples < 2:
        raise ValueError(f"got {config.num_steps} steps, {config.num_probes} probes and "
                         f"{config.num_samples} samples, expected at least 2 of each.")  # fmt: skip
    if config.num_gain_samples < config.num_samples:
        raise ValueError(f"got {config.num_gain_samples} samples of the gains, expected at least "
                         f"the {config.num_samples} of the spectra.")  # fmt: skip
    if not 1 <= config.num_shown <= config.num_values:
        raise ValueError(f"got {config.num_shown} values kept of {config.num_values}.")
    if not 1 <= config.num_starts <= config.num_steps:
        raise ValueError(f"got {config.num_starts} starts, expected 1 to {config.num_steps}.")


def run(config: Config, **options):
    """Return arrays and rows; touches no file.

    Arrays, N steps, B samples, C gain samples, n = size of a sample, K = num_shown: t [N], size;
    step_values [N, B, K]; starts [S], sampler_values [S, B, K]; rms_gains and their
    standard_error [N+1, C]; stretches [N+1, B, K]; log_norms [2, N, B], growth rates of a
    difference over a step at least and at most; log_volumes [N, B], per dimension; errors [C].
    Options as `command.parts`.
    """
    check(config)
    study = Study(config)
    found = command.parts(PARTS, study.measure, study.mark(), **options)
    arrays = {key: value for part in found.values() for key, value in part[0].items()}
    return arrays, summary(arrays)


EXPERIMENT = command.Experiment(
    "spectra", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the table, write results and the figure."""
    return command.main(EXPERIMENT, argv)

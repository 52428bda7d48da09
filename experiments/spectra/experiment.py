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

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.spectra import measure, plots
from qdiffjax import results
from qdiffjax._checks import require
from qdiffjax.precision import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    num_steps: int = option(20, "Steps of DDIM.", least=2)
    num_samples: int = option(8, "Samples whose spectra are computed.", least=2)
    num_gain_samples: int = option(64, "Samples of the rms gains and of the errors.", least=2)
    num_values: int = option(8, "Krylov directions of a spectrum.", least=1)
    num_shown: int = option(
        3, "Largest singular values that are kept, and directions of the frame.", least=1
    )
    num_nodes: int = option(12, "Quadrature nodes of a log volume.", least=1)
    num_probes: int = option(4, "Random probes of an rms gain.", least=2)
    num_starts: int = option(
        4, "States from which the whole rest of the sampler is looked at.", least=1
    )
    bits: int = option(8, "Width of weights and activations of the quantized run.", each=check_bits)
    sites: tuple[str, ...] = option(subject.ALL_BUT_LAST, "Globs of the sites to quantize.")
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse samples, values and starts that are more than there are."""
        require(self.num_gain_samples >= self.num_samples,
                got=f"{self.num_gain_samples} samples of the gains",
                expected=f"at least the {self.num_samples} of the spectra",
                remedy="raise --num-gain-samples or lower --num-samples")  # fmt: skip
        require(self.num_shown <= self.num_values,
                got=f"{self.num_shown} values kept of {self.num_values}",
                expected="no more than there are",
                remedy="lower --num-shown")  # fmt: skip
        require(self.num_starts <= self.num_steps, got=f"{self.num_starts} starts",
                expected=f"at most {self.num_steps}, the steps",
                remedy="lower --num-starts")  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows; touches no file.

    Arrays, N steps, B samples, C gain samples, n = size of a sample, K = num_shown: t [N], size;
    step_values [N, B, K]; starts [S], sampler_values [S, B, K]; rms_gains and their
    standard_error [N+1, C]; stretches [N+1, B, K]; log_norms [2, N, B], growth rates of a
    difference over a step at least and at most; log_volumes [N, B], per dimension; errors [C].
    Options as `command.parts`.
    """
    context = measure.prepare(config)
    mark = results.fingerprint(dataclasses.asdict(config), context.subject.mark())
    done = command.parts(
        measure.PARTS, lambda part: measure.measure(context, part), mark, **options
    )
    arrays = {name: value for part, _ in done.values() for name, value in part.items()}
    return arrays, measure.summary(arrays)


EXPERIMENT = command.experiment(Config, run, plots=plots)

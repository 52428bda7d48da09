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

from experiments.divergence_vs_bits import measure, plots
from experiments.harness import command, subject
from experiments.harness.command import option
from qdiffjax import results
from qdiffjax._checks import require
from qdiffjax.precision import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    bits: tuple[int, ...] = option(
        (8, 7, 6, 5, 4), "Widths of weights and activations.", each=check_bits
    )
    num_steps: int = option(20, "Steps of DDIM with eta = 1.", least=3)
    num_samples: int = option(256, "Samples of each of two halves.", least=32)
    num_chosen: int = option(
        128, "Further samples, on which directions and centres are chosen.", least=16
    )
    num_kl_samples: int = option(64, "Samples of path KL and Girsanov.", least=2)
    num_fan_samples: int = option(
        16, "Samples of the exact fan, whose cost is quadratic in steps.", least=2
    )
    num_resamples: int = option(50, "Bootstrap resamples.", least=2)
    sites: tuple[str, ...] = option(subject.ALL_BUT_LAST, "Globs of the sites to quantize.")
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse more samples of the KL or the fan than there are; raises ValueError."""
        most = max(self.num_kl_samples, self.num_fan_samples)
        require(most <= self.num_samples, got=f"{most} samples of the KL or the fan",
                expected=f"no more than num_samples = {self.num_samples}",
                remedy="raise num_samples")  # fmt: skip


def run(config: Config, **options):
    """Return arrays and rows, one row a width; touches no file.

    A row's estimates are [value, low, high] with 95 % intervals; those of `floor` are the same on
    two independent halves. Arrays: `W8A8/errors` [2 num_samples], RMS of each sample;
    `W8A8/kl_terms` [steps], nats; `W8A8/error_profile` [steps], summing to E|error|^2.
    Options as `command.parts`.
    """
    study = measure.prepare(config)
    widths = {f"W{bits}A{bits}": bits for bits in config.bits}

    def measure_part(name: str):
        if name == "floor":
            return {}, measure.measure_floor(study, config)
        return measure.measure_width(study, config, widths[name])

    mark = results.fingerprint(dataclasses.asdict(config) | {"bits": None}, study.subject.mark())
    done = command.parts(["floor", *widths], measure_part, mark, **options)
    return command.by_part(done), [row for _, row in done.values()]


EXPERIMENT = command.experiment(Config, run, plots=plots)

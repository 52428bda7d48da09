"""How the final error grows: with the number of steps, the bits and the sampler.

    python -m experiments.propagation_laws                              the shipped UNet
    python -m experiments.propagation_laws --checkpoint fashion_dit

Every case is measured on runs that share their noise, predicted from the full-precision run
alone (a-priori local errors, injected; `prediction.predict_errors`), and bounded (first order
plus the propagated exact remainder). Parts: W weights only, A activations with nearest rounding,
SR activations with stochastic rounding, WA both.

  rms, median   measured RMS over all samples and pixels; median over samples of a sample's RMS
  predicted     rms from the full-precision run alone
  kappa         coherence of the propagated local errors: 1 uncorrelated, N all equal; median
  bound/err     first order + remainder over measured: smallest and median over samples

The laws fitted to the medians, with the standard error of the fit:

  error ~ N^p   theory: 0 for weights (coherent), -1/2 for stochastic rounding (incoherent)
  error ~ 2^pb  theory: -1, where first order holds
"""

import dataclasses
import functools

from experiments.harness import command, subject
from experiments.harness.command import option
from experiments.propagation_laws import measure, plots
from qdiffjax import results
from qdiffjax._checks import require
from qdiffjax.precision import check_bits


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = subject.checkpoint()
    num_steps: tuple[int, ...] = option(
        (10, 20, 50, 100, 200), "Steps of the law in N (DDIM).", least=2
    )
    bits: tuple[int, ...] = option(
        (8, 7, 6, 5, 4), "Widths of the law in bits (DDIM).", each=check_bits
    )
    samplers: tuple[str, ...] = option(
        ("ddim-half", "ddpm", "ddim-quadratic", "edm-heun", "dpmpp-2m", "dpmpp-3m", "unipc",
         "deis"),
        "Further samplers to compare.", choices=subject.SAMPLERS,
    )  # fmt: skip
    middle: int = option(50, "Network calls at which bits and samplers are compared.", least=2)
    width: int = option(
        8, "Bits of weights and activations where they do not vary.", each=check_bits
    )
    num_samples: int = option(64, "Samples that are measured and predicted.", least=2)
    num_checked: int = option(8, "Samples whose coherence and bound are computed.", least=2)
    num_draws: int = option(4, "Realizations of stochastic rounding, each of all samples.", least=1)
    sites: tuple[str, ...] = option(subject.ALL_BUT_LAST, "Globs of the sites to quantize.")
    edge_margin: float = option(
        1.2, "Factor on the calibrated ranges of the network's input and output, against the "
        "clipping of rare pixels of noise.", above=0,
    )  # fmt: skip
    seed: int = command.seed()

    def check(self) -> None:
        """Refuse too few points to fit laws to, and more checked samples than there are."""
        for name, values in (("numbers of steps", self.num_steps), ("widths", self.bits)):
            require(
                len(set(values)) >= 3,
                name,
                got=values,
                expected="at least three to fit laws",
                remedy="name more of them",
            )
        require(self.num_checked <= self.num_samples, expected="no more than there are",
                got=f"{self.num_checked} checked of {self.num_samples} samples",
                remedy="lower --num-checked")  # fmt: skip


def cases(config: Config) -> list[measure.Case]:
    """Return every case once, those that share a grid together: a grid is compiled once."""

    def case(name, num_calls, part, bits):
        return measure.Case(name, num_calls, part, bits, config.num_draws if part == "SR" else 1)

    by_steps = [
        case("ddim", n, part, config.width) for n in config.num_steps for part in measure.PARTS
    ]
    by_bits = [case("ddim", config.middle, part, b) for b in config.bits for part in measure.PARTS]
    by_sampler = [case(name, config.middle, "WA", config.width) for name in config.samplers]
    every = dict.fromkeys(by_steps + by_bits + by_sampler)
    names = ["ddim", *config.samplers]
    return sorted(every, key=lambda c: (names.index(c.sampler), c.num_calls, c.part))


def run(config: Config, **options):
    """Return arrays and rows, one row a case, then one a law; touches no file.

    Arrays "<case>/errors", "predicted" [num_samples], "kappa", "bound_over_measured"
    [num_checked]. Options as `command.parts`.
    """
    context = measure.prepare(config)
    by_name = {case.name: case for case in cases(config)}
    # Cases come sampler by sampler.
    full_runs = functools.lru_cache(maxsize=1)(functools.partial(measure.full_runs, context))

    def part(name: str):
        case = by_name[name]
        return measure.measure(context, full_runs(case.sampler, case.num_calls), case)

    settings = [config.num_samples, config.num_checked, config.sites, config.edge_margin,
                config.seed]  # fmt: skip
    mark = results.fingerprint(settings, context.subject.mark())
    done = command.parts(by_name, part, mark, **options)
    rows = [row for _, row in done.values()]
    return command.by_part(done), rows + measure.laws(rows, config)


EXPERIMENT = command.experiment(Config, run, plots=plots)

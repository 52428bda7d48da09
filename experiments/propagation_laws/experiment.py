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

from experiments.harness import old_command as command
from experiments.harness import subject
from experiments.propagation_laws import plots
from experiments.propagation_laws.measure import Case, Study, laws
from qdiffjax.precision.recipe import check_bits

PARTS = ("W", "A", "SR", "WA")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run."""

    checkpoint: str = "fashion_unet"
    num_steps: tuple[int, ...] = (10, 20, 50, 100, 200)
    bits: tuple[int, ...] = (8, 7, 6, 5, 4)
    samplers: tuple[str, ...] = (
        "ddim-half", "ddpm", "ddim-quadratic", "edm-heun", "dpmpp-2m", "dpmpp-3m", "unipc", "deis",
    )  # fmt: skip
    middle: int = 50
    width: int = 8
    num_samples: int = 64
    num_checked: int = 8
    num_draws: int = 4
    sites: tuple[str, ...] = subject.ALL_BUT_LAST
    edge_margin: float = 1.2
    seed: int = 0


HELP = {
    "checkpoint": "folder of a checkpoint, or the name of a shipped one",
    "num_steps": "steps of the law in N (DDIM)",
    "bits": "widths of the law in bits (DDIM)",
    "samplers": f"further samplers to compare, of {', '.join(subject.SAMPLERS)}",
    "middle": "network calls at which bits and samplers are compared",
    "width": "bits of weights and activations where they do not vary",
    "num_samples": "samples that are measured and predicted",
    "num_checked": "samples whose coherence and bound are computed",
    "num_draws": "realizations of stochastic rounding, each of all samples",
    "sites": "globs of the sites to quantize",
    "edge_margin": "factor on the calibrated ranges of the network's input and output, against the "
    "clipping of rare pixels of noise",
    "seed": "of everything random",
}


def cases(config: Config) -> list[Case]:
    """Every case once, those that share a grid together: a grid is compiled once."""

    def case(name, num_calls, part, bits):
        return Case(name, num_calls, part, bits, config.num_draws if part == "SR" else 1)

    by_steps = [case("ddim", n, part, config.width) for n in config.num_steps for part in PARTS]
    by_bits = [case("ddim", config.middle, part, b) for b in config.bits for part in PARTS]
    by_sampler = [case(name, config.middle, "WA", config.width) for name in config.samplers]
    every = dict.fromkeys(by_steps + by_bits + by_sampler)
    names = ["ddim", *config.samplers]
    return sorted(every, key=lambda c: (names.index(c.sampler), c.num_calls, c.part))


def check(config: Config) -> None:
    """Refuse what cannot work; raises ValueError."""
    for bits in (*config.bits, config.width):
        check_bits(bits)
    unknown = set(config.samplers) - set(subject.SAMPLERS)
    if unknown:
        raise ValueError(f"no sampler {sorted(unknown)}; expected {', '.join(subject.SAMPLERS)}.")
    if len(set(config.num_steps)) < 3 or len(set(config.bits)) < 3:
        raise ValueError("expected at least three numbers of steps and three widths to fit laws.")
    if min(*config.num_steps, config.middle) < 2:
        raise ValueError(f"got {config.num_steps} and {config.middle} steps, expected at least 2.")
    if config.num_draws < 1:
        raise ValueError(f"got {config.num_draws} draws, expected at least 1.")
    if not config.edge_margin > 0:
        raise ValueError(f"got edge_margin = {config.edge_margin}, expected a positive factor.")
    if not 2 <= config.num_checked <= config.num_samples:
        raise ValueError(
            f"got {config.num_checked} checked of {config.num_samples} samples, expected at least "
            "2, and no more than there are."
        )


def run(config: Config, **options):
    """Return arrays and rows, one row a case, then one a law; touches no file.

    Arrays "<case>/errors", "predicted" [num_samples], "kappa", "bound_over_measured"
    [num_checked]. Options as `command.parts`.
    """
    check(config)
    study = Study(config)
    by_name = {case.name: case for case in cases(config)}
    found = command.parts(
        by_name, lambda name: study.measure(by_name[name]), study.mark(), **options
    )
    rows = [part[1] for part in found.values()]
    return command.by_part(found), rows + laws(rows, config)


EXPERIMENT = command.Experiment(
    "propagation_laws", __doc__ or "", Config, HELP, check, run, plots.write,
    plots.print_table,
)  # fmt: skip


def main(argv=None) -> int:
    """Run, print the tables, write results and the figure."""
    return command.main(EXPERIMENT, argv)

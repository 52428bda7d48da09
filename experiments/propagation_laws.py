"""How the final error grows: with the number of steps, the bits and the sampler.

    python -m experiments.propagation_laws                              the shipped UNet
    python -m experiments.propagation_laws --checkpoint fashion_dit

Every case is measured on runs that share their noise, predicted from the full-precision run
alone (a-priori local errors, injected), and bounded (first order plus the propagated exact
remainder). Parts: W weights only, A activations with nearest rounding, SR activations with
stochastic rounding, WA both.

  rms, median   measured RMS over all samples and pixels; median over samples of a sample's RMS
  predicted     rms from the full-precision run alone
  kappa         coherence of the propagated local errors: 1 uncorrelated, N all equal; median
  bound/err     first order + remainder over measured: smallest and median over samples

The laws fitted to the medians, with the standard error of the fit:

  error ~ N^p   theory: 0 for weights (coherent), -1/2 for stochastic rounding (incoherent)
  error ~ 2^pb  theory: -1, where first order holds
"""

import argparse
import dataclasses
import sys
import time

import jax
import numpy as np

from experiments import plots_laws, store, subject
from experiments.propagation_laws_parts import Case, Study, laws
from qdiffjax.program.recipe import check_bits

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
    sites: tuple[str, ...] = ("*", "!conv_out/kernel")
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
    "sites": "globs of the sites to quantize",
    "seed": "of everything random",
}


def cases(config: Config) -> list[Case]:
    """Every case once: by number of steps, by bits, by sampler."""
    by_steps = [Case("ddim", n, part, config.width) for n in config.num_steps for part in PARTS]
    by_bits = [Case("ddim", config.middle, part, b) for b in config.bits for part in PARTS]
    by_sampler = [Case(name, config.middle, "WA", config.width) for name in config.samplers]
    return list(dict.fromkeys(by_steps + by_bits + by_sampler))


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
    if not 2 <= config.num_checked <= config.num_samples:
        raise ValueError(
            f"got {config.num_checked} checked of {config.num_samples} samples, expected at least "
            "2, and no more than there are."
        )


def run(config: Config, *, progress: bool = False, keep=None, kept=None):
    """Return arrays and rows: one row a case, then one a law; touches no file.

    Args:
      config: what to run.
      progress: show a progress bar.
      keep: called as keep(name, mark, arrays, row) when a case is done.
      kept: kept(name, mark) -> (arrays, row) of an earlier run, or None.
    """
    from tqdm import tqdm

    check(config)
    study = Study(config)
    arrays: dict[str, np.ndarray] = {}
    rows = []
    with tqdm(cases(config), disable=not progress, unit="case") as bar:
        for case in bar:
            bar.set_description(case.name)
            found = kept(case.name, study.mark()) if kept else None
            if found is None:
                found = study.measure(case)
                if keep:
                    keep(case.name, study.mark(), *found)
            arrays |= {f"{case.name}/{key}": value for key, value in found[0].items()}
            rows.append(found[1])
    return arrays, rows + laws(rows, config)


def parse(argv=None) -> tuple[Config, str]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.propagation_laws", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for field in dataclasses.fields(Config):
        options: dict = {"help": f"{HELP[field.name]} (default: %(default)s)"}
        kind = type(field.default[0] if isinstance(field.default, tuple) else field.default)
        default = field.default
        if isinstance(default, tuple):
            options, default = options | {"nargs": "+", "metavar": "X"}, list(default)
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=default, **options)
    parser.add_argument("--output", default="runs/propagation_laws", help="folder of the results")
    args = vars(parser.parse_args(argv))
    output = args.pop("output")
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}), output


def main(argv=None) -> int:
    """Run, print the tables, write results and the figure; exit code 2 for what cannot be run."""
    config, output = parse(argv)
    start = time.perf_counter()
    try:
        check(config)
        folder = store.check_writable(output)
        arrays, rows = run(
            config, progress=sys.stderr.isatty(),
            keep=lambda *part: store.save_part(folder, *part),
            kept=lambda name, mark: store.load_part(folder, name, mark),
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes after the last case done", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    device = str(jax.devices()[0].device_kind)
    store.save(folder, dataclasses.asdict(config), arrays, rows, device=device, seconds=seconds)
    plots_laws.write(folder)
    plots_laws.print_table(rows)
    print(f"{seconds:.0f} s; arrays.npz, summary.json, config.json and laws.png in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

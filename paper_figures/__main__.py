"""Rebuild every figure from saved results.

    python -m paper_figures                 half a minute; needs no JAX
    python -m paper_figures --recompute     runs the experiments first, on whatever JAX finds

Each figure is written as PNG and PDF to paper_figures/output. Results of another network, in a
folder `<experiment>_<name>` beside those of the experiment, become a figure of their own.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from experiments.harness import store
from paper_figures import style


def figures() -> dict:
    """Return the module of every fig*.py by name; each has EXPERIMENT and draw(results)."""
    found = [path.stem for path in Path(__file__).parent.glob("fig*.py")]
    names = sorted(found, key=lambda name: int(name.partition("_")[0].removeprefix("fig")))
    return {name: importlib.import_module(f"paper_figures.{name}") for name in names}


def suffixes(experiment: str, results: Path) -> list[str]:
    """Return what follows the experiment's name in its folders; the first is "", its own."""
    found = sorted(path.parent.name for path in results.glob(f"{experiment}_*/arrays.npz"))
    return ["", *(name.removeprefix(experiment) for name in found)]


def recompute(experiments, results: Path) -> None:
    """Run each experiment into its own folder of `results`, and on the networks of its others.

    Raises:
      CalledProcessError: an experiment failed; it has said why.
    """
    for name in experiments:
        for suffix in suffixes(name, results):
            folder = results / f"{name}{suffix}"
            command = [sys.executable, "-m", f"experiments.{name}", "--output", str(folder)]
            if suffix:
                command += ["--checkpoint", store.load(folder)[0]["checkpoint"]]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def draw(module, name: str, results: Path, output: Path) -> list[Path]:
    """Write a figure for each of its experiment's folders.

    Raises:
      FileNotFoundError: the experiment has no results.
    """
    written = []
    for suffix in suffixes(module.EXPERIMENT, results):
        fig = module.draw(store.load(results / f"{module.EXPERIMENT}{suffix}"))
        written += style.save(fig, f"{name}{suffix}", output)
    return written


def parse(argv=None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_figures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--recompute", action="store_true", help="run the experiments first")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="folder to read")
    parser.add_argument("--output", type=Path, default=style.OUTPUT, help="folder to write")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Draw and save every figure; exit code 2 when results are missing."""
    args = parse(argv)
    found, results = figures(), args.results.absolute()
    try:
        if args.recompute:
            recompute(sorted({module.EXPERIMENT for module in found.values()}), results)
        for name, module in found.items():
            print(*draw(module, name, results, args.output), sep="\n")
    except FileNotFoundError as error:
        remedy = "Or all at once: `python -m paper_figures --recompute`."
        print(f"error: {error} {remedy}", file=sys.stderr)
        return 2
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rebuild every figure from saved results.

    python -m paper_figures                 seconds; needs no JAX
    python -m paper_figures --recompute     runs the experiments first, on whatever JAX finds

Each figure is written as PNG and PDF to paper_figures/output.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from experiments import store
from paper_figures import style


def figures() -> dict:
    """Return the module of every fig*.py by name; each has EXPERIMENT and draw(results)."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("fig*.py"))
    return {name: importlib.import_module(f"paper_figures.{name}") for name in names}


def recompute(experiments, results: Path) -> None:
    """Run each experiment into its own folder of `results`.

    Raises:
      CalledProcessError: an experiment failed; it has said why.
    """
    for name in experiments:
        command = [sys.executable, "-m", f"experiments.{name}", "--output", str(results / name)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


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
    found = figures()
    experiments = sorted({module.EXPERIMENT for module in found.values()})
    try:
        if args.recompute:
            recompute(experiments, args.results.absolute())
        results = {name: store.load(args.results.absolute() / name) for name in experiments}
        for name, module in found.items():
            for path in style.save(module.draw(results[module.EXPERIMENT]), name, args.output):
                print(path)
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

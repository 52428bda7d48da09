"""Rebuild every figure, and the tables for a paper, from saved results.

    python -m paper_figures                 half a minute; needs no JAX
    python -m paper_figures --recompute     runs the experiments first, on whatever JAX finds

Each figure is written as PNG and PDF to paper_figures/output, each table in Markdown and LaTeX
(booktabs). Results of another network, in a
folder `<experiment>_<name>` beside those of the experiment, become a figure of their own.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from experiments.allocate import plots as allocate
from experiments.certificates import plots as certificates
from experiments.clipping import plots as clipping
from experiments.coverage import plots as coverage
from experiments.cures import plots as cures
from experiments.divergence_vs_bits import plots as divergence_vs_bits
from experiments.dynamic import plots as dynamic
from experiments.error_bounds import plots as error_bounds
from experiments.evaluate import plots as evaluate
from experiments.faults import plots as faults
from experiments.feedback import plots as feedback
from experiments.first_order_failure import plots as first_order_failure
from experiments.hardware_cost import plots as hardware_cost
from experiments.harness import store
from experiments.number_formats import plots as number_formats
from experiments.propagation_laws import plots as propagation_laws
from experiments.random_recipes import plots as random_recipes
from experiments.random_trials import plots as random_trials
from experiments.shaping import plots as shaping
from experiments.shaping_forecast import plots as shaping_forecast
from experiments.spectra import plots as spectra
from experiments.table1 import plots as table1
from experiments.training_aware import plots as training_aware
from qdiffjax import _tables as tables
from qdiffjax._command import Parser, one_line

OUTPUT = Path(__file__).parent / "output"
FONTS: dict[Any, Any] = {"pdf.fonttype": 42, "font.size": 9}  # TrueType, which journals ask for
# By file name: the experiment whose results it shows, draw(config, arrays, rows), and a caption.
# Results that have tables alone have no figure.
FIGURES: dict[str, tuple[str, Callable[..., Figure | None], str]] = {
    "fig1_error_bounds": (
        "error_bounds", error_bounds.draw_errors,
        "Accumulated error, measured and predicted, and its bounds along the sampler.",
    ),
    "fig2_ledger": (
        "error_bounds", error_bounds.draw_ledger,
        "Which site, at which step, makes the error of the samples.",
    ),
    "fig3_samples": (
        "error_bounds", error_bounds.draw_samples,
        "Samples of the full-precision and the quantized networks on the same noise.",
    ),
    "fig4_number_formats": (
        "number_formats", number_formats.draw,
        "Signal to quantization noise of every number format, predicted and measured.",
    ),
    "fig5_propagation_laws": (
        "propagation_laws", propagation_laws.draw,
        "How the error grows with steps, bits and sampler.",
    ),
    "fig6_spectra": (
        "spectra", spectra.draw,
        "Which errors a sampler damps and which it amplifies.",
    ),
    "fig7_first_order_failure": (
        "first_order_failure", first_order_failure.draw,
        "Failure of first order, foretold from the full-precision run.",
    ),
    "fig8_divergence_vs_bits": (
        "divergence_vs_bits", divergence_vs_bits.draw,
        "What quantization costs the law of the samples.",
    ),
    "fig9_clipping": (
        "clipping", clipping.draw,
        "Clipped noise grows along the sampler.",
    ),
    "fig10_certificates": (
        "certificates", certificates.draw,
        "Certified errors of one call and of whole runs, beside measured ones.",
    ),
    "fig11_random_trials": (
        "random_trials", random_trials.draw,
        "Bounds over what they bound, in thousands of random trials.",
    ),
    "fig12_hardware_cost": (
        "hardware_cost", hardware_cost.draw_chips,
        "Predicted speed-up over bfloat16 of a call in every precision on every chip.",
    ),
    "fig13_divergence_steps": (
        "divergence_vs_bits", divergence_vs_bits.draw_steps,
        "Which steps the divergence and the error come from, and the tail of the error.",
    ),
    "fig14_shaping": (
        "shaping", shaping.draw,
        "Weights rounded once, or anew at every call of the sampler.",
    ),
    "fig15_feedback": (
        "feedback", feedback.draw,
        "Activations rounded to nearest, at random, and with error feedback from call to call.",
    ),
    "fig16_random_recipes": (
        "random_recipes", random_recipes.draw,
        "Error of recipes drawn at random, predicted and measured.",
    ),
    "fig17_cures": (
        "cures", cures.draw,
        "What every cure after training leaves of the samples' error.",
    ),
    "fig18_coverage": (
        "coverage", coverage.draw,
        "Guarantees that fail beside what is allowed, and recipes chosen with them and without.",
    ),
    "fig19_evaluate": (
        "evaluate", evaluate.draw,
        "Quantized samples by every metric, beside the noise floor of each.",
    ),
    "fig20_allocate": (
        "allocate", allocate.first,
        "Recipes within a budget of bits: uniform, from squares, from errors that add as vectors.",
    ),
    "fig21_faults": (
        "faults", faults.draw,
        "Faults of quantized networks beside honest recipes, and those found by their effect.",
    ),
    "fig22_table1": (
        "table1", table1.draw,
        "The survey's seven techniques, each in a plain and a best form.",
    ),
    "fig23_dynamic": (
        "dynamic", dynamic.draw,
        "Bit-operations of samples that choose their widths, beside recipes, schedules, an oracle.",
    ),
    "fig24_shaping_forecast": (
        "shaping_forecast", shaping_forecast.draw,
        "Error of shaped weights by the number of steps, and its forecast over it.",
    ),
}  # fmt: skip
# By file name: the experiment, table(rows) -> lines and tables, and a caption.
TABLES: dict[str, tuple[str, Callable[[list], list], str]] = {
    "tab1_table1": (
        "table1", table1.table,
        "The survey's Table 1 in numbers: quality and cost of every technique.",
    ),
    "tab2_cures": ("cures", cures.table, "Cures after training, side by side."),
    "tab3_allocate": ("allocate", allocate.table, "Recipes within a budget of bits."),
    "tab4_training_aware": (
        "training_aware", training_aware.table, "Objectives of training while rounding."
    ),
}  # fmt: skip


def suffixes(experiment: str, results: Path) -> list[str]:
    """Return what follows the experiment's name in its folders; the first is "", its own.

    A folder is of the experiment of the longest name that its own begins with.
    """
    others = sorted(path.parent.name for path in results.glob(f"{experiment}_*/arrays.npz"))
    return ["", *(name.removeprefix(experiment) for name in others if _made_by(name) == experiment)]


def _made_by(result: str) -> str:
    """Return the experiment of the longest name that a result's begins with."""
    words = result.split("_")
    names = ("_".join(words[:num]) for num in range(len(words), 0, -1))
    return next(name for name in names if find_spec(f"experiments.{name}"))


def recompute(experiments, results: Path) -> None:
    """Run each experiment into its own folder of `results`, and its others as they were run.

    Raises:
      CalledProcessError: an experiment failed; it has said why.
    """
    for name in experiments:
        for suffix in suffixes(name, results):
            folder = results / f"{name}{suffix}"
            command = [sys.executable, "-m", f"experiments.{name}", "--output", str(folder)]
            if suffix:
                command += flags(store.load(folder)[0])
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def flags(config: Mapping[str, Any]) -> list[str]:
    """Return the flags of a command line that give a stored config again."""
    told = []
    for name, value in config.items():
        if name == "provenance" or value in ("", [], False):
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        told += [f"--{name.replace('_', '-')}", *map(str, values)]
    return told


def save(fig: Figure, name: str, folder: Path = OUTPUT) -> list[Path]:
    """Write `fig` to <folder>/<name>.png and .pdf; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    with matplotlib.rc_context(FONTS):
        fig.savefig(paths[0], dpi=200)
        fig.set_layout_engine("none")  # laid out by now
        fig.savefig(paths[1], dpi=200, metadata={"CreationDate": None})
    return paths


def write(name: str, results: Path, output: Path) -> list[Path]:
    """Write a figure for each of its experiment's folders, and return the paths.

    Raises:
      FileNotFoundError: the experiment has no results.
    """
    experiment, draw, _ = FIGURES[name]
    written = []
    for suffix in suffixes(experiment, results):
        figure = draw(*store.load(results / f"{experiment}{suffix}"))
        if figure is not None:
            written += save(figure, f"{name}{suffix}", output)
    return written


def write_tables(name: str, results: Path, output: Path) -> list[Path]:
    """Write the tables of each of an experiment's folders as .md and .tex, and return the paths."""
    experiment, table, _ = TABLES[name]
    written = []
    for suffix in suffixes(experiment, results):
        parts = table(store.load(results / f"{experiment}{suffix}")[2])
        found = [part for part in parts if not isinstance(part, str)]
        for ending, render in (("md", tables.markdown), ("tex", tables.latex)):
            path = output / f"{name}{suffix}.{ending}"
            path.write_text("\n".join(map(render, found)))
            written.append(path)
    return written


def parse(argv=None) -> argparse.Namespace:
    """Read the command line."""
    captions = "\n".join(
        f"  {name:26}{caption}" for name, (*_, caption) in (FIGURES | TABLES).items()
    )
    parser = Parser(
        prog="python -m paper_figures",
        description=__doc__,
        epilog=f"figures and tables:\n{captions}",
    )
    parser.add_argument("--recompute", action="store_true", help="run the experiments first")
    parser.add_argument("--results", type=Path, default=store.RESULTS, help="folder to read")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    """Draw and save every figure; exit code 2 when results are missing."""
    args = parse(argv)
    results = args.results.absolute()
    try:
        if args.recompute:
            recompute(sorted({experiment for experiment, *_ in FIGURES.values()}), results)
        for name in FIGURES:
            print(*write(name, results, args.output), sep="\n")
        for name in TABLES:
            print(*write_tables(name, results, args.output), sep="\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        remedy = " Or all at once: `python -m paper_figures --recompute`." if is_missing else ""
        print(f"error: {one_line(f'{error}{remedy}')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

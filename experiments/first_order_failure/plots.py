"""Figure and table of `experiments.first_order_failure`; needs no JAX."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import store, tables
from experiments.harness.looks import BLUE, GREEN, GREY, ORANGE, SMALL, tidy

COLORS = {"weights": "black", "activations": BLUE, "both": ORANGE}


def write(folder) -> None:
    """Write failure.png of the run in `folder` beside it."""
    draw(*store.load(folder)).savefig(Path(folder) / "failure.png", dpi=150)


def draw(config, arrays, rows) -> Figure:
    """Measured against predicted relative error of first order: a dot a sample and width."""
    fig = Figure(figsize=(5.4, 4.6), layout="constrained")
    ax = fig.subplots()
    for kind, color in COLORS.items():
        widths = [w for w in config["widths"] if kind_of(w) == kind]
        if widths:
            x, y = (np.concatenate([arrays[f"{w}/{key}"] for w in widths])
                    for key in ("predicted", "measured"))  # fmt: skip
            ax.plot(x, y, ".", ms=4, color=color, alpha=0.6, mew=0, label=kind)
    tolerance = config["tolerance"]
    ax.axvline(tolerance, color=GREEN, lw=0.9, ls="--")
    ax.axhline(tolerance, color=GREEN, lw=0.9, ls="--", label=f"tolerance {tolerance:g}")
    ax.axline((tolerance, tolerance), slope=1, color=GREY, lw=0.8)
    ax.set(xscale="log", yscale="log", xlabel="predicted beforehand: |second| / |first order|",
           ylabel="measured: relative error of first order")  # fmt: skip
    tidy(ax)
    ax.legend(frameon=False, loc="lower right", **SMALL)
    (table,) = (r for r in rows if r["kind"] == "confusion")
    right = table["failed_foretold"] + table["held_right"]
    total = right + table["failed_missed"] + table["held_foretold"]
    ax.set_title(f"Failure of first order: {Path(config['checkpoint']).name}, {config['sampler']}-"
                 f"{config['num_steps']}; {right} of {total} foretold", fontsize=9)  # fmt: skip
    return fig


def kind_of(width: str) -> str:
    """Return what a width rounds."""
    if "A" not in width:
        return "weights"
    return "both" if "W" in width else "activations"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line a width and the confusion table."""
    from rich.table import Table

    console = tables.console(None)
    table = Table(box=None, header_style="bold")
    for name in ("rounded", "RMS error, median", "measured, median", "predicted, median", "failed",
                 "foretold", "right", "samples"):  # fmt: skip
        table.add_column(name, justify="left" if name == "rounded" else "right")
    for r in rows:
        if r["kind"] == "width":
            table.add_row(
                r["width"], f"{r['median_error']:.4f}", f"{r['measured']:.3f}",
                f"{r['predicted']:.3f}", *(str(r[k]) for k in ("failed", "foretold", "right",
                                                               "samples")),
            )  # fmt: skip
    console.print(table)
    r = rows[-1]
    area = "-" if r["roc_area"] is None else f"{r['roc_area']:.3f}"
    console.print(
        f"failed: {r['failed_foretold']} foretold, {r['failed_missed']} missed; held: "
        f"{r['held_right']} foretold, {r['held_foretold']} false alarms; right "
        f"{r['accuracy']:.1%}, area under ROC {area}", highlight=False,
    )  # fmt: skip

"""Figure and table of `experiments.first_order_failure`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, MARKERS, ORANGE, SMALL, panels, tidy

COLORS = {"weights": "black", "activations": BLUE, "both": ORANGE}


def draw(config, arrays, rows) -> Figure:
    """Measured against predicted relative error of first order: a dot a sample and width."""
    fig, ax = panels(1, 1, 4.2)
    for (kind, color), marker in zip(COLORS.items(), MARKERS, strict=False):
        widths = [w for w in config["widths"] if kind_of(w) == kind]
        if widths:
            x, y = (np.concatenate([arrays[f"{w}/{key}"] for w in widths])
                    for key in ("predicted", "measured"))  # fmt: skip
            ax.plot(x, y, marker, ls="", ms=3, color=color, alpha=0.6, mew=0, label=kind)
    tolerance = config["tolerance"]
    ax.axvline(tolerance, color=GREEN, lw=0.9, ls="--")
    ax.axhline(tolerance, color=GREEN, lw=0.9, ls="--", label=f"tolerance {tolerance:g}")
    ax.axline((tolerance, tolerance), slope=1, color=GREY, lw=0.8)
    ax.set(xscale="log", yscale="log", xlabel="predicted beforehand: |second| / |first order|",
           ylabel="measured: relative error of first order")  # fmt: skip
    (table,) = (r for r in rows if r["kind"] == "confusion")
    right = table["failed_foretold"] + table["held_right"]
    total = right + table["failed_missed"] + table["held_foretold"]
    ax.set_title(f"{Path(config['checkpoint']).name}, {config['sampler']}-{config['num_steps']}; "
                 f"{right} of {total} foretold")  # fmt: skip
    tidy(ax)
    ax.legend(frameon=False, loc="lower right", **SMALL)
    return fig


def kind_of(width: str) -> str:
    """Return what a width rounds."""
    if "A" not in width:
        return "weights"
    return "both" if "W" in width else "activations"


FIGURES = {"failure": draw}
COLUMNS = (
    ("rounded", lambda r: r["width"]),
    ("RMS error\nmedian", lambda r: f"{r['median_error']:.4f}"),
    ("measured\nmedian", lambda r: f"{r['measured']:.3f}"),
    ("predicted\nmedian", lambda r: f"{r['predicted']:.3f}"),
    ("failed", lambda r: r["failed"]),
    ("foretold", lambda r: r["foretold"]),
    ("right", lambda r: r["right"]),
    ("samples", lambda r: r["samples"]),
)


def table(rows) -> list:
    """Return a line for each width, and the confusion table."""
    *widths, r = rows
    area = "-" if r["roc_area"] is None else f"{r['roc_area']:.3f}"
    return [
        tables.columns(widths, COLUMNS),
        f"failed: {r['failed_foretold']} foretold, {r['failed_missed']} missed; held: "
        f"{r['held_right']} foretold, {r['held_foretold']} false alarms; right "
        f"{r['accuracy']:.1%}, area under ROC {area}",
    ]

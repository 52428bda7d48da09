"""Figure and table of `experiments.group_sensitivity`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, MARKERS, ORANGE, panels, tidy


def draw(config, arrays, rows) -> Figure:
    """Error of each group quantized alone, median and 10 to 90 % of the samples, by width."""
    order = [r["group"] for r in rows if r["bits"] == config["bits"][0]][::-1]
    fig, ax = panels(1, 1, 0.9 + 0.26 * len(order))
    for i, (bits, color) in enumerate(zip(config["bits"], (BLUE, GREEN, ORANGE), strict=False)):
        errors = {r["group"]: r["error"] for r in rows if r["bits"] == bits}
        low, middle, high = np.maximum(np.array([errors[g] for g in order]).T, 1e-9)
        ax.errorbar(middle, np.arange(len(order)) + 0.2 * (1 - i),
                    xerr=[middle - low, high - middle], fmt=MARKERS[i], ms=3.5,
                    color=color, elinewidth=1.2,
                    label=f"W{bits}A{bits}")  # fmt: skip
    ax.set_yticks(range(len(order)), order, fontsize=7)
    ax.set(xscale="log", xlabel="RMS error of a sample when only this is rounded, image units")
    name = Path(config["checkpoint"]).name
    ax.set_title(f"{name}, DDIM-{config['num_steps']}: medians, 10 to 90 % of the samples")
    tidy(ax)
    fig.legend(loc="outside lower center", ncols=len(config["bits"]), frameon=False, fontsize=7)
    return fig


FIGURES = {"groups": draw}
COLUMNS = (
    ("width", lambda r: f"W{r['bits']}A{r['bits']}"),
    ("rounded alone", lambda r: r["group"]),
    ("error\nmedian", lambda r: f"{r['error'][1]:.4f}"),
    ("10 to 90 %", lambda r: "{:.4f} to {:.4f}".format(*r["error"][::2])),
    ("share", lambda r: None if r["group"].startswith("all") else f"{r['share']:.1%}"),
    ("MACs", lambda r: f"{r['macs']:.1%}" if r["macs"] else None),
    ("per MAC", lambda r: None if r["per_mac"] is None else tables.number(r["per_mac"], 2)),
)


def table(rows) -> list:
    """Return a line for each group and width."""
    return [tables.columns(rows, COLUMNS, left=(0, 1))]

"""Figure and table of `experiments.group_sensitivity`; needs no JAX."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import store, tables
from experiments.harness.looks import BLUE, GREEN, ORANGE, tidy


def write(folder) -> None:
    """Write groups.png of the run in `folder` beside it."""
    draw(*store.load(folder)).savefig(Path(folder) / "groups.png", dpi=150)


def draw(config, arrays, rows) -> Figure:
    """Error of each group quantized alone, median and 10 to 90 % of the samples, by width."""
    order = [r["group"] for r in rows if r["bits"] == config["bits"][0]][::-1]
    fig = Figure(figsize=(7.2, 1.4 + 0.32 * len(order)), layout="constrained")
    ax = fig.subplots()
    for i, (bits, color) in enumerate(zip(config["bits"], (BLUE, GREEN, ORANGE), strict=False)):
        found = {r["group"]: r["error"] for r in rows if r["bits"] == bits}
        low, middle, high = np.maximum(np.array([found[g] for g in order]).T, 1e-9)
        ax.errorbar(middle, np.arange(len(order)) + 0.2 * (1 - i),
                    xerr=[middle - low, high - middle], fmt="o", ms=4, color=color, elinewidth=1.2,
                    label=f"W{bits}A{bits}")  # fmt: skip
    ax.set_yticks(range(len(order)), order, fontsize=8)
    ax.set(xscale="log", xlabel="RMS error of a sample when only this is rounded, image units")
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)
    name = Path(config["checkpoint"]).name
    ax.set_title(f"Sensitivity by kind: {name}, DDIM-{config['num_steps']}", fontsize=10)
    return fig


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line a group and width."""
    from rich.table import Table

    console = tables.console(None)
    table = Table(box=None, header_style="bold")
    for name in ("width", "rounded alone", "error, median", "10 to 90 %", "share", "MACs",
                 "per MAC"):  # fmt: skip
        table.add_column(name, justify="left" if name == "rounded alone" else "right")
    for r in rows:
        low, median, high = r["error"]
        is_all = r["group"] == "all"
        table.add_row(
            f"W{r['bits']}A{r['bits']}", r["group"], f"{median:.4f}", f"{low:.4f} to {high:.4f}",
            "" if is_all else f"{r['share']:.1%}", f"{r['macs']:.1%}" if r["macs"] else "",
            tables.number(r["per_mac"], 2) if r["per_mac"] is not None else "",
        )  # fmt: skip
    console.print(table)

"""Figure and table of `experiments.shaping`; needs no JAX."""

import itertools
from pathlib import Path

from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, tidy

ONCE = ("nearest", "clipped", "sums kept")
STYLES = {"nearest": (GREY, "o", "--"), "sums kept": (GREY, "s", ":"),
          "fresh bits": (GREEN, "^", "-"),
          "golden ratio": (ORANGE, "D", "-"), "sigma-delta": (BLUE, "v", "-")}  # fmt: skip


def grids(rows) -> list[tuple[int, int, dict[str, dict]]]:
    """Return (steps, bits, {method: row}) of each pair, in the order of the rows."""
    pair = lambda row: (row["num_steps"], row["bits"])  # noqa: E731
    return [(*key, {row["method"]: row for row in members})
            for key, members in itertools.groupby(rows, pair)]  # fmt: skip


def gain(by_method) -> float:
    """Return the least error of a single rounding over that of sigma-delta."""
    return min(by_method[name]["rmse"] for name in ONCE) / by_method["sigma-delta"]["rmse"]


def draw(config, arrays, rows) -> Figure:
    """RMSE of the samples by width, a panel for each number of steps."""
    panes = {n: [g for g in grids(rows) if g[0] == n] for n in config["num_steps"]}
    fig, axes = panels(1, len(panes), 2.4, sharey=True, squeeze=False)
    for ax, (num_steps, pane) in zip(axes[0], panes.items(), strict=True):
        bits = [b for _, b, _ in pane]
        for name, (color, marker, line) in STYLES.items():
            found = [by_method[name] for *_, by_method in pane]
            values = [row["rmse"] for row in found]
            ends = [[row["rmse"] - row["low"] for row in found],
                    [row["high"] - row["rmse"] for row in found]]  # fmt: skip
            ax.errorbar(bits, values, ends, color=color, marker=marker, ls=line, ms=3.5, lw=1,
                        capsize=1.5, label=name)  # fmt: skip
        ax.set(yscale="log", xlabel="bits of a weight", title=f"{num_steps} steps", xticks=bits)
    axes[0, 0].set_ylabel(f"RMSE of the samples, {Path(config['checkpoint']).name}")
    tidy(*axes[0])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5,
               frameon=False, fontsize=7)  # fmt: skip
    return fig


FIGURES = {"shaping": draw}


def table(rows) -> list:
    """Return the table on the screen: a line for each number of steps and width."""
    names = list(grids(rows)[0][2])
    spec: list = [("steps", lambda g: g[0]), ("W", lambda g: g[1])]
    spec += [(name, lambda g, name=name: f"{g[2][name]['rmse']:.3g}") for name in names]
    spec += [("once /\nsigma-delta", lambda g: f"{gain(g[2]):.2f}"),
             ("predicted /\nmeasured",
              lambda g: f"{g[2]['sigma-delta']['predicted_over_measured']:.2f}")]  # fmt: skip
    return [
        tables.columns(grids(rows), spec, title="RMSE of the samples by how weights are rounded")
    ]

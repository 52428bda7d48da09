"""Figures and tables of `experiments.allocate`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, tidy

STYLES = {"uniform": (GREY, "o", "--"), "sum of squares": (GREEN, "^", "-"),
          "vector sum": (BLUE, "v", "-"), "again": (ORANGE, "D", "-"),
          "runs": (GREY, "s", ":")}  # fmt: skip


def budgets(rows) -> list[dict]:
    """Return the rows of budgets."""
    return [row for row in rows if row["kind"] == "budget"]


def forecasts(rows) -> list[dict]:
    """Return the rows of forecasts, one for each width."""
    return [row for row in rows if row["kind"] == "forecast"]


def misses(row, what: str) -> float:
    """Return the median of |predicted / measured - 1| of a forecast."""
    return float(np.median(np.abs(np.array(row[what]) / np.array(row["measured"]) - 1)))


def mean_ratio(rows, family: str, way: str) -> float:
    """Return the geometric mean over budgets of RMSE over uniform's."""
    ratios = [row["ratio"] for row in budgets(rows) if (row["family"], row["way"]) == (family, way)]
    return float(np.exp(np.mean(np.log(ratios))))


def draw(config, arrays, rows) -> Figure:
    """RMSE by bits of every way, a panel for each family, and forecasts beside what is measured."""
    told = budgets(rows)
    families = list(dict.fromkeys(row["family"] for row in told))
    fig, axes = panels(1, len(families) + 1, 2.4, squeeze=False)
    for ax, family in zip(axes[0], families, strict=False):
        for way, (color, marker, line) in STYLES.items():
            own = sorted((r for r in told if (r["family"], r["way"]) == (family, way)),
                         key=lambda row: row["bits"])  # fmt: skip
            ends = [[r["rmse"] - r["rmse_low"] for r in own],
                    [r["rmse_high"] - r["rmse"] for r in own]]  # fmt: skip
            ax.errorbar([r["bits"] for r in own], [r["rmse"] for r in own], ends, color=color,
                        marker=marker, ls=line, ms=3, lw=1, capsize=1.5, label=way)  # fmt: skip
        ax.set(yscale="log", xlabel="bits a weight, with scales", title=family)
    axes[0, 0].set_ylabel(f"RMSE of the samples, {Path(config['checkpoint']).name}")
    ax = axes[0, -1]
    for what, way in (("squares", "sum of squares"), ("vectors", "vector sum"), ("runs", "runs")):
        pairs = [(m, p) for row in forecasts(rows)
                 for m, p in zip(row["measured"], row[what], strict=True)]  # fmt: skip
        color, marker, _ = STYLES[way]
        ax.scatter(*zip(*pairs, strict=True), s=5, color=color, marker=marker)
    ends = [min(min(row["measured"]) for row in forecasts(rows)),
            max(max(row["measured"]) for row in forecasts(rows))]  # fmt: skip
    ax.plot(ends, ends, color=GREY, lw=0.7)
    ax.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted", title="at random")
    tidy(*axes[0])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
               ncols=len(STYLES), frameon=False, fontsize=7)  # fmt: skip
    return fig


FIGURES = {"allocate": draw}


def table(rows) -> list:
    """Return the tables on the screen: every way by budget, and the forecasts."""
    spec: list = [
        ("family", lambda row: row["family"]), ("budget", lambda row: f"{row['budget']:g}"),
        ("way", lambda row: row["way"] + (" *" if row["is_chosen"] else "")),
        ("bits", tables.numbers("bits", 4)),
        ("predicted", tables.numbers("predicted")), ("floor", tables.numbers("floor")),
        ("RMSE", tables.numbers("rmse")),
        ("/ uniform", lambda row: f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, "
                                  f"{row['ratio_high']:.2f}]"),
    ]  # fmt: skip
    more: list = [
        ("width", lambda row: row["width"]), ("recipes", lambda row: len(row["measured"])),
        ("vector sum", lambda row: f"{100 * misses(row, 'vectors'):.0f} %"),
        ("from runs", lambda row: f"{100 * misses(row, 'runs'):.0f} %"),
        ("sum of squares", lambda row: f"{100 * misses(row, 'squares'):.0f} %"),
    ]  # fmt: skip
    misses_of = tables.columns(forecasts(rows), more, title="Median miss of recipes at random")
    return [tables.columns(budgets(rows), spec, title="Fresh noise", left=(0, 2)), misses_of]

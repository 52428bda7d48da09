"""Figure and table of `experiments.random_trials`; needs no JAX."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, SMALL, panels, tidy

COLORS = {"a posteriori along the run": BLUE, "distributional": GREEN, "certified": ORANGE}
LIMITS = (-1.5, 7.0)  # log10 of the ratios that are drawn
BINS = 170
ROUNDING = 1e-6


def by_kind(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows in the order of their kinds."""
    kinds = list(dict.fromkeys([*COLORS, *(r["kind"] for r in rows)]))
    return sorted(rows, key=lambda r: kinds.index(r["kind"]))


def draw(config, arrays, rows) -> Figure:
    """Draw how far each bound is from what it bounds, over all trials, and where it was finite."""
    rows = by_kind(rows)
    fig, (ax, side) = panels(
        1, 2, 1.5 + 0.3 * len(rows), sharey=True, width_ratios=(2.4, 1),
    )  # fmt: skip
    kinds = [row["kind"] for row in rows]
    for y, row in enumerate(rows):
        label = None if row["kind"] in kinds[:y] else row["kind"]
        _draw_ratios(ax, y, arrays[f"log10_ratio/{row['bound']}"], row, label)
        _draw_finite(side, y, row)
    ax.axvline(0, color="black", lw=0.8)
    names = [_name(row).replace("Gronwall", "Grönwall") for row in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=7)
    ticks = np.arange(np.ceil(LIMITS[0]), LIMITS[1] + 1)
    ax.set_xticks(ticks, [f"$10^{{{int(t)}}}$" for t in ticks])
    ax.set(
        xlim=LIMITS, ylim=(len(rows) - 0.4, -0.95),
        xlabel="bound / bounded at the end, tightest sample of a trial:\n"
        "root of the density, 5 to 95 % (line), median (dot)\n"
        "* an estimate, which may be below one",
    )  # fmt: skip
    side.set(xlim=(0, 100), xlabel="finite, %", title="violated of compared")
    tidy(ax, side)
    for axes in (ax, side):
        axes.grid(visible=False, axis="y")
    fig.legend(loc="outside lower center", ncols=3, frameon=False, **SMALL)
    return fig


def _name(row) -> str:
    return row["bound"] + ("" if row["guaranteed"] else " *")


def _draw_ratios(ax, y: int, log_ratio, row, label: str | None) -> None:
    """Draw the density of the trials above the line of `y`, 5 to 95 % and the median on it."""
    values = log_ratio[np.isfinite(log_ratio)]
    values = np.where(np.abs(values) < ROUNDING, 0, values)  # an equality is no violation
    color = COLORS.get(row["kind"], GREY)
    counts, edges = np.histogram(values, np.linspace(*LIMITS, BINS + 1).round(6))
    height = np.sqrt(counts / max(int(np.max(counts)), 1))  # the root shows thin tails
    ax.stairs(y - 0.75 * height, edges, baseline=y, fill=True, color=color, alpha=0.45, lw=0,
              label=label)  # fmt: skip
    if not values.size:
        return
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    ax.plot([low, min(high, LIMITS[1])], [y, y], color=color, lw=2, solid_capstyle="butt")
    ax.plot(middle, y, "o", ms=4.5, color=color, mec="white", mew=0.6)
    beyond = np.mean(values > LIMITS[1])
    if beyond > 5e-4:
        ax.annotate(f"{beyond:.1%} beyond", (LIMITS[1], y), (-3, 4), fontsize=7, ha="right",
                    textcoords="offset points",
                    bbox={"color": "white", "alpha": 0.8, "pad": 0.5, "lw": 0})  # fmt: skip


def _draw_finite(ax, y: int, row) -> None:
    """Draw the share of finite bounds as a bar, how many were compared and violated as text."""
    ax.barh(y, 100 * row["finite"], 0.55, color=COLORS.get(row["kind"], GREY), alpha=0.35)
    text = f"{row['violations']:,} of {row['comparisons']:,}"
    ax.text(3, y, text, fontsize=7, va="center")


FIGURES = {"trials": draw}
COLUMNS = (
    ("bound / measured at the end", _name),
    ("compared", lambda r: r["comparisons"]),
    ("violated", lambda r: r["violations"]),
    ("finite", lambda r: f"{r['finite']:.1%}"),
    *((title, lambda r, key=key: f"{r[key]:.4g}") for title, key in (
        ("min", "ratio_min"), ("5 %", "ratio_5"), ("median", "ratio_median"), ("95 %", "ratio_95"),
    )),
)  # fmt: skip


def table(rows) -> list:
    """Return a table for each kind of bound."""
    return tables.grouped(by_kind(rows), "kind", COLUMNS)

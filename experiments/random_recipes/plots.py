"""Figure and tables of `experiments.random_recipes`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, reaches, tidy

PREDICTORS = {"predicted": "predicted error", "weight_error": "error of the weights",
              "weight_bits": "average bits of weights"}  # fmt: skip
MARKS = ((BLUE, "o"), (ORANGE, "D"), (GREEN, "^"), (GREY, "s"))
HELD = 0.95  # of the intervals


def of_recipes(rows) -> list[dict]:
    """Return the rows of recipes, without that of their speed."""
    return [row for row in rows if row["recipe"] != "speed"]


def ranks(values) -> np.ndarray:
    """Return the ranks of numbers, ties with their mean rank."""
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values))
    rank[order] = np.arange(len(values))
    _, inverse = np.unique(values, return_inverse=True)
    return (np.bincount(inverse, rank) / np.bincount(inverse))[inverse]


def spearman(rows, name: str) -> float:
    """Return the rank correlation of a predictor with the measured error, its sign aside."""
    if len(rows) < 3:
        return float("nan")
    first, second = (ranks([row[key] for row in rows]) for key in (name, "measured"))
    is_constant = not np.ptp(first) or not np.ptp(second)
    return float("nan") if is_constant else abs(float(np.corrcoef(first, second)[0, 1]))


def ratios(rows) -> np.ndarray:
    """Return log(predicted / measured) of every (recipe, seed)."""
    return np.array([[np.log(p / m) for m, p in row["of_seeds"]] for row in rows])


def coverage(rows) -> tuple[int, int, float]:
    """Return how many (recipe, seed) an interval holds, of how many, and its half-width in log.

    The interval is predicted / c to predicted * c, with c the finite-sample quantile of |log ratio|
    over every other recipe of the same stratum (split conformal); the rest is held out.
    """
    held = total = 0
    widths = []
    for stratum in sorted({row["stratum"] for row in rows}):
        members = [row for row in rows if row["stratum"] == stratum]
        fitted, fresh = np.abs(ratios(members[::2])).ravel(), np.abs(ratios(members[1::2])).ravel()
        if not len(fresh):
            continue
        rank = int(np.ceil(HELD * (len(fitted) + 1)))
        end = np.sort(fitted)[min(rank, len(fitted)) - 1]
        held, total = held + int(np.sum(fresh <= end)), total + len(fresh)
        widths.append(end)
    return held, total, float(np.mean(widths)) if widths else float("nan")


def draw(config, arrays, rows) -> Figure:
    """Predicted against measured error of every recipe, and the same for what else ranks them."""
    rows = of_recipes(rows)
    fig, axes = panels(1, len(PREDICTORS), 2.2, sharey=True, squeeze=False)
    strata = sorted({row["stratum"] for row in rows})
    for ax, (name, label) in zip(axes[0], PREDICTORS.items(), strict=True):
        for stratum, (color, marker) in zip(strata, MARKS * len(strata), strict=False):
            members = [row for row in rows if row["stratum"] == stratum]
            y = [row["measured"] for row in members]
            ax.errorbar([row[name] for row in members], y, reaches(members, "measured"),
                        color=color, marker=marker, ls="", ms=2.5, lw=0.5,
                        label=f"{stratum} bits")  # fmt: skip
        ax.set(yscale="log", xlabel=label, title=f"rank correlation {spearman(rows, name):.3f}")
        if name != "weight_bits":
            ax.set_xscale("log")
    ends = axes[0, 0].get_ylim()
    axes[0, 0].plot(ends, ends, color=GREY, lw=0.7, zorder=0)
    axes[0, 0].set_ylabel(f"measured RMSE, {Path(config['checkpoint']).name}")
    axes[0, -1].legend(frameon=False, fontsize=7)
    tidy(*axes[0])
    return fig


FIGURES = {"random_recipes": draw}


def table(rows) -> list:
    """Return the tables on the screen: by stratum, and what so many recipes cost."""
    speed = [row for row in rows if row["recipe"] == "speed"]
    rows = of_recipes(rows)
    strata = [*sorted({row["stratum"] for row in rows}), "all"]
    groups = [(s, [r for r in rows if s in ("all", r["stratum"])]) for s in strata]
    spec: list = [
        ("bits", lambda g: g[0]),
        ("recipes", lambda g: len(g[1])),
        ("measured", lambda g: f"{np.median([r['measured'] for r in g[1]]):.3g}"),
    ]
    spec += [
        (f"rank by\n{label}", lambda g, name=name: f"{spearman(g[1], name):.3f}")
        for name, label in PREDICTORS.items()
    ]
    spec += [("median miss", lambda g: f"{np.median(np.abs(np.expm1(ratios(g[1])))):.1%}"),
             ("95 % interval\nholds", lambda g: "{}/{} x/{:.2f}".format(
                 *coverage(g[1])[:2], np.exp(coverage(g[1])[2])))]  # fmt: skip
    told = [tables.columns(groups, spec, title="Random recipes: predicted and measured RMSE")]
    columns: list = [
        ("compile, s", lambda r: f"{r['compile_s']:.1f}"),
        ("each after, s", lambda r: f"{r['each_s']:.2f}"),
        ("alone, s", lambda r: f"{r['alone_s']:.1f}"),
        ("200 recipes, times faster", lambda r: f"{r['speedup_of_200']:.1f}"),
    ]
    return [*told, tables.columns(speed, columns, title="One program for all")]

"""Figure and tables of `experiments.training_aware`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREY, ORANGE, names_beside, panels, tidy

TRAINED = "training"


def of_kind(rows, kind: str) -> list[dict]:
    """Return the rows of ways, or of ratios, over all seeds."""
    return [row for row in rows if row["kind"] == kind]


def draw(config, arrays, rows) -> Figure:
    """RMSE of the samples by way with every seed, for each recipe."""
    told, runs = of_kind(rows, "way"), of_kind(rows, "run")
    names = list(dict.fromkeys(row["way"] for row in told))
    recipes = list(dict.fromkeys(row["recipe"] for row in told))
    fig, axes = panels(1, len(recipes), 0.6 + 0.22 * len(names), sharey=True, squeeze=False)
    for ax, recipe in zip(axes[0], recipes, strict=True):
        for place, name in enumerate(names):
            own = [r["rmse"] for r in runs if (r["recipe"], r["way"]) == (recipe, name)]
            if not own:
                continue
            color = BLUE if TRAINED in name else ORANGE if name == "hybrid" else GREY
            ax.plot(own, np.full(len(own), place), "o", color=color, ms=2.5, alpha=0.6)
            ax.plot(np.exp(np.mean(np.log(own))), place, "D", color=color, ms=4)
        names_beside(ax, names, recipe)
    name = Path(config["checkpoint"]).name
    fig.supxlabel(f"RMSE of the samples, {name}", fontsize=7.5)
    tidy(*axes[0])
    return fig


FIGURES = {"training_aware": draw}


def _between(row, value: str, low: str, high: str) -> str:
    if row[low] is None:
        return tables.number(row[value])
    return f"{tables.number(row[value])} [{tables.number(row[low])}, {tables.number(row[high])}]"


def table(rows) -> list:
    """Return a table of ways for each recipe, and one of ratios."""
    told = of_kind(rows, "way")
    spec = [
        ("way", lambda r: r["way"]),
        ("RMSE, 95 % over seeds", lambda r: _between(r, "rmse", "low", "high")),
        ("median", lambda r: tables.number(r["median"])),
        ("Frechet", lambda r: _between(r, "frechet", "frechet_low", "frechet_high")),
        ("floor", lambda r: tables.number(r["floor"])),
        ("learned", lambda r: f"{r['learned']:.0f}"),
        ("evaluations", lambda r: f"{r['evaluations']:.0f}"),
        ("s", lambda r: f"{r['seconds']:.0f}"),
    ]  # fmt: skip
    ratios = [
        ("recipe", lambda r: r["recipe"]), ("way", lambda r: r["way"]),
        ("over", lambda r: r["beside"]),
        ("RMSE, ratio", lambda r: _between(r, "rmse", "rmse_low", "rmse_high")),
        ("Frechet, ratio", lambda r: _between(r, "frechet", "frechet_low", "frechet_high")),
        ("seeds", lambda r: str(r["num_seeds"])),
    ]  # fmt: skip
    by_recipe = [
        tables.columns([row for row in told if row["recipe"] == recipe], spec, title=recipe)
        for recipe in dict.fromkeys(row["recipe"] for row in told)
    ]
    pairs = of_kind(rows, "ratio")
    if pairs:
        by_recipe.append(tables.columns(pairs, ratios, title="ratios, paired by seed"))
    return by_recipe

"""Figure and tables of `experiments.cures`; needs no JAX."""

from pathlib import Path

from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREY, ORANGE, names_beside, panels, tidy

NONE = "none"


def cures(rows) -> list[dict]:
    """Return the rows over all seeds."""
    return [row for row in rows if row["kind"] == "cure"]


def draw(config, arrays, rows) -> Figure:
    """Median RMSE of every case by recipe, beside that of the default."""
    told = cures(rows)
    names = list(dict.fromkeys(row["case"] for row in told))
    recipes = list(dict.fromkeys(row["recipe"] for row in told))
    fig, axes = panels(1, len(recipes), 0.4 + 0.16 * len(names), sharey=True, squeeze=False)
    for ax, recipe in zip(axes[0], recipes, strict=True):
        own = {row["case"]: row for row in told if row["recipe"] == recipe}
        base = own[NONE]["median"]
        for place, name in enumerate(names):
            row = own[name]
            ends = [base * (1 - row["high"]), base * (1 - row["low"])]
            color = ORANGE if row["is_best"] else BLUE if row["holm"] < 0.05 else GREY
            ax.plot(ends, [place, place], color=color, lw=1)
            ax.plot(row["median"], place, "D" if row["is_best"] else "o", color=color, ms=3)
        ax.axvline(base, color=GREY, lw=0.7, ls=":")
        names_beside(ax, names, recipe)
    name = Path(config["checkpoint"]).name
    fig.supxlabel(f"median RMSE of the samples, {name}", fontsize=7.5)
    tidy(*axes[0])
    return fig


FIGURES = {"cures": draw}


def _recovered(row) -> str:
    mark = "*" if row["holm"] < 0.05 else " "
    return f"{row['recovered']:.0%} [{row['low']:.0%}, {row['high']:.0%}]{mark}"


def table(rows) -> list:
    """Return a table for each recipe."""
    told = cures(rows)
    spec = [
        ("cure", lambda r: ("> " if r["is_best"] else "") + r["case"]),
        ("median", lambda r: f"{r['median']:.4f}"), ("mean", lambda r: f"{r['mean']:.4f}"),
        ("90 %", lambda r: f"{r['most']:.4f}"), ("PSNR", lambda r: f"{r['psnr']:.1f}"),
        ("recovered,\n* if p < .05", _recovered),
        ("bits", lambda r: tables.number(r["bits"])),
        ("evalua-\ntions", lambda r: f"{r['evaluations']:.0f}"),
        ("ceiling\ndB", lambda r: tables.number(r.get("ceiling"), 2)),
        ("flops", lambda r: None if r.get("overhead") is None else f"{r['overhead']:+.1%}"),
        ("learn-\ned", lambda r: f"{r['learned']:.0f}"), ("s", lambda r: f"{r['seconds']:.0f}"),
    ]  # fmt: skip
    return [
        tables.columns([row for row in told if row["recipe"] == recipe], spec,
                       title=f"{recipe}: RMSE of samples, > is the case chosen on other noises")
        for recipe in dict.fromkeys(row["recipe"] for row in told)
    ]  # fmt: skip

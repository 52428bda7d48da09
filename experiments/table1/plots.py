"""Figure and tables of `experiments.table1`; needs no JAX."""

from pathlib import Path

from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREY, names_beside, panels, reaches, tidy

PLAIN = "plain"


def forms(rows) -> list[dict]:
    """Return the rows of forms, over all seeds."""
    return [row for row in rows if row["kind"] == "form"]


def failures(rows) -> list[dict]:
    """Return the rows of runs that failed."""
    return [row for row in rows if row.get("failure")]


def draw(config, arrays, rows) -> Figure:
    """RMSE of the samples by technique, plain and best, a panel for each recipe."""
    told = forms(rows)
    recipes = list(dict.fromkeys(row["recipe"] for row in told))
    names = list(dict.fromkeys(row["technique"] for row in told))
    lines = -(-len(recipes) // 3)
    fig, axes = panels(lines, min(3, len(recipes)), lines * (0.7 + 0.2 * len(names)), sharey=True,
                       squeeze=False)  # fmt: skip
    for ax in axes.ravel()[len(recipes) :]:
        ax.set_visible(False)
    shown = axes.ravel()[: len(recipes)]
    for ax, recipe in zip(shown, recipes, strict=True):
        for row in (row for row in told if row["recipe"] == recipe):
            place = names.index(row["technique"])
            is_plain = row["form"] == PLAIN
            color = GREY if is_plain else BLUE
            ax.errorbar(row["rmse"], place, xerr=reaches([row]), color=color, ms=3.5, lw=1,
                        marker="o" if is_plain else "D", capsize=1.5, ls="",
                        label=row["form"] if place == 0 else None)  # fmt: skip
        names_beside(ax, names, recipe)
    fig.supxlabel(f"RMSE of the samples, {Path(config['checkpoint']).name}", fontsize=7.5)
    tidy(*shown, legend=7)
    return fig


FIGURES = {"table1": draw}


def spec_of(rows) -> list:
    """Return (title, row -> cell) of the main table."""

    def between(key: str):
        return lambda row: "{:.3g} [{:.2g}, {:.2g}]".format(*row[key])

    spec: list = [
        ("technique", lambda r: r["technique"]), ("form", lambda r: r["form"]),
        ("bits", lambda r: f"{r['bits']:.2f}"),
        ("RMSE", lambda r: f"{r['rmse']:.3g} [{r['low']:.2g}, {r['high']:.2g}]"),
        ("PSNR", lambda r: f"{r['psnr']:.1f}"),
        ("next sample", lambda r: f"{r['guaranteed']:.3g}"),
        ("Frechet to float", between("frechet")),
    ]  # fmt: skip
    if rows and "frechet_data" in rows[0]:
        spec += [("to data", between("frechet_data"))]
    return spec


def costs_of(rows) -> list:
    """Return (title, row -> cell) of the table of costs."""
    return [
        ("technique", lambda r: r["technique"]), ("form", lambda r: r["form"]),
        ("stored", lambda r: f"{r['stored']:.2f}"),
        ("MB", lambda r: f"{r['megabytes']:.3g}"), ("Gbop", lambda r: f"{r['gigabops']:.3g}"),
        ("v5e us", lambda r: f"{1e6 * r['seconds_of_chips'][0]:.3g}"),
        ("H200 us", lambda r: f"{1e6 * r['seconds_of_chips'][1]:.3g}"),
        ("evaluations", lambda r: f"{r['evaluations']:.0f}"),
        ("learned", lambda r: f"{r['learned']:.0f}"), ("seconds", lambda r: f"{r['seconds']:.0f}"),
        ("overhead", lambda r: f"{100 * r['overhead']:.1f} %"),
    ]  # fmt: skip


def table(rows) -> list:
    """Return what the forms are, two tables for each recipe, quality and cost, and failures."""
    told = forms(rows)
    what = {(row["technique"], row["form"]): row["what"] for row in told}
    made = [tables.columns([*what], [
        ("technique", lambda key: key[0]), ("form", lambda key: key[1]),
        ("what it is", lambda key: what[key]),
    ], title="Forms", left=(0, 1, 2))]  # fmt: skip
    for recipe in dict.fromkeys(row["recipe"] for row in told):
        own = [row for row in told if row["recipe"] == recipe]
        floor = own[0]["floor"]
        title = f"{recipe}; floor of the Frechet distance {floor[0]:.3g}, {own[0]['features']}"
        made += [tables.columns(own, spec_of(own), title=title, left=(0, 1)),
                 tables.columns(own, costs_of(own), title=f"{recipe}, cost",
                                left=(0, 1))]  # fmt: skip
    if failed := failures(rows):
        made.append(tables.columns(failed, [
            ("recipe", lambda r: r["recipe"]), ("technique", lambda r: r["technique"]),
            ("form", lambda r: r["form"]), ("failure", lambda r: r["failure"]),
        ], title="Failed", left=(0, 1, 2, 3)))  # fmt: skip
    return made

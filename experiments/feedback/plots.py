"""Figures and tables of `experiments.feedback`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, reaches, tidy

STYLES = ((GREY, "o", "--"), (GREEN, "^", "-"), (BLUE, "v", "-"), (ORANGE, "D", ":"),
          (GREY, "s", ":"))  # fmt: skip


def recipes(rows) -> list[dict]:
    """Return the rows of recipes."""
    return [row for row in rows if row["kind"] == "recipe"]


def by_site(rows) -> dict:
    """Return the row of all sites."""
    return next(row for row in rows if row["kind"] != "recipe")


def signs(row) -> tuple[int, int]:
    """Return at how many sites the forecasts say rightly whether feedback pays, and of how many.

    Against stochastic rounding, which the forecast without feedback is of.
    """
    said = np.array(row["fed_back"]) < np.sqrt(2) * np.array(row["independent"])
    true = np.array(row["feedback"]) < np.array(row["stochastic"])
    return int(np.sum(said == true)), len(said)


def draw(config, arrays, rows) -> Figure:
    """RMSE of the samples by the number of steps, a panel for each family of recipes."""
    told = recipes(rows)
    families = list(dict.fromkeys(row["family"] for row in told))
    rows_of_panels = -(-len(families) // 3)
    fig, axes = panels(rows_of_panels, 3, 2.9 * rows_of_panels, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(families) :]:
        ax.set_visible(False)
    shown = axes.ravel()[: len(families)]
    for ax, family in zip(shown, families, strict=True):
        members = [row for row in told if row["family"] == family]
        names = dict.fromkeys(row["name"] for row in members)
        for name, (color, marker, line) in zip(names, STYLES, strict=False):
            own = [row for row in members if row["name"] == name]
            ax.errorbar([row["num_steps"] for row in own], [row["rmse"] for row in own],
                        reaches(own), color=color, marker=marker, ls=line, ms=3, lw=1,
                        capsize=1.5, label=name)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="steps", title=family)
        ax.set_xticks(config["num_steps"], [str(n) for n in config["num_steps"]])
        ax.minorticks_off()
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), frameon=False, fontsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel("RMSE of the samples")
    tidy(*shown)
    fig.supxlabel(Path(config["checkpoint"]).name, fontsize=7.5)
    return fig


def draw_sites(config, arrays, rows) -> Figure:
    """Gain of feedback at each site alone: forecast against measured."""
    row = by_site(rows)
    said = np.sqrt(2) * np.array(row["independent"]) / np.array(row["fed_back"])
    true = np.array(row["stochastic"]) / np.array(row["feedback"])
    fig, axes = panels(1, 1, 2.6, squeeze=False)
    ax = axes[0, 0]
    ax.scatter(said, true, s=12, color=BLUE)
    ends = [min(said.min(), true.min()), max(said.max(), true.max())]
    ax.plot(ends, ends, color=GREY, lw=0.7)
    ax.axhline(1, color=GREY, lw=0.7, ls=":")
    ax.axvline(1, color=GREY, lw=0.7, ls=":")
    ax.set(xscale="log", yscale="log", xlabel="stochastic / feedback, forecast",
           ylabel="measured", title="each site alone")  # fmt: skip
    tidy(ax)
    return fig


FIGURES = {"feedback": draw, "feedback_sites": draw_sites}


def table(rows) -> list:
    """Return the tables on the screen: recipes by number of steps, and all sites."""
    told = recipes(rows)
    steps = list(dict.fromkeys(row["num_steps"] for row in told))
    lines = list(dict.fromkeys((row["family"], row["name"]) for row in told))
    found = {(row["family"], row["name"], row["num_steps"]): row for row in told}
    spec: list = [("", lambda line: line[0]), ("rounded", lambda line: line[1])]
    spec += [(f"N = {n}", lambda line, n=n: f"{found[*line, n]['rmse']:.3g}") for n in steps]
    spec += [("predicted / measured", lambda line: " ".join(
        f"{found[*line, n]['predicted'] / found[*line, n]['rmse']:.2f}" for n in steps
    ))]  # fmt: skip
    right, num = signs(by_site(rows))
    ratio = np.array(by_site(rows)["fed_back"]) / np.array(by_site(rows)["feedback"])
    sites: list = [
        ("sites", lambda _: num),
        ("sign of the gain right", lambda _: right),
        ("forecast / measured, median", lambda _: f"{np.median(ratio):.2f}"),
    ]
    return [tables.columns(lines, spec, title="RMSE of the samples by how activations are rounded"),
            tables.columns([0], sites, title="Each site alone")]  # fmt: skip

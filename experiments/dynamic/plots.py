"""Figure and tables of `experiments.dynamic`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, ticks_of_logs, tidy


def of(rows, family: str, part: str) -> dict:
    """Return the row of a part."""
    return next(row for row in rows if (row["family"], row["part"]) == (family, part))


def families(rows) -> list[str]:
    """Return the families that were run."""
    return list(dict.fromkeys(row["family"] for row in rows))


def saving(cheaper: float, dearer: float) -> float:
    """Return how much less the cheaper one costs, of the dearer."""
    return 1 - cheaper / dearer


def savings(rows, family: str) -> dict[str, float]:
    """Return what is saved of the bit-operations of a recipe or a schedule, and could be."""
    fixed, own = of(rows, family, "beforehand"), of(rows, family, "dynamic")
    recipe, schedule, oracle = (fixed[k]["cost"] for k in ("recipe", "schedule", "oracle"))
    return {
        "schedule over recipe": saving(schedule, recipe),
        "dynamic over recipe": saving(own["cost"], recipe),
        "dynamic over schedule": saving(own["cost"], schedule),
        "oracle over schedule": saving(oracle, schedule),
    }


def told(arrays, family: str) -> float:
    """Return the correlation of what samples cost with the log of their error under the schedule.

    The share of the variance that the controller foresees is its square.
    """
    errors = arrays[f"{family}, beforehand/schedule_errors"]
    return float(np.corrcoef(np.log(errors), arrays[f"{family}, dynamic/costs"])[0, 1])


def draw(config, arrays, rows) -> Figure:
    """Errors against bit-operations of what is chosen beforehand and as samples run."""
    names = families(rows)
    fig, axes = panels(1, len(names) + 1, 2.8, squeeze=False)
    *own, last = axes[0]
    for ax, family in zip(own, names, strict=True):
        fixed, own_row = of(rows, family, "beforehand"), of(rows, family, "dynamic")
        unit = fixed["recipe"]["cost"]
        errors = arrays[f"{family}, beforehand/errors"]
        prices = np.array(fixed["prices"]) / unit
        ax.plot(
            prices, np.quantile(errors, 0.95, axis=1), color=GREY, lw=1, label="schedules, 95 %"
        )
        ax.plot(prices, np.median(errors, axis=1), color=GREY, lw=1, ls=":", label="median")
        ax.plot(arrays[f"{family}, dynamic/costs"] / unit, arrays[f"{family}, dynamic/errors"], ".",
                color=BLUE, ms=2, label="dynamic, samples")  # fmt: skip
        for x, marker, color, label in (
            (1.0, "s", ORANGE, "recipe chosen"),
            (fixed["schedule"]["cost"] / unit, "D", "black", "schedule chosen"),
            (own_row["cost"] / unit, "o", BLUE, "dynamic, mean"),
            (fixed["oracle"]["cost"] / unit, "*", GREEN, "oracle, mean"),
        ):
            ax.plot(x, config["tolerance"], marker, color=color, ms=5, label=label, ls="")
        ax.axhline(config["tolerance"], color=GREY, lw=0.7, ls="--")
        ax.set(yscale="log", xlabel=f"bit-operations over {fixed['recipe']['name']}",
               ylabel="RMSE of samples",
               title=f"{Path(config['checkpoint']).name}, {family}")  # fmt: skip
        ticks_of_logs(ax, "y")
    for family, color in zip(names, (BLUE, ORANGE), strict=False):
        costs = arrays[f"{family}, dynamic/costs"] / of(rows, family, "dynamic")["cost"]
        last.plot(arrays[f"{family}, beforehand/schedule_errors"], costs, ".", color=color, ms=2,
                  label=f"{family}, samples")  # fmt: skip
    last.set(xlabel="RMSE under the schedule", ylabel="bit-operations over the mean")
    tidy(*axes[0])
    handles, labels = own[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False,
               handletextpad=0.3)  # fmt: skip
    return fig


FIGURES = {"dynamic": draw}


def table(rows) -> list:
    """Return the tables on the screen: what is kept and what it costs, and the same elsewhere."""
    found, shifted = [], []
    for family in families(rows):
        fixed, own = of(rows, family, "beforehand"), of(rows, family, "dynamic")
        unit = fixed["recipe"]["cost"]
        for name, row in (("recipe " + fixed["recipe"]["name"], fixed["recipe"]),
                          ("schedule by step", fixed["schedule"]), ("dynamic", own),
                          ("oracle", fixed["oracle"])):  # fmt: skip
            found.append({**row, "family": family, "name": name, "relative": row["cost"] / unit})
        shifted += [{**row, "family": family} for row in own["shifts"]]

    def kept(row) -> str:
        return f"{row['within']} of {row['num']}"

    spec: list = [
        ("width of", lambda r: r["family"]), ("chosen", lambda r: r["name"]),
        ("bit-operations", lambda r: f"{r['relative']:.3f}"), ("within", kept),
        ("share, at least", lambda r: f"{r['low']:.3f}"), ("RMSE", tables.numbers("rmse")),
    ]  # fmt: skip
    elsewhere: list = [
        ("width of", lambda r: r["family"]), ("out of distribution", lambda r: r["name"]),
        ("dynamic within", kept), ("schedule within", lambda r: kept(r["schedule"])),
    ]  # fmt: skip
    parts = [tables.columns(found, spec, title="Bit-operations within an error of samples")]
    if shifted:
        parts.append(tables.columns(shifted, elsewhere, title="Not promised"))
    for row in (row for row in rows if row["part"] == "time"):
        parts.append("time of choosing: {:+.1%} [{:+.1%}, {:+.1%}]".format(*row["overhead"]))
    return parts

"""Figure and table of `experiments.bench.site_latency`; needs no JAX."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import GREY, SMALL, panels, ticks_of_logs, tidy
from qdiffjax.plots import KINDS, short

FULL = "full precision"
SUM, CALL = "sum over sites", "call of the network"  # rows that are no site's
MARKERS = {"conv": "o", "dot": "s"}
LINE: dict[str, Any] = {"color": GREY, "lw": 0.8, "label": "equal"}


def of_sites(rows) -> list[dict]:
    """Return the rows of sites, the slowest in full precision first."""
    sites = [row for row in rows if row["site"] not in (SUM, CALL)]
    return sorted(sites, key=lambda row: -row["times"][FULL]["p50"])


def draw_latency(config, arrays, rows) -> Figure:
    """Draw p50 of each site with a whisker up to p99, quantized against full precision."""
    sites, recipes = of_sites(rows), config["recipe"]
    fig, axes = panels(1, len(recipes), 2.5, squeeze=False, sharex=True, sharey=True)
    ends = [
        time
        for row in sites
        for each in row["times"].values()
        for time in (each["p50"], each["p99"])
    ]
    for name, ax in zip(recipes, axes[0], strict=True):
        ax.set(xscale="log", yscale="log", title=name)
        ax.plot(*[(min(ends), max(ends))] * 2, **LINE)
        for kind, color in KINDS.items():
            x, y = (_points(sites, kind, name, which) for which in (FULL, name))
            ax.errorbar(x[0], y[0], xerr=_up(x), yerr=_up(y), fmt=MARKERS[kind], ms=2.5, lw=0.5,
                        color=color, label=f"{kind}, p50 and up to p99")  # fmt: skip
    for ax in axes[0]:
        for which in "xy":
            ticks_of_logs(ax, which)
    tidy(*axes[0])
    axes[0, len(recipes) // 2].set_xlabel("µs alone, in full precision", **SMALL)
    axes[0, 0].set_ylabel("µs alone, quantized", **SMALL)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
               frameon=False, **SMALL)  # fmt: skip
    return fig


def _points(sites, kind: str, recipe: str, which: str) -> np.ndarray:
    """Return p50 and p99 [2, sites] of the sites of a kind that a recipe does not leave plain."""
    chosen = [row["times"] for row in sites if row["product"] == kind]
    changed = [times[which] for times in chosen if times[recipe]["way"] != "plain"]
    return np.array([[time[key] for time in changed] for key in ("p50", "p99")], float)


def _up(points: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(points[0]), points[1] - points[0]])


def _column(name: str, key: str, digits: int = 3):
    """Return a column of a number of microseconds, empty at sites that a recipe leaves plain."""

    def cell(row):
        time = row["times"][name]
        is_plain = name != FULL and time.get("way") == "plain"
        return None if is_plain else tables.number(time.get(key), digits)

    return cell


def _ratio(name: str):
    """Return the column of a recipe's ratio, marked where its interval holds 1."""

    def cell(row):
        time = row["times"][name]
        if time.get("way") == "plain":
            return "plain"
        is_open = time.get("low", np.inf) <= 1 <= time.get("high", -np.inf)
        return f"{time['ratio']:.2f}" + ("~" if is_open else "")

    return cell


def table(rows) -> list:
    """Return the table on the screen: sites by time, their sum and the call below."""
    recipes = [name for name in rows[0]["times"] if name != FULL]
    columns: list[tuple[str, Any]] = [
        ("µs of", lambda row: short(row["site"].removesuffix("/kernel"))),
        ("full\np50", _column(FULL, "p50")), ("full\np99", _column(FULL, "p99", 2)),
    ]  # fmt: skip
    for name in recipes:
        columns += [(f"{name}\np50", _column(name, "p50")), ("\np99", _column(name, "p99", 2)),
                    ("\nratio", _ratio(name))]  # fmt: skip
    ends = [row for which in (SUM, CALL) for row in rows if row["site"] == which]
    ways = {name: [row["times"][name]["way"] for row in of_sites(rows)] for name in recipes}
    return [
        tables.columns([*of_sites(rows), *ends], columns),
        "ratio of the medians to full precision, ~ where its interval holds 1",
        *(f"{name}: " + ", ".join(f"{found.count(way)} {way}" for way in dict.fromkeys(found))
          for name, found in ways.items()),
    ]  # fmt: skip


FIGURES = {"latency": draw_latency}

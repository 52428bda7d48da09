"""Figure and tables of `experiments.faults`; needs no JAX."""

import itertools
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREY, ORANGE, panels, tidy

FIXED, TESTED = "fixed", "tested"
LEVEL = 0.01  # of honest recipes that each limit may refuse
MARGIN = 1.5  # of the limits, as the network that is judged is another one
RATIOS = ("total_ratio", "step_ratio", "site_ratio")
WAYS = {"samples alone": RATIOS[:1], "and steps": RATIOS[:2], "and sites": RATIOS}
LARGE = 2.0  # effect from which a fault is to be found
EDGES = (0.0, 1.1, 1.25, 1.5, 2.0, 4.0, math.inf)


def honest(rows, part: str) -> list[dict]:
    """Return what was measured of the honest recipes of a part."""
    return [row["honest"] for row in rows if row["part"] == part]


def limits(rows, margin: float = MARGIN) -> dict[str, float]:
    """Return the limits of the ratios, conformal quantiles of what fixes them, times a margin."""
    own = honest(rows, FIXED)
    rank = min(math.ceil((1 - LEVEL) * (len(own) + 1)), len(own))
    return {name: margin * float(np.sort([row[name] for row in own])[rank - 1]) for name in RATIOS}


def lowest(rows) -> float:
    """Return the lower end of the samples' ratio by the same rule, for the interval."""
    own = np.sort([row["total_ratio"] for row in honest(rows, FIXED)])
    return float(own[max(math.floor(LEVEL * (len(own) + 1)), 1) - 1]) / MARGIN


def is_found(row, most: dict[str, float], seen=RATIOS) -> bool:
    """Return whether a verdict that sees these ratios is "a bug"."""
    return any(not row[name] <= most[name] for name in seen)


def judged(rows) -> list[dict]:
    """Return the faults with their verdicts.

    found: by what is seen, {way: whether}; named: whether the site is right, none for a step off by
    one; timed: whether the step is one of those at fault.
    """
    most, told = limits(rows), []
    for own in (fault for row in rows for fault in row.get("faults", ())):
        has_site, has_step = (is_found(own, most, (name,)) for name in ("site_ratio", "step_ratio"))
        site = own["worst_site"] if has_site else None
        step = own["worst_site_step"] if has_site else own["worst_step"] if has_step else None
        told.append(own | {
            "found": {way: is_found(own, most, seen) for way, seen in WAYS.items()},
            "named": site == own["site"],
            "timed": step is not None and own["start"] <= step < own["stop"],
        })  # fmt: skip
    return told


def alarms(rows, way: str = "and sites", part: str = TESTED) -> tuple[int, int]:
    """Return how many honest recipes are called bugs, and of how many."""
    most, own = limits(rows), honest(rows, part)
    return sum(is_found(row, most, WAYS[way]) for row in own), len(own)


def share(own, holds) -> tuple[int, int]:
    """Return how many faults have something, and of how many."""
    return sum(map(holds, own)), len(own)


def groups(told) -> dict[str, list[dict]]:
    """Return faults by effect, then those that are large, then by kind."""
    bands = {f"{low:g} to {high:g}": [f for f in told if low <= f["effect"] < high]
             for low, high in itertools.pairwise(EDGES)}  # fmt: skip
    bands[f"{EDGES[-2]:g} or more"] = bands.pop(f"{EDGES[-2]:g} to inf")
    large = [f for f in told if f["effect"] >= LARGE]
    kinds = {kind: [f for f in large if f["kind"] == kind]
             for kind in dict.fromkeys(f["kind"] for f in told)}  # fmt: skip
    return {**bands, f"{LARGE:g} or more": large,
            **{f"{kind}, {LARGE:g} or more": own for kind, own in kinds.items()}}  # fmt: skip


def draw(config, arrays, rows) -> Figure:
    """Faults found by their effect; local errors of the worst site beside errors of samples."""
    told, most = judged(rows), limits(rows)
    fig, axes = panels(1, 2, 2.3, squeeze=False)
    left, right = axes[0]
    effects = np.array([f["effect"] for f in told])
    top = 1.3 * max(np.max(effects[np.isfinite(effects)], initial=1), 10)
    for is_found_, color, marker, label in ((True, BLUE, "o", "found"),
                                            (False, ORANGE, "x", "not found")):  # fmt: skip
        which = np.array([f["found"]["and sites"] == is_found_ for f in told])
        sites = np.array([f["site_ratio"] for f in told])
        left.plot(np.minimum(effects[which], top), np.minimum(sites[which], 1e4), marker, ms=3,
                  color=color, label=f"fault, {label}", ls="")  # fmt: skip
    tested = honest(rows, TESTED)
    left.plot(
        [row["measured"] / row["forecast"] for row in tested],
        [row["site_ratio"] for row in tested],
        ".",
        color=GREY,
        ms=2,
        label="honest",
    )
    left.axhline(most["site_ratio"], color=GREY, lw=0.8, ls="--")
    left.axvline(most["total_ratio"], color=GREY, lw=0.8, ls="--")
    left.set(xscale="log", yscale="log", xlabel="measured / forecast error of samples",
             ylabel="the same of the worst site",
             title=Path(config["checkpoint"]).name)  # fmt: skip
    bands = list(groups(told).items())[: len(EDGES) - 1]
    for (way, _), color, marker in zip(WAYS.items(), (GREY, ORANGE, BLUE), "s^o", strict=True):
        counts = [share(members, lambda f, way=way: f["found"][way]) for _, members in bands]
        right.plot(range(len(bands)), [100 * k / n if n else np.nan for k, n in counts],
                   color=color, marker=marker, ms=3, label=way)  # fmt: skip
    names = [name.replace(" to ", "\n").replace(" or ", "\nor ") for name, _ in bands]
    right.set_xticks(range(len(bands)), names)
    right.set(xlabel="effect", ylabel="faults found, %", ylim=(-3, 103))
    tidy(left, right)
    for ax in (left, right):
        ax.legend(loc="upper left", frameon=False, fontsize=7, handletextpad=0.3)
    return fig


FIGURES = {"faults": draw}


def table(rows) -> list:
    """Return the tables on the screen: limits and false alarms, and faults by effect and kind."""
    told, most = judged(rows), limits(rows)

    def counted(holds):
        return lambda group: "{} of {}".format(*share(group[1], holds))

    ends = [{"name": name, "most": most[name], "half": float(np.median([
        row[name] for row in honest(rows, TESTED)]))} for name in RATIOS]  # fmt: skip
    first: list = [("measured over forecast", lambda r: r["name"].removesuffix("_ratio")),
                   ("at most", tables.numbers("most")),
                   ("median of honest", tables.numbers("half"))]  # fmt: skip
    spec: list = [("effect", lambda g: g[0])]
    spec += [(f"found by\n{way}", counted(lambda f, way=way: f["found"][way])) for way in WAYS]
    spec += [("site named", counted(lambda f: f["named"])),
             ("step named", counted(lambda f: f["timed"]))]  # fmt: skip
    called = ", ".join("{}: {} of {}".format(way, *alarms(rows, way)) for way in WAYS)
    return [
        tables.columns(ends, first, title="Limits, fixed on the other network"),
        f"honest recipes called bugs by {called}",
        tables.columns(list(groups(told).items()), spec, title="Faults by their effect"),
    ]

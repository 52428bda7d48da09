"""Figure and tables of `experiments.coverage`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, tidy

COLORS = (BLUE, GREEN, ORANGE, GREY)


def of_kind(rows, kind: str) -> list[dict]:
    """Return the rows of one kind: "bound", "W2" or "choices"."""
    return [row for row in rows if row["kind"] == kind]


def draw(config, arrays, rows) -> Figure:
    """Share of guarantees that fail, beside what is allowed; choices with p-values and without."""
    fig, axes = panels(1, 2, 2.8, squeeze=False)
    bounds, choices = axes[0]
    told = of_kind(rows, "bound")
    names = list(dict.fromkeys(row["pool"] for row in told))
    kinds = list(dict.fromkeys((row["what"], row["num"]) for row in told))
    for i, name in enumerate(names):
        own = {(row["what"], row["num"]): row for row in told if row["pool"] == name}
        places = np.arange(len(kinds)) + 0.16 * (i - (len(names) - 1) / 2)
        rates = [own[kind]["failures"] / own[kind]["repetitions"] for kind in kinds]
        bounds.plot(places, rates, "o", ms=3.5, color=COLORS[i % 4], label=Path(name).name)
    first = {(row["what"], row["num"]): row for row in told}
    for place, kind in enumerate(kinds):
        ends = [first[kind][end] / first[kind]["repetitions"] for end in ("least", "most")]
        bounds.fill_between([place - 0.4, place + 0.4], *ends, color=GREY, alpha=0.25, lw=0)
    bounds.set_xticks(range(len(kinds)), [f"{what}\nn = {num}" for what, num in kinds],
                      rotation=90)  # fmt: skip
    bounds.set(ylabel="guarantees that fail", title="shaded: 99 % region")
    chosen = of_kind(rows, "choices")
    ways = list(dict.fromkeys((row["what"], row["how"]) for row in chosen))
    for i, name in enumerate(names):
        own = {(row["what"], row["how"]): row for row in chosen if row["pool"] == name}
        if own:
            rates = [own[way]["failures"] / own[way]["repetitions"] for way in ways]
            choices.plot(np.arange(len(ways)) + 0.16 * (i - 1), rates, "o", ms=3.5,
                         color=COLORS[i % 4])  # fmt: skip
    choices.axhline(config["delta"], color=GREY, lw=0.7, ls=":")
    choices.set_xticks(range(len(ways)), [f"{what},\n{how}" for what, how in ways], rotation=90)
    choices.set(ylabel="choices that break a promise", title="a recipe just not good enough")
    tidy(bounds, choices)
    fig.legend(*bounds.get_legend_handles_labels(), loc="outside lower center", ncols=len(names),
               frameon=False, fontsize=7)  # fmt: skip
    return fig


FIGURES = {"coverage": draw}


def region(row) -> str:
    """Write failures beside their region."""
    return f"{row['failures']} ({row['least']} to {row['most']})"


def table(rows) -> list:
    """Return the tables on the screen: failures by pool; choices; what W2 takes."""
    bounds = of_kind(rows, "bound")
    by = {(row["pool"], row["what"], row["num"]): row for row in bounds}
    names = list(dict.fromkeys(row["pool"] for row in bounds))
    kinds = list(dict.fromkeys((row["what"], row["num"]) for row in bounds))
    spec: list = [("guarantee", lambda kind: kind[0]), ("scores", lambda kind: kind[1])]
    spec += [(name, lambda kind, name=name: region(by[name, *kind])) for name in names]
    repetitions = bounds[0]["repetitions"]
    told: list = [tables.columns(kinds, spec, title=f"Failures in {repetitions} (99 % region)")]
    choices = of_kind(rows, "choices")
    if choices:
        spec = [("pool", lambda r: r["pool"]), ("promise", lambda r: r["what"]),
                ("chosen by", lambda r: r["how"]), ("keep it", lambda r: r["keep"]),
                ("passed", lambda r: f"{r['passed']:.2f}"), ("broken", region),
                (f"of {choices[0]['few']}", lambda r: r["broken_of_few"])]  # fmt: skip
        told.append(tables.columns(choices, spec, left=(0, 1, 2), title="Choices among recipes"))
    spec = [("pool", lambda r: r["pool"]), ("samples", lambda r: r["num"]),
            ("measured", tables.numbers("measured")), ("promised", tables.numbers("promised")),
            ("ratio", tables.numbers("ratio")), ("95 %", tables.numbers("ratio_95")),
            ("broken", region)]  # fmt: skip
    told.append(tables.columns(of_kind(rows, "W2"), spec, title="W2, RMS per element"))
    return told

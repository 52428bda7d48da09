"""Figure and table of `experiments.schedules`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, tidy

BEST, RULE = "gain, best of whole bits", "gain, a bit more at both ends"


def draw(config, arrays, rows) -> Figure:
    """Share of each step, and gains beside their ceiling."""
    fig, axes = panels(1, 2, 2.5, squeeze=False)
    left, right = axes[0]
    bits = rows[0]["bits"]
    colors = (BLUE, GREEN, ORANGE, GREY)
    own = [row for row in rows if row["kind"] == "error" and row["bits"] == bits]
    for row, color in zip(own, colors, strict=False):
        shares = np.array(row["by_step"]) / np.sum(row["by_step"])
        left.plot(shares, color=color, lw=1, label=f"error, {row['sampler']}")
    for row in (row for row in rows if row["kind"] == "KL" and row["bits"] == bits):
        shares = np.array(row["by_step"]) / np.sum(row["by_step"])
        left.plot(shares, color="black", lw=1, ls="--", label=f"path KL, {row['sampler']}")
    left.set(yscale="log", xlabel="step", ylabel=f"share of a step, A{bits}")
    told = [row for row in rows if row["kind"] == "error"]
    places = np.arange(len(told))
    for key, color, marker, shift in (("ceiling", GREY, "_", 0), (BEST, BLUE, "o", -0.15),
                                      (RULE, ORANGE, "v", 0.15)):  # fmt: skip
        values = np.array([row[key] for row in told])
        right.errorbar(places + shift, values[:, 0], np.abs(values[:, 1:] - values[:, :1]).T,
                       color=color, marker=marker, ms=3.5, lw=0, elinewidth=1, capsize=1.5,
                       label=key.removeprefix("gain, "))  # fmt: skip
    right.axhline(0, color=GREY, lw=0.7, ls=":")
    right.set(ylabel=f"bits gained, {Path(config['checkpoint']).name}")
    right.set_xticks(places, [f"{row['sampler']}\nA{row['bits']}" for row in told], fontsize=7,
                     rotation=60)  # fmt: skip
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.5 * (high - low))  # room for the legend
    tidy(left, right, legend=7)
    right.legend(loc="upper right", fontsize=7, frameon=False)
    return fig


FIGURES = {"schedules": draw}


def table(rows) -> list:
    """Return the tables on the screen: gains of widths by step, and the ceiling for path KL."""

    def between(key):
        return lambda row: "{:.2f} [{:.2f}, {:.2f}]".format(*row[key])

    errors = [row for row in rows if row["kind"] == "error"]
    spec: list = [
        ("sampler", lambda r: r["sampler"]), ("A", lambda r: r["bits"]),
        ("equal, RMSE", lambda r: f"{r['rmse']['equal']:.3g}"),
        ("forecast", lambda r: f"{r['forecast']:.3g}"), ("ceiling", between("ceiling")),
        ("best", between(BEST)), ("rule", between(RULE)),
    ]  # fmt: skip
    divergent: list = [
        ("sampler", lambda r: r["sampler"]), ("A", lambda r: r["bits"]),
        ("path KL, nats", lambda r: f"{r['kl']:.3g}"), ("ceiling", between("ceiling")),
        ("share of the last tenth", lambda r: f"{r['last_tenth']:.2f}"),
    ]  # fmt: skip
    kl = [row for row in rows if row["kind"] == "KL"]
    return [tables.columns(errors, spec, title="Bits gained by widths by step, equal bits in all"),
            tables.columns(kl, divergent, title="The same for path KL")]  # fmt: skip

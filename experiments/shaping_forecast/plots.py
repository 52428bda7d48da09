"""Figure and tables of `experiments.shaping_forecast`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, panels, reaches, ticks_of_logs, tidy

# {way: (color, marker, line)}
STYLES = {"nearest": (GREY, "o", "--"), "fresh bits": (GREEN, "^", "-"),
          "sigma-delta": (BLUE, "v", "-"),
          "sigma-delta, last in full": (BLUE, "x", ":")}  # fmt: skip


def ratio(row) -> float:
    """Return the forecast over what was measured of the same samples."""
    return row["forecast"] / row["rmse_of_forecast_samples"]


def draw(config, arrays, rows) -> Figure:
    """RMSE of the samples by the number of steps, a column for each width; below its forecast.

    The band is 25 % on either side of what was measured.
    """
    widths = list(dict.fromkeys(row["bits"] for row in rows))
    steps = list(dict.fromkeys(row["num_steps"] for row in rows))
    fig, axes = panels(2, len(widths), 3.6, sharex=True, squeeze=False,
                       height_ratios=(3, 2))  # fmt: skip
    for (above, below), bits in zip(axes.T, widths, strict=True):
        below.axhspan(1 / 1.25, 1.25, color="0.92", lw=0)
        for way, (color, marker, line) in STYLES.items():
            found = [row for row in rows if (row["bits"], row["way"]) == (bits, way)]
            style = {"color": color, "marker": marker, "ls": line, "ms": 3.5, "lw": 1}
            above.errorbar(steps, [row["rmse"] for row in found], reaches(found), capsize=1.5,
                           label=way, **style)  # fmt: skip
            told = [row for row in found if "forecast" in row]
            below.plot([row["num_steps"] for row in told], [ratio(row) for row in told], **style)
        above.set(xscale="log", yscale="log", title=f"W{bits}")
        below.set(xlabel="steps", yscale="log", ylim=(0.2, 5), yticks=(0.25, 0.5, 1, 2, 4),
                  yticklabels=("1/4", "1/2", "1", "2", "4"), xticks=steps,
                  xticklabels=list(map(str, steps)))  # fmt: skip
        below.minorticks_off()
        ticks_of_logs(above, "y")
    axes[0, 0].set_ylabel(f"RMSE, {Path(config['checkpoint']).name}")
    axes[1, 0].set_ylabel("forecast / measured")
    tidy(*axes.flat)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
               frameon=False, fontsize=7)  # fmt: skip
    return fig


FIGURES = {"shaping_forecast": draw}


def slope(rows) -> float:
    """Return the slope of log rmse in log N, by least squares."""
    if len(rows) < 2:
        return float("nan")
    x, y = (np.log([row[key] for row in rows]) for key in ("num_steps", "rmse"))
    return float(np.polyfit(x, y, 1)[0])


def table(rows) -> list:
    """Return the table on the screen: a line for each width and way."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["bits"], row["way"]), []).append(row)
    steps = list(dict.fromkeys(row["num_steps"] for row in rows))
    by = {(*key, row["num_steps"]): row for key, members in groups.items() for row in members}

    def ratios(key) -> str:
        told = [by[*key, n] for n in steps]
        return " ".join(f"{ratio(row):.2f}" for row in told if "forecast" in row)

    spec: list = [("W", lambda key: key[0]), ("rounded", lambda key: key[1])]
    spec += [(f"N = {n}", lambda key, n=n: f"{by[*key, n]['rmse']:.3g}") for n in steps]
    spec += [("slope", lambda key: f"{slope(groups[key]):.2f}"),
             ("forecast / measured", ratios)]  # fmt: skip

    def is_told(row) -> bool:  # neither is zero
        return min(row["floor"], row["predicted_floor"]) > 0

    floors = [row for row in rows if "floor" in row]
    of_floor: list = [
        ("steps", lambda row: row["num_steps"]), ("W", lambda row: row["bits"]),
        ("rounded", lambda row: row["way"]), ("floor", lambda row: f"{row['floor']:.2g}"),
        ("predicted", lambda row: f"{row['predicted_floor']:.2g}"),
        ("alignment", lambda row: f"{row['alignment']:.2f}" if is_told(row) else "-"),
        ("corrected / not", lambda row: f"{row['corrected']:.2f}"),
    ]  # fmt: skip
    return [tables.columns([*groups], spec, title="RMSE of the samples, weights rounded"),
            tables.columns(floors, of_floor, title="Mean error over phases")]  # fmt: skip

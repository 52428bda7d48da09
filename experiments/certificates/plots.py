"""Figure and tables of `experiments.certificates`; needs no JAX."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, MARKERS, ORANGE, SMALL, panels, tidy

LOOKS = {12: BLUE, 10: GREEN, 8: ORANGE, 6: "#CC79A7"}


def draw(config, arrays, rows) -> Figure:
    """Draw one call: certified over worst found against the grid; and runs beside measured."""
    fig, axes = panels(2, 2, 4.6)
    axes = axes.ravel()
    axes[3].set_axis_off()
    draw_calls(axes[0], config, [r for r in rows if r["kind"] == "call"])
    pairs = ((axes[1], lambda b: f"W{b}", "weights alone"),
             (axes[2], lambda b: f"W{b}A{b}", "weights and activations"))  # fmt: skip
    for ax, name_fn, title in pairs:
        draw_runs(ax, config["bits"], arrays, name_fn)
        ax.set_title(f"{config['num_steps']} steps, {title}")
    tidy(*axes[:3])
    handles = {label: h for ax in axes[1:3]
               for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    axes[3].legend(handles.values(), handles.keys(), frameon=False, loc="center", **SMALL)
    return fig


def draw_calls(ax, config, rows) -> None:
    """Draw ratios at every time, a line each; weights alone solid, with activations dashed."""
    for row in rows:
        is_alone = row["activation_bits"] is None
        bits = config["call_bits"]
        label = f"W{bits}" if is_alone else f"W{bits}A{bits}"
        first = row["t"] == config["times"][0]
        ax.loglog(config["grids"], row["ratio"], "o-" if is_alone else "s--", ms=3, lw=1,
                  color=BLUE if is_alone else ORANGE, label=label if first else None)  # fmt: skip
    ax.axhline(1.2, color=GREY, lw=0.8, ls=":", label="1.2")
    ax.set_xticks(config["grids"], [str(n) for n in config["grids"]])
    ax.minorticks_off()
    ax.set_xlabel("boxes a side of the square of inputs", **SMALL)
    ax.set_ylabel("certified / worst found", **SMALL)
    ax.set_title(f"one call, t = {', '.join(map(str, config['times']))}")
    ax.legend(frameon=False, **SMALL)


def draw_runs(ax, all_bits, arrays, name_fn) -> None:
    """Draw medians over samples: certified (solid, cut where infinite), measured (dots), worst."""
    for i, bits in enumerate(all_bits):
        name, color = name_fn(bits), LOOKS.get(bits, "black")
        certified, measured = arrays[f"{name}/certified"], arrays[f"{name}/measured"]
        steps = np.arange(certified.shape[1])
        line = np.median(certified, 0)
        line = np.where((line > 0) & (line < 100), line, np.nan)
        ax.semilogy(steps, line, color=color, lw=1, marker=MARKERS[i], ms=2.5,
                    label=f"{bits} bits, certified")  # fmt: skip
        middle = np.median(measured, 0)
        ax.semilogy(steps, np.where(middle > 0, middle, np.nan), ":", color=color, lw=1.8,
                    label="measured (dotted)" if i == 0 else None)  # fmt: skip
        ax.semilogy(steps[-1], np.median(arrays[f"{name}/worst_found"]), "x", color=color, ms=6,
                    label="worst outcome found (x)" if i == 0 else None)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylim(3e-6, 100)
    ax.set_xlabel("sampler steps done (noise to data)", **SMALL)
    ax.set_ylabel("error, median over samples", **SMALL)


def name_of(row) -> str:
    """Return W8, or W8A8."""
    a = row["activation_bits"]
    return f"W{row['weight_bits']}" + ("" if a is None else f"A{a}")


COLUMNS = {
    "width": name_of,
    "t": lambda r: r["t"],
    "radius": lambda r: r["radius"],
    "largest\nmeasured": tables.numbers("measured"),
    "worst\nfound": tables.numbers("worst_found"),
    "error\nmedian": tables.numbers("measured_median"),
    "worst found\nmedian": tables.numbers("worst_found_median"),
    "certified\nmedian": tables.numbers("certified_median"),
    "/ measured\nmedian": tables.numbers("ratio_to_measured_median"),
    "/ worst\nmedian": tables.numbers("ratio_to_worst_median"),
    "finite": lambda r: f"{r['finite']:.0%}",
    "useful": lambda r: f"{r['useful']:.0%}",
    "checks": lambda r: r["checks"],
    "violated": lambda r: r["violations"],
}
# Of each kind of rows: the title of its table and its columns.
TABLES = {
    "call": ("One call: certified / worst found, with n x n boxes",
             ("width", "t", "largest\nmeasured", "worst\nfound", "checks", "violated")),
    "sampler": ("Sampling runs (useful: certified below the width of a mode)",
                ("width", "error\nmedian", "worst found\nmedian", "certified\nmedian",
                 "/ measured\nmedian", "/ worst\nmedian", "finite", "useful", "violated")),
    "set": ("Sampling runs from all x_T of a square",
            ("width", "radius", "worst found\nmedian", "certified\nmedian", "/ worst\nmedian",
             "finite", "useful", "checks", "violated")),
}  # fmt: skip
FIGURES = {"certificates": draw}


def table(rows) -> list:
    """Return a table for single calls, one for sampling runs and one for sets of them."""
    parts = []
    for kind, (title, names) in TABLES.items():
        chosen = [r for r in rows if r["kind"] == kind]
        ratios = [(f"n = {n}", lambda r, i=i: tables.number(r["ratio"][i]))
                  for i, n in enumerate(chosen[0].get("grids", ()))]  # fmt: skip
        spec = [*((name, COLUMNS[name]) for name in names), *ratios]
        parts.append(tables.columns(chosen, spec, title=title))
    return parts

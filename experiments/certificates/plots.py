"""Figure and tables of `experiments.certificates`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.harness import store, tables
from experiments.harness.looks import BLUE, GREEN, GREY, ORANGE, SMALL, tidy

LOOKS = {12: BLUE, 10: GREEN, 8: ORANGE, 6: "#CC79A7"}


def write(folder) -> None:
    """Write certificates.png of the run in `folder` beside it."""
    draw(*store.load(folder)).savefig(Path(folder) / "certificates.png", dpi=150)


def draw(config, arrays, rows) -> Figure:
    """One call: certified over worst found against the grid. Runs: certified beside measured."""
    fig = Figure(figsize=(10.5, 3.6), layout="constrained")
    axes = fig.subplots(1, 3)
    draw_calls(axes[0], config, [r for r in rows if r["kind"] == "call"])
    pairs = ((axes[1], lambda b: f"W{b}", "weights alone"),
             (axes[2], lambda b: f"W{b}A{b}", "weights and activations"))  # fmt: skip
    for ax, name_fn, title in pairs:
        draw_runs(ax, config["bits"], arrays, name_fn)
        ax.set_title(f"runs of {config['num_steps']} steps, {title}", fontsize=9)
    tidy(*axes)
    return fig


def draw_calls(ax, config, rows) -> None:
    """Ratios at every time, a line each; weights alone solid, with activations dashed."""
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
    ax.set_title(f"one call, t = {', '.join(map(str, config['times']))}", fontsize=9)
    ax.legend(frameon=False, **SMALL)


def draw_runs(ax, all_bits, arrays, name_fn) -> None:
    """Medians over samples: certified (solid, cut where infinite), measured (dotted), worst (x)."""
    for i, bits in enumerate(all_bits):
        name, color = name_fn(bits), LOOKS.get(bits, "black")
        certified, measured = arrays[f"{name}/certified"], arrays[f"{name}/measured"]
        steps = np.arange(certified.shape[1])
        line = np.median(certified, 0)
        line = np.where((line > 0) & (line < 100), line, np.nan)
        ax.semilogy(steps, line, color=color, lw=1.2, label=f"{name}, certified")
        middle = np.median(measured, 0)
        ax.semilogy(steps, np.where(middle > 0, middle, np.nan), ":", color=color, lw=1.8,
                    label="measured (dotted)" if i == 0 else None)  # fmt: skip
        ax.semilogy(steps[-1], np.median(arrays[f"{name}/worst_found"]), "x", color=color, ms=6,
                    label="worst outcome found (x)" if i == 0 else None)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylim(3e-6, 100)
    ax.set_xlabel("sampler steps done (noise to data)", **SMALL)
    ax.set_ylabel("error, median over samples", **SMALL)
    ax.legend(frameon=False, fontsize=7, loc="lower right", ncols=2,
              columnspacing=0.8, handlelength=1.4)  # fmt: skip


def name_of(row) -> str:
    """W8, or W8A8."""
    a = row["activation_bits"]
    return f"W{row['weight_bits']}" + ("" if a is None else f"A{a}")


def print_table(rows) -> None:
    """Print one table for single calls and one for sampling runs."""

    def show(title, heads, lines):
        found = tables.blank()
        for i, head in enumerate(heads):
            found.add_column(head, justify="right" if i else "left", no_wrap=True)
        for line in lines:
            found.add_row(*line)
        screen = tables.console(None)
        screen.print(title)
        screen.print(found)

    calls = [r for r in rows if r["kind"] == "call"]
    heads = ["width", "t", "largest\nmeasured", "worst\nfound", "checks", "violated"]
    show(
        "One call: certified / worst found, with n x n boxes",
        heads + [f"n = {n}" for n in calls[0]["grids"]],
        [[name_of(r), str(r["t"]), tables.number(r["measured"]), tables.number(r["worst_found"]),
          str(r["checks"]), str(r["violations"]), *(tables.number(v) for v in r["ratio"])]
         for r in calls],
    )  # fmt: skip
    heads = ["width", "error\nmedian", "worst found\nmedian", "certified\nmedian",
             "/ measured\nmedian", "/ worst\nmedian", "finite", "useful", "violated"]  # fmt: skip
    show(
        "Sampling runs (useful: certified below the width of a mode)",
        heads,
        [[name_of(r), *(tables.number(r[k]) for k in (
            "measured_median", "worst_found_median", "certified_median",
            "ratio_to_measured_median", "ratio_to_worst_median")),
          f"{r['finite']:.0%}", f"{r['useful']:.0%}", str(r["violations"])]
         for r in rows if r["kind"] == "sampler"],
    )  # fmt: skip
    heads = ["width", "radius", "worst found\nmedian", "certified\nmedian", "/ worst\nmedian",
             "finite", "useful", "checks", "violated"]  # fmt: skip
    show(
        "Sampling runs from all x_T of a square",
        heads,
        [[name_of(r), str(r["radius"]), *(tables.number(r[k]) for k in (
            "worst_found_median", "certified_median", "ratio_to_worst_median")),
          f"{r['finite']:.0%}", f"{r['useful']:.0%}", str(r["checks"]), str(r["violations"])]
         for r in rows if r["kind"] == "set"],
    )  # fmt: skip

"""Figure of `experiments.certificates`, from its results alone."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import store
from experiments.plots import BLUE, GREEN, GREY, ORANGE, SMALL

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
    for ax in axes:
        ax.grid(color="0.92", lw=0.6)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
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

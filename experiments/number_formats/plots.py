"""Figure and table of `experiments.number_formats`; needs no JAX."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, SMALL, WIDTH, tidy

TITLES = {
    "gaussian": "Gaussian", "laplace": "Laplace", "weights": "weights, by output channel",
    "activations": "activations, by tensor",
}  # fmt: skip
LOOKS = {
    "integer": ("black", "o"), "affine": (GREY, "s"), "codebook": (GREEN, "^"),
    "float": (ORANGE, "D"), "log": ("#CC79A7", "v"), "block": (BLUE, "P"),
    "block float": ("#56B4E9", "X"), "block integer": ("#E69F00", "h"),
}  # fmt: skip
NAMES = {
    "affine": "integer, affine",
    "block": "MX, NVFP4",
    "block integer": "integer, groups of 32",
}
MAX_BITS = 9


def draw(config, arrays, rows) -> Figure:
    """Draw SQNR against bits for each kind of numbers, and how far off the prediction is."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    lines = -(-len(sources) // 2)
    fig = Figure(figsize=(WIDTH, 2.3 * lines + 4.2), layout="constrained")
    halves: Any = fig.subfigures(2, 1, height_ratios=[2.3 * lines + 0.5, 3.7])
    top, bottom = halves
    axes = top.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
    for ax, source in zip(axes.ravel(), sources, strict=False):
        draw_source(ax, [row for row in rows if row["source"] == source])
        ax.set_title(TITLES.get(source, source), fontsize=8)
    for ax in axes.ravel()[len(sources) :]:
        ax.set_axis_off()
    top.supylabel("SQNR, dB", **SMALL)
    top.supxlabel("bits a number, scales of blocks included", **SMALL)
    # Matching by name, because a source may lack a family.
    entries = {h.get_label(): h for ax in axes.flat for h in ax.get_legend_handles_labels()[0]}
    top.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4,
               frameon=False, **SMALL)  # fmt: skip
    formats = np.arange(len(arrays["formats"]))
    parts = np.array_split(formats, 2 if formats.size > 30 else 1)
    lower = bottom.subplots(len(parts), 1, squeeze=False, sharey=True)[:, 0]
    for ax, part in zip(lower, parts, strict=True):
        draw_ratios(ax, arrays, part)
    bottom.legend(*lower[0].get_legend_handles_labels(), loc="outside upper center", ncols=1,
                  frameon=False, **SMALL)  # fmt: skip
    bottom.supylabel("predicted MSE over measured, %", **SMALL)
    return fig


def draw_source(ax, rows) -> None:
    """Draw measured as markers, predicted as lines (where widths make one) and crosses."""
    rows = [row for row in rows if row["bits"] <= MAX_BITS]
    for family in dict.fromkeys(row["family"] for row in rows):
        here = sorted((r for r in rows if r["family"] == family), key=lambda r: r["bits"])
        bits = np.array([row["bits"] for row in here])
        color, marker = LOOKS[family]
        if np.all(np.diff(bits) > 0):
            ax.plot(bits, [r["sqnr_predicted_db"] for r in here], color=color, lw=0.8)
        ax.plot(bits, [r["sqnr_measured_db"] for r in here], marker, color=color, ms=4,
                mec="white", mew=0.3, label=NAMES.get(family, family))  # fmt: skip
    ax.plot([r["bits"] for r in rows], [r["sqnr_predicted_db"] for r in rows], "+", color="red",
            ms=3, mew=0.5, label="predicted (+, lines)", zorder=3)  # fmt: skip
    ax.xaxis.set_major_locator(MultipleLocator(1))
    tidy(ax)


def draw_ratios(ax, arrays, part) -> None:
    """Draw predicted / measured squared error of some formats: median, 90 % and all tensors."""
    formats = [str(name) for name in arrays["formats"][part]]
    ratio = 100 * (arrays["predicted"] / arrays["measured"] - 1)[part]
    ax.axhspan(-5, 5, color="0.93", lw=0)
    ax.axhline(0, color="0.6", lw=0.6)
    x = np.arange(len(formats))
    looks = (("weights", BLUE, -0.15, "o"), ("activations", ORANGE, 0.15, "s"))
    for source, color, shift, marker in looks:
        of_source = ratio[:, arrays["sources"] == source]
        if not of_source.size:
            continue
        low, first, middle, last, high = np.quantile(of_source, (0, 0.05, 0.5, 0.95, 1), axis=1)
        count = of_source.shape[1]
        ax.vlines(x + shift, low, high, color=color, lw=0.8)
        ax.vlines(x + shift, first, last, color=color, lw=3, alpha=0.5)
        ax.plot(x + shift, middle, marker, ls="", color=color, ms=2.5,
                label=f"{source}: median, 90 % (thick) and range (thin) of {count}")  # fmt: skip
    ax.set_xticks(x, formats, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    ax.set_xlim(-0.7, len(formats) - 0.3)
    ax.set_yscale("symlog", linthresh=10)
    ticks = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100]
    low, high = ax.get_ylim()
    ax.set_yticks([t for t in ticks if low <= t <= high], minor=False)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:+g}" if t else "0"))
    ax.yaxis.set_minor_locator(MultipleLocator(1e9))
    ax.set_ylim(low, high)
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


COLUMNS = (
    ("numbers", lambda r: r["source"]),
    ("format", lambda r: r["format"]),
    ("bits", lambda r: f"{r['bits']:.2f}"),
    ("SQNR, dB\nmeasured", lambda r: f"{r['sqnr_measured_db']:.2f}"),
    ("\npredicted", lambda r: f"{r['sqnr_predicted_db']:.2f}"),
    ("predicted / measured MSE\nall (least to most of a tensor)",
     lambda r: f"{r['predicted_over_measured']:.3f} ({r['ratio_min']:.3f} to "
               f"{r['ratio_max']:.3f})"),
    ("tensors\nwithin 5 %", lambda r: f"{r['within_5_percent']:.0%}"),
)  # fmt: skip


def table(rows) -> list:
    """Return the table on the screen: a line for each format and kind of numbers."""
    return [tables.columns(rows, COLUMNS)]

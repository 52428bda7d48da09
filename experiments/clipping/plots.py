"""Figure and table of `experiments.clipping`; needs no JAX."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.harness import store, tables
from experiments.harness.looks import BLUE, GREY, ORANGE, tidy


def write(folder) -> None:
    """Write clipping.png of the run in `folder` beside it."""
    draw(*store.load(folder)).savefig(Path(folder) / "clipping.png", dpi=150)


def draw(config, arrays, rows) -> Figure:
    """Error of the most clipped pixel along the sampler, and errors of all samples."""
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    along, tail = fig.subplots(1, 2)
    for name, color in (("calibrated", ORANGE), ("widened", BLUE)):
        label = f"{name} ranges of input and output"
        errors = np.sort(arrays[f"{name}/errors"])
        tail.plot(errors, 1 - np.arange(errors.size) / errors.size, color=color, label=label)
        pixel = np.abs(arrays[f"{name}/pixel_error"])[1:]
        along.plot(np.arange(pixel.size) + 1, pixel, color=color, label=label)
    law = np.abs(arrays["calibrated/law"])[1:]
    along.plot(np.arange(law.size) + 1, law, color=GREY, ls="--",
               label=r"excess $\cdot\,\alpha_t/\alpha_T$")  # fmt: skip
    along.set(
        yscale="log",
        xlabel="sampler steps done (noise to data)",
        ylabel="|error| of the pixel, image units",
        title="The pixel that is clipped most",
    )
    along.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    tail.set(xscale="log", yscale="log", xlabel="RMS error of a sample, image units",
             title="Share of samples with a larger error")  # fmt: skip
    for ax in (along, tail):
        tidy(ax)
        ax.legend(frameon=False, fontsize=7)
    width = f"W{config['bits']}A{config['bits']}"
    fig.suptitle(f"Clipped noise grows: {Path(config['checkpoint']).name}, {width}", fontsize=10)
    return fig


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line a range."""
    console = tables.console(None)
    for r in rows:
        console.print(
            f"{r['range']} {r['low']:.2f} to {r['high']:.2f}: {r['clipped']} samples clipped; "
            f"sample {r['sample']} by {r['excess']:+.3f}: error of the pixel "
            f"{r['pixel_error']:+.2f}, law {r['law']:+.2f}; errors of samples: median "
            f"{r['error_median']:.4f}, RMS {r['error_rms']:.4f}, largest {r['error_max']:.4f} "
            f"(sample {r['worst_sample']})"
        )

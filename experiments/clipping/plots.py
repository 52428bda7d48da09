"""Figure and table of `experiments.clipping`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREY, ORANGE, SMALL, panels, tidy


def draw(config, arrays, rows) -> Figure:
    """Error of the most clipped pixel along the sampler, and errors of all samples."""
    fig, (along, tail) = panels(1, 2, 2.7)
    for name, color, marker in (("calibrated", ORANGE, "o"), ("widened", BLUE, "s")):
        label = f"{name} ranges of input and output"
        errors = np.sort(arrays[f"{name}/errors"])
        tail.plot(errors, 1 - np.arange(errors.size) / errors.size, color=color,
                  marker=marker, ms=2.5, lw=1, label=label)  # fmt: skip
        pixel = np.abs(arrays[f"{name}/pixel_error"])[1:]
        along.plot(np.arange(pixel.size) + 1, pixel, color=color, marker=marker, ms=2.5,
                   lw=1, label=label)  # fmt: skip
    law = np.abs(arrays["calibrated/law"])[1:]
    along.plot(np.arange(law.size) + 1, law, color=GREY, ls="--",
               label=r"excess $\cdot\,\alpha_t/\alpha_T$")  # fmt: skip
    along.set(
        yscale="log",
        xlabel="sampler steps done (noise to data)",
        ylabel="|error| of the pixel, image units",
        title=f"{Path(config['checkpoint']).name}, W{config['bits']}A{config['bits']}: "
        "the pixel clipped most",
    )
    along.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    tail.set(xscale="log", yscale="log", xlabel="RMS error of a sample, image units",
             title="share of samples with a larger error")  # fmt: skip
    tidy(along, tail)
    fig.legend(*along.get_legend_handles_labels(), loc="outside lower center", ncols=2,
               frameon=False, **SMALL)  # fmt: skip
    return fig


FIGURES = {"clipping": draw}
COLUMNS = (
    ("ranges", lambda r: f"{r['range']}\n{r['low']:.2f} to {r['high']:.2f}"),
    ("samples\nclipped", lambda r: r["clipped"]),
    ("most clipped\nsample, by", lambda r: f"{r['sample']}, {r['excess']:+.3f}"),
    ("error of\nthe pixel", lambda r: f"{r['pixel_error']:+.2f}"),
    ("law", lambda r: f"{r['law']:+.2f}"),
    ("error of samples\nmedian, RMS", lambda r: f"{r['error_median']:.4f}, {r['error_rms']:.4f}"),
    ("largest\n(sample)", lambda r: f"{r['error_max']:.4f} ({r['worst_sample']})"),
)


def table(rows) -> list:
    """Return the table on the screen: a line for each range."""
    return [tables.columns(rows, COLUMNS)]

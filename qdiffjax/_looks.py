"""Looks that all figures share. Matplotlib loads when one is drawn; needs no JAX and no display."""

from typing import Any

# Okabe & Ito (2008): distinguishable with every common colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
SMALL: dict[str, Any] = {"fontsize": 8}


def panels(rows: int, columns: int, size: tuple[float, float], *, title=None, **subplots):
    """Return (figure, axes) of a size in inches; further arguments are those of `Figure.subplots`.

    The figure and its title are laid out when they are drawn.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained")
    if title:
        fig.suptitle(title, fontsize=10)
    axes: Any = fig.subplots(rows, columns, **subplots)
    return fig, axes


def tidy(*axes, legend: float | None = None) -> None:
    """Give axes a light grid behind the marks, no box, and small letters.

    `legend` is the size of the letters of a legend, if there is to be one.
    """
    for ax in axes:
        ax.grid(color="0.92", lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_fontsize(9)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_size(8)
        if legend:
            ax.legend(frameon=False, fontsize=legend)

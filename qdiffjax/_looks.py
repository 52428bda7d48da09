"""Looks that all figures share. Matplotlib loads when one is drawn; needs no JAX and no display."""

from typing import Any

# Okabe & Ito (2008): distinguishable with every common colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
SMALL: dict[str, Any] = {"fontsize": 7.5}
# Figures are drawn at the size in which they are printed: a text block's width, letters of 7 pt.
WIDTH, LEAST_LETTERS = 5.5, 7.0
MARKERS = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "P",
    "X",
    "h",
)  # beside hue, so that grey prints tell them apart


def panels(rows: int, columns: int, height: float, **subplots):
    """Return (figure, axes) of WIDTH and a height in inches; further arguments are those of
    `Figure.subplots`.

    The figure is laid out when it is drawn. What it shows is said by its caption, not on it.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    axes: Any = fig.subplots(rows, columns, **subplots)
    return fig, axes


def tidy(*axes, legend: float | None = None) -> None:
    """Give axes a light grid behind the marks, no box, and small letters.

    `legend` is the size of the letters of a legend, if there is to be one.
    """
    for ax in axes:
        ax.grid(color="0.92", lw=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_fontsize(8)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_size(7.5)
        if legend:
            ax.legend(frameon=False, fontsize=legend)


def names_beside(ax, names, title: str) -> None:
    """Finish a panel of dots at heights 0, 1, ...: names from the top, a logarithmic x axis."""
    ax.set(title=title, xscale="log")
    ticks_of_logs(ax)
    ax.set_yticks(range(len(names)), names)
    if not ax.yaxis_inverted():  # panels that share the axis turn together
        ax.invert_yaxis()


def reaches(rows, value: str = "rmse", low: str = "low", high: str = "high") -> list[list[float]]:
    """Return how far intervals reach below and above their values [2, rows], for `errorbar`."""
    return [[row[value] - row[low] for row in rows], [row[high] - row[value] for row in rows]]


def ticks_of_logs(ax, which: str = "x") -> None:
    """Mark 1, 2 and 5 times the powers of ten on a logarithmic axis, "x" or "y".

    Of more than three panels beside each other 1 and 3 times, of a short axis more; every second or
    third of them where panels beside each other leave no room.
    """
    ax.minorticks_off()
    axis = getattr(ax, f"{which}axis")
    low, high = axis.get_view_interval()
    usual = (1, 3) if ax.get_gridspec().ncols > 3 else (1, 2, 5)
    for digits in (usual, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        ticks = [10.0**power * digit for power in range(-6, 6) for digit in digits]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) > 1:
            break
    most = max(3, 9 // ax.get_gridspec().ncols)
    if which == "x" and len(shown) > most:
        shown = shown[:: -(-len(shown) // most)]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])

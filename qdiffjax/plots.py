"""Figures of a ledger, a study, a recipe and a list of sites. Needs neither JAX nor a display.

Each returns a `matplotlib.figure.Figure`: `figure.savefig("ledger.png", dpi=150)`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qdiffjax import reports
from qdiffjax._cells import Cells
from qdiffjax._checks import check_names, require
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, SMALL, panels, tidy

if TYPE_CHECKING:
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

KINDS = {"conv": ORANGE, "dot": BLUE}  # colours of the sites' bars
LINE = 0.13  # inches of a site's line
NEGATIVE = 0.01  # of the largest entry: entries below minus that are marked
LONGEST = 34  # characters of a name
MEASURED: dict[str, Any] = {"label": "error, measured", "color": "black", "lw": 1.8}
# Bounds are of fewer samples; only beside the errors of the same ones can they be judged.
BOUNDED: dict[str, Any] = {"label": "measured, median of the bounded samples", "color": "black",
                           "lw": 0.9, "ls": (0, (4, 2))}  # fmt: skip
PREDICTED: dict[str, Any] = {"label": "error, predicted", "color": BLUE, "lw": 1.5,
                             "ls": (0, (1, 1))}  # fmt: skip
BOUNDS: dict[str, dict[str, Any]] = {
    "remainder": {
        "label": "remainder bound, median",
        "color": GREEN,
        "lw": 1,
        "ls": "-.",
        "marker": "^",
        "ms": 2.5,
        "markevery": 0.1,
    },
    "gronwall": {
        "label": "Grönwall bound, median",
        "color": ORANGE,
        "lw": 1,
        "ls": "--",
        "marker": "s",
        "ms": 2.5,
        "markevery": 0.1,
    },
}


def plot_ledger(ledger, sites=(), title: str = "Where the error is made") -> "Figure":
    """Draw the signed share of every (site, step), and beside it each site's sum over steps.

    Red raises the error, blue lowers it; the colours are linear around zero and logarithmic beyond.

    Args:
      ledger: a `Ledger`, the mean over samples is drawn; or its `Cells`.
      sites: sites or their names in the order to draw them, such as those of a `Calibration`.
      title: of the figure.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> run = qd.couple(q, steps, jax.random.key(1), 8)
      >>> figure = qd.plot_ledger(qd.attribute(q, steps, run))
      >>> len(figure.axes)
      3
    """
    require(isinstance(ledger, Cells) or hasattr(ledger, "cells"), "ledger",
            got=f"a {type(ledger).__name__}", expected="a Ledger or its cells",
            remedy="attribute(q, steps, run)", error=TypeError)  # fmt: skip
    cells: Cells = ledger if isinstance(ledger, Cells) else ledger.cells()
    cells = cells.ordered([getattr(site, "name", site) for site in sites])
    shares = cells.shares()
    norm, ticks = diverging(float(np.abs(shares).max()))
    fig, (ax, side) = by_site(cells.sites, title, width_ratios=[3, 1])
    image = ledger_panel(ax, side, shares, norm)
    bar = fig.colorbar(image, ax=[ax, side], location="bottom", shrink=0.6, aspect=40, pad=0.03)
    colour_ticks(bar, ticks)
    bar.set_label(f"share of the {cells.quantity.partition(',')[0]},\n% a site and step", **SMALL)
    return fig


def ledger_panel(ax, side, shares, norm):
    """Draw a heat map of shares [N, S], negative ones marked by a dot, and bars of its sums over
    steps; return the image.
    """
    from matplotlib.ticker import MaxNLocator

    num_steps, num_sites = shares.shape
    image = ax.imshow(
        shares.T, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest",
        extent=(-0.5, num_steps - 0.5, num_sites - 0.5, -0.5),
    )  # fmt: skip
    # Two hues of one lightness are one grey: what lowers the error is marked as well.
    below = np.argwhere(shares < -NEGATIVE * np.abs(shares).max())
    ax.plot(*below.T, ls="", marker=".", ms=1.6, mew=0, color="black")
    ax.set_xlim(-0.5, num_steps - 0.5)
    ax.set_xlabel("sampler step (noise to data)", **SMALL)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    sums = shares.sum(axis=0)
    bars = side.barh(range(num_sites), sums, color=np.where(sums < 0, BLUE, ORANGE), height=0.8)
    for bar, value in zip(bars, sums, strict=True):
        bar.set_hatch("////" if value < 0 else "")
    side.axvline(0, color="black", lw=0.6)
    side.set_xlabel("all steps, %", **SMALL)
    side.xaxis.set_major_locator(MaxNLocator(3))
    side.spines[["top", "right", "left"]].set_visible(False)
    for a in (ax, side):
        a.tick_params(labelsize=7)
        a.tick_params(axis="y", length=0)
    return image


def diverging(top: float) -> "tuple[SymLogNorm, list[float]]":
    """Return a scale of colours from -top to top, linear near zero, and its ticks."""
    from matplotlib.colors import SymLogNorm

    top = top or 1.0
    ticks = [-top, -top / 10, -top / 100, 0.0, top / 100, top / 10, top]
    return SymLogNorm(linthresh=top / 100, vmin=-top, vmax=top), ticks


def colour_ticks(bar, ticks: Sequence[float]) -> None:
    """Label a colour bar with signed ticks."""
    bar.set_ticks(ticks, labels=[f"{t:+.2g}" if t else "0" for t in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)


def plot_sites(sites, title: str = "Where the network multiplies") -> "Figure":
    """Draw the multiply-accumulates and the parameters of each site, as shares of all.

    Args:
      sites: from `list_sites`, or those of a `Calibration`.
      title: of the figure.

    Example:
      >>> import qdiffjax as qd
      >>> figure = qd.plot_sites(qd.load("fashion_dit").sites())
      >>> len(figure.axes)
      2
    """
    fig, axes = by_site(names_of(sites), title, width_ratios=[1, 1])
    colors = [KINDS.get(s.kind, GREY) for s in sites]
    for ax, counted, noun in zip(axes, ("macs", "parameters"),
                                 ("multiply-accumulates", "parameters"), strict=True):  # fmt: skip
        values = np.array([getattr(s, counted) for s in sites], np.float64)
        share_bars(ax, values, colors, noun)
    kinds_legend(fig)
    return fig


def plot_recipe(recipe, sites, title: str = "Recipe") -> "Figure":
    """Draw the widths of weights and activations at each site, beside its share of the work.

    Those of the steps that no phase of the recipe names, with the scales of block formats.

    Args:
      recipe: a `Recipe`.
      sites: those of the network, in the order of evaluation.
      title: of the figure.

    Example:
      >>> import qdiffjax as qd
      >>> sites = qd.load("fashion_dit").sites()
      >>> recipe = qd.precision.uniform(sites, weight_bits=4, activation_bits=8)
      >>> figure = qd.plot_recipe(recipe, sites)
      >>> len(figure.axes)
      2
    """
    names = names_of(sites)
    require(hasattr(recipe, "bits"), "recipe", got=repr(recipe), expected="a Recipe",
            remedy="precision.uniform(sites, weight_bits=8, activation_bits=8)",
            error=TypeError)  # fmt: skip
    check_names("recipe", recipe.names, names)
    fig, (ax, side) = by_site(names, title, width_ratios=[1.2, 1])
    bits = np.full((len(names), 2), np.nan)
    for row, name in enumerate(names):
        if name in recipe.bits:
            bits[row] = [
                np.nan if b is None else float(getattr(b, "bits", b)) for b in recipe.bits[name]
            ]
    image = np.ma.masked_invalid(bits)
    ax.imshow(image, aspect="auto", cmap="YlGnBu_r", vmin=1, vmax=20, interpolation="nearest",
              extent=(-0.5, 1.5, len(names) - 0.5, -0.5))  # fmt: skip
    for row, column in np.ndindex(bits.shape):
        has_operand = column == 1 or sites[row].weight is not None
        value = bits[row, column]
        text = ("" if not has_operand else "float") if np.isnan(value) else f"{value:g}"
        dark = np.isfinite(value) and value < 9
        ax.text(column, row, text, ha="center", va="center", fontsize=7,
                color="white" if dark else "black")  # fmt: skip
    ax.set_xticks([0, 1], ["weights", "activations"], fontsize=7)
    ax.axvline(0.5, color="white", lw=2)
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    macs = np.array([s.macs for s in sites], np.float64)
    share_bars(side, macs, [KINDS.get(s.kind, GREY) for s in sites], "multiply-accumulates")
    kinds_legend(fig)
    return fig


def plot_errors(study, title: str | None = None) -> "Figure":
    """Draw the error over the sampler's steps: measured, predicted and bounded, with the signal.

    Bounds hold for one sample each, so their median and 10 to 90 % range are drawn.

    Args:
      study: a `Study`.
      title: of the figure; None takes the study's name.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 1.1 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 4)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0)), "W8A8")
      >>> study = qd.study(q, steps, jax.random.key(1), 8, progress=False)
      >>> figure = qd.plot_errors(study)
      >>> len(figure.axes)
      1
    """
    reports.check_study(study)
    title = f"Accumulated quantization error: {study.name}" if title is None else title
    fig, ax = panels(1, 1, 3.6)
    ax.set_title(title, fontsize=8, loc="left")
    root_size = study.samples[0].size ** 0.5
    norms = {key: getattr(study.bounded, key) / root_size for key in ("measured", *BOUNDS)}
    error_panel(ax, study.error_rms, study.predicted_rms, study.signal_rms, norms)
    ax.set_xlabel("sampler steps done (noise to data)", **SMALL)
    ax.set_ylabel("RMS per element", **SMALL)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2,
               frameon=False, **SMALL)  # fmt: skip
    return fig


def names_of(sites) -> list[str]:
    """Return the names of sites; refuse what are none."""
    are_sites = isinstance(sites, (tuple, list)) and all(hasattr(s, "macs") for s in sites)
    require(are_sites, "sites", got=f"a {type(sites).__name__}", expected="sites of a network",
            remedy="denoiser.sites() or those of a Calibration", error=TypeError)  # fmt: skip
    return [s.name for s in sites]


def error_panel(ax, error_rms, predicted_rms, signal_rms, norms: Mapping[str, Any]) -> None:
    """Draw the curves of one recipe, all in units of x per element.

    Args:
      ax: where.
      error_rms, predicted_rms, signal_rms: root mean squares over samples [N+1].
      norms: of each bounded sample [N+1, batch]: `measured`, and the bounds of `BOUNDS`.
    """
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(len(signal_rms))

    def quantiles(key: str):  # the nearest sample: between infinities there is only NaN
        values = np.quantile(norms[key], (0.1, 0.5, 0.9), axis=1, method="nearest")
        return positive(values)

    ax.plot(steps, positive(error_rms), **MEASURED)
    ax.plot(steps, positive(predicted_rms), **PREDICTED)
    ax.plot(steps, quantiles("measured")[1], **BOUNDED)
    for key, look in BOUNDS.items():
        low, middle, high = quantiles(key)
        ax.fill_between(steps, low, high, color=look["color"], alpha=0.15, lw=0,
                        label=look["label"].replace("median", "10 to 90 %"))  # fmt: skip
        ax.plot(steps, middle, **look)
    ax.plot(steps, signal_rms, color=GREY, lw=0.8, label="signal $x_t$")
    ax.set_yscale("log")
    ax.set_xlim(0, steps[-1])
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    tidy(ax)


def positive(values):
    """Replace what a logarithmic axis cannot show, zeros and infinities, by gaps."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def by_site(names: Sequence[str], title: str, **subplots):
    """Return a figure and two axes that have a line for each site, named on the left.

    Args:
      names: of the sites.
      title: of the figure.
      subplots: further arguments of `Figure.subplots`.
    """
    shown = [short(name) for name in names]
    fig, axes = panels(1, 2, max(1.6 + LINE * len(names), 2.6), sharey=True, **subplots)
    axes[0].set_title(title, fontsize=8, loc="left")
    axes[0].set_yticks(range(len(names)), shown, fontsize=7)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return fig, axes


def short(name: str) -> str:
    """Return a name, its middle left out if it is long."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def share_bars(ax, values, colors, noun: str) -> None:
    """Draw a bar for each value, as a share of their sum in percent."""
    total = values.sum() or 1.0
    ax.barh(range(len(values)), 100 * values / total, color=colors, height=0.8)
    tidy(ax)
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.tick_params(axis="x", labelsize=7)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"{noun},\n% of {total:,.0f}", **SMALL)


def kinds_legend(fig: "Figure") -> None:
    """Say below which colour is which kind of site."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=kind) for kind, color in KINDS.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, **SMALL)

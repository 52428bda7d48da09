"""Figures of `experiments.error_bounds`; needs no JAX."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.error_bounds.table import width_name
from qdiffjax._cells import block_name, shares
from qdiffjax._looks import SMALL, WIDTH, panels, tidy
from qdiffjax.plots import BOUNDS, colour_ticks, diverging, error_panel, ledger_panel, short

TOP = 6  # sites that are named below the blocks


def draw_errors(config, arrays, rows) -> Figure:
    """Accumulated error over the sampler's steps: measured, predicted and bounded.

    A column for each pair of widths. Above, root mean square per pixel: bounds hold for one sample
    each, so the median and the 10 to 90 % range over samples are drawn. Below, every bounded
    sample's own ratio of bound to error, which must not be below one.
    """
    names = [width_name(row) for row in rows]
    fig, axes = panels(2, len(names), 4.6, sharex=True, sharey="row", squeeze=False,
                       height_ratios=(1.5, 1))  # fmt: skip
    for (above, below), name in zip(axes.T, names, strict=True):
        _draw_error_panel(above, arrays, name)
        _draw_ratio_panel(below, arrays, name)
    axes[0, 0].set_ylabel("RMS per pixel, image units", **SMALL)
    axes[1, 0].set_ylabel("bound over error,\na line a sample", **SMALL)
    axes[1, len(names) // 2].set_xlabel("sampler steps done (noise to data)", **SMALL)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, **SMALL)
    return fig


def _draw_ratio_panel(ax, arrays, name: str) -> None:
    measured = arrays[f"{name}/measured_norms"][1:]
    for key, look in BOUNDS.items():
        ratio = arrays[f"{name}/{key}"][1:] / measured
        ratio = np.where(np.isfinite(ratio), ratio, np.nan)
        ax.plot(np.arange(1, len(ratio) + 1), ratio, color=look["color"], ls=look["ls"], lw=0.5)
        ax.plot(len(ratio) * np.ones(ratio.shape[1]), ratio[-1], color=look["color"], ls="",
                marker=look["marker"], ms=2.5)  # fmt: skip
    ax.axhline(1, color="black", lw=0.8)
    ax.set_yscale("log")
    tidy(ax)


def _draw_error_panel(ax, arrays, name: str) -> None:
    root_size = math.sqrt(np.prod(arrays["samples"].shape[1:]))
    norms = {"measured": arrays[f"{name}/measured_norms"] / root_size}
    norms |= {key: arrays[f"{name}/{key}"] / root_size for key in BOUNDS}
    error_panel(ax, arrays[f"{name}/error_rms"], arrays[f"{name}/predicted_rms"],
                arrays["signal_rms"], norms)  # fmt: skip
    ax.set_title(name, fontsize=8)


def draw_ledger(config, arrays, rows) -> Figure:
    """Signed share of every (block, step) in the squared error of the final samples.

    One heat map for each pair of widths, with the sum over steps beside it: the blocks of the
    network, and below the line the TOP sites that carry most at any width, by name. All panels
    have one colour scale, linear around zero and logarithmic beyond; negative cells have a dot.
    """
    names = [width_name(row) for row in rows]
    sites = [str(s) for s in arrays[f"{names[0]}/sites"]]
    percent = {n: shares(arrays[f"{n}/ledger"], sites) for n in names}
    blocks = list(dict.fromkeys(block_name(site) for site in sites))
    most = np.max([np.abs(share.sum(0)) for share in percent.values()], axis=0)
    top = sorted(np.argsort(-most)[:TOP])
    shown = {
        name: np.column_stack([
            *(share[:, [block_name(s) == block for s in sites]].sum(1) for block in blocks),
            *(share[:, i] for i in top),
        ]) for name, share in percent.items()
    }  # fmt: skip
    labels = [*blocks, *(short(sites[i].removesuffix("/kernel")) for i in top)]
    norm, ticks = diverging(max(float(np.abs(s).max()) for s in shown.values()))
    fig, axes = panels(1, 2 * len(names), 1.5 + 0.125 * len(labels), sharey=True,
                       width_ratios=[2.2, 1] * len(names))  # fmt: skip
    for side in axes[3::2]:
        side.sharex(axes[1])
    for ax, side, name in zip(axes[::2], axes[1::2], names, strict=True):
        image = ledger_panel(ax, side, shown[name], norm)
        ax.set_title(name, fontsize=8)
        ax.set_xlabel("step", **SMALL)
        side.set_xlabel("sum, %", **SMALL)
        for a in (ax, side):
            a.axhline(len(blocks) - 0.5, color="black", lw=0.8)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=7)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    bar = fig.colorbar(image, ax=list(axes), location="bottom", shrink=0.7, aspect=40, pad=0.02)
    bar.set_label("share of the squared error of the final samples, % a block or site and step",
                  **SMALL)  # fmt: skip
    colour_ticks(bar, ticks)
    return fig


def draw_samples(config, arrays, rows) -> Figure:
    """Draw final samples: full precision, then quantized and the difference for each widths."""
    full = arrays["samples"]
    strips = [("full precision", _picture(full))]
    for row in rows:
        name = width_name(row)
        difference = np.abs(arrays[f"{name}/samples_hat"] - full)
        gain = _nice_gain(difference)
        strips.append((name, _picture(arrays[f"{name}/samples_hat"])))
        strips.append((f"|difference|\n× {gain:g}", _picture(gain * difference - 1)))
    tight = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    fig = Figure(figsize=(WIDTH, 0.62 * len(strips)), layout=tight)
    axes = fig.subplots(len(strips), len(full), squeeze=False)
    for line, (label, pictures) in zip(axes, strips, strict=True):
        for ax, picture in zip(line, pictures, strict=True):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=4, **SMALL)
    return fig


def _picture(samples):
    """Return samples [n, ...] in [-1, 1] as [n, h, w] or [n, h, w, 3] in [0, 1].

    Vectors are rows of pixels; the frames of a video are side by side.
    """
    x = np.clip((np.asarray(samples, np.float64) + 1) / 2, 0, 1)
    if x.ndim < 4:
        x = x.reshape(len(x), -1, x.shape[-1], 1)
    if x.ndim == 5:
        x = np.concatenate(list(x.swapaxes(0, 1)), axis=2)
    return x if x.shape[-1] == 3 else x[..., 0]


def _nice_gain(difference) -> float:
    """Return the largest 1, 2, 5, 10, ... that leaves at least 99 % of the pixels unclipped."""
    top = float(np.quantile(difference, 0.99)) or 1.0
    limit = 2.0 / top
    power = 10.0 ** math.floor(math.log10(limit))
    return max(1.0, max(m * power for m in (1, 2, 5) if m * power <= limit))


FIGURES = {"error_vs_step": draw_errors, "ledger": draw_ledger, "samples": draw_samples}

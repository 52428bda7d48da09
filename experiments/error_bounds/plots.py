"""Figures of `experiments.error_bounds`; needs no JAX."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.error_bounds.table import width_name
from qdiffjax._cells import shares
from qdiffjax._looks import SMALL, panels
from qdiffjax.plots import BOUNDS, colour_ticks, diverging, error_panel, ledger_panel


def draw_errors(config, arrays, rows) -> Figure:
    """Accumulated error over the sampler's steps: measured, predicted and bounded.

    One panel per pair of widths, root mean square per pixel. Bounds hold for one sample each, so
    the median and the 10 to 90 % range over samples are drawn.
    """
    names = [width_name(row) for row in rows]
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    size = (max(1.2 + 3.1 * num_columns, 6.2), 1.1 + 2.7 * num_rows)
    title = _title(config, "Accumulated quantization error")
    fig, axes = panels(num_rows, num_columns, size, title=title, sharex=True, sharey=True,
                       squeeze=False)  # fmt: skip
    axes = axes.ravel()
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes, names, strict=False):
        _draw_error_panel(ax, arrays, name)
    for ax in axes[max(0, len(names) - num_columns) : len(names)]:
        ax.set_xlabel("sampler steps done (noise to data)", **SMALL)
        ax.tick_params(labelbottom=True)
    fig.supylabel("RMS per pixel, image units", **SMALL)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, **SMALL)
    return fig


def _draw_error_panel(ax, arrays, name: str) -> None:
    root_size = math.sqrt(np.prod(arrays["samples"].shape[1:]))
    norms = {"measured": arrays[f"{name}/measured_norms"] / root_size}
    norms |= {key: arrays[f"{name}/{key}"] / root_size for key in BOUNDS}
    error_panel(ax, arrays[f"{name}/error_rms"], arrays[f"{name}/predicted_rms"],
                arrays["signal_rms"], norms)  # fmt: skip
    ax.set_title(name, fontsize=9)


def draw_ledger(config, arrays, rows) -> Figure:
    """Signed share of every (site, step) in the squared error of the final samples.

    One heat map per pair of widths, with the sum over steps of every site beside it. All panels
    have one colour scale, linear around zero and logarithmic beyond.
    """
    names = [width_name(row) for row in rows]
    sites = [str(s) for s in arrays[f"{names[0]}/sites"]]
    percent = {n: shares(arrays[f"{n}/ledger"], sites) for n in names}
    norm, ticks = diverging(max(float(np.abs(s).max()) for s in percent.values()))
    size = (max(3.4 + 3.1 * len(names), 6.5), max(1.8 + 0.15 * len(sites), 3.2))
    fig, axes = panels(1, 2 * len(names), size, title=_title(config, "Where the error is made"),
                       sharey=True, width_ratios=[3, 1] * len(names))  # fmt: skip
    for side in axes[3::2]:
        side.sharex(axes[1])
    images = []
    for ax, side, name in zip(axes[::2], axes[1::2], names, strict=True):
        images.append(ledger_panel(ax, side, percent[name], norm))
        ax.set_title(name, fontsize=9)
    axes[0].set_yticks(range(len(sites)), sites, fontsize=6.5)
    axes[0].set_ylim(len(sites) - 0.5, -0.5)
    bar = fig.colorbar(images[0], ax=list(axes), location="bottom", shrink=0.4, aspect=40, pad=0.01)
    bar.set_label("share of the squared error of the final samples, % a site and step", fontsize=8)
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
    fig = Figure(figsize=(1.4 + 0.85 * len(full), 0.5 + 0.9 * len(strips)), layout=tight)
    axes = fig.subplots(len(strips), len(full), squeeze=False)
    for line, (label, pictures) in zip(axes, strips, strict=True):
        for ax, picture in zip(line, pictures, strict=True):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
    fig.suptitle(_title(config, "Samples on the same noise"), fontsize=10)
    return fig


def _picture(images):
    """[-1, 1] images [n, h, w, c] as [n, h, w] or [n, h, w, 3] in [0, 1]."""
    images = np.clip((np.asarray(images, np.float64) + 1) / 2, 0, 1)
    return images if images.shape[-1] == 3 else images[..., 0]


def _nice_gain(difference) -> float:
    """Return the largest 1, 2, 5, 10, ... that leaves at least 99 % of the pixels unclipped."""
    top = float(np.quantile(difference, 0.99)) or 1.0
    limit = 2.0 / top
    power = 10.0 ** math.floor(math.log10(limit))
    return max(1.0, max(m * power for m in (1, 2, 5) if m * power <= limit))


def _title(config, subject: str) -> str:
    sampler = config.get("sampler", "").upper()
    model = Path(str(config.get("checkpoint", ""))).name
    return f"{subject}: {model}, {sampler}, {config.get('num_steps', '?')} steps"


FIGURES = {"error_vs_step": draw_errors, "ledger": draw_ledger, "samples": draw_samples}

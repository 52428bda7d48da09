"""Figures of `experiments.error_bounds`; needs no JAX."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from experiments.error_bounds.table import width_name
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, SMALL, panels, tidy

MEASURED: dict[str, Any] = {"label": "error, measured", "color": "black", "lw": 1.8}
# Bounds are of fewer samples; only beside the errors of the same ones can they be judged.
BOUNDED: dict[str, Any] = {"label": "the same, median of the bounded samples", "color": "black",
                           "lw": 0.9, "ls": (0, (4, 2))}  # fmt: skip
PREDICTED: dict[str, Any] = {"label": "error, predicted", "color": BLUE, "lw": 1.5,
                             "ls": (0, (1, 1))}  # fmt: skip
BOUNDS: dict[str, dict[str, Any]] = {
    "remainder": {"label": "remainder bound, median", "color": GREEN, "lw": 1.4, "ls": "-."},
    "gronwall": {"label": "Grönwall bound, median", "color": ORANGE, "lw": 1.4, "ls": "--"},
}


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
    steps = np.arange(len(arrays["signal_rms"]))

    def quantiles(key: str):  # the nearest sample: between infinities there is only NaN
        norms = arrays[f"{name}/{key}"] / root_size
        return _positive(np.quantile(norms, (0.1, 0.5, 0.9), axis=1, method="nearest"))

    ax.plot(steps, _positive(arrays[f"{name}/error_rms"]), **MEASURED)
    ax.plot(steps, _positive(arrays[f"{name}/predicted_rms"]), **PREDICTED)
    ax.plot(steps, quantiles("measured_norms")[1], **BOUNDED)
    for key, look in BOUNDS.items():
        low, middle, high = quantiles(key)
        ax.fill_between(steps, low, high, color=look["color"], alpha=0.15, lw=0)
        ax.plot(steps, middle, **look)
    ax.plot(steps, arrays["signal_rms"], color=GREY, lw=0.8, label="signal $x_t$")
    ax.set_title(name, fontsize=9)
    ax.set_yscale("log")
    ax.set_xlim(0, steps[-1])
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    tidy(ax)


def _positive(values):
    """Replace what a logarithmic axis cannot show, zeros and infinities, by gaps."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def draw_ledger(config, arrays, rows) -> Figure:
    """Signed share of every (site, step) in the squared error of the final samples.

    One heat map per pair of widths, with the sum over steps of every site beside it. All panels
    have one colour scale, linear around zero and logarithmic beyond.
    """
    names = [width_name(row) for row in rows]
    shares = {n: _shares(arrays[f"{n}/ledger"]) for n in names}
    sites = [str(s) for s in arrays[f"{names[0]}/sites"]]
    top = max(float(np.abs(s).max()) for s in shares.values()) or 1.0
    norm = SymLogNorm(linthresh=top / 100, vmin=-top, vmax=top)
    size = (max(3.4 + 3.1 * len(names), 6.5), max(1.8 + 0.15 * len(sites), 3.2))
    fig, axes = panels(1, 2 * len(names), size, title=_title(config, "Where the error is made"),
                       sharey=True, width_ratios=[3, 1] * len(names))  # fmt: skip
    for side in axes[3::2]:
        side.sharex(axes[1])
    images = [
        _draw_ledger_panel(axes[2 * i], axes[2 * i + 1], shares[name], name, norm)
        for i, name in enumerate(names)
    ]
    axes[0].set_yticks(range(len(sites)), sites, fontsize=6.5)
    axes[0].set_ylim(len(sites) - 0.5, -0.5)
    bar = fig.colorbar(images[0], ax=list(axes), location="bottom", shrink=0.4, aspect=40, pad=0.01)
    bar.set_label("share of the squared error of the final samples, % a site and step", fontsize=8)
    ticks = [-top, -top / 10, -top / 100, 0.0, top / 100, top / 10, top]
    bar.set_ticks(ticks, labels=[f"{t:+.2g}" if t else "0" for t in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    return fig


def _draw_ledger_panel(ax, side, share, name: str, norm):
    """Heat map of share [N, S] and bars of its sums over steps; returns the image."""
    num_steps, num_sites = share.shape
    image = ax.imshow(
        share.T, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest",
        extent=(-0.5, num_steps - 0.5, num_sites - 0.5, -0.5),
    )  # fmt: skip
    ax.set_title(name, fontsize=9)
    ax.set_xlabel("sampler step (noise to data)", **SMALL)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    sums = share.sum(axis=0)
    side.barh(range(num_sites), sums, color=np.where(sums < 0, BLUE, ORANGE), height=0.8)
    side.axvline(0, color="black", lw=0.6)
    side.set_xlabel("all steps, %", **SMALL)
    side.xaxis.set_major_locator(MaxNLocator(3))
    side.spines[["top", "right", "left"]].set_visible(False)
    for a in (ax, side):
        a.tick_params(labelsize=7)
        a.tick_params(axis="y", length=0)
    return image


def _shares(ledger):
    total = float(np.sum(ledger))
    return 100.0 * np.asarray(ledger, np.float64) / (total or 1.0)


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

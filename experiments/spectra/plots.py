"""Figure and table of `experiments.spectra`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, MARKERS, ORANGE, panels, tidy


def draw(config, arrays, rows) -> Figure:
    """Draw gains of steps and of the rest of the sampler, volumes, and gain against error.

    Bands are 10 to 90 % of the samples.
    """
    fig, axes = panels(2, 2, 5.2)
    _draw_steps(axes[0, 0], arrays)
    _draw_rest(axes[0, 1], arrays, rows)
    _draw_growth(axes[1, 0], arrays)
    _draw_errors(axes[1, 1], config, arrays, rows)
    for ax in axes.ravel()[:3]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(*axes.ravel(), legend=7)
    axes[0, 1].set_ylim(top=axes[0, 1].get_ylim()[1] * 30)  # room for the legend
    axes[0, 0].set_ylim(bottom=axes[0, 0].get_ylim()[0] / 3)
    return fig


def _band(ax, x, values, color, label, **look) -> None:
    """Draw the median over the last axis, and the 10 to 90 % range."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=-1)
    ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    look = {"marker": MARKERS[len(ax.lines) % len(MARKERS)], "ms": 2.5, "markevery": 2} | look
    ax.plot(x, middle, color=color, lw=1, label=label, **look)


def _draw_steps(ax, arrays) -> None:
    values, colors = arrays["step_values"], (ORANGE, BLUE, GREEN)
    x = np.arange(len(values))
    for k in range(min(values.shape[2], len(colors))):
        _band(ax, x, values[..., k], colors[k], f"singular value {k + 1}")
    _band(ax, x, np.exp(arrays["log_volumes"]), GREY, "geometric mean of all;\nbands: 10 to 90 %")
    ax.axhline(1, color="black", lw=0.8)
    ax.set(yscale="log", xlabel="step (noise to data)", ylabel="gain of the step",
           title="one step: singular values of $J_i$")  # fmt: skip


def _draw_rest(ax, arrays, rows) -> None:
    gains = arrays["rms_gains"]
    _band(ax, np.arange(len(gains)), gains, BLUE, r"rms gain $|J|_F/\sqrt{n}$")
    _band(ax, arrays["starts"], arrays["sampler_values"][..., 0], ORANGE, "top gain",
          markevery=1)  # fmt: skip
    starts = [r for r in rows if r["kind"] == "start"]
    for key, look, label in (("product", "--", "product of top gains"),
                             ("gronwall", ":", "exp of integrated log-norm")):  # fmt: skip
        ax.plot([r["step"] for r in starts], [r[key][1] for r in starts], color=GREY, ls=look,
                lw=1.3, label=label)  # fmt: skip
    ax.axhline(1, color="black", lw=0.8)
    ax.set(yscale="log", xlabel="step at which the error enters", ylabel="gain to the end",
           title=r"The rest of the sampler: $J_{i\to 0}$")  # fmt: skip


def _draw_growth(ax, arrays) -> None:
    stretches = arrays["stretches"]
    x = np.arange(len(stretches))
    for k, color in zip(range(stretches.shape[2]), (ORANGE, BLUE, GREEN), strict=False):
        _band(ax, x, stretches[..., k], color, f"random frame, direction {k + 1}")
    volumes = np.cumsum(arrays["log_volumes"], axis=0)
    _band(ax, x[1:], volumes, GREY, "volume, per dimension")
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xlabel="steps done", ylabel="log stretch since the start",
           title="Growth along the run (Lyapunov)")  # fmt: skip


def _draw_errors(ax, config, arrays, rows) -> None:
    typical = np.sqrt(np.mean(arrays["rms_gains"][1:] ** 2, axis=0))
    width = f"W{config['bits']}A{config['bits']}"
    rank = next(r for r in rows if r["kind"] == "whole")["rank_correlation"]
    ax.plot(typical, arrays["errors"], ".", color=ORANGE, ms=6, mew=0,
            label=f"rank correlation {rank:+.2f}")  # fmt: skip
    ax.set(yscale="log", xlabel="rms gain at a random step",
           ylabel=f"RMS error at {width}, image units",
           title=f"{Path(config['checkpoint']).name}: gain against error")  # fmt: skip


def _three(values) -> str:
    return ", ".join(f"{v:.3g}" for v in values)


FIGURES = {"spectra": draw}
STEPS = (
    ("step", lambda r: r["step"]),
    ("t", lambda r: f"{r['t']:.0f}"),
    ("top gain", lambda r: _three(r["top_gain"])),
    ("> 1", lambda r: f"{r['amplified']:.0%}"),
    ("rms gain to the end", lambda r: _three(r["rms_gain"])),
    ("log volume / n", lambda r: f"{r['log_volume']:+.4f}"),
)
STARTS = (
    ("from step", lambda r: r["step"]),
    ("top gain to the end", lambda r: _three(r["top_gain"])),
    ("product of steps", lambda r: _three(r["product"])),
    ("log-norm bound", lambda r: _three(r["gronwall"])),
)


def table(rows) -> list:
    """Return the tables of the steps and the starts, and lines on the whole run."""
    (whole,) = (r for r in rows if r["kind"] == "whole")
    frame = "; ".join(_three(e) for e in whole["frame_exponents"])
    return [
        tables.columns((r for r in rows if r["kind"] == "step"), STEPS,
                       title="10, 50, 90 % over samples"),
        tables.columns((r for r in rows if r["kind"] == "start"), STARTS),
        f"exponents per step: top {_three(whole['top_exponent'])}; of a random frame {frame}",
        f"log volume per dimension: {whole['log_volume']:+.3f} +- {whole['log_volume_error']:.3f}",
        f"rms gain above one: {whole['rms_gain_above_one']:.1%} of (step, sample), ever: "
        f"{whole['ever_above_one']:.1%} of samples, largest {whole['largest_rms_gain']:.2f}",
        f"rank correlation of gain and error {whole['rank_correlation']:+.2f} "
        f"(p = {whole['rank_p']:.2g})",
        f"errors: median {whole['error_median']:.4f}, RMS {whole['error_rms']:.4f}, largest "
        f"{whole['error_max']:.4f}",
    ]  # fmt: skip

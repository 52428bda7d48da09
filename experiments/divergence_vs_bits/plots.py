"""Figure and table of `experiments.divergence_vs_bits`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, MARKERS, ORANGE, SMALL, panels, tidy


def draw(config, arrays, rows) -> Figure:
    """Distances against bits with their floors, bands from independent halves."""
    floor = next(r for r in rows if r["kind"] == "floor")
    widths = sorted((r for r in rows if r["kind"] == "width"), key=lambda r: r["bits"])
    fig, axes = panels(2, 2, 5.0)
    w2, kernels, kl, words = axes.ravel()
    _draw_w2(w2, widths, floor)
    _draw_kernels(kernels, widths, floor)
    _draw_kl(kl, widths, floor)
    words.set_axis_off()
    tidy(w2, kernels, kl)
    parts = [ax.get_legend_handles_labels() for ax in (w2, kernels, kl)]
    handles, labels = ([item for part in parts for item in part[i]] for i in (0, 1))
    words.legend(handles, labels, frameon=False, loc="center", title=_run(config), fontsize=7,
                 title_fontsize=7.5)  # fmt: skip
    _bits(widths, w2, kernels, kl)
    return fig


def draw_steps(config, arrays, rows) -> Figure:
    """Which steps matter, and the tail of the errors."""
    widths = sorted((r for r in rows if r["kind"] == "width"), key=lambda r: r["bits"])
    fig, axes = panels(2, 2, 4.8)
    shares, profiles, tails, words = axes.ravel()
    _draw_shares(shares, widths)
    _draw_profiles(profiles, arrays, widths)
    _draw_tails(tails, arrays, widths)
    words.set_axis_off()
    tidy(shares, profiles, tails)
    for ax in (profiles, tails):
        ax.legend(frameon=False, fontsize=7)
    words.legend(*shares.get_legend_handles_labels(), frameon=False, loc="center",
                 title=_run(config), title_fontsize=7.5, **SMALL)  # fmt: skip
    _bits(widths, shares)
    return fig


def _run(config) -> str:
    return f"{Path(config['checkpoint']).name}, DDIM-{config['num_steps']}, eta = 1"


def _bits(widths, *axes) -> None:
    for ax in axes:
        ax.set_xticks([r["bits"] for r in widths])
        ax.set_xlabel("bits of weights and activations", **SMALL)


def _series(ax, widths, get, color, label, shift=0.0, **look) -> None:
    """Draw estimates [value, low, high] with their intervals."""
    x = np.array([r["bits"] for r in widths]) + shift
    value, low, high = np.array([get(r) for r in widths], float).T
    ax.errorbar(x, value, np.maximum([value - low, high - value], 0), color=color, label=label,
                marker=MARKERS[len(ax.containers) % len(MARKERS)], ms=3.5, lw=1, elinewidth=1,
                **look)  # fmt: skip


def _floor(ax, estimate, color, label=None) -> None:
    ax.axhspan(estimate[1], estimate[2], color=color, alpha=0.12, lw=0)
    ax.axhline(estimate[0], color=color, lw=0.9, ls=":", label=label)


def _draw_w2(ax, widths, floor) -> None:
    looks = {"w2_upper": ("black", "upper: coupling"), "w2_lower": (BLUE, "lower: Gelbrich"),
             "sliced": (GREEN, "sliced")}  # fmt: skip
    for key, (color, label) in looks.items():
        _series(ax, widths, lambda r, key=key: r[key], color, label)
    _floor(ax, floor["w2_lower"], BLUE, "floors: independent halves")
    _floor(ax, floor["sliced"], GREEN)
    ax.set(yscale="log", ylabel="$W_2$, image units", title="$W_2$, paired noise")


def _draw_kernels(ax, widths, floor) -> None:
    for key, color, label in (("mmd_squared", ORANGE, "MMD$^2$"), ("energy", BLUE, "energy")):
        _series(ax, widths, lambda r, key=key: r[key], color, label)
        _floor(ax, floor[key], color, f"{label}, floor")
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.set(ylabel="MMD$^2$; energy distance", title="Kernel distances, unbiased")


def _draw_kl(ax, widths, floor) -> None:
    _series(ax, widths, lambda r: r["path_kl"], "black", "path KL")
    _series(ax, widths, lambda r: r["girsanov_kl"], GREY, "Girsanov", ls="--")
    names = list(floor["projected"])
    for name, color in zip(names, (GREEN, BLUE, "#56B4E9", ORANGE), strict=False):
        _series(ax, widths, lambda r, name=name: r["projected"][name]["neighbours"], color,
                f"projected: {name}", shift=0.06 * (names.index(name) - 1.5))  # fmt: skip
    high = max(p["neighbours"][2] for p in floor["projected"].values())
    ax.axhspan(-high, high, color=GREY, alpha=0.2, lw=0, label="floor of the projected")
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set(ylabel="KL, nats", title="KL: upper bounds, projections")


def _draw_shares(ax, widths) -> None:
    x = np.array([r["bits"] for r in widths], float)
    bars = (("kl_shares", 0, BLUE, "///", "KL, first tenth"),
            ("kl_shares", 1, BLUE, "", "KL, last"),
            ("error_shares", 0, ORANGE, "///", "squared error, first tenth"),
            ("error_shares", 1, ORANGE, "", "squared error, last"))  # fmt: skip
    for i, (key, end, color, hatch, label) in enumerate(bars):
        ax.bar(x + 0.2 * (i - 1.5), [r[key][end] for r in widths], 0.18, edgecolor=color, lw=0.8,
               color="white" if hatch else color, hatch=hatch, label=label)  # fmt: skip
    ax.axhline(0.1, color="black", lw=0.8, ls=":", label="an even spread")
    ax.set(ylabel="share", title="a tenth of the steps")


def _draw_profiles(ax, arrays, widths) -> None:
    for r, color in zip(widths[::-1], (BLUE, GREEN, ORANGE, GREY, "black"), strict=False):
        name = f"W{r['bits']}A{r['bits']}"
        for key, look in (("kl_terms", "-"), ("error_profile", "--")):
            profile = arrays[f"{name}/{key}"]
            ax.plot(np.cumsum(profile) / np.sum(profile), color=color, ls=look, lw=1, ms=2.5,
                    marker=MARKERS[widths.index(r)], markevery=3,
                    label=name if look == "-" else None)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="step (noise to data)", ylabel="share up to the step",
           title="KL (solid), squared error (dashed)")  # fmt: skip


def _draw_tails(ax, arrays, widths) -> None:
    for r, color in zip(widths[::-1], (BLUE, GREEN, ORANGE, GREY, "black"), strict=False):
        errors = np.sort(arrays[f"W{r['bits']}A{r['bits']}/errors"])
        ax.plot(errors, 1 - np.arange(errors.size) / errors.size, color=color, lw=1,
                marker=MARKERS[widths.index(r)], ms=3, markevery=0.1,
                label=f"W{r['bits']}A{r['bits']}")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="RMS error of a sample, image units", ylabel="share",
           title="samples with a larger error")  # fmt: skip


def _width(r) -> str:
    return "floor" if r["kind"] == "floor" else f"W{r['bits']}A{r['bits']}"


def _pm(estimate, scale: float = 1) -> str:
    value, low, high = (scale * v for v in estimate)
    return f"{value:.3g} +- {(high - low) / 2:.2g}"


def _best(r):
    return max(p["neighbours"] for p in r["projected"].values())


FIGURES = {"divergences": draw, "steps": draw_steps}
DISTANCES = (
    ("width", _width),
    ("W2\nlower, upper", lambda r: f"{r['w2_lower'][0]:.3g}, {r['w2_upper'][0]:.3g}"),
    ("sliced", lambda r: f"{r['sliced'][0]:.3g}"),
    ("1000 MMD^2", lambda r: _pm(r["mmd_squared"], 1000)),
    ("energy", lambda r: _pm(r["energy"])),
)
KL = (
    ("width", _width),
    ("path KL", lambda r: _pm(r["path_kl"]) if "path_kl" in r else "0"),
    ("Girsanov", lambda r: _pm(r["girsanov_kl"]) if "girsanov_kl" in r else "0"),
    ("projected KL", lambda r: _pm(_best(r))),
    ("tightness", lambda r: f"{r['tightness']:.2g}" if "tightness" in r else None),
)
SHARES = (
    ("width", _width),
    ("KL share first, last", lambda r: "{:+.0%}, {:+.0%}".format(*r["kl_shares"])),
    ("error share first, last", lambda r: "{:+.0%}, {:+.0%}".format(*r["error_shares"])),
    ("flips", lambda r: f"{r['flips'][0]:.1%}"),
    ("lost", lambda r: f"{r['lost']:.1%}"),
    ("error RMS, median", lambda r: f"{r['error_rms']:.4f}, {r['error_median']:.4f}"),
    ("worst 5 %", lambda r: f"{r['worst_share']:.0%}"),
)


def table(rows) -> list:
    """Return the distances and the KL of the floor and of each width, then who bears the error."""
    widths = [r for r in rows if r["kind"] == "width"]
    hold = all(r["bounds_hold"] for r in widths)
    warning = [] if hold else ["A projected KL EXCEEDS the path KL beyond both intervals."]
    both = (tables.columns(rows, spec) for spec in (DISTANCES, KL))
    return [*both, tables.columns(widths, SHARES), *warning]

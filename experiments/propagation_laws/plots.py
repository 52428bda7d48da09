"""Figure and table of `experiments.propagation_laws`; needs no JAX."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, SMALL, panels, tidy

LOOKS: dict[str, tuple[str, str, str]] = {
    "W": ("weights", "black", "o"), "A": ("activations, nearest", BLUE, "s"),
    "SR": ("activations, stochastic", GREEN, "^"), "WA": ("both", ORANGE, "D"),
}  # fmt: skip


def draw(config, arrays, rows) -> Figure:
    """Draw median errors against steps, bits and sampler: measured, and predicted dotted."""
    cases = [r for r in rows if r["kind"] == "case"]
    fig, axes = panels(2, 2, 4.8)
    steps, bits, samplers, words = axes.ravel()
    words.set_axis_off()
    ddim = [r for r in cases if r["sampler"] == "ddim"]
    _draw_series(steps, [r for r in ddim if r["bits"] == config["width"]], "num_calls")
    _draw_series(bits, [r for r in ddim if r["num_calls"] == config["middle"]], "bits")
    _guides(steps, cases, config)
    steps.set(xlabel="sampler steps N (DDIM)", ylabel="median RMS error of a sample",
              title=f"{config['width']} bits", xscale="log", yscale="log")  # fmt: skip
    _ticks(steps, sorted({r["num_calls"] for r in ddim}))
    bits.set(xlabel="bits", title=f"{config['middle']} steps", yscale="log")
    _ticks(bits, sorted({r["bits"] for r in ddim}))
    _draw_samplers(samplers, cases, config)
    tidy(steps, bits, samplers)
    handles, labels = (
        a + b for a, b in zip(steps.get_legend_handles_labels(),
                              samplers.get_legend_handles_labels(), strict=True)
    )  # fmt: skip
    words.legend(handles, labels, loc="center", frameon=False, **SMALL)
    return fig


def _draw_series(ax, cases, of: str) -> None:
    for part, (label, color, marker) in LOOKS.items():
        series = sorted((r for r in cases if r["part"] == part), key=lambda r: r[of])
        x = [r[of] for r in series]
        ax.plot(x, [r["median"] for r in series], color=color, marker=marker, ms=4, lw=1.4,
                label=label)  # fmt: skip
        predicted = [r["predicted_median"] for r in series]
        ax.plot(x, predicted, color=color, lw=1.2, ls=(0, (1, 1)),
                label="predicted" if part == "W" else None)  # fmt: skip


def _guides(ax, cases, config) -> None:
    """Draw the slope that theory gives to stochastic rounding, through its second point."""
    wanted = ("ddim", "SR", config["width"])
    chosen = [r for r in cases if (r["sampler"], r["part"], r["bits"]) == wanted]
    n, y = np.array(sorted((r["num_calls"], r["median"]) for r in chosen)).T
    at = min(1, len(n) - 1)
    ax.plot(n, y[at] * (n / n[at]) ** -0.5, color=GREY, lw=0.9, ls="--", label="$N^{-1/2}$")


def _ticks(ax, values) -> None:
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([str(v) for v in values])


def _draw_samplers(ax, cases, config) -> None:
    names = ["ddim", *config["samplers"]]
    chosen = {r["sampler"]: r for r in cases
              if r["part"] == "WA" and r["bits"] == config["width"]
              and r["num_calls"] == config["middle"]}  # fmt: skip
    names = [n for n in names if n in chosen]
    y = np.arange(len(names))
    ax.barh(y + 0.18, [chosen[n]["median"] for n in names], 0.34, color=ORANGE,
            label="samplers, measured")  # fmt: skip
    ax.barh(y - 0.18, [chosen[n]["predicted_median"] for n in names], 0.34, color="white",
            edgecolor=ORANGE, hatch="///", lw=0.8, label="samplers, predicted")  # fmt: skip
    ax.set_yticks(y, names, fontsize=7)
    ax.invert_yaxis()
    w = config["width"]
    ax.set(xlabel="median RMS error of a sample",
           title=f"W{w}A{w}, {config['middle']} calls")  # fmt: skip


FIGURES = {"laws": draw}
COLUMNS = (
    ("sampler", lambda r: r["sampler"]),
    ("calls", lambda r: r["num_calls"]),
    ("rounded", lambda r: f"{r['part']}{r['bits']}"),
    *((title, lambda r, key=key: f"{r[key]:.4f}") for title, key in (
        ("rms", "rms"), ("predicted", "predicted_rms"), ("median", "median"),
        ("predicted", "predicted_median"),
    )),
    ("kappa", lambda r: "-" if r["kappa"] is None else f"{r['kappa']:.2f}"),
    ("bound/err\nmin, median", lambda r: ", ".join(
        tables.number(r[f"bound_over_measured_{end}"]) for end in ("min", "median")
    )),
)  # fmt: skip


def _law(r) -> str:
    theory = "" if r["theory"] is None else f", theory {r['theory']:+.2f}"
    return f"{r['law']}: exponent {r['exponent']:+.3f} +- {r['standard_error']:.3f}{theory}"


def _crossover(r) -> str:
    model = "nowhere" if r["model"] is None else f"{r['model']:.0f}"
    return (f"stochastic rounding is better from N = {r['better_from']} on (worse until "
            f"{r['worse_until']}); model {model}")  # fmt: skip


def table(rows) -> list:
    """Return the cases and the laws."""
    lines = {"law": _law, "crossover": _crossover}
    cases = tables.columns((r for r in rows if r["kind"] == "case"), COLUMNS)
    return [cases, *(lines[r["kind"]](r) for r in rows if r["kind"] in lines)]

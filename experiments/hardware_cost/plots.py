"""Figures and tables of `experiments.hardware_cost`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, MARKERS, ORANGE, SMALL, panels, tidy
from qdiffjax.plots import short

SKY = "#56B4E9"
COLORS = {"float32": "black", "bf16": GREY, "W8A8": BLUE, "W4A8": SKY, "W4A16": GREEN,
          "fp8": ORANGE}  # fmt: skip
CHIP = "H100"  # whose times are drawn site by site
MOST = 18  # sites that a panel names
MARKS = dict(zip(COLORS, MARKERS, strict=False))


def draw_layers(config, arrays, rows) -> Figure:
    """Draw the predicted time of the slowest sites by name, a panel for each network."""
    networks, batch = config["networks"], max(config["batches"])
    fig, axes = panels(len(networks), 1, (0.55 + 0.125 * MOST) * len(networks), squeeze=False)
    chip = list(arrays["chips"]).index(CHIP)
    for name, ax in zip(networks, axes[:, 0], strict=True):
        seconds, sites = (arrays[f"{name}/{batch}/{key}"] for key in ("seconds", "sites"))
        seconds = seconds[:, chip]
        # Blocks repeat: of sites that take the same times the first stands for all.
        different = np.unique(seconds.round(12), axis=1, return_index=True)[1]
        order = np.sort(different[np.argsort(-seconds[:, different].max(0))][:MOST])
        for i, (precision, times) in enumerate(zip(arrays["precisions"], seconds, strict=True)):
            look, shift = str(precision), 0.12 * (i - (len(seconds) - 1) / 2)
            ax.plot(1e6 * times[order], np.arange(order.size) + shift, MARKS[look], ls="", ms=2.5,
                    color=COLORS[look], label=look)  # fmt: skip
        labels = [short(str(sites[i]).removesuffix("/kernel")) for i in order]
        ax.set_yticks(range(order.size), labels)
        ax.invert_yaxis()
        ax.set(xscale="log", title=f"{_short(name)}, batch {batch}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    tidy(*axes[:, 0])
    axes[-1, 0].set_xlabel(f"µs on one {CHIP}, predicted (roofline)", **SMALL)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
               frameon=False, **SMALL)  # fmt: skip
    return fig


def draw_chips(config, arrays, rows) -> Figure:
    """Draw how much faster than bf16 a call is predicted to be, a panel for each network."""
    costs = [r for r in rows if r["part"] == "costs"]
    keys = list(dict.fromkeys((r["network"], r["batch"]) for r in costs))
    columns = len(config["batches"])
    lines = len(keys) // columns
    fig, axes = panels(lines, columns, 0.4 + 1.6 * lines, squeeze=False, sharex=True)
    for (name, batch), ax in zip(keys, axes.ravel(), strict=True):
        chosen = {r["precision"]: r for r in costs if (r["network"], r["batch"]) == (name, batch)}
        base = np.array(list(chosen["bf16"]["seconds"].values()))
        others = [look for look in chosen if look != "bf16"]
        for i, look in enumerate(others):
            seconds = np.array(list(chosen[look]["seconds"].values()))
            ax.plot(np.arange(base.size) + 0.12 * (i - (len(others) - 1) / 2), base / seconds,
                    MARKS[look], ls="", ms=3.5, color=COLORS[look], label=look)  # fmt: skip
        ax.axhline(1, color=GREY, lw=0.8, label="bf16")
        ax.set_xticks(range(base.size), list(chosen["bf16"]["seconds"]), rotation=45)
        ax.set(yscale="log", title=f"{_short(name)}, batch {batch}")
        ax.set_yticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
        ax.minorticks_off()
    tidy(*axes.ravel())
    fig.supylabel("predicted speed-up over bf16 (roofline)", **SMALL)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
               frameon=False, **SMALL)  # fmt: skip
    return fig


def draw_roofline(config, arrays, rows) -> Figure:
    """Draw the measured rate of every product on this machine, under its measured roofs."""
    (row,) = (r for r in rows if r["part"] == "measured")
    intensity, macs = arrays["measured/intensity"], arrays["measured/macs"]
    rate = 2 * macs / arrays["measured/seconds"]
    fig, ax = panels(1, 1, 3.4)
    x = np.geomspace(intensity.min() / 2, intensity.max() * 2, 200)
    roof = np.minimum(row["rate"], x * row["bandwidth"])
    ax.plot(x, roof / 1e9, color="black", lw=1, label="measured peak and bandwidth")
    is_conv = np.array(["time" not in str(s) for s in arrays["measured/sites"]])
    for mask, color, marker, label in ((is_conv, BLUE, "o", "convolutions, attention"),
                                       (~is_conv, ORANGE, "s", "time embedding")):  # fmt: skip
        ax.plot(intensity[mask], rate[mask] / 1e9, marker, ls="", ms=3, color=color, label=label)
    title = f"{_short(row['network'])}, float32, batch {row['batch']}: products alone"
    ax.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s", title=title)
    tidy(ax, legend=7)
    return fig


def _short(name: str) -> str:
    return Path(name).name


def _costs(rows):
    """Return the table of one network and batch: a line for each precision."""
    first = rows[0]
    is_small = first["seconds"][CHIP] < 1e-3
    time, unit = (1e6, "µs") if is_small else (1e3, "ms")
    ops, prefix = (1e9, "G") if is_small else (1e12, "T")
    size = f"{first['gmacs']:.4g} GMACs, {first['parameters'] / 1e6:.4g}M parameters"
    columns = (
        ("", lambda r: r["precision"]),
        ("model\nMB", tables.numbers("model_bytes", unit=1e6)),
        ("moved\nMB", tables.numbers("traffic", unit=1e6)),
        (f"{prefix}BOPs\n", tables.numbers("bops", unit=ops)),
        ("mJ\n", lambda r: tables.number(1e3 * (r["joules_compute"] + r["joules_memory"]), 2)),
        *((c, lambda r, c=c: tables.number(time * r["seconds"][c], 2)) for c in first["seconds"]),
    )
    name, batch = _short(first["network"]), first["batch"]
    return tables.columns(
        rows, columns, title=f"{name}, batch {batch}: {size}; predicted {unit} by chip"
    )


def _compiled(r) -> str:
    return (
        f"{_short(r['network'])}, float32, one sample: XLA counts "
        f"{r['xla_flops'] / r['site_flops']:.3f} of our operations (none with\npadding, but "
        f"those between the products) and {r['xla_bytes'] / r['site_bytes']:.2f} of the bytes"
    )


def _measured(r) -> str:
    return (
        f"{_short(r['network'])}, float32, batch {r['batch']}, {r['device']}: peak "
        f"{r['rate'] / 1e9:.0f} GFLOP/s, {r['bandwidth'] / 1e9:.1f} GB/s;\na call "
        f"{1e3 * r['call_best']:.1f} ms at best (median {1e3 * r['call']:.1f}, "
        f"{1e3 * r['call_low']:.1f} to {1e3 * r['call_high']:.1f}), its products alone "
        f"{1e3 * r['products_alone']:.1f} ms, roofline {1e3 * r['roofline']:.1f} ms"
    )


FIGURES = {"layers": draw_layers, "chips": draw_chips, "roofline": draw_roofline}


def table(rows) -> list:
    """Return costs by network, batch and precision, then the compiler's and the measured."""
    costs = [r for r in rows if r["part"] == "costs"]
    keys = dict.fromkeys((r["network"], r["batch"]) for r in costs)
    lines = {"compiled": _compiled, "measured": _measured}
    return [
        *(_costs([r for r in costs if (r["network"], r["batch"]) == key]) for key in keys),
        *(lines[r["part"]](r) for r in rows if r["part"] in lines),
    ]

"""Figures and tables of `experiments.hardware_cost`; needs no JAX."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import store, tables
from experiments.harness.looks import BLUE, GREEN, GREY, ORANGE, tidy

SKY, PINK = "#56B4E9", "#CC79A7"
COLORS = {"float32": "black", "bf16": GREY, "W8A8": BLUE, "W4A8": SKY, "W4A16": GREEN,
          "fp8": ORANGE}  # fmt: skip
CHIP = "H100"  # whose times are drawn site by site
MOST = 60  # sites that a panel shows


def write(folder) -> None:
    """Write layers.png, chips.png and roofline.png of the run in `folder` beside it."""
    results = store.load(folder)
    for name, draw in (("layers", draw_layers), ("chips", draw_chips), ("roofline", draw_roofline)):
        draw(*results).savefig(Path(folder) / f"{name}.png", dpi=150)


def draw_layers(config, arrays, rows) -> Figure:
    """Predicted time of every site, in the order of the network, a panel each; the first MOST."""
    networks, batch = config["networks"], max(config["batches"])
    fig = Figure(figsize=(9, 2.4 * len(networks)), layout="constrained")
    chip = list(arrays["chips"]).index(CHIP)
    for name, ax in zip(networks, np.atleast_1d(fig.subplots(len(networks), 1)), strict=True):
        seconds = arrays[f"{name}/{batch}/seconds"][:, chip, :MOST]
        for i, (precision, times) in enumerate(zip(arrays["precisions"], seconds, strict=True)):
            # Thinner over thicker: lines that coincide are all seen.
            ax.step(np.arange(times.size), 1e6 * times, where="mid", lw=2.6 - 0.4 * i,
                    label=precision, color=COLORS[str(precision)])  # fmt: skip
        ax.set(yscale="log", ylabel="µs", title=f"{_short(name)}, batch {batch}")
        tidy(ax)
    ax.set_xlabel(f"site, from the input on (at most {MOST})")
    fig.axes[0].legend(frameon=False, fontsize=7, ncols=6, loc="lower center")
    fig.suptitle(f"Predicted (roofline) time of each product on one {CHIP}", fontsize=10)
    return fig


def draw_chips(config, arrays, rows) -> Figure:
    """Predicted time of a call on every chip, a panel for each network and batch."""
    costs = [r for r in rows if r["part"] == "costs"]
    keys = list(dict.fromkeys((r["network"], r["batch"]) for r in costs))
    columns = len(config["batches"])
    fig = Figure(figsize=(4.5 * columns, 2.4 * len(keys) / columns), layout="constrained")
    axes = np.atleast_1d(fig.subplots(len(keys) // columns, columns)).ravel()
    for (name, batch), ax in zip(keys, axes, strict=True):
        chosen = [r for r in costs if (r["network"], r["batch"]) == (name, batch)]
        for i, row in enumerate(chosen):
            places = np.arange(len(row["seconds"])) + 0.1 * (i - len(chosen) / 2)
            milliseconds = [1e3 * s for s in row["seconds"].values()]
            ax.plot(places, milliseconds, "o", ms=3, color=COLORS[row["precision"]],
                    label=row["precision"])  # fmt: skip
        ax.set_xticks(range(len(row["seconds"])), list(row["seconds"]))
        ax.set(yscale="log", ylabel="ms a call", title=f"{_short(name)}, batch {batch}")
        ax.tick_params(axis="x", labelsize=7)
        tidy(ax)
    axes[0].legend(frameon=False, fontsize=7, ncols=2)
    fig.suptitle("Predicted (roofline) time of all products of a call", fontsize=10)
    return fig


def draw_roofline(config, arrays, rows) -> Figure:
    """Measured rate of every product on this machine, under its measured roofs."""
    (row,) = (r for r in rows if r["part"] == "measured")
    intensity, macs = arrays["measured/intensity"], arrays["measured/macs"]
    rate = 2 * macs / arrays["measured/seconds"]
    fig = Figure(figsize=(5, 3.4), layout="constrained")
    ax = fig.subplots()
    x = np.geomspace(intensity.min() / 2, intensity.max() * 2, 200)
    roof = np.minimum(row["rate"], x * row["bandwidth"])
    ax.plot(x, roof / 1e9, color="black", lw=1, label="measured peak and bandwidth")
    is_conv = np.array([not _is_dense(s) for s in arrays["measured/sites"]])
    for mask, color, label in ((is_conv, BLUE, "convolutions, attention"),
                               (~is_conv, ORANGE, "time embedding")):  # fmt: skip
        ax.plot(intensity[mask], rate[mask] / 1e9, "o", ms=3, color=color, label=label)
    title = f"{_short(row['network'])}, float32, batch {row['batch']}: products alone"
    ax.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s", title=title)
    tidy(ax)
    ax.legend(frameon=False, fontsize=7)
    return fig


def _is_dense(site: str) -> bool:
    return "time" in str(site)


def _short(name: str) -> str:
    return Path(name).name


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print costs by network, batch and precision, then the compiler's and the measured."""
    console = tables.console(None)
    costs = [r for r in rows if r["part"] == "costs"]
    for key in dict.fromkeys((r["network"], r["batch"]) for r in costs):
        console.print(_costs(key, [r for r in costs if (r["network"], r["batch"]) == key]))
    for r in rows:
        if r["part"] == "compiled":
            console.print(
                f"{_short(r['network'])}, float32, one sample: XLA counts "
                f"{r['xla_flops'] / r['site_flops']:.3f} of our operations (none with padding, but "
                f"those between the products) and {r['xla_bytes'] / r['site_bytes']:.2f} of the "
                "bytes"
            )
        elif r["part"] == "measured":
            console.print(
                f"{_short(r['network'])}, float32, batch {r['batch']}, {r['device']}: peak "
                f"{r['rate'] / 1e9:.0f} GFLOP/s, {r['bandwidth'] / 1e9:.1f} GB/s; a call "
                f"{1e3 * r['call_best']:.1f} ms at best (median {1e3 * r['call']:.1f}, "
                f"{1e3 * r['call_low']:.1f} to {1e3 * r['call_high']:.1f}), its products alone "
                f"{1e3 * r['products_alone']:.1f} ms, roofline {1e3 * r['roofline']:.1f} ms"
            )


def _costs(key, rows):
    from rich import box
    from rich.table import Table

    name, batch = key
    is_small = rows[0]["seconds"][CHIP] < 1e-3
    time, unit = (1e6, "µs") if is_small else (1e3, "ms")
    ops, prefix = (1e9, "G") if is_small else (1e12, "T")
    size = f"{rows[0]['gmacs']:.4g} GMACs, {rows[0]['parameters'] / 1e6:.4g}M parameters"
    title = f"{_short(name)}, batch {batch}: {size}; predicted {unit} by chip"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    chips = list(rows[0]["seconds"])
    for head in ("", "model\nMB", "moved\nMB", f"{prefix}BOPs\n", "mJ\n", *chips):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for r in rows:
        joules = r["joules_compute"] + r["joules_memory"]
        table.add_row(
            r["precision"], tables.number(r["model_bytes"] / 1e6),
            tables.number(r["traffic"] / 1e6), tables.number(r["bops"] / ops),
            tables.number(1e3 * joules, 2),
            *(tables.number(time * r["seconds"][c], 2) for c in chips),
        )  # fmt: skip
    return table

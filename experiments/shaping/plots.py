"""Figure and table of `experiments.shaping`; needs no JAX."""

import itertools
from pathlib import Path

from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, names_beside, panels, reaches, tidy

DDIM = "ddim"  # the one sampler of results that name none
ONCE = ("nearest", "clipped", "sums kept")  # roundings of the weights' own channels
STYLES = {"nearest": (GREY, "o", "--"), "sums kept": (GREY, "s", ":"),
          "fresh bits": (GREEN, "^", "-"),
          "golden ratio": (ORANGE, "D", "-"), "noble ratios": (ORANGE, "x", ":"),
          "sigma-delta": (BLUE, "v", "-")}  # fmt: skip


def grids(rows) -> list[tuple[str, int, int, dict[str, dict]]]:
    """Return (sampler, steps, bits, {method: row}) of each case, in the order of the rows."""
    case = lambda row: (row.get("sampler", DDIM), row["num_steps"], row["bits"])  # noqa: E731
    return [(*key, {row["method"]: row for row in members})
            for key, members in itertools.groupby(rows, case)]  # fmt: skip


def gain(by_method) -> float:
    """Return the least error of a single rounding over that of sigma-delta."""
    return min(by_method[name]["rmse"] for name in ONCE) / by_method["sigma-delta"]["rmse"]


def periodic_ratios(by_method) -> dict[int, float]:
    """Return {k: mean square error of k extra bits over that of general + one rounding}.

    The one rounding is to the mean over the period, or nearest at b + k of results without it.
    """
    square = {name: row["rmse"] ** 2 for name, row in by_method.items()}
    ks = [int(name.split()[-1]) for name in by_method if name.startswith("periodic")]
    once = {k: square.get(f"mean of {k}", square[f"nearest + {k}"]) for k in ks}
    return {k: square[f"periodic {k}"] / (square["sigma-delta"] + once[k]) for k in ks}


def draw(config, arrays, rows) -> Figure:
    """RMSE of the samples by width, a panel for each number of steps of the first sampler.

    Of one width all methods.
    """
    if len(config["weight_bits"]) == 1:
        return _draw_methods(config, rows)
    first = config.get("samplers", [DDIM])[0]
    panes = {n: [g for g in grids(rows) if g[:2] == (first, n)] for n in config["num_steps"]}
    fig, axes = panels(1, len(panes), 2.4, sharey=True, squeeze=False)
    for ax, (num_steps, pane) in zip(axes[0], panes.items(), strict=True):
        bits = [b for *_, b, _ in pane]
        for name, (color, marker, line) in STYLES.items():
            found = [by_method[name] for *_, by_method in pane if name in by_method]
            if not found:  # results from before there was such a method
                continue
            values = [row["rmse"] for row in found]
            ax.errorbar(bits, values, reaches(found), color=color, marker=marker, ls=line, ms=3.5,
                        lw=1, capsize=1.5, label=name)  # fmt: skip
        ax.set(yscale="log", xlabel="bits of a weight", title=f"{num_steps} steps", xticks=bits)
    axes[0, 0].set_ylabel(f"RMSE, {Path(config['checkpoint']).name}")
    tidy(*axes[0])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5,
               frameon=False, fontsize=7)  # fmt: skip
    return fig


def _draw_methods(config, rows) -> Figure:
    cases = grids(rows)
    names = list(cases[0][3])
    fig, axes = panels(1, len(cases), 0.6 + 0.16 * len(names), sharey=True, squeeze=False)
    for ax, (sampler, num_steps, _, by_method) in zip(axes[0], cases, strict=True):
        for place, name in enumerate(names):
            row = by_method[name]
            color = STYLES.get(
                name, (BLUE if name.startswith(("periodic", "grouped s")) else GREY,)
            )
            ax.errorbar(row["rmse"], place, xerr=reaches([row]), color=color[0], marker="o", ms=3,
                        lw=1, capsize=1.5)  # fmt: skip
            ax.plot(row["of_seeds"], [place] * len(row["of_seeds"]), "|", color=color[0], ms=5)
        names_beside(ax, names, f"{sampler}\nN = {num_steps}")
    fig.supxlabel(f"RMSE of the samples, W{cases[0][2]}, {Path(config['checkpoint']).name}; "
                  "| a seed", fontsize=7.5)  # fmt: skip
    tidy(*axes[0])
    return fig


FIGURES = {"shaping": draw}


def table(rows) -> list:
    """Return the tables on the screen: of each run of a sampler by method, then what it says."""
    cases = grids(rows)
    ks = list(periodic_ratios(cases[0][3]))
    told = []
    for (sampler, num_steps), group in itertools.groupby(cases, lambda case: case[:2]):
        by_bits = {bits: by_method for *_, bits, by_method in group}
        spec: list = [("rounding", lambda name: name)]
        spec += [(f"W{bits}", lambda name, m=by_method: _between(m[name]))
                 for bits, by_method in by_bits.items()]  # fmt: skip
        told.append(
            tables.columns(
                list(next(iter(by_bits.values()))),
                spec,
                title=f"RMSE of the samples, {num_steps} steps of {sampler}",
            )
        )

    def predicted(g) -> str:
        ratio = g[3]["sigma-delta"].get("predicted_over_measured")
        return "-" if ratio is None else f"{ratio:.2f}"

    said: list = [
        ("sampler", lambda g: g[0]), ("steps", lambda g: g[1]), ("W", lambda g: g[2]),
        ("once /\nsigma-delta", lambda g: f"{gain(g[3]):.2f}"),
        ("predicted /\nmeasured", predicted),
        *((f"ratio {k}", lambda g, k=k: f"{periodic_ratios(g[3])[k]:.2f}") for k in ks),
    ]  # fmt: skip
    return [*told, tables.columns(
        cases, said, title="Once: the best single rounding of channels. Ratio: of mean squares, "
        "periodic of k more bits stored over (sigma-delta + once)",
    )]  # fmt: skip


def _between(row) -> str:
    return f"{row['rmse']:.3g} [{row['low']:.2g}, {row['high']:.2g}]"

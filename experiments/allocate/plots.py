"""Figures and tables of `experiments.allocate`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.allocate.rows import BASELINES, BUDGET, CHIPS, FEWER, FORECAST, SHAPES
from qdiffjax import _tables as tables
from qdiffjax._looks import BLUE, GREEN, GREY, ORANGE, panels, reaches, tidy

STYLES = {"uniform": (GREY, "o", "--"), "sum of squares": (GREEN, "^", "-"),
          "vector sum": (BLUE, "v", "-"), "again": (ORANGE, "D", "-"),
          "runs": (GREY, "s", ":")}  # fmt: skip


def of_kind(rows, kind: str) -> list[dict]:
    """Return the rows of a kind, see `rows`."""
    return [row for row in rows if row["kind"] == kind]


def budgets(rows) -> list[dict]:
    """Return the rows of budgets."""
    return of_kind(rows, BUDGET)


def forecasts(rows) -> list[dict]:
    """Return the rows of forecasts, one for each width."""
    return of_kind(rows, FORECAST)


def misses(row, what: str) -> float:
    """Return the median of |predicted / measured - 1| of a forecast."""
    return float(np.median(np.abs(np.array(row[what]) / np.array(row["measured"]) - 1)))


def mean_ratio(rows, family: str, way: str) -> float:
    """Return the geometric mean over budgets of RMSE over uniform's."""
    ratios = [row["ratio"] for row in budgets(rows) if (row["family"], row["way"]) == (family, way)]
    return float(np.exp(np.mean(np.log(ratios))))


def draw(config, arrays, rows) -> Figure:
    """RMSE by bits of every way, a panel for each family, and forecasts beside what is measured."""
    told = budgets(rows)
    families = list(dict.fromkeys(row["family"] for row in told))
    fig, axes = panels(1, len(families) + 1, 2.4, squeeze=False)
    for ax, family in zip(axes[0], families, strict=False):
        for way, (color, marker, line) in STYLES.items():
            own = sorted((r for r in told if (r["family"], r["way"]) == (family, way)),
                         key=lambda row: row["bits"])  # fmt: skip
            ends = reaches(own, "rmse", "rmse_low", "rmse_high")
            ax.errorbar([r["bits"] for r in own], [r["rmse"] for r in own], ends, color=color,
                        marker=marker, ls=line, ms=3, lw=1, capsize=1.5, label=way)  # fmt: skip
        ax.set(yscale="log", xlabel="bits a weight, with scales", title=family)
    axes[0, 0].set_ylabel(f"RMSE of the samples, {Path(config['checkpoint']).name}")
    ax = axes[0, -1]
    for what, way in (("squares", "sum of squares"), ("vectors", "vector sum"), ("runs", "runs")):
        pairs = [(m, p) for row in forecasts(rows)
                 for m, p in zip(row["measured"], row[what], strict=True)]  # fmt: skip
        color, marker, _ = STYLES[way]
        ax.scatter(*zip(*pairs, strict=True), s=5, color=color, marker=marker)
    ends = [min(min(row["measured"]) for row in forecasts(rows)),
            max(max(row["measured"]) for row in forecasts(rows))]  # fmt: skip
    ax.plot(ends, ends, color=GREY, lw=0.7)
    ax.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted", title="at random")
    tidy(*axes[0])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
               ncols=len(STYLES), frameon=False, fontsize=7)  # fmt: skip
    return fig


def draw_baselines(config, arrays, rows) -> Figure:
    """RMSE over uniform's of every method with its interval, and its runs; a panel for a budget."""
    told = of_kind(rows, BASELINES)
    budgets_of = sorted({row["budget"] for row in told})
    fig, axes = panels(1, len(budgets_of), 2.6, squeeze=False, sharey=True)
    ways = list(dict.fromkeys(row["way"] for row in told))[::-1]
    for ax, bits in zip(axes[0], budgets_of, strict=True):
        for row in (row for row in told if row["budget"] == bits):
            ends = reaches([row], "ratio", "ratio_low", "ratio_high")
            color = BLUE if row["way"] == "vector sum" else GREY
            ax.errorbar([row["ratio"]], [ways.index(row["way"])], xerr=ends, marker="o", ms=3, lw=1,
                        capsize=1.5, color=color)  # fmt: skip
        ax.axvline(1, color=GREY, lw=0.7)
        ax.set(title=f"{bits:g} bits", xlabel="RMSE / uniform")
    runs = {row["way"]: row["runs"] for row in told}
    axes[0, 0].set_yticks(range(len(ways)), [
        way if "runs" in way else f"{way}: {runs[way]:.3g} runs" for way in ways
    ])  # fmt: skip
    tidy(*axes[0])
    return fig


def figures(config, arrays, rows) -> dict:
    """Return the figures of what was measured."""
    drawn = {"allocate": draw} if budgets(rows) and forecasts(rows) else {}
    return drawn | ({"baselines": draw_baselines} if of_kind(rows, BASELINES) else {})


def first(config, arrays, rows) -> Figure | None:
    """Return the first figure of what was measured, None if there is none."""
    drawn = figures(config, arrays, rows)
    return next((draw_one(config, arrays, rows) for draw_one in drawn.values()), None)


FIGURES = figures


def table(rows) -> list:
    """Return the tables on the screen: every way by budget, and the forecasts."""
    spec: list = [
        ("family", lambda row: row["family"]), ("budget", lambda row: f"{row['budget']:g}"),
        ("way", lambda row: row["way"] + (" *" if row["is_chosen"] else "")),
        ("bits", tables.numbers("bits", 4)),
        ("predicted", tables.numbers("predicted")), ("floor", tables.numbers("floor")),
        ("RMSE", tables.numbers("rmse")),
        ("/ uniform", lambda row: f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, "
                                  f"{row['ratio_high']:.2f}]"),
    ]  # fmt: skip
    more: list = [
        ("width", lambda row: row["width"]), ("recipes", lambda row: len(row["measured"])),
        ("vector sum", lambda row: f"{100 * misses(row, 'vectors'):.0f} %"),
        ("from runs", lambda row: f"{100 * misses(row, 'runs'):.0f} %"),
        ("sum of squares", lambda row: f"{100 * misses(row, 'squares'):.0f} %"),
    ]  # fmt: skip
    found = []
    if budgets(rows):
        found.append(tables.columns(budgets(rows), spec, title="Fresh noise", left=(0, 2)))
    if forecasts(rows):
        found.append(
            tables.columns(forecasts(rows), more, title="Median miss of recipes at random")
        )
    return found + further(rows)


def losses(rows, family: str, noises: int, probes: int) -> np.ndarray:
    """Return RMSE over that of the whole sketch, of every budget and part."""
    return np.array([row["loss"] for row in of_kind(rows, FEWER)
                     if (row["family"], row["noises"], row["probes"])
                     == (family, noises, probes)])  # fmt: skip


def mean_losses(rows) -> list[dict]:
    """Return the geometric mean and the worst of `losses`, for each size of a sketch."""
    kinds = dict.fromkeys((row["family"], row["noises"], row["probes"], row["runs"])
                          for row in of_kind(rows, FEWER))  # fmt: skip
    found = {kind: losses(rows, *kind[:3]) for kind in kinds}
    return [
        {"family": family, "noises": noises, "probes": probes, "runs": runs,
         "loss": float(np.exp(np.mean(np.log(of)))), "worst": float(of.max())}
        for (family, noises, probes, runs), of in found.items()
    ]  # fmt: skip


def further(rows) -> list:
    """Return the tables of baselines, of fewer runs and of chips."""
    found = []
    if told := of_kind(rows, BASELINES):
        spec: list = [
            ("budget", lambda row: f"{row['budget']:g}"), ("way", lambda row: row["way"]),
            ("runs", tables.numbers("runs")), ("predicted", tables.numbers("predicted")),
            ("RMSE", tables.numbers("rmse")),
            ("/ uniform", lambda row: f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, "
                                      f"{row['ratio_high']:.2f}]"),
        ]  # fmt: skip
        found.append(tables.columns(told, spec, title="Baselines, on fresh noise", left=(1,)))
    if means := mean_losses(rows):
        names = ("noises", "probes", "runs", "loss", "worst")
        spec = [("family", lambda row: row["family"]), *((n, tables.numbers(n)) for n in names)]
        found.append(tables.columns(means, spec, title="RMSE over that of all probes", left=(0,)))
    for kind, name in ((CHIPS, "chip"), (SHAPES, "words")):
        if told := of_kind(rows, kind):
            found.append(_on_chips(told, name))
    return found


def _on_chips(told, name: str):
    def cell(chip):
        return lambda row: f"{row['ratios'][chip]:.2f}" + ("*" if chip in row["fallbacks"] else "")

    spec: list = [(name, lambda row: row[name])]
    if "rmse" in told[0]:
        spec.append(("RMSE", tables.numbers("rmse")))
    spec += [(chip, cell(chip)) for chip in told[0]["ratios"]]
    return tables.columns(told, spec, title="Predicted seconds over bfloat16's; * falls back",
                          left=(0,))  # fmt: skip

"""Figure and table of `experiments.evaluate`; needs no JAX."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from qdiffjax import _tables as tables
from qdiffjax._checks import require
from qdiffjax._looks import BLUE, GREEN, GREY, panels, ticks_of_logs, tidy

SHOWN = ("PSNR", "SSIM", "spectra to float", "Frechet to float", "KID to float",
         "coverage in independent", "flicker", "flicker of errors",
         "temporal consistency")  # fmt: skip
CLASSES = {"RMSE": "rmse", "flips": "flips", "agree, quantized": "agreement",
           "agree, float": "float_agreement"}  # fmt: skip
RESOLVED = 5  # half-widths of a distance's interval
LONG = 8  # letters of a recipe that go below its mark
LOG = ("spectra to float", "Frechet to float", "KID to float")


def recipes(rows) -> list[dict]:
    """Return the rows of recipes.

    Raises:
      ValueError: they follow unlike protocols.
    """
    own = [row for row in rows if row["kind"] == "recipe"]
    found = sorted({row["protocol"] for row in own})
    require(len(found) == 1, "protocol", got=found, expected="one for all rows",
            remedy="evaluate them anew with one version and the same flags")  # fmt: skip
    return own


def cell(row, name: str, samples: str = "quantized") -> dict:
    """Return a metric of a recipe's row, empty if it has none of this name."""
    own = ((m["samples"], m["name"], m) for m in row["metrics"])
    return next((m for of, its, m in own if (of, its) == (samples, name)), {})


def seen(rows) -> dict[tuple[str, str], float]:
    """Return Holm's p of each (recipe, distance)."""
    own = [test for row in rows if row["kind"] == "tests" for test in row["tests"]]
    return {(test["recipe"], test["name"]): test["holm"] for test in own}


def draw(config, arrays, rows) -> Figure:
    """Metrics by recipe, beside their floor and what full-precision samples have."""
    told = recipes(rows)
    names = [name for name in SHOWN if cell(told[0], name)]
    fig, axes = panels(-(-len(names) // 3), 3, 1.8 * -(-len(names) // 3), squeeze=False)
    places, words = np.arange(len(told)), [row["recipe"] for row in told]
    is_long = max(map(len, words)) > LONG
    marks = [str(place + 1) for place in places] if is_long else words
    is_slanted = len(words) > 4 and not is_long
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_slanted else {}
    for ax in axes.ravel()[len(names) :]:
        ax.set_visible(False)
    for ax, name in zip(axes.ravel(), names, strict=False):
        own = [cell(row, name) for row in told]
        values = np.array([m["value"] for m in own])
        ends = np.abs(np.array([[m["low"], m["high"]] for m in own]).T - values)
        ax.errorbar(places, values, ends, color=BLUE, marker="o", ms=3, lw=0, elinewidth=1,
                    capsize=2, label="quantized")  # fmt: skip
        if own[0]["floor"]:
            ax.axhline(own[0]["floor"]["high"], color=GREY, lw=0.8, ls="--", label="floor")
        full = cell(told[0], name, "float")
        if full:
            ax.axhline(full["value"], color=GREEN, lw=0.8, ls=":", label="full precision")
        ax.set_xticks(places, marks, **slanted)
        ax.set_title(name)
        if name in LOG:
            ax.set_yscale("log")
            low, high = ax.get_ylim()
            if high < 100 * low:  # else powers of ten are enough
                ticks_of_logs(ax, "y")
    shown = axes.ravel()[: len(names)]
    tidy(*shown, legend=7)
    legend = [f"{mark}: {each}" for mark, each in zip(marks, words, strict=True)] if is_long else []
    fig.supxlabel("\n".join([Path(config["checkpoint"]).name, *legend]), fontsize=7.5)
    return fig


FIGURES = {"evaluate": draw}


def table(rows) -> list:
    """Return the table of all metrics by recipe, and of which distances see a change at all."""
    told = recipes(rows)
    names = [m["name"] for m in told[0]["metrics"] if m["samples"] == "quantized"]
    holm = seen(rows)

    def written(row, name):
        own, mark = cell(row, name), "*" if holm.get((row["recipe"], name), 1) < 0.05 else ""
        return f"{tables.number(own['value'])}{mark} [{tables.number(own['low'])}, " \
               f"{tables.number(own['high'])}]"  # fmt: skip

    def other(name, of):
        own = cell(told[0], name, "float") if of == "float" else cell(told[0], name)["floor"]
        return tables.number(own["value"]) if own else None

    spec: list = [("metric", lambda name: name)]
    spec += [(row["recipe"], lambda name, row=row: written(row, name)) for row in told]
    spec += [("float", lambda name: other(name, "float")),
             ("floor", lambda name: other(name, "floor"))]  # fmt: skip
    return [tables.columns(names, spec, title=told[0]["protocol"]),
            "* stands out from zero, Holm's p < .05", *by_class(told),
            *expected(told)]  # fmt: skip


def by_class(told) -> list:
    """Return the table of classes of every recipe, nothing without a classifier."""
    own = [(row["recipe"], each) for row in told for each in row.get("classes", ())]
    spec: list = [("recipe", lambda r: r[0]), ("class", lambda r: r[1]["class"]),
                  ("samples", lambda r: r[1]["num"])]  # fmt: skip
    spec += [(title, lambda r, key=key: tables.number(r[1][key])) for title, key in CLASSES.items()]
    return [tables.columns(own, spec, title="By class")] if own else []


def expected(told) -> list:
    """Return the table of forecasts and verdicts, nothing without any."""
    own = [{"recipe": row["recipe"]} | row["expected"] for row in told if "expected" in row]
    spec: list = [
        ("recipe", lambda r: r["recipe"]),
        ("typical RMSE", tables.numbers("measured")),
        ("forecast", tables.numbers("forecast")),
        ("interval", lambda r: f"{tables.number(r['low'])} .. {tables.number(r['high'])}"),
        ("verdict", lambda r: r["verdict"]),
    ]
    return [tables.columns(own, spec, title="What rounding explains"),
            *distances(told)] if own else []  # fmt: skip


def forecasts(told) -> list[dict]:
    """Return a row for each distance to float samples of each recipe, measured and predicted.

    One is resolved where it exceeds five half-widths of its interval.
    """
    rows = []
    for row in told:
        for own in row.get("expected", {}).get("metrics", ()):
            measured = cell(row, own["name"])
            if not own["name"].endswith("to float") or not measured:
                continue
            half = (measured["high"] - measured["low"]) / 2
            rows.append({"recipe": row["recipe"], "name": own["name"],
                         "predicted": own["value"], "measured": measured["value"],
                         "ratio": own["value"] / measured["value"] if measured["value"] else None,
                         "is_resolved": abs(measured["value"]) > RESOLVED * half,
                         "floor": (measured["floor"] or {}).get("value")})  # fmt: skip
    return rows


def distances(told) -> list:
    """Return the table of predicted distances, nothing without any."""
    rows = forecasts(told)
    ratio = lambda r: None if r["ratio"] is None else f"{r['ratio']:.2f}"  # noqa: E731
    spec: list = [("recipe", lambda r: r["recipe"]), ("distance", lambda r: r["name"]),
                  ("measured", tables.numbers("measured")),
                  ("predicted", tables.numbers("predicted")), ("floor", tables.numbers("floor")),
                  ("predicted / measured", ratio),
                  ("resolved", lambda r: "yes" if r["is_resolved"] else "no")]  # fmt: skip
    return [tables.columns(rows, spec, title="Distances to float samples, predicted")] if rows \
        else []  # fmt: skip

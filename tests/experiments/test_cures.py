"""Cures side by side: which cases there are, and what the summary says of errors that are known."""

import jax
import numpy as np
import pytest
from scipy import stats

import qdiffjax as qd
from experiments.cures import cases, plots, summary
from experiments.cures import experiment as cures
from experiments.harness import command
from qdiffjax import strategies


def test_every_case_is_the_recipe_with_cures_on_top():
    table = cases.cases("W4A8", 10, jax.random.key(0), 5)
    assert next(iter(table)) == "none"
    assert table["none"] == cases.Case("W4A8")
    assert len(table) >= 30
    for name, case in table.items():
        assert case.words.startswith(("W4A8", "W4 shaped A8")), name
        strategies.compose(case.cures)  # fit together


def test_skips_are_split_where_there_are_any():
    table = cases.cases("W4A8", 10, jax.random.key(0), 5)
    unet, dit = (cases.fitting(table, qd.load(name).sites())
                 for name in ("fashion_unet", "fashion_dit"))  # fmt: skip
    assert unet == table
    assert set(table) - set(dit) == {"skips split"}


@pytest.mark.parametrize("change", [{"recipes": ("W4",)}, {"cases": ("GPTW",)},
                                    {"recipes": ("W4A8 mse",)}, {"num_seeds": 0}])  # fmt: skip
def test_what_is_no_case_is_refused(change):
    with pytest.raises(ValueError, match="expected"):
        command.check(cures.Config(**change))


def errors(*pairs):
    """Errors of two seeds and 400 noises: {(seed, recipe, case)}."""
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(size=400))
    found, runs = {}, []
    for recipe, case, factor, noise in pairs:
        for seed in (1, 2):
            own = base * factor * np.exp(noise * rng.normal(size=400))
            found[seed, recipe, case] = {"errors": own, "chosen": own[:50]}
            runs.append({"recipe": recipe, "case": case, "bits": 4.0, "evaluations": 10,
                         "learned": 0, "seconds": 1.0})  # fmt: skip
    return found, runs


def test_the_summary_knows_what_helps_and_what_does_not():
    found, runs = errors(("W4A8", "none", 1.0, 0.0), ("W4A8", "half", 0.5, 0.1),
                         ("W4A8", "nothing", 1.0, 0.1))  # fmt: skip
    rows = {row["case"]: row for row in summary.rows(found, runs, 0)}
    assert rows["none"]["recovered"] == 0
    assert rows["none"]["holm"] == 1
    assert abs(rows["half"]["recovered"] - 0.5) < 0.03
    assert rows["half"]["low"] < 0.5 < rows["half"]["high"]
    assert rows["half"]["holm"] < 1e-20
    assert rows["half"]["is_best"]
    assert rows["nothing"]["low"] < 0 < rows["nothing"]["high"]
    assert rows["nothing"]["holm"] > 0.05
    assert rows["half"]["overhead"] is None  # results that do not say it
    median = np.median([found[s, "W4A8", "half"]["errors"] for s in (1, 2)])
    assert rows["half"]["median"] == pytest.approx(median)


def test_arithmetic_is_that_of_the_case_over_that_of_none():
    found, runs = errors(("W4A8", "none", 1.0, 0.0), ("W4A8", "half", 0.5, 0.1))
    for run in runs:
        run |= {"flops": 130.0 if run["case"] == "half" else 100.0, "ceiling": 0.5}
    none, half = summary.rows(found, runs, 0)
    assert none["overhead"] == 0
    assert half["overhead"] == pytest.approx(0.3)
    assert half["ceiling"] == 0.5


def test_p_is_wilcoxons_of_log_ratios():
    rng = np.random.default_rng(1)
    values, base = np.exp(rng.normal(size=(1, 40))), np.exp(rng.normal(size=(1, 40)))
    expected = stats.wilcoxon(np.log(values[0] / base[0])).pvalue
    assert summary.p_value(values, base) == pytest.approx(expected)
    assert summary.p_value(base, base) == 1.0


def test_the_figure_marks_the_chosen_case():
    found, runs = errors(("W4A8", "none", 1.0, 0.0), ("W4A8", "half", 0.5, 0.1),
                         ("W4A4", "none", 2.0, 0.0), ("W4A4", "half", 3.0, 0.1))  # fmt: skip
    rows = summary.rows(found, runs, 0)
    figure = plots.draw({"checkpoint": "tiny"}, {}, rows)
    assert len(figure.axes) == 2
    assert [row["case"] for row in rows if row["is_best"]] == ["half", "none"]

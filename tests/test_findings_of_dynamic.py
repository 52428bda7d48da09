"""What the findings say of dynamic precision is the committed results."""

import json
import re
from pathlib import Path

import numpy as np

from experiments.dynamic import plots
from experiments.harness import store
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]
ROWS = {
    family: json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())
    for family, folder in (("activations", "dynamic"), ("both", "dynamic_both"))
}


def section() -> str:
    page = (ROOT / "docs" / "findings.md").read_text()
    return page.split("## Precision that each sample chooses as it runs")[1].split("\n## ")[0]


def chosen(family) -> dict[str, dict]:
    """{how it was chosen: row}, of a family."""
    fixed = plots.of(ROWS[family], family, "beforehand")
    return {
        f"recipe {fixed['recipe']['name']}": fixed["recipe"],
        "schedule by step": fixed["schedule"],
        "dynamic": plots.of(ROWS[family], family, "dynamic"), "oracle": fixed["oracle"],
    }  # fmt: skip


def test_the_table_of_dynamic_precision_is_its_committed_summary():
    lines = re.findall(r"^\| (activations|both) \| (.+?) \| (\S+) \| (\d+) of (\d+) \| (\S+) "
                       r"\| (\S+) \|$", section(), re.M)  # fmt: skip
    told = {family: chosen(family) for family in ROWS}
    assert [line[:2] for line in lines] == [(f, name) for f in told for name in told[f]]
    for family, name, cost, within, num, low, rmse in lines:
        row = told[family][name]
        assert (row["within"], row["num"]) == (int(within), int(num))
        unit = next(iter(told[family].values()))["cost"]
        for value, printed in ((row["cost"] / unit, cost), (row["low"], low), (row["rmse"], rmse)):
            assert_digits(value, printed)


def test_savings_that_are_told_are_those_of_the_rows():
    lines = re.findall(r"^- \*\*(activations|both)\*\*: the schedule saves (\S+) %, the controller "
                       r"(\S+) %, which is (\S+) % of the schedule;\s+the oracle saves (\S+) % of "
                       r"the schedule\.", section(), re.M)  # fmt: skip
    assert [line[0] for line in lines] == list(ROWS)
    for family, *printed in lines:
        for value, words in zip(plots.savings(ROWS[family], family).values(), printed, strict=True):
            assert_digits(100 * value, words)


def test_budgets_are_kept_and_more_than_the_schedule_is_not_saved():
    for family in ROWS:
        assert chosen(family)["dynamic"]["low"] >= 0.95
        found = plots.savings(ROWS[family], family)
        assert found["dynamic over recipe"] >= 0.15
        assert found["dynamic over schedule"] < 0.15
        assert found["dynamic over schedule"] < found["oracle over schedule"]
    both = chosen("both")
    assert both["dynamic"]["within"] < both["schedule by step"]["within"]


def test_what_is_said_of_samples_tails_and_time_is_in_the_results():
    text = " ".join(section().split())
    busy = plots.of(ROWS["both"], "both", "time")["overhead"]
    own, fixed, time = (plots.of(ROWS["activations"], "activations", part)
                        for part in ("dynamic", "beforehand", "time"))  # fmt: skip
    told = plots.told(store.load("dynamic")[1], "activations")
    worth = 1.64 * fixed["spread"] * (1 - np.sqrt(1 - told**2))
    said = {
        r"samples deviate by (\S+) bits": [fixed["spread"]],
        r"has a correlation of (\S+) with .* schedule: (\S+) of": [told, told**2],
        r"\(1 - √\(1 - r²\)\) = (\S+) bits": [worth],
        r"one of a hundred costs (\S+) times the mean, the dearest of 512 (\S+) times":
            [own["p99"] / own["cost"], own["most"] / own["cost"]],
        r"with both operands (\S+) % \[(\S+), (\S+)\], more": [100 * x for x in busy],
        r"Choosing takes (\S+) % \[(\S+), (\S+)\] of": [100 * x for x in time["overhead"]],
    }  # fmt: skip
    for pattern, values in said.items():
        found = re.search(pattern, text)
        assert found, pattern
        for value, printed in zip(values, found.groups(), strict=True):
            assert_digits(value, printed)
    assert time["overhead"][0] <= 0.02


def test_the_schedule_keeps_eight_bits_first():
    fixed = plots.of(ROWS["activations"], "activations", "beforehand")
    bits = [4 + int(k) for k in fixed["ladder"][fixed["schedule"]["rung"]]]
    assert bits[:5] == [8] * 5
    assert set(bits[5:]) == {4, 5, 6}


def test_what_is_not_promised_is_told():
    lines = re.findall(r"^\| (activations|both) \| ([a-z0-9. ]+) \| (\d+) of (\d+) "
                       r"\| (\d+) of (\d+) \|$", section(), re.M)  # fmt: skip
    expected = [(family, row["name"], row["within"], row["num"], row["schedule"]["within"],
                 row["schedule"]["num"]) for family in ROWS
                for row in plots.of(ROWS[family], family, "dynamic")["shifts"]]  # fmt: skip
    assert [(f, name, *map(int, nums)) for f, name, *nums in lines] == expected
    assert np.all([row[3] == row[5] for row in expected])

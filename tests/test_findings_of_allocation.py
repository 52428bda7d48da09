"""What the findings say of allocations within a budget is the committed results."""

import json
import re
from pathlib import Path

import numpy as np

from experiments.allocate import plots as allocate
from experiments.allocate.rows import BASELINES, CHIPS, SHAPES
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "findings.md").read_text()
SECTION = PAGE.split("## Bits where they matter")[1].split("\n## ")[0]


def rows_of(folder: str) -> list[dict]:
    return json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())


def lines_of(head: str) -> dict[str, list[str]]:
    """Return {first cell: further cells} of the table whose head begins so."""
    found = re.findall(rf"^\| {re.escape(head)}.*\n\|[-|]+\n((?:\|.*\n)+)", SECTION, re.M)
    (table,) = found
    cells = [[c.strip() for c in line.strip("| ").split("|")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in cells}


def test_the_table_of_allocation_is_its_committed_summary():
    rows = rows_of("allocate")
    told = {(r["family"], f"{r['budget']:g}", r["way"]): r for r in allocate.budgets(rows)}
    section = SECTION
    lines = re.findall(r"^\| (widths|free) \| ([\d.]+) \|(.*)\|$", section, re.M)
    assert len(lines) == 8
    ways = ("uniform", "sum of squares", "vector sum", "again", "runs")
    for family, budget, cells in lines:
        *values, last = (cell.strip() for cell in cells.split("|"))
        for way, printed in zip(ways, values, strict=True):
            if printed != "-":
                assert_digits(told[family, budget, way]["rmse"], printed)
        (best,) = [
            told[family, budget, w]
            for w in ways
            if (family, budget, w) in told and told[family, budget, w]["is_chosen"]
        ]
        assert last == "{ratio:.2f} ({ratio_low:.2f} to {ratio_high:.2f})".format(**best)
        assert best["ratio_high"] < 1
    squares = {f: [r["ratio"] for (g, _, w), r in told.items() if (g, w) == (f, "sum of squares")]
               for f in ("widths", "free")}  # fmt: skip
    ends = [f"{fn(squares[f]):.2f}" for f in ("widths", "free") for fn in (min, max)]
    assert "leaves {} to {} and {} to {}".format(*ends) in " ".join(section.split())
    misses = {r["width"]: f"{100 * allocate.misses(r, 'vectors'):.0f} %"
              for r in allocate.forecasts(rows)}  # fmt: skip
    line = " ".join(section.split())
    assert f"{misses['W8']} at 8 and {misses['W6']} at 6 bits, {misses['W5']} at 5" in line
    assert f"{misses['W4']} at 4" in line


def test_the_table_of_the_unet_is_its_committed_summary():
    rows = allocate.budgets(rows_of("allocate_unet"))
    told = {(r["family"], f"{r['budget']:g}", r["way"]): r for r in rows}
    lines = lines_of("UNet | uniform")
    assert len(lines) == 4
    ends = {"squares": [], "predicted": []}
    for name, (*values, last) in lines.items():
        family, _, budget, _ = name.split()
        for way, printed in zip(
            ("uniform", "sum of squares", "vector sum", "again", "runs"), values, strict=True
        ):
            assert (printed == "-") == ((family, budget, way) not in told)
            if printed != "-":
                assert_digits(told[family, budget, way]["rmse"], printed)
        (best,) = [r for (*key, _), r in told.items() if key == [family, budget] and r["is_chosen"]]
        assert last == "{ratio:.2f} ({ratio_low:.2f} to {ratio_high:.2f})".format(**best)
        ends["squares"].append(best["rmse"] / told[family, budget, "sum of squares"]["rmse"])
        ends["predicted"].append(best["predicted"] / best["rmse"])
    found = [f"{fn(ends[name]):.2f}" for name in ends for fn in (min, max)]
    assert found == ["0.64", "0.96", "0.43", "0.74"]


def test_the_table_of_baselines_is_its_committed_summary():
    told = allocate.of_kind(rows_of("allocate_baselines"), BASELINES)
    budgets = sorted({row["budget"] for row in told})
    lines = lines_of("method | runs")
    assert list(lines) == list(dict.fromkeys(row["way"] for row in told))
    for way, (runs, *cells) in lines.items():
        own = {row["budget"]: row for row in told if row["way"] == way}
        assert runs == f"{own[budgets[0]]['runs']:.3g}"
        for bits, cell in zip(budgets, cells, strict=True):
            assert cell == "{ratio:.2f} ({ratio_low:.2f} to {ratio_high:.2f})".format(**own[bits])


def test_uniform_and_the_vector_sum_are_those_of_the_first_table():
    """The same noise, choices and budgets: the same recipes, measured twice."""
    first = {(r["budget"], r["way"]): r for r in allocate.budgets(rows_of("allocate"))
             if r["family"] == "widths"}  # fmt: skip
    told = allocate.of_kind(rows_of("allocate_baselines"), BASELINES)
    shared = [row for row in told if (row["budget"], row["way"]) in first]
    assert len(shared) == 8
    for row in shared:
        np.testing.assert_allclose(row["rmse"], first[row["budget"], row["way"]]["rmse"], rtol=0.02)


def test_the_table_of_fewer_runs_is_its_committed_summary():
    means = allocate.mean_losses(rows_of("allocate_baselines"))
    lines = lines_of("noises x probes | runs")
    told = {f"{m['noises']} x {m['probes']}": m for m in means}
    assert list(lines) == list(told)
    for name, cells in lines.items():
        mean = told[name]
        assert cells == [f"{mean['runs']:.3g}", f"{mean['loss']:.2f}", f"{mean['worst']:.2f}"]


def test_the_tables_of_chips_are_their_committed_summary():
    rows = rows_of("allocate_baselines") + rows_of("allocate_chips")
    for head, kind, name in (("chosen for |", CHIPS, "chip"), ("dit_xl_2 |", SHAPES, "words")):
        lines, told = lines_of(head), {row[name]: row for row in allocate.of_kind(rows, kind)}
        assert list(lines) == list(told)
        for first, cells in lines.items():
            row = told[first]
            if kind == CHIPS:
                assert_digits(row["rmse"], cells.pop(0))
            expected = [f"{ratio:.2f}" + "*" * (chip in row["fallbacks"])
                        for chip, ratio in row["ratios"].items()]  # fmt: skip
            assert cells == expected

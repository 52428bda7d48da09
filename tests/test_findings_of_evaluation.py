"""What the findings say of evaluations, metrics of quantized samples, is the committed results."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.evaluate import plots as evaluate
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "findings.md").read_text()


def rows_of(folder: str) -> list[dict]:
    return json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())


def section_of(head: str) -> str:
    """The findings from a heading to the next one of any rank."""
    return PAGE.split(head)[1].split("\n## ")[0].split("\n### ")[0]


@pytest.mark.parametrize(
    ("folder", "head", "num"), [("evaluate", "## How good are quantized", 13),
                                ("evaluate_video", "### Videos: ", 5)],
)  # fmt: skip
def test_the_table_of_an_evaluation_is_its_committed_summary(folder, head, num):
    rows = rows_of(folder)
    told = evaluate.recipes(rows)
    section = section_of(head)
    head, *lines = re.findall(r"^\| (.*) \|$", section, re.M)
    assert [cell.strip() for cell in head.split("|")][1:5] == [row["recipe"] for row in told]
    for line in lines:
        title, *cells = (cell.strip() for cell in line.split("|"))
        scale, name = (1000, title[5:]) if title.startswith("1000 ") else (1, title)
        own = [evaluate.cell(row, name) for row in told]
        own += [evaluate.cell(told[0], name, "float"), own[0]["floor"]]
        for metric, printed in zip(own, cells, strict=True):
            assert bool(metric) == bool(printed)
            if metric:
                value, half = printed.split(" ± ")
                assert_digits(scale * metric["value"], value)
                assert_digits(scale * (metric["high"] - metric["low"]) / 2, half)
    assert len(lines) == num


def test_what_is_said_of_the_evaluation_is_in_its_committed_summary():
    rows = rows_of("evaluate")
    told, tests = evaluate.recipes(rows), evaluate.seen(rows)
    assert max(tests.values()) < 0.0001
    assert len(tests) == 12
    first, second, third = told[:3]
    for name in ("Frechet, infinite samples,", "KID", "MMD^2"):
        pairs, apart = (evaluate.cell(first, f"{name} to {what}")
                        for what in ("float", "independent"))  # fmt: skip
        assert 20 * pairs["value"] < apart["high"] - apart["value"]
        assert apart["low"] < 0
    for name in ("precision", "recall"):
        full, own = (evaluate.cell(first, f"{name} in independent", of)
                     for of in ("float", "quantized"))  # fmt: skip
        assert abs(full["value"] - own["value"]) < 0.01
    for row in told[1:]:
        own = [m for m in row["metrics"] if m["floor"]]
        assert len(own) == 5
        assert all(m["low"] > m["floor"]["high"] for m in own)
        assert evaluate.cell(row, "Frechet, infinite samples, to independent")["low"] > 0
        assert (evaluate.cell(row, "KID to independent")["low"] > 0) == (row is not second)
    assert evaluate.cell(first, "KID to float")["floor"]["high"] < 0
    for name in ("PSNR", "SSIM"):
        assert evaluate.cell(third, name)["high"] < evaluate.cell(second, name)["low"]
    name = "Frechet, infinite samples, to float"
    assert evaluate.cell(second, name)["high"] < evaluate.cell(third, name)["low"]
    name = "spectra to float"
    assert evaluate.cell(third, name)["high"] < evaluate.cell(second, name)["low"]


def test_what_is_said_of_flicker_is_in_the_committed_summary():
    rows = rows_of("evaluate_video")
    told, tests = evaluate.recipes(rows), evaluate.seen(rows)
    section = " ".join(section_of("### Videos: ").split())
    full = evaluate.cell(told[0], "flicker", "float")
    *above, last = (evaluate.cell(row, "flicker")["value"] / full["value"] - 1 for row in told)
    assert f"within {100 * max(np.abs(above)):.1f} % down to W4A8" in section
    assert f"{100 * last:.1f} % above it at W4A4" in section
    assert last * full["value"] < full["high"] - full["low"]
    full = evaluate.cell(told[0], "temporal consistency", "float")
    own = [evaluate.cell(row, "temporal consistency") for row in told]
    assert all(metric["low"] < full["value"] < metric["high"] for metric in own)
    assert f"at most {max(abs(m['value'] - full['value']) for m in own):.4f}" in section
    first, *_, last = (evaluate.cell(row, "flicker of errors")["value"] for row in told)
    assert f"grows {last / first:.0f} times from W8A8" in section
    assert all(tests[row["recipe"], "KID to float"] < 0.05 for row in told)


def test_what_is_said_of_classes_is_in_the_summary_of_the_evaluation():
    rows = rows_of("evaluate")
    flips = {row["recipe"]: {c["class"]: c["flips"] for c in row["classes"]}
             for row in evaluate.recipes(rows)}  # fmt: skip
    dress, shirt, pullover, sandal = 3, 6, 2, 5
    assert {c for c, share in flips["W8A8"].items() if share == 0} == {0, 4, 7, 9}
    assert all(0.09 < flips["W8A8"][c] < 0.11 for c in (dress, shirt))
    assert_digits(100 * flips["W4A4"][pullover], "75")
    assert_digits(100 * flips["W4A4"][sandal], "18")

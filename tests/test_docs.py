"""What is written: short, its links lead somewhere, its numbers are the committed ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qdiffjax
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
# Columns of the main job's table in docs/experiments.md, as keys of its summary.
COLUMNS = (
    ("measured_rmse",), ("predicted_rmse",),
    ("remainder_over_measured_min", "remainder_over_measured_median"),
    ("bound_over_measured_min", "bound_over_measured_median"),
    (), ("first_order_relative_error",), ("exact_relative_residual",), ("path_kl",),
    ("w2_lower", "w2"),
)  # fmt: skip


def test_the_readme_is_at_most_120_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_checkout_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_table_of_the_main_job_is_its_committed_summary():
    results = ROOT / "experiments" / "results" / "error_bounds" / "summary.json"
    summary = {f"W{r['weight_bits']}A{r['activation_bits']}": r
               for r in json.loads(results.read_text())}  # fmt: skip
    lines = re.findall(
        r"^\| (W\dA\d) \|(.*)\|$", (ROOT / "docs" / "experiments.md").read_text(), re.M
    )
    assert {name for name, _ in lines} == set(summary)
    for name, cells in lines:
        for keys, cell in zip(COLUMNS, cells.split("|"), strict=True):
            for key, printed in zip(keys, cell.split(", ") if keys else (), strict=True):
                assert_digits(summary[name][key], printed.strip())


def test_the_table_of_defaults_is_its_committed_summary():
    results = ROOT / "experiments" / "results" / "bench_defaults" / "summary.json"
    rows = {(r["checkpoint"], r["name"]): r for r in json.loads(results.read_text())}
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    lines = re.findall(r"^\| ((?:ours|qwix) [^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.M)
    assert len(lines) == 8
    for name, *networks in lines:
        for checkpoint, cell in zip(("fashion_unet", "fashion_dit"), networks, strict=True):
            row = rows[checkpoint, name]
            keys = ("error", "over_float", "cpu_over_float")
            for key, printed in zip(keys, cell.split("; "), strict=True):
                assert_digits(row[key], printed)


def test_changelog_and_citation_are_of_this_version():
    version = qdiffjax.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_the_five_lines_of_the_readme_print_its_table():
    text = (ROOT / "README.md").read_text().split("<!-- five lines -->")[1]
    code, table = re.findall(r"```\w*\n(.*?)```", text, re.S)[:2]
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rmse = r"RMSE of the(?: samples)? +(\S+) +(\S+) \.\. (\S+)"
    low, high = map(float, re.search(rmse, table).groups()[1:])
    assert low <= float(re.search(rmse, run.stdout)[1]) <= high
    rows = r"^ (\w+) .*(measured|predicted|bracket|first order)"
    printed = run.stdout.split("RMSE in units")[0]
    assert re.findall(rows, printed, re.M) == re.findall(rows, table, re.M)

"""What is written: short, its links lead somewhere, its numbers are the committed ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qdiffjax
from experiments.harness import store
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


def test_the_table_of_sites_alone_is_the_committed_summaries():
    page = (ROOT / "docs" / "benchmarks.md").read_text().split("## Each site alone")[1]
    lines = re.findall(r"^\| (UNet|DiT), (.+?) \| (.*) \|$", page, re.M)
    faster = {}
    for network, end in (("UNet", ""), ("DiT", "_dit")):
        folder = ROOT / f"experiments/results/bench_site_latency{end}"
        rows = json.loads((folder / "summary.json").read_text())
        times = {row["site"].removesuffix("/kernel"): row["times"] for row in rows}
        own = [(name, cells) for of, name, cells in lines if of == network]
        assert len(own) >= 6
        for name, cells in own:
            full, *both = times[name].values()
            printed = cells.split(" | ")
            values = [full["p50"], full.get("p99")]
            for each in both:
                values += [each["p50"], each.get("p99"), each["ratio"]]
            for value, text in zip(values, printed, strict=True):
                assert (value is None) == (text == "-")
                if value is not None:
                    assert_digits(value, text)
        codes = [each["W8A8"]["ratio"] for each in times.values()
                 if each["W8A8"].get("way") == "codes"]  # fmt: skip
        faster[network] = (sum(ratio < 1 for ratio in codes), len(codes))
    assert faster == {"UNet": (16, 47), "DiT": (4, 32)}


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


def _said(page: str, *patterns: str) -> list[list[str]]:
    """Return the groups of patterns, each found once in a page whose lines are joined."""
    text = " ".join((ROOT / "docs" / page).read_text().split())
    found = [re.findall(pattern, text) for pattern in patterns]
    assert [len(each) for each in found] == [1] * len(patterns), patterns
    return [list(each[0]) for each in found]


def test_what_the_findings_say_of_the_main_job_is_in_its_arrays():
    _, arrays, _ = store.load("error_bounds")
    names = ("W8A8", "W6A8", "W4A8")
    n, percent = r"(−?[\d.]+)", r"(−?\d+)"
    first, last, kl_first, kl_last, conv, edges, attention = (
        [int(word.replace("−", "-")) for word in words]
        for words in _said(
            "findings.md",
            rf"the squared error at W8A8, W6A8 and W4A8, {percent}, {percent} and {percent} % to",
            rf"first tenth of the steps and {percent}, {percent} and {percent} % to the last; of",
            rf"the companion sampler {percent}, {percent} and {percent} % and",
            rf"companion sampler .{{1,20}} and {percent}, {percent} and {percent} %\.",
            rf"carries {percent} % of the squared error at W8A8, {percent} % at W6A8 and {percent}",
            rf"output together {percent}, {percent} and {percent} %",
            rf"projections and products {percent}, {percent} and {percent} % \(",
        )
    )
    over_sum, bounds = (list(map(float, words)) for words in _said(
        "findings.md", rf"error is {n} \(W8A8\), {n} \(W6A8\), {n} \(W4A8\) of the \*sum\*",
        rf"Grönwall bound {n}, {n} and {n} times too large",
    ))  # fmt: skip
    for i, w in enumerate(names):
        ledger, kl = arrays[f"{w}/ledger"], arrays[f"{w}/path_kl_terms"]
        sites = [str(name) for name in arrays[f"{w}/sites"]]
        by_step, by_site = ledger.sum(1) / ledger.sum(), ledger.sum(0) / ledger.sum()

        def share(holds, by_site=by_site, sites=sites):
            return sum(part for part, site in zip(by_site, sites, strict=True) if holds(site))

        for said, value in (
            (first, by_step[:5].sum()), (last, by_step[-5:].sum()),
            (kl_first, kl[:5].sum() / kl.sum()), (kl_last, kl[-5:].sum() / kl.sum()),
            (conv, share(lambda site: "up_0_block_1/conv_2" in site)),
            (edges, share(lambda site: site in ("input", "output"))),
            (attention, share(lambda site: "attention" in site or "attn" in site)),
        ):  # fmt: skip
            assert said[i] == round(100 * value)
        measured = arrays[f"{w}/measured_norms"][-1]
        assert_digits(np.median(measured / arrays[f"{w}/local_norms"].sum(0)), str(over_sum[i]))
        assert bounds[i] == round(np.median(arrays[f"{w}/gronwall"][-1] / measured))


def test_the_ratio_at_w8a8_is_told_for_the_worst_samples_and_the_rest():
    _, arrays, _ = store.load("error_bounds")
    predicted, measured = (arrays[f"W8A8/{name}_norms"]
                           for name in ("predicted_final", "final_error"))  # fmt: skip
    order = np.argsort(-measured)

    def ratio(index):
        return np.linalg.norm(predicted[index]) / np.linalg.norm(measured[index])

    words = r"([\d.]+) on (?:those|those) (?:six|6)(?:,| and) ([\d.]+) on the other (\d+)"
    for page in ("findings.md", "experiments.md"):
        ((six, rest, num),) = _said(page, words)
        assert int(num) == measured.size - 6
        assert_digits(ratio(order[:6]), six)
        assert_digits(ratio(order[6:]), rest)


def test_how_tight_certificates_are_is_told_for_a_point_and_for_sets():
    rows = json.loads((ROOT / "experiments/results/certificates/summary.json").read_text())
    rows = [row for row in rows if row["kind"] in ("sampler", "set") and not row["activation_bits"]]
    ((point, small, low, high, large_low, large_high, *radii),) = _said(
        "experiments.md",
        r"a single x_T \(([\d.]+) times.*?box they are ([\d.]+), ([\d.]+) to ([\d.]+) and ([\d.]+) "
        r"to ([\d.]+) times it at half-widths (0\.\d+), (0\.\d+) and (0\.\d+)",
    )
    for row in rows:
        said = {None: (point, point), **dict(zip(map(float, radii), (
            (small, small), (low, high), (large_low, large_high)), strict=True))}  # fmt: skip
        ratio = row["ratio_to_worst_median"]
        least, most = said[row.get("radius")]
        digits = len(least.partition(".")[2])
        assert float(least) <= round(ratio, digits) <= float(most)

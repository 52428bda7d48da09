"""What is written: short, its links lead somewhere, its numbers are the committed ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qdiffjax
from experiments.cures import plots as cures
from experiments.evaluate import plots as evaluate
from experiments.feedback import plots as feedback
from experiments.harness import store
from experiments.random_recipes import plots as recipes
from experiments.shaping import plots as shaping
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


def shaped(network, num_steps, bits):
    """Return {method: row} of the shaping experiment."""
    folder = "shaping" if network == "UNet" else "shaping_dit"
    rows = json.loads((ROOT / "experiments" / "results" / folder / "summary.json").read_text())
    found = {r["method"]: r for r in rows if (r["num_steps"], r["bits"]) == (num_steps, bits)}
    once = min(found[name]["rmse"] for name in shaping.ONCE)
    return {name: row["rmse"] for name, row in found.items()} | {
        "once": once, "gain": once / found["sigma-delta"]["rmse"],
        "predicted": found["sigma-delta"]["predicted_over_measured"],
    }  # fmt: skip


def test_the_table_of_shaped_weights_is_its_committed_summary():
    page = (ROOT / "docs" / "findings.md").read_text()
    lines = re.findall(r"^\| (UNet|DiT), N = (\d+), W(\d) \|(.*)\|$", page, re.M)
    assert len(lines) == 20
    columns = ("once", "fresh bits", "golden ratio", "sigma-delta", "gain", "periodic 2",
               "nearest + 2")  # fmt: skip
    for network, num_steps, bits, cells in lines:
        values = shaped(network, int(num_steps), int(bits))
        for name, printed in zip(columns, cells.split("|"), strict=True):
            assert_digits(values[name], printed.strip())


def test_what_is_said_of_shaped_weights_holds_in_every_case():
    cases = {(network, n, bits): shaped(network, n, bits) for network in ("UNet", "DiT")
             for n in (10, 20, 50) for bits in (3, 4, 6, 8)}  # fmt: skip
    assert all(v["gain"] >= 3 for (_, n, b), v in cases.items() if b == 4 and n >= 20)
    assert all(4 < v["gain"] < 8.5 for (_, n, b), v in cases.items() if b >= 6 and n == 50)
    assert all(1.35 < v["gain"] < 1.85 for (_, n, b), v in cases.items() if b == 3 and n >= 20)
    assert cases["UNet", 10, 3]["gain"] < 1
    ratios = [v["periodic 2"] ** 2 / (v["sigma-delta"] ** 2 + v["nearest + 2"] ** 2)
              for v in cases.values()]  # fmt: skip
    assert min(ratios) > 0.25
    assert max(ratios) < 2.35
    assert sum(ratio <= 1.3 for ratio in ratios) == 19
    predicted = {case: abs(v["predicted"] - 1) for case, v in cases.items()}
    assert max(miss for (_, _, b), miss in predicted.items() if b >= 4) < 0.215
    assert max(miss for (_, _, b), miss in predicted.items() if b == 3) < 0.275
    better = {case for case, v in cases.items() if v["nearest + 2"] < v["periodic 2"]}
    assert {case for case in cases if case[2] in (3, 4)} <= better
    assert not {("UNet", n, 6) for n in (20, 50)} & better
    assert {("DiT", n, 6) for n in (10, 20, 50)} <= better


def test_the_table_of_random_recipes_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/random_recipes/summary.json").read_text())
    told = recipes.of_recipes(rows)
    page = (ROOT / "docs" / "findings.md").read_text()
    section = page.split("## Any recipe")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (\d|all) \|(.*) % \| (\d+) of (\d+) \|$", section, re.M)
    assert [line[0] for line in lines] == ["4", "5", "6", "8", "all"]
    for stratum, cells, held, total in lines:
        members = [r for r in told if stratum in ("all", str(r["stratum"]))]
        *ranks, miss = cells.split("|")
        for name, printed in zip(recipes.PREDICTORS, ranks, strict=True):
            assert_digits(recipes.spearman(members, name), printed.strip())
        assert_digits(100 * np.median(np.abs(np.expm1(recipes.ratios(members)))), miss.strip())
        assert recipes.coverage(members)[:2] == (int(held), int(total))
    (speed,) = [r for r in rows if r["recipe"] == "speed"]
    assert f"take {speed['speedup_of_200']:.1f} times less" in section


def test_the_table_of_feedback_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/feedback/summary.json").read_text())
    found: dict = {}
    for row in feedback.recipes(rows):
        found.setdefault((row["family"], row["name"]), []).append(row)
    section = (ROOT / "docs" / "findings.md").read_text().split("### Activations: what")[1]
    lines = re.findall(r"^\| (input|A\d|both) \| ([^|]+) \|(.*)\|$", section, re.M)
    assert [line[:2] for line in lines] == [*found]
    for family, name, cells in lines:
        *values, ends = cells.split("|")
        own = found[family, name]
        for row, printed in zip(own, values, strict=True):
            assert_digits(row["rmse"], printed.strip())
        ratios = [row["predicted"] / row["rmse"] for row in own]
        for value, printed in zip((min(ratios), max(ratios)), ends.split(" to "), strict=True):
            assert_digits(value, printed.strip())
    gains = {bits: [a["rmse"] / b["rmse"] for a, b in zip(
        found[bits, "nearest"], found[bits, "feedback"], strict=True
    )] for bits in ("A8", "A6", "A4")}  # fmt: skip
    said = re.findall(r"(?:leaves|6 bits|4 bits)\s+([\d.]+) to ([\d.]+) times", section)[:3]
    for bits, ends in zip(gains, said, strict=True):
        for value, printed in zip((min(gains[bits]), max(gains[bits])), ends, strict=True):
            assert_digits(value, printed)
    sites = feedback.by_site(rows)
    ratio = np.array(sites["stochastic"]) / np.array(sites["feedback"])
    assert (int(np.sum(ratio > 1)), len(ratio)) == feedback.signs(sites) == (41, 42)
    assert_digits(np.median(ratio), "3.2")
    assert np.all(np.array(sites["nearest"]) > np.array(sites["feedback"]))
    assert_digits(np.median(np.array(sites["fed_back"]) / np.array(sites["feedback"])), "1.03")


def test_the_table_of_cures_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/cures/summary.json").read_text())
    told = {(row["recipe"], row["case"]): row for row in cures.cures(rows)}
    section = (ROOT / "docs" / "findings.md").read_text().split("## Cures after training")[1]
    section = section.split("\n## ")[0]
    lines = re.findall(r"^\| ([^|]+) \| ([\d.]+.*)\|$", section, re.M)
    assert [name for name, _ in lines] == list(dict.fromkeys(case for _, case in told))
    for name, cells in lines:
        *pairs, bits, evaluations = (cell.strip() for cell in cells.split("|"))
        for recipe, median, recovered in zip(
            dict.fromkeys(r for r, _ in told), pairs[::2], pairs[1::2], strict=True
        ):
            row = told[recipe, name]
            assert_digits(row["median"], median)
            assert_digits(100 * row["recovered"], recovered.rstrip("*"))
            assert recovered.endswith("*") == (row["holm"] < 0.05)
        assert_digits(told["W4A8", name]["bits"], bits)
        assert_digits(told["W4A8", name]["evaluations"], evaluations)
    for recipe in ("W4A8", "W4A4"):
        (best,) = [row for row in told.values() if row["recipe"] == recipe and row["is_best"]]
        assert f"*{best['case']}*" in section
        assert f"{best['median']:.3g} of {told[recipe, 'none']['median']:.3g}" in section


def test_the_table_of_the_evaluation_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/evaluate/summary.json").read_text())
    told = evaluate.recipes(rows)
    section = (ROOT / "docs" / "findings.md").read_text().split("## How good are quantized")[1]
    section = section.split("\n## ")[0]
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
    assert len(lines) == 9
    tests = evaluate.seen(rows)
    assert max(tests.values()) < 0.006
    assert len(tests) == 12
    first, second, third = told[:3]
    for name in ("Frechet, infinite samples,", "KID", "MMD^2"):
        pairs, apart = (evaluate.cell(first, f"{name} to {what}")
                        for what in ("float", "independent"))  # fmt: skip
        assert 20 * pairs["value"] < apart["high"] - apart["value"]
        assert apart["low"] < 0 < apart["high"]
    for name in ("precision", "coverage"):
        full, own = (evaluate.cell(first, f"{name} in independent", of)
                     for of in ("float", "quantized"))  # fmt: skip
        assert abs(full["value"] - own["value"]) < 0.01
    for row in told[1:]:
        own = [m for m in row["metrics"] if m["floor"]]
        assert len(own) == 5
        assert all(m["low"] > m["floor"]["high"] for m in own)
        for name in ("Frechet, infinite samples,", "KID"):
            assert evaluate.cell(row, f"{name} to independent")["low"] > 0
    for name in ("PSNR", "SSIM", "spectra to float"):  # of spectra less is better
        assert evaluate.cell(third, name)["high"] < evaluate.cell(second, name)["low"]
    full = {name: evaluate.cell(first, f"{name} in independent", "float")["value"]
            for name in ("recall", "precision")}  # fmt: skip
    assert evaluate.cell(second, "recall in independent")["low"] > full["recall"]
    assert evaluate.cell(second, "precision in independent")["high"] < full["precision"]


def test_the_table_of_the_forecast_of_shaping_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/shaping_forecast/summary.json").read_text())
    by: dict = {}
    for row in rows:
        by.setdefault((str(row["bits"]), row["way"]), []).append(row)
    section = (ROOT / "docs" / "findings.md").read_text().split("### Forecast from full")[1]
    section = section.split("\n### ")[0]
    lines = re.findall(r"^\| (\d+) \| ([^|]+) \|(.*)\|$", section, re.M)
    assert [line[:2] for line in lines] == [*by]
    for *key, cells in lines:
        own, (*values, slope, ratios) = by[tuple(key)], (c.strip() for c in cells.split("|"))
        for row, printed in zip(own, values, strict=True):
            assert_digits(row["rmse"], printed)
        logs = (np.log([row[name] for row in own]) for name in ("num_steps", "rmse"))
        assert_digits(np.polyfit(*logs, 1)[0], slope)
        for row, printed in zip(own, ratios.split(", "), strict=False):
            if printed != "-":
                assert_digits(row["forecast"] / row["rmse_of_forecast_samples"], printed)


def test_the_table_of_guarantees_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/coverage/summary.json").read_text())
    section = (ROOT / "docs" / "findings.md").read_text().split("## Guarantees at finite n")[1]
    section = section.split("\n## ")[0]
    pools = ("mixture", "fitted network", "lognormal", "Pareto")
    told = {(r["what"], str(r["num"]), r["pool"]): r for r in rows if r["kind"] == "bound"}
    lines = re.findall(r"^\| ([a-z][^|]*) \| (\d+) \|(.*)\|$", section, re.M)
    assert len(lines) * len(pools) == len(told)
    for what, num, cells in lines:
        *counts, allowed = (cell.strip() for cell in cells.split("|"))
        own = [told[what, num, pool] for pool in pools]
        assert counts == [str(row["failures"]) for row in own]
        assert {f"{row['least']} to {row['most']}" for row in own} == {allowed}
        assert all(row["within"] for row in own)
    choices = [r for r in rows if r["kind"] == "choices"]
    careless = [r["failures"] / r["repetitions"] for r in choices if r["how"] == "as measured"]
    careful = [r for r in choices if r["how"] != "as measured"]
    assert f"({100 * min(careless):.0f} to {100 * max(careless):.0f} % of choices" in section
    most, few = max(r["failures"] for r in careful), max(r["broken_of_few"] for r in careful)
    line = " ".join(section.split())
    assert f"0 to {most} of 2000, and of the first 200 at most {few}" in line
    assert all(r["repetitions"] == 2000 for r in choices)
    for row in (r for r in rows if r["kind"] == "W2"):
        assert f"{row['ratio']:.2f}" in line
        assert f"{row['ratio_95']:.2f}" in line
        assert f"at {row['num']}" in line

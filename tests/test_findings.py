"""The tables of the findings that one experiment makes each are its committed summary."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.cures import plots as cures
from experiments.faults import plots as faults
from experiments.random_recipes import plots as recipes
from qdiffjax import verdicts
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]


def section_of(head):
    """The findings from a heading to the next one of the first rank."""
    return (ROOT / "docs" / "findings.md").read_text().split(head)[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("folder", "head"), [("random_recipes", "## Any recipe"),
                         ("random_recipes_latent", "### The same of the latent"),
                         ("random_recipes_unet", "### The same of the UNet")],
)  # fmt: skip
def test_the_table_of_random_recipes_is_its_committed_summary(folder, head):
    rows = json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())
    told = recipes.of_recipes(rows)
    page = (ROOT / "docs" / "findings.md").read_text()
    section = page.split(head)[1].split("\n## ")[0].split("\n### ")[0]
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
    if "latent" in folder:
        median = np.median(np.exp(recipes.ratios(told)))
        assert f"too high by {median:.2f} times in the median" in section


def test_what_is_said_of_the_intervals_of_random_recipes_holds():
    summaries = ["random_recipes", "random_recipes_latent", "random_recipes_unet"]
    rows = [json.loads((ROOT / "experiments/results" / name / "summary.json").read_text())
            for name in summaries]  # fmt: skip
    held, total = np.sum([recipes.coverage(recipes.of_recipes(own))[:2] for own in rows], 0)
    section = " ".join(section_of("## Any recipe").split("\n### ")[0].split())
    assert f"**{held} of {total} hold**, {100 * held / total:.1f} %" in section
    of_bits = {bits: [row for row in recipes.of_recipes(rows[0]) if row["stratum"] == bits]
               for bits in (4, 5)}  # fmt: skip
    widths = {bits: np.exp(recipes.coverage(own)[2]) for bits, own in of_bits.items()}
    assert f"{widths[5]:.2f} at 5 bits, {widths[4]:.1f} at 4" in section
    assert 0.25 < np.mean(np.exp(recipes.ratios(of_bits[4])) > 1.5) < 0.35


@pytest.mark.parametrize(
    ("folder", "head"), [("cures", "## Cures after training"),
                         ("cures_unet", "### The same on the UNet")],
)  # fmt: skip
def test_the_table_of_cures_is_its_committed_summary(folder, head):
    rows = json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())
    told = {(row["recipe"], row["case"]): row for row in cures.cures(rows)}
    section = section_of(head).split("\n### ")[0]
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


def test_the_table_of_cures_at_other_widths_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/cures_widths/summary.json").read_text())
    told = {(row["recipe"], row["case"]): row for row in cures.cures(rows)}
    widths = ("W8A8", "W6A6", "W3A8")
    section = section_of("### Other widths").split("\n### ")[0]
    lines = re.findall(r"^\| ([A-Za-z][^|]*) \| (\d.*) \|$", section, re.M)
    assert len(lines) * len(widths) == len(told)
    for name, cells in lines:
        *printed, flops = (cell.strip() for cell in cells.split("|"))
        for place, recipe in enumerate(widths):
            row = told[recipe, name]
            median, recovered, ceiling = printed[3 * place : 3 * place + 3]
            assert_digits(row["median"], median)
            assert recovered == f"{100 * row['recovered']:.0f}{'*' * (row['holm'] < 0.05)}"
            assert ceiling == f"{row['ceiling']:.2f}"
        assert flops == f"{100 * told['W6A6', name]['overhead']:.1f}"
    best = "shaped, time, rotation, compensation and gain"
    assert 3 < told["W8A8", "none"]["median"] / told["W6A6", best]["median"] < 3.3
    medians = [[told[recipe, case]["median"] for case in ("none", "compensation and gain")]
               for recipe in widths[:2]]  # fmt: skip
    gains = [20 * np.log10(before / after) for before, after in medians]
    assert [round(gain, 1) for gain in gains] == [7.5, 10.7]
    assert round(100 * told["W8A8", "compensation and gain"]["overhead"], 3) == 0.003


def test_the_table_of_stored_values_is_its_committed_summary():
    section = section_of("### What is stored between products")
    found = {}
    for network, folder in (("UNet", ""), ("DiT", "_dit")):
        path = ROOT / "experiments/results" / f"group_sensitivity_stored{folder}" / "summary.json"
        for row in json.loads(path.read_text()):
            group = row["group"].removeprefix("stored: ")
            found[network, row["bits"], group] = row["error"][1]
    cases = [(network, bits) for network in ("UNet", "DiT") for bits in (8, 6, 4)]
    lines = re.findall(r"^\| (\w[\w ]*) \|((?: [\d.-]+ \|){6})$", section, re.M)
    assert [name for name, _ in lines] == ["residual", "norm", "skip", "softmax",
                                           "all stored values", "all"]  # fmt: skip
    for name, cells in lines:
        for case, printed in zip(cases, cells.split("|"), strict=False):
            if printed.strip() == "-":
                assert (*case, name) not in found
            else:
                assert_digits(found[*case, name], printed.strip())
    assert 4 < found["DiT", 8, "residual"] / found["DiT", 8, "all"] < 5
    assert found["DiT", 6, "residual"] > 0.7
    assert max(found["DiT", 6, kind] for kind in ("norm", "softmax")) < 0.1
    assert found["UNet", 8, "residual"] / found["UNet", 8, "all"] < 0.05
    kinds = {kind: found["UNet", 8, kind] for kind in ("residual", "norm", "skip", "softmax")}
    assert min(kinds, key=kinds.get) == "softmax"


def test_the_table_of_guarantees_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/coverage/summary.json").read_text())
    section = section_of("## Guarantees at finite n")
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


def test_the_table_of_the_last_tenth_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/cures_tail/summary.json").read_text())
    told = {(row["recipe"], "last tenth" in row["case"]): row
            for row in cures.cures(rows) if row["case"] != "none"}  # fmt: skip
    section = section_of("### A bit more where")
    lines = re.findall(r"^\| (W4A\d)(, last[^|]*)? \|(.*)\|$", section, re.M)
    assert len(lines) == len(told) == 4
    for recipe, last, cells in lines:
        row, (*values, recovered) = told[recipe, bool(last)], cells.split("|")
        for name, printed in zip(("median", "mean", "most"), values, strict=True):
            assert_digits(row[name], printed.strip())
        ends = (100 * row[name] for name in ("recovered", "low", "high"))
        assert recovered.strip() == "{:.0f} ({:.0f} to {:.0f})".format(*ends)


def test_the_table_of_widths_by_step_is_its_committed_summary():
    told = json.loads((ROOT / "experiments/results/schedules_dit/summary.json").read_text())
    errors, kl = ([r for r in told if r["kind"] == kind] for kind in ("error", "KL"))
    text = section_of("## Bits by step")
    text = text.split("\n## ")[0]
    lines = re.findall(r"^\| ([a-z0-9-]+) \| (\d) \| (.*) \|$", text, re.M)
    best, rule = ("gain, best of whole bits", "gain, a bit more at both ends")
    for row, (sampler, bits, cells) in zip(errors, lines, strict=True):
        assert (row["sampler"], row["bits"]) == (sampler, int(bits))
        values = [row["rmse"]["equal"], row["forecast"], *row["ceiling"], *row[best], *row[rule]]
        for value, printed in zip(values, re.findall(r"-?[\d.]+", cells), strict=True):
            assert_digits(value, printed)
        assert 0.2 <= round(row["ceiling"][0], 1) <= 0.6
        assert row[best][1] < 0  # nothing that is resolved is gained
        if row["bits"] == 4:
            assert row[best][2] < 0
            assert row[rule][2] < 0
    gains = [(row["sampler"], row["bits"]) for row in errors if row[rule][1] > 0]
    assert gains == [("dpmpp-2m", 6)]
    said = re.findall(r"(0\.\d\d) bit at 6 bits and (0\.\d\d) at 4.*has (0\.\d\d)", text)[0]
    for value, printed in zip((kl[0]["ceiling"][0], kl[1]["ceiling"][0], kl[0]["last_tenth"]), said,
                              strict=True):  # fmt: skip
        assert_digits(value, printed)


def test_the_table_of_faults_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/faults/summary.json").read_text())
    told, most = faults.judged(rows), faults.limits(rows)
    groups = faults.groups(told)
    section = section_of("## A bug, or rounding?")
    lines = re.findall(r"^\| (.+?) \|((?: \d+ of \d+ \|)+)$", section, re.M)
    assert {name for name, _ in lines} == {name for name, own in groups.items() if own}
    holds = [*(lambda f, way=way: f["found"][way] for way in faults.WAYS),
             lambda f: f["named"], lambda f: f["timed"]]  # fmt: skip
    for name, cells in lines:
        printed = [tuple(map(int, cell.split(" of "))) for cell in cells.strip(" |").split("|")]
        assert printed == [faults.share(groups[name], hold) for hold in holds]
    called, num = faults.alarms(rows)
    assert f"{called} of {num} honest recipes" in section
    limits = verdicts.LIMITS._asdict()
    for name, limit in most.items():
        assert 0 <= limits[name.removesuffix("_ratio")] - limit <= 0.01
    assert 0 <= faults.lowest(rows) - limits["low"] <= 0.01


def test_the_table_of_training_is_its_committed_summary():
    told = json.loads((ROOT / "experiments/results/training_aware/summary.json").read_text())
    ways = {row["way"]: row for row in told if row["kind"] == "way"}
    text = section_of("## Training while rounding")
    text = text.split("\n## ")[0]
    lines = re.findall(r"^\| ([a-z][^|]+) \| (\d.*) \|$", text, re.M)
    assert [name for name, _ in lines] == [*ways]
    keys = ("rmse", "low", "high", "frechet", "frechet_low", "frechet_high", "evaluations",
            "learned")  # fmt: skip
    for name, cells in lines:
        for key, printed in zip(keys, re.findall(r"[\d.]+", cells), strict=True):
            assert_digits(ways[name][key], printed)
    ratios = {(row["way"], row["beside"]): row for row in told if row["kind"] == "ratio"}
    for name, words in (("training of the whole run", "alike\\*\\* at equal steps: "),
                        ("training by gains", "does not: ")):  # fmt: skip
        row = ratios[name, "training"]
        assert row["num_seeds"] == 5
        said = re.search(words + r"([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
        for key, printed in zip(("rmse", "rmse_low", "rmse_high"), said.groups(), strict=True):
            assert_digits(row[key], printed)
    assert_digits(ways["nearest"]["floor"], "0.0097")
    cured = ways["rotation, GPTQ"]
    assert 64.5 < ways["training"]["evaluations"] / cured["evaluations"] < 65.5
    assert min(row["frechet"] for row in ways.values()) > cured["frechet"] / 2
    for row in ratios.values():
        assert row["frechet_low"] < 1 < row["frechet_high"]

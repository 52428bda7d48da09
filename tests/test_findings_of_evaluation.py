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
                                ("evaluate_unet", "### The UNet\n", 12),
                                ("evaluate_latent", "### Latents, seen", 13),
                                ("evaluate_cifar", "### In colour", 13),
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


def is_seen(rows, words: str, name: str) -> bool:
    """Whether a metric sees a recipe: by its test, else by intervals that lie apart."""
    tests = evaluate.seen(rows)
    if (words, name) in tests:
        return tests[words, name] < 0.05
    told = {row["recipe"]: row for row in evaluate.recipes(rows)}
    own, full = evaluate.cell(told[words], name), evaluate.cell(told[words], name, "float")
    return own["low"] > full["high"] or own["high"] < full["low"]


def test_the_table_of_what_a_thousand_samples_show_is_the_committed_summary():
    rows, section = rows_of("evaluate_1000"), section_of("### What a thousand samples show")
    head, *lines = re.findall(r"^\| (.*) \|$", section, re.M)
    recipes = [cell.strip() for cell in head.split("|")][1:]
    assert recipes == [row["recipe"] for row in evaluate.recipes(rows)]
    for line in lines:
        name, *marks = (cell.strip() for cell in line.split("|"))
        assert marks == ["x" if is_seen(rows, words, name) else "-" for words in recipes]
    assert len(lines) == 17
    assert len(evaluate.seen(rows)) == 18
    first = evaluate.recipes(rows)[0]
    value = evaluate.cell(first, "Frechet, infinite samples, to float")["value"]
    assert_digits(1e6 * value, "5")
    assert evaluate.cell(first, "KID to independent")["high"] < 0


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


NETWORKS = {"DiT": "evaluate", "UNet": "evaluate_unet", "latent": "evaluate_latent",
            "colour": "evaluate_cifar"}  # fmt: skip


def test_the_table_of_foretold_distances_is_the_committed_summaries():
    """Bold is what is resolved."""
    lines = re.findall(
        r"^\| (\w+), (W\dA\d) \| (.*) \|$", section_of("### Distances foretold"), re.M
    )
    told = {network: evaluate.forecasts(evaluate.recipes(rows_of(folder)))
            for network, folder in NETWORKS.items()}  # fmt: skip
    assert len(lines) == 4 * len(NETWORKS)
    for network, words, cells in lines:
        own = [row for row in told[network] if row["recipe"] == words]
        for row, printed in zip(own, cells.split(" | "), strict=True):
            assert row["is_resolved"] == printed.startswith("**")
            assert_digits(row["ratio"], printed.strip("*"))


def test_what_is_said_of_foretold_distances_holds():
    told = {network: evaluate.forecasts(evaluate.recipes(rows_of(folder)))
            for network, folder in NETWORKS.items()}  # fmt: skip
    every = [row for rows in told.values() for row in rows]
    resolved = [row["ratio"] for row in every if row["is_resolved"]]
    assert (len(resolved), len(every)) == (41, 80)
    assert sum(abs(ratio - 1) <= 0.15 for ratio in resolved) == 21
    assert [round(end(resolved), 2) for end in (min, max)] == [0.63, 1.65]
    spectra = {(network, row["recipe"]): row["ratio"] for network, rows in told.items()
               for row in rows if row["name"].startswith("spectra")}  # fmt: skip
    near = [ratio for (network, words), ratio in spectra.items()
            if network == "DiT" or (network == "UNet" and words != "W4A4")]  # fmt: skip
    assert max(abs(ratio - 1) for ratio in near) < 0.1
    dit = {(row["recipe"], row["name"]): row["ratio"] for row in told["DiT"]}
    weights = [ratio for (words, _), ratio in dit.items() if words == "W4A8"]
    assert max(abs(ratio - 1) for ratio in weights) <= 0.07
    others = [ratio for (words, name), ratio in dit.items()
              if words != "W4A8" and not name.startswith("spectra")]  # fmt: skip
    assert 0.62 < min(others) < max(others) < 0.7
    coarse = [row["ratio"] for row in told["colour"] if row["recipe"] == "W4A4"]
    assert 1.8 < max(row["ratio"] for row in told["colour"]) < 1.85
    assert max(abs(ratio - 1) for ratio in coarse) <= 0.11


def test_what_is_said_of_evaluations_of_other_networks_holds():
    unet, latent, colour = (
        {row["recipe"]: row for row in evaluate.recipes(rows_of(f"evaluate_{name}"))}
        for name in ("unet", "latent", "cifar")
    )
    to_data = "Frechet, infinite samples, to data"
    assert max(evaluate.cell(unet[words], "PSNR")["value"] for words in ("W4A8", "W4A4")) < 9
    assert round(evaluate.cell(unet["W4A8"], "precision in independent")["value"], 2) == 0.88
    assert round(evaluate.cell(unet["W4A8"], to_data)["value"]) == 51
    assert round(evaluate.cell(unet["W4A8"], to_data, "float")["value"], 1) == 0.3
    for of in (unet, colour):
        pairs, apart = (evaluate.cell(of["W8A8"], f"Frechet, infinite samples, to {what}")
                        for what in ("float", "independent"))  # fmt: skip
        assert pairs["low"] > 0 > apart["low"]
    for words, row in latent.items():
        own, full = (evaluate.cell(row, "class agreement", of) for of in ("quantized", "float"))
        assert abs(own["value"] - full["value"]) < 0.03, words
        own, full = (evaluate.cell(row, to_data, of) for of in ("quantized", "float"))
        assert own["low"] < full["value"] < own["high"]
    full = evaluate.cell(colour["W8A8"], "class agreement", "float")["value"]
    assert round(100 * full) == 87
    assert round(100 * evaluate.cell(colour["W4A4"], "label flips")["value"]) == 79
    own, full = (evaluate.cell(colour["W6A6"], to_data, of) for of in ("quantized", "float"))
    assert own["low"] < full["value"]
    assert (round(full["value"], 1), round((full["high"] - full["low"]) / 2, 1)) == (2.2, 0.7)
    assert full["low"] < own["value"] or own["high"] > full["low"]

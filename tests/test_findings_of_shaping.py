"""What the findings say of shaped weights is the committed results."""

import json
import re
from pathlib import Path

from experiments.cures import plots as cures
from experiments.shaping import plots as shaping
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]


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


def seeds_of(folder):
    """Return {method: row} of a shaping result of one width."""
    found = json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())
    return {row["method"]: row for row in found}


def test_the_table_of_five_seeds_of_phases_is_its_committed_summary():
    page = (ROOT / "docs" / "findings.md").read_text().split("### Five seeds of phases")[1]
    lines = re.findall(r"^\| ([a-z].*?) \| (\d.*) \|$", page.split("\n### ")[0], re.M)
    networks = [seeds_of(f"shaping_w4{name}") for name in ("_dit", "", "_latent")]
    assert [line[0] for line in lines] == list(networks[0])
    for name, cells in lines:
        told = [rows[name][key] for rows in networks for key in ("rmse", "low", "high")]
        for value, printed in zip(told, re.findall(r"[\d.]+", cells), strict=True):
            assert_digits(value, printed)


def test_what_is_said_of_five_seeds_of_phases_holds():
    dit, unet = seeds_of("shaping_w4_dit"), seeds_of("shaping_w4")
    assert 0.275 < 1 / shaping.gain(dit) < 0.285
    assert 0.325 < 1 / shaping.gain(unet) < 0.335
    assert dit["grouped"]["rmse"] > dit["sums kept"]["rmse"]
    assert 0.525 < unet["sigma-delta"]["rmse"] / unet["grouped"]["rmse"] < 0.535
    for told in (dit, unet):
        assert told["grouped sigma-delta"]["rmse"] > 1.4 * told["sigma-delta"]["rmse"]
    ends = [(min(row), max(row)) for row in (unet[name]["of_seeds"]
            for name in ("sigma-delta", "periodic 4"))]  # fmt: skip
    assert [[round(value, 2) for value in pair] for pair in ends] == [[0.19, 0.3], [0.18, 0.58]]
    ratios = shaping.periodic_ratios(dit) | {k + 10: r for k, r in
                                             shaping.periodic_ratios(unet).items()}  # fmt: skip
    assert 2.25 < ratios.pop(14) < 2.35
    assert min(ratios.values()) > 0.745
    assert 1.295 < max(ratios.values()) < 1.315
    assert 1.9 < dit["mean of 2"]["rmse"] / dit["nearest + 2"]["rmse"] < 2.1


def test_the_table_of_widths_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/shaping_widths/summary.json").read_text())
    told = {(row["bits"], row["method"]): row for row in rows}
    page = (ROOT / "docs" / "findings.md").read_text().split("### Two, three and eight")[1]
    section = page.split("\n### ")[0]
    lines = re.findall(r"^\| ([a-z].*?) \| (\d.*) \|$", section, re.M)
    assert len(lines) == 11
    for name, cells in lines:
        values = [told[bits, name][key] for bits in (2, 3, 8) for key in ("rmse", "low", "high")]
        for value, printed in zip(values, re.findall(r"[\d.]+", cells), strict=True):
            assert_digits(value, printed)
    gains = {bits: shaping.gain(by_method) for _, _, bits, by_method in shaping.grids(rows)}
    assert 5 < 1 / gains[2] < 6
    assert 3 < told[2, "sums kept"]["rmse"] / told[2, "nearest"]["rmse"] < 3.3
    assert [round(1 / gains[bits], 2) for bits in (3, 8)] == [0.7, 0.3]
    assert_digits(seeds_of("shaping_w4_dit")["periodic 4"]["rmse"], "0.0944")


def test_the_table_of_samplers_is_its_committed_summary():
    told = json.loads((ROOT / "experiments/results/shaping_samplers/summary.json").read_text())
    page = (ROOT / "docs" / "findings.md").read_text().split("### Other samplers")[1]
    lines = re.findall(r"^\| ([a-z\d-]+) \| (\d.*) \|$", page.split("\n### ")[0], re.M)
    cases = {sampler: by_method for sampler, *_, by_method in shaping.grids(told)}
    assert [name for name, _ in lines] == list(cases)
    for name, cells in lines:
        case = cases[name]
        rmse = {method: row["rmse"] for method, row in case.items()}
        own = case["sigma-delta"]
        values = [min(rmse[once] for once in shaping.ONCE), rmse["fresh bits"],
                  rmse["golden ratio"], own["rmse"], own["low"], own["high"], shaping.gain(case),
                  rmse["periodic 4"], rmse["nearest + 4"]]  # fmt: skip
        for value, printed in zip(values, re.findall(r"[\d.]+", cells), strict=True):
            assert_digits(value, printed)
        is_halved = name in ("edm-heun", "dpmpp-2m-sde")
        assert (1.8 if is_halved else 3.2) < shaping.gain(case) < (2.1 if is_halved else 3.4)
        assert (rmse["golden ratio"] < rmse["sigma-delta"]) == (name == "edm-heun")


def test_what_is_said_of_shaped_weights_of_the_latent_network_holds():
    told = seeds_of("shaping_w4_latent")
    assert 0.385 < 1 / shaping.gain(told) < 0.395
    own = told["sigma-delta"]["rmse"]
    assert 0.225 < own / told["nearest"]["rmse"] < 0.235
    assert 0.455 < own / told["grouped"]["rmse"] < 0.465
    assert told["grouped"]["rmse"] < min(told[name]["rmse"] for name in shaping.ONCE)
    assert abs(told["grouped sigma-delta"]["rmse"] / own - 1) < 0.05
    assert max(shaping.periodic_ratios(told).values()) < 1.3


def test_what_is_said_of_chosen_phases_is_the_committed_result():
    told = json.loads((ROOT / "experiments/results/cures_phases/summary.json").read_text())
    medians = {row["case"]: row["median"] for row in cures.cures(told)}
    text = (ROOT / "docs" / "findings.md").read_text().split("**Phases can be chosen**")[1]
    said = re.findall(r"0\.0\d\d\d", text)[:4]
    tail = "shaped, last tenth a bit more, time, rotation, compensation and gain"
    names = ("shaped", "shaped, best of 8 phases", tail, "the same with the best of 8 phases")
    for name, printed in zip(names, said, strict=True):
        assert_digits(medians[name], printed)

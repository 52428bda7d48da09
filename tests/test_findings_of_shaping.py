"""What the findings say of shaped weights and activations is the committed results."""

import json
import re
from pathlib import Path

import numpy as np

from experiments.cures import plots as cures
from experiments.evaluate import plots as evaluate
from experiments.feedback import plots as feedback
from experiments.shaping import plots as shaping
from experiments.shaping_forecast import plots as forecast
from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]
SEQUENCES = ("fresh bits", "golden ratio", "noble ratios", "sigma-delta", "grouped sigma-delta",
             *(f"periodic {k}" for k in (1, 2, 3, 4)))  # fmt: skip

LAST = "sigma-delta, last in full"


def assert_all_digits(values, cells):
    """Assert that the numbers in cells of a table are these values, one after the other."""
    for value, printed in zip(values, re.findall(r"[\d.]+", cells), strict=True):
        assert_digits(value, printed)


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


def rows_of(folder):
    """Return the rows of a result."""
    return json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())


def seeds_of(folder):
    """Return {method: row} of a shaping result of one width."""
    return {row["method"]: row for row in rows_of(folder)}


def test_the_table_of_five_seeds_of_phases_is_its_committed_summary():
    page = (ROOT / "docs" / "findings.md").read_text().split("### Five seeds of phases")[1]
    lines = re.findall(r"^\| ([a-z].*?) \| (\d.*) \|$", page.split("\n### ")[0], re.M)
    networks = [seeds_of(f"shaping_w4{name}") for name in ("_dit", "", "_latent")]
    assert [line[0] for line in lines] == list(networks[0])
    for name, cells in lines:
        told = [rows[name][key] for rows in networks for key in ("rmse", "low", "high")]
        assert_all_digits(told, cells)


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
    page = (ROOT / "docs" / "findings.md").read_text().split("### Two, three and eight")[1]
    lines = re.findall(r"^\| ([a-z].*?) \| (\d.*) \|$", page.split("\n### ")[0], re.M)
    networks = {"DiT": "", "UNet": "_unet", "latent": "_latent"}
    cases = {
        (network, bits): by_method
        for network, suffix in networks.items()
        for *_, bits, by_method in shaping.grids(rows_of(f"shaping_widths{suffix}"))
    }
    assert len(lines) == 12
    for name, cells in lines:
        values = [own[name][key] for own in cases.values() for key in ("rmse", "low", "high")]
        assert_all_digits(values, cells)
    left = {case: round(1 / shaping.gain(own), 2) for case, own in cases.items()}
    assert 5.35 < left.pop(("DiT", 2)) < 5.45
    assert [left[network, 3] for network in networks] == [0.67, 0.78, 0.59]
    assert [left[network, 8] for network in networks] == [0.28, 0.6, 0.27]
    two = {name: row["rmse"] for name, row in cases["DiT", 2].items()}
    assert 3 < two["sums kept"] / two["nearest"] < 3.3
    ratios = sorted(ratio for own in cases.values()
                    for ratio in shaping.periodic_ratios(own).values())  # fmt: skip
    assert len(ratios) == 28
    assert ratios[-3] <= 1.3
    assert [round(ratio, 2) for ratio in ratios[-2:]] == [1.35, 2.25]
    assert_digits(seeds_of("shaping_w4_dit")["periodic 4"]["rmse"], "0.0944")


def test_the_table_of_wider_weights_is_its_committed_summary():
    page = (ROOT / "docs" / "findings.md").read_text().split("### Shaped weights of four bits")[1]
    lines = re.findall(r"^\| `(.*)` \| (.*) \|$", page.split("\n### ")[0], re.M)
    told = evaluate.recipes(rows_of("evaluate_shaped"))
    assert [words for words, _ in lines] == [row["recipe"] for row in told]
    for row, (_, cells) in zip(told, lines, strict=True):
        distance = evaluate.cell(row, "Frechet, infinite samples, to float")
        values = [distance[key] for key in ("value", "low", "high")]
        assert_all_digits([row["rmse"], row["median"], *values], cells)
    _, six, four, shaped_weights, _ = told
    assert round(shaped_weights["rmse"] / four["rmse"], 2) == 0.31
    assert round(six["rmse"] / shaped_weights["rmse"], 2) == 0.62
    gains = [np.log(four["rmse"] / row["rmse"]) for row in (shaped_weights, six)]
    assert round(2 * gains[0] / gains[1], 1) == 1.4


def test_the_table_of_few_steps_is_its_committed_summary():
    rows = json.loads((ROOT / "experiments/results/shaping_few/summary.json").read_text())
    cases = {num: by_method for _, num, _, by_method in shaping.grids(rows)}
    page = (ROOT / "docs" / "findings.md").read_text().split("### Few steps, and")[1]
    lines = re.findall(r"^\| ([a-z].*?) \| (\d.*) \|$", page.split("\n### ")[0], re.M)
    assert len(lines) == 11
    for name, cells in lines:
        values = [case[name][key] for case in cases.values() for key in ("rmse", "low", "high")]
        assert_all_digits(values, cells)
    assert [round(1 / shaping.gain(case), 2) for case in cases.values()] == [0.9, 0.71, 0.29]
    rmse = [{name: row["rmse"] for name, row in case.items()} for case in cases.values()]
    assert all(case["noble ratios"] < case["golden ratio"] for case in rmse)
    ratios = [case["noble ratios"] / case["sigma-delta"] for case in rmse]
    assert [round(ratio, 2) for ratio in ratios[:2]] == [0.77, 0.73]
    assert abs(ratios[2] - 1) < 0.03
    for few in rmse[:2]:
        sequences = [value for name, value in few.items() if name in SEQUENCES]
        assert few["nearest + 1"] < few["periodic 1"] == min(sequences)


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
        assert_all_digits(values, cells)
        is_halved = name in ("edm-heun", "dpmpp-2m-sde")
        assert (1.8 if is_halved else 3.2) < shaping.gain(case) < (2.1 if is_halved else 3.4)
        assert (rmse["golden ratio"] < rmse["sigma-delta"]) == (name == "edm-heun")


def forecasts():
    """{(network, bits, way): rows by number of steps} of the forecasts of all networks."""
    found: dict = {}
    for network, name in (("DiT", ""), ("UNet", "_unet"), ("latent", "_latent")):
        for length in ("", "_long"):
            folder = ROOT / "experiments/results" / f"shaping_forecast{name}{length}"
            for row in json.loads((folder / "summary.json").read_text()):
                found.setdefault((network, row["bits"], row["way"]), []).append(row)
    return found


def with_floor(row):
    """The forecast with the predicted floor, over what was measured."""
    whole = np.hypot(row["forecast"], row["predicted_floor"])
    return float(whole / row["rmse_of_forecast_samples"])


def test_the_table_of_forecasts_is_its_committed_summaries():
    section = (ROOT / "docs" / "findings.md").read_text().split("### Forecast from full")[1]
    section, found = section.split("\n### ")[0], forecasts()
    lines = re.findall(r"^\| (DiT|UNet|latent) \| (\d+) \| ([^|]+) \| (.*) \|$", section, re.M)
    order = [(network, bits, way) for network in ("DiT", "UNet", "latent")
             for of, bits, way in found if of == network]  # fmt: skip
    assert [(network, int(bits), way) for network, bits, way, _ in lines] == order
    for network, bits, way, cells in lines:
        own = found[network, int(bits), way]
        *errors, printed_slope, ratios = cells.split(" | ")
        for row, printed in zip(own, [each for each in errors if each != "-"], strict=True):
            assert_digits(row["rmse"], printed)
        assert_digits(forecast.slope(own), printed_slope)
        for row, printed in zip(own, ratios.split(", "), strict=True):
            assert_digits(forecast.ratio(row), printed)
    lines = re.findall(r"^\| (DiT|UNet|latent), ([^|]+) \| (.*) \|$", section, re.M)
    assert len(lines) == 6
    for network, way, cells in lines:
        own = [row for row in found[network, 4, way] if row["num_steps"] <= 50]
        values = [[row[name] for row in own]
                  for name in ("floor", "predicted_floor", "alignment", "corrected")]  # fmt: skip
        values.append([with_floor(row) for row in own])
        for told, printed in zip(values, cells.split(" | "), strict=True):
            for value, each in zip(told, printed.split(", "), strict=True):
                assert_digits(value, each)


def test_what_is_said_of_the_forecasts_holds():
    found = forecasts()
    near: dict = {}
    for (network, bits, _), own in found.items():
        near.setdefault((network, bits), []).extend(
            abs(forecast.ratio(row) - 1) <= 0.25 for row in own
        )
    told = {case: (sum(values), len(values)) for case, values in near.items()}
    assert [sum(told["DiT", bits][i] for bits in (6, 8, 16)) for i in (0, 1)] == [44, 44]
    assert (told["UNet", 8], told["latent", 8]) == ((18, 20), (14, 16))
    assert all(abs(forecast.ratio(row) - 1) < 0.115 for (_, bits, way), own in found.items()
               if (bits, way) == (4, "nearest") for row in own)  # fmt: skip
    for network in ("DiT", "UNet"):
        assert all(abs(forecast.ratio(row) - 1) <= 0.25 for row in found[network, 4, "fresh bits"])
    slopes = {(network, bits): round(forecast.slope(found[network, bits, LAST]), 2)
              for network, bits, way in found if way == LAST}  # fmt: skip
    assert [slopes[network, 8] for network in ("DiT", "UNet", "latent")] == [-0.91, -0.94, -1.01]
    assert round(min(forecast.slope(own) for (*_, way), own in found.items()
                     if way == "fresh bits"), 2) == -0.45  # fmt: skip
    assert (slopes["DiT", 6], slopes["DiT", 16]) == (-0.96, -0.97)
    own = {network: found[network, 4, "sigma-delta"] for network in ("DiT", "UNet", "latent")}
    whole = {network: [round(with_floor(row), 2) for row in rows] for network, rows in own.items()}
    assert (whole["DiT"][1:], whole["UNet"][1:]) == ([0.89, 0.97], [1.15, 0.9])
    alone = {network: [round(forecast.ratio(row), 2) for row in rows]
             for network, rows in own.items()}  # fmt: skip
    assert (alone["DiT"][1:], alone["UNet"][1:]) == ([0.7, 0.59], [0.69, 0.41])
    assert (alone["latent"][2], whole["latent"][2]) == (0.56, 0.97)
    assert [round(row["corrected"], 2) for row in own["DiT"]][1:] == [0.81, 0.67]
    high = [row for (_, bits, _), rows in found.items() if bits >= 6 for row in rows]
    assert max(row.get("floor", 0) / row["rmse_of_forecast_samples"] for row in high) < 0.345


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


def told_of_feedback(folder, head):
    """Rows, {(family, name): rows} and section of a result of feedback, its table compared."""
    rows = json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())
    found: dict = {}
    for row in feedback.recipes(rows):
        found.setdefault((row["family"], row["name"]), []).append(row)
    page = (ROOT / "docs" / "findings.md").read_text().split(head)[1]
    section = page.split("\n## ")[0].split("\n### ")[0]
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
    return rows, found, section, gains


def test_the_table_of_feedback_of_the_unet_is_its_committed_summary():
    rows, found, _, gains = told_of_feedback("feedback_unet", "### Activations of the UNet")
    for least, most, values in ((2.2, 6.7, gains["A8"] + gains["A6"]), (1.5, 2.0, gains["A4"])):
        assert_digits(min(values), str(least))
        assert_digits(max(values), str(most))
    ratio = {key: [row["predicted"] / row["rmse"] for row in own] for key, own in found.items()}
    for bits in ("A8", "A6"):
        random, nearest = found[bits, "stochastic"], found[bits, "nearest"]
        assert random[0]["rmse"] > 0.9 * nearest[0]["rmse"]
    rounded = [value for (family, _), own in ratio.items() if family in ("A8", "A6", "both")
            for value in own]  # fmt: skip
    assert (round(min(rounded), 2), round(max(rounded), 2)) == (0.58, 2.0)
    assert max(abs(value - 1) for (family, _), own in ratio.items() if family == "A4"
               for value in own) < 0.155  # fmt: skip
    shaped, wide = (found["both", name] for name in ("W4 shaped", "W6A8"))
    assert [a["rmse"] < b["rmse"] for a, b in zip(shaped, wide, strict=True)] == [
        False,
        False,
        True,
    ]
    sites = feedback.by_site(rows)
    gain, plain = (np.array(sites[way]) / np.array(sites["feedback"])
                   for way in ("stochastic", "nearest"))  # fmt: skip
    assert (int(np.sum(gain > 1)), len(gain)) == feedback.signs(sites) == (57, 57)
    assert_digits(np.median(gain), "3.8")
    assert int(np.sum(plain > 1)) == 56
    assert_digits(np.median(np.array(sites["fed_back"]) / np.array(sites["feedback"])), "1.03")


def test_the_table_of_feedback_of_the_latent_network_is_its_committed_summary():
    rows, found, _, gains = told_of_feedback("feedback_latent", "### Activations of the latent")
    wide = gains["A8"] + gains["A6"]
    assert [round(min(wide), 1), round(max(wide)), round(min(gains["A4"]), 1),
            round(max(gains["A4"]), 1)] == [1.9, 11, 1.6, 2.4]  # fmt: skip
    ratios = [row["predicted"] / row["rmse"] for (family, _), own in found.items()
              if family in ("A8", "A6") for row in own]  # fmt: skip
    assert (round(min(ratios), 2), round(max(ratios), 2)) == (0.42, 2.44)
    shaped, wide, wider = ([row["rmse"] for row in found["both", name]]
                           for name in ("W4 and A8 shaped", "W6A8", "W8A8"))  # fmt: skip
    assert all(0.85 < a / b < 1.75 for a, b in zip(shaped, wide, strict=True))
    assert all(a > 1.4 * b for a, b in zip(shaped, wider, strict=True))
    sites = feedback.by_site(rows)
    gain, plain = (np.array(sites[way]) / np.array(sites["feedback"])
                   for way in ("stochastic", "nearest"))  # fmt: skip
    assert (int(np.sum(gain > 1)), len(gain)) == feedback.signs(sites) == (57, 57)
    assert_digits(np.median(gain), "3.2")
    assert int(np.sum(plain > 1)) == 54
    assert_digits(np.median(np.array(sites["fed_back"]) / np.array(sites["feedback"])), "1.10")


def test_the_table_of_feedback_is_its_committed_summary():
    rows, found, section, gains = told_of_feedback("feedback", "### Activations: what")
    said = re.findall(r"(?:leaves|6 bits|4 bits)\s+([\d.]+) to ([\d.]+) times", section)[:3]
    for bits, ends in zip(gains, said, strict=True):
        for value, printed in zip((min(gains[bits]), max(gains[bits])), ends, strict=True):
            assert_digits(value, printed)
    other = {name: {bits: [a["rmse"] / b["rmse"] for a, b in zip(
        found[bits, name], found[bits, "feedback"], strict=True
    )] for bits in gains} for name in ("feedback, in a byte", "feedback, weighed")}  # fmt: skip
    byte = np.array([*other["feedback, in a byte"].values()])
    assert [round(value, 2) for value in (byte.min(), byte.max())] == [0.93, 1.14]
    weighed = np.array([*other["feedback, weighed"].values()])
    assert_digits(weighed[2, 0], "0.66")
    assert np.sum(abs(weighed - 1) > 0.21) == 1
    sites = feedback.by_site(rows)
    ratio = np.array(sites["stochastic"]) / np.array(sites["feedback"])
    assert (int(np.sum(ratio > 1)), len(ratio)) == feedback.signs(sites) == (41, 42)
    assert_digits(np.median(ratio), "3.2")
    assert np.all(np.array(sites["nearest"]) > np.array(sites["feedback"]))
    assert_digits(np.median(np.array(sites["fed_back"]) / np.array(sites["feedback"])), "1.03")

"""The page of strategies is what committed results say."""

import json
import re
from pathlib import Path

from tests.tolerances import assert_digits

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "strategies.md").read_text()


def rows(folder):
    return json.loads((ROOT / "experiments/results" / folder / "summary.json").read_text())


def cured(*folders):
    """Return {(recipe, case): row} of results of cures."""
    found = [row for folder in folders for row in rows(folder) if row["kind"] == "cure"]
    return {(row["recipe"], row["case"]): row for row in found}


def section(title):
    return PAGE.split(f"## {title}")[1].split("\n## ")[0]


def test_the_table_of_cures_at_four_bits_is_the_committed_one():
    dit, unet = cured("cures", "cures_tail"), cured("cures_unet")
    lines = re.findall(r"^\| ([^|]+) \| ([\d.]+ \|.*) \|$", section("Cures at 4 bits"), re.M)
    assert len(lines) == 10
    for case, cells in lines:
        told = [net[recipe, case]["median"] for recipe in ("W4A8", "W4A4") for net in (dit, unet)]
        told += [dit["W4A8", case][name] for name in ("bits", "evaluations")]
        for value, printed in zip(told, cells.split(" | "), strict=True):
            assert_digits(value, printed)


def test_what_is_said_of_cures_at_four_bits_holds():
    dit, unet = cured("cures"), cured("cures_unet")
    time = "time path cached"
    assert 0.28 < dit["W4A8", time]["recovered"] < 0.36
    assert unet["W4A8", time]["recovered"] < 0.01
    for net in (dit, unet):
        assert net["W4A4", "rotation"]["recovered"] > 0.3
        assert net["W4A8", "rotation"]["recovered"] < 0.25
        assert net["W4A8", "GPTQ"]["recovered"] > 0.5
    assert dit["W4A4", "GPTQ"]["recovered"] < 0


def test_table_1_is_the_committed_one():
    told = [row for row in rows("table1") if row["kind"] == "form"]
    by = {(row["recipe"], row["technique"], row["form"]): row for row in told}
    text = section("Table 1, measured")
    lines = re.findall(r"^\| ([^|]+) \| (plain|best) \| (.*) \|$", text, re.M)
    assert [line[:2] for line in lines] == [key[1:] for key in by if key[0] == "W4A4"]
    for technique, form, cells in lines:
        four, eight = (by[recipe, technique, form] for recipe in ("W4A4", "W4A8"))
        values = []
        for row in (four, eight):
            values += [row["rmse"], row["low"], row["high"], row["frechet"][0], row["guaranteed"]]
        values += [four["stored"], four["gigabops"], 1e6 * four["seconds_of_chips"][0],
                   four["evaluations"], four["learned"], 100 * four["overhead"]]  # fmt: skip
        printed = re.findall(r"-?[\d.]+", cells)
        for value, word in zip(values, printed, strict=True):
            assert_digits(value, word)
        assert f"- *{technique}, {form}*: {four['what']}." in text
    assert not [row for row in rows("table1") if row.get("failure")]


def test_what_becomes_of_the_adjectives_holds():
    told = [row for row in rows("table1") if row["kind"] == "form"]
    four, eight = ({(r["technique"], r["form"]): r for r in told if r["recipe"] == recipe}
                   for recipe in ("W4A4", "W4A8"))  # fmt: skip
    rmse = lambda net, name, form="best": net[name, form]["rmse"]  # noqa: E731
    order = sorted({name for name, _ in four}, key=lambda name: rmse(four, name))
    assert order[:2] == ["timestep-adaptive", "dynamic"]
    assert order[2] == "mixed precision"
    assert rmse(four, "uniform PTQ") < four["non-uniform PTQ", "best"]["high"]  # the fourth place
    assert "uniform PTQ" in order[3:6]
    assert_digits(four["uniform PTQ", "plain"]["floor"][0], "0.7")
    for net in (four, eight):
        plain = {name: rmse(net, name, "plain") for name, _ in net}
        assert sorted(plain, key=plain.get)[:2] in (["QAT", "hybrid PTQ + QAT"],
                                                    ["hybrid PTQ + QAT", "QAT"])  # fmt: skip
        assert plain["mixed precision"] > plain["dynamic"]
        assert rmse(net, "timestep-adaptive") == min(row["rmse"] for row in net.values())
        assert rmse(net, "hybrid PTQ + QAT") == rmse(net, "uniform PTQ")
    left = [rmse(net, "mixed precision") / rmse(net, "uniform PTQ") for net in (eight, four)]
    assert [round(share, 2) for share in left] == [0.4, 0.92]
    mixed, uniform = (eight[name, "best"] for name in ("mixed precision", "uniform PTQ"))
    assert mixed["stored"] <= uniform["stored"] * 1.001
    assert_digits(100 * (mixed["gigabops"] / uniform["gigabops"] - 1), "1.3")
    evaluations = [four[name, "best"]["evaluations"] for name in ("QAT", "uniform PTQ")]
    assert 21.5 < evaluations[0] / evaluations[1] < 22.5
    assert rmse(eight, "QAT") == rmse(eight, "uniform PTQ")  # its result is not taken
    assert rmse(four, "QAT") > rmse(four, "uniform PTQ")
    assert_digits(rmse(four, "dynamic", "plain") / rmse(four, "uniform PTQ", "plain"), "0.59")

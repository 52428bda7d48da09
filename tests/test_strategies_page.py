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

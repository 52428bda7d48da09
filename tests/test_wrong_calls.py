"""No wrong call of a public function is accepted, and each says what was got, expected, and to do.

The tables are in `wrong_calls`, by room.
"""

import re

import pytest

from tests.wrong_calls import analysis, diffusion, front_door, hardware, metrics, quant

TABLES = {"front_door": front_door, "quant": quant, "diffusion": diffusion, "analysis": analysis,
          "hardware": hardware, "metrics": metrics}  # fmt: skip
CALLS = [
    pytest.param(row, *call_and_values, id=f"{room}: {row}")
    for room, table in TABLES.items()
    for row, call_and_values in table.ROWS.items()
]


@pytest.mark.parametrize(("row", "call", "values"), CALLS)
def test_a_wrong_call_says_what_was_got_expected_and_what_to_do(row, call, values, users_defaults):
    argument = re.search(r"\((.*)\)", row).group(1)
    words = re.compile(rf"{argument}(.|\n)*got (.|\n)*expected (.|\n)*; \S")
    for value in values:
        with pytest.raises((ValueError, TypeError, KeyError, FileNotFoundError)) as caught:
            call(value)
        assert words.search(str(caught.value)), f"{value!r}: {caught.type}: {caught.value}"


def test_there_are_many_wrong_calls():
    assert sum(len(call.values[-1]) for call in CALLS) >= 1800

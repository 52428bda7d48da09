"""Recipes that are compared, and what the table says of sites."""

import pytest

from experiments.feedback import experiment as feedback
from experiments.feedback import plots
from experiments.harness import command
from qdiffjax.precision import parse_recipe


def test_every_case_is_a_recipe_and_the_last_input_is_left_in_full():
    table = feedback.cases(feedback.Config(), 20)
    for words, _ in table.values():
        parse_recipe(words)
    words, sites = table["input", "feedback, last in full"]
    assert sites == ("input",)
    assert parse_recipe(words)[1].steps == (19,)


def test_signs_are_counted_against_stochastic_rounding():
    row = {"fed_back": [1.0, 1.0, 3.0, 3.0], "independent": [1.0] * 4,
           "feedback": [1.0, 2.0, 1.0, 2.0], "stochastic": [1.5] * 4}  # fmt: skip
    assert plots.signs(row) == (2, 4)


@pytest.mark.parametrize(
    "change", [{"bits": (1,)}, {"bits": (9,)}, {"num_steps": (1,)}, {"num_probes": 1},
               {"weight_bits": 7}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        command.check(feedback.Config(**change))

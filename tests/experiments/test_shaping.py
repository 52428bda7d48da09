"""Ways to round a weight: what each stores, and what the table compares."""

import pytest

from experiments.harness import command
from experiments.shaping import experiment as shaping
from experiments.shaping import plots


def test_ways_of_one_width_differ_in_rounding_alone():
    ways = shaping.methods(4, 2)
    widths = {name: recipe for name, (recipe, _, _) in ways.items()}
    assert widths.pop("nearest + 2") == "W6"
    assert set(widths.values()) == {"W4"}
    drawn = {name for name, (_, _, round_of) in ways.items() if round_of}
    assert drawn == {"fresh bits", "golden ratio", "sigma-delta", "periodic 2"}
    first, second = (ways["sigma-delta"][2](seed) for seed in (0, 1))
    assert first is not second


def test_the_gain_is_over_the_best_single_rounding():
    rmse = {"nearest": 0.4, "clipped": 0.3, "sums kept": 0.6, "nearest + 2": 0.01,
            "sigma-delta": 0.1}  # fmt: skip
    rows = [{"num_steps": 10, "bits": 4, "method": name, "rmse": value}
            for name, value in rmse.items()]  # fmt: skip
    ((num_steps, bits, by_method),) = plots.grids(rows)
    assert (num_steps, bits) == (10, 4)
    assert plots.gain(by_method) == pytest.approx(3)


@pytest.mark.parametrize(
    "change", [{"weight_bits": (1,)}, {"weight_bits": (9,)}, {"num_steps": (0,)},
               {"extra_bits": 0}, {"num_seeds": 0}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        command.check(shaping.Config(**change))

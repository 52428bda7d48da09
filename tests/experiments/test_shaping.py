"""Ways to round a weight: what each stores, and what the table compares."""

import pytest

from experiments.harness import command
from experiments.shaping import experiment as shaping
from experiments.shaping import plots


def test_ways_of_one_width_differ_in_rounding_alone():
    ways = shaping.methods(4, (2, 3), 32)
    widths = {name: recipe for name, (recipe, _, _) in ways.items()}
    assert (widths.pop("nearest + 2"), widths.pop("nearest + 3")) == ("W6", "W7")
    assert widths.pop("grouped") == widths.pop("grouped sigma-delta") == "W4g32 mse"
    assert set(widths.values()) == {"W4"}
    drawn = {name for name, (_, _, round_of) in ways.items() if round_of}
    assert drawn == {*shaping.SHAPED, "grouped sigma-delta",
                     "periodic 2", "periodic 3"}  # fmt: skip
    first, second = (ways["sigma-delta"][2](seed) for seed in (0, 1))
    assert first is not second


def test_the_gain_is_over_the_best_single_rounding():
    rmse = {"nearest": 0.4, "clipped": 0.3, "sums kept": 0.6, "nearest + 2": 0.01,
            "sigma-delta": 0.1}  # fmt: skip
    rmse["periodic 2"] = 0.05
    rows = [{"sampler": "ddim", "num_steps": 10, "bits": 4, "method": name, "rmse": value}
            for name, value in rmse.items()]  # fmt: skip
    ((*case, by_method),) = plots.grids(rows)
    assert case == ["ddim", 10, 4]
    assert plots.gain(by_method) == pytest.approx(3)
    assert plots.periodic_ratios(by_method) == pytest.approx({2: 0.05**2 / (0.1**2 + 0.01**2)})


@pytest.mark.parametrize(
    "change", [{"weight_bits": (1,)}, {"weight_bits": (9,)}, {"num_steps": (0,)},
               {"extra_bits": (0,)}, {"samplers": ("dim",)}, {"group_size": 1}, {"num_seeds": 0}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        command.check(shaping.Config(**change))

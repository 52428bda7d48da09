"""What the experiment of training says over its seeds."""

import numpy as np
import pytest

from experiments.harness import command
from experiments.training_aware import experiment as training_aware
from experiments.training_aware import summary, ways
from tests.tolerances import assert_close


def runs(**ratios):
    """Runs of three seeds: the error of a way is its ratio times that of its seed."""
    seeds = {1: 1.0, 2: 2.0, 3: 4.0}
    return [
        {"kind": "run", "seed": seed, "recipe": "W4A4", "way": way, "rmse": size * ratio,
         "median": size, "frechet": size * ratio**2, "frechet_low": 0.0, "frechet_high": 9.0,
         "floor": 0.1, "evaluations": 5, "learned": 2, "seconds": 1.0}
        for seed, size in seeds.items() for way, ratio in ratios.items()
    ]  # fmt: skip


def test_ratios_are_paired_by_seed():
    rows = summary.rows(runs(**{ways.UNIFORM: 1.0, ways.GAINS: 0.5}))
    (ratio,) = [row for row in rows if row["kind"] == "ratio"]
    assert (ratio["way"], ratio["beside"], ratio["num_seeds"]) == (ways.GAINS, ways.UNIFORM, 3)
    for name, value in (("rmse", 0.5), ("frechet", 0.25)):
        for end in ("", "_low", "_high"):
            assert_close(ratio[name + end], value)
    own = next(row for row in rows if row["kind"] == "way")
    assert_close(own["rmse"], 7 / 3)
    assert own["low"] < 2 < own["high"]  # the geometric mean of 1, 2, 4


def test_an_interval_is_students():
    """Of logs 0 and 2: mean 1, standard error 1, t of one degree of freedom 12.7062."""
    low, high = summary._interval([0.0, 2.0])
    assert_close(np.log([low, high]), [1 - 12.706204736, 1 + 12.706204736], factor=1e9)
    assert summary._interval([1.0]) == (None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"ways": ("nothing",)}, "ways"), ({"recipes": ("W99",)}, "bits"), ({"rate": 0.0}, "rate")],
    ids=["way", "recipe", "rate"],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        command.check(training_aware.Config(**change))

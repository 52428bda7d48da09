"""Budgets, and what figures and tables say of made-up rows."""

import numpy as np
import pytest

from experiments.allocate import experiment as allocate
from experiments.allocate import plots
from experiments.harness import command
from qdiffjax import strategies
from tests.strategies import parallel
from tests.tolerances import assert_close


def test_a_budget_between_two_widths_is_in_proportion():
    """4 matrices of 6 x 6 with 6 scales each: 144 (b + 32 / 6) bits."""
    words = tuple(f"W{bits} sums" for bits in (3, 4, 6))
    choices = strategies.offer(parallel.calibrated(1), parallel.ONE_STEP, words, sites=("*",))
    for bits in (3.0, 3.25, 4.0, 5.0, 6.0):
        total = allocate.budget_of(choices, "sums", (6, 3, 4), bits)
        assert_close(total, 144 * (bits + 32 / 6))


def test_misses_and_ratios_are_of_the_rows_they_name():
    row = {"kind": "forecast", "measured": [1.0, 2.0, 4.0], "vectors": [1.1, 1.0, 4.0]}
    assert_close(plots.misses(row, "vectors"), 0.1)
    rows = [{"kind": "budget", "family": f, "way": w, "ratio": r}
            for f, w, r in (("widths", "again", 0.5), ("widths", "again", 0.125),
                            ("free", "again", 3.0), ("widths", "uniform", 1.0))]  # fmt: skip
    assert_close(plots.mean_ratio([*rows, row], "widths", "again"), 0.25)


def test_forecasts_of_one_row_are_drawn_in_one_panel():
    budget = {"kind": "budget", "family": "widths", "budget": 4.0, "bits": 4.2, "rmse": 0.2,
              "rmse_low": 0.1, "rmse_high": 0.3}  # fmt: skip
    rows = [budget | {"way": way} for way in plots.STYLES]
    rows += [{"kind": "forecast", "width": "W4", "measured": [0.1, 0.2], "squares": [0.1, 0.2],
              "vectors": [0.1, 0.3], "runs": [0.1, 0.2]}]  # fmt: skip
    figure = plots.draw({"checkpoint": "runs/tiny"}, {}, rows)
    assert [ax.get_title() for ax in figure.axes] == ["widths", "at random"]
    assert np.allclose(figure.axes[1].collections[1].get_offsets(), [[0.1, 0.1], [0.2, 0.3]])


@pytest.mark.parametrize(
    "change", [{"budget_bits": (1.5,)}, {"widths": (1,)}, {"num_noises": 0}, {"num_samples": 1},
               {"widths": (4, 5), "budget_bits": (6.0,)}, {"num_rounds": 0}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=[*change][-1]):
        command.check(allocate.Config(**change))

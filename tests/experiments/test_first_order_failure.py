"""Where first order fails: the table on made-up numbers, and a miniature run from end to end."""

import dataclasses
import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from experiments.first_order_failure import experiment
from experiments.harness import command, store
from tests import worlds

CONFIG = experiment.Config()


def test_the_confusion_table_counted_by_hand():
    arrays = {
        "W8/measured": np.array([0.1, 0.3, 0.5]), "W8/predicted": np.array([0.2, 0.1, 0.6]),
        "A8/measured": np.array([0.2, 0.4]), "A8/predicted": np.array([0.9, 0.3]),
        "A8/errors": np.ones(2),
    }  # fmt: skip
    found = experiment.confusion(arrays, 0.25)
    counts = [found[k] for k in ("failed_foretold", "failed_missed", "held_foretold", "held_right")]
    assert counts == [2, 1, 1, 1]
    assert found["accuracy"] == pytest.approx(3 / 5)
    # failed got .1, .6, .3; held got .2, .9: 2 of 6 pairs are in order.
    assert found["roc_area"] == pytest.approx(2 / 6)
    assert experiment.confusion({"a/measured": np.ones(2), "a/predicted": np.ones(2)}, 0.25)[
        "roc_area"] is None  # fmt: skip


def test_widths_are_read():
    widths = [experiment.parse_width(w) for w in ("W8", "A6", "W4A16")]
    assert widths == [(8, None), (None, 6), (4, 16)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ("W8", "")}, "got width ''"),
        ({"widths": ("A8W8",)}, "got width 'A8W8'"),
        ({"widths": ("W17",)}, "got 17 bits"),
        ({"sampler": "dimm"}, "got sampler = 'dimm', expected one of ddim"),
        ({"tolerance": 0.0}, "got tolerance = 0"),
        ({"num_samples": 1}, "got num_samples = 1, expected at least 2"),
    ],
)
def test_what_cannot_be_run_is_refused_first(change, message):
    with pytest.raises(ValueError, match=message):
        command.check(dataclasses.replace(CONFIG, **change))


@pytest.mark.slow
def test_a_miniature_run_measures_and_predicts(tmp_path):
    flags = [
        "--checkpoint", str(worlds.save_tiny(tmp_path / "net")), "--output", str(tmp_path / "out"),
        "--num-steps", "3", "--num-samples", "4", "--widths", "W8", "W3", "--sites", "conv_*",
    ]  # fmt: skip
    with redirect_stdout(io.StringIO()) as printed:
        assert command.main(experiment.EXPERIMENT, flags) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    assert (tmp_path / "out" / "failure.png").stat().st_size > 10_000
    assert "area under ROC" in printed.getvalue()
    counted = [rows[-1][k] for k in ("failed_foretold", "failed_missed", "held_foretold",
                                     "held_right")]  # fmt: skip
    assert sum(counted) == 8
    # Curvature is what an error ten times larger shows ten times more of.
    for name in ("measured", "predicted"):
        assert np.median(arrays[f"W3/{name}"]) > 4 * np.median(arrays[f"W8/{name}"])
    assert np.all(arrays["W3/errors"] > 4 * arrays["W8/errors"])

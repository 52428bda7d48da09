"""Clipped noise: what leaves a range, which ranges are widened, and a miniature run."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from experiments.clipping import experiment as clipping
from experiments.harness import command, store
from tests import worlds

NET = worlds.TINY_DIT


def test_excess_is_the_signed_distance_to_the_range():
    found = clipping.excess(np.array([-3.0, -2.0, 0.0, 1.0, 1.5]), -2.0, 1.0)
    np.testing.assert_array_equal(found, [-1, 0, 0, 0, 0.5])


@pytest.mark.slow
def test_a_miniature_run_clips_less_with_the_wider_range(tmp_path):
    argv = ["--checkpoint", str(worlds.save_tiny(tmp_path / "net", NET)), "--output",
            str(tmp_path / "out"), "--num-steps", "2", "--num-samples", "64", "--sites", "input",
            "patchify*", "output", "--widen", "100"]  # fmt: skip
    with redirect_stdout(io.StringIO()) as printed:
        assert command.main(clipping.EXPERIMENT, argv) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    assert (tmp_path / "out" / "clipping.png").stat().st_size > 10_000
    assert "clipped" in printed.getvalue()
    before, after = rows
    assert before["clipped"] > after["clipped"] == 0
    assert after["error_max"] != before["error_max"]
    np.testing.assert_allclose(arrays["calibrated/law"][0], before["excess"], rtol=1e-12)
    assert abs(before["law"]) > abs(before["excess"]) > 0


def test_what_cannot_be_run_is_refused_first():
    with pytest.raises(ValueError, match="got 17 bits"):
        command.check(clipping.Config(bits=17))
    with pytest.raises(ValueError, match=r"got widen = 1\.0, expected more than 1"):
        command.check(clipping.Config(widen=1.0))

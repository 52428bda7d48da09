"""The benchmarks of fake quantization: what is divided by what."""

import numpy as np
import pytest

from experiments.bench import fake_quant, quant
from experiments.harness import command, store, timing
from tests import worlds


def test_a_format_is_compared_with_the_faster_copy_of_its_own_round(tmp_path, monkeypatch, capsys):
    seconds = np.array([[2.0, 4.0, 8.0], [6.0, 3.0, 6.0], [1.0, 1.0, 5.0]])
    cases = dict(list(quant.CASES.items())[:3])
    monkeypatch.setattr(quant, "CASES", cases)
    monkeypatch.setattr(timing, "interleave", lambda turns, num_rounds, seed: (seconds, seconds))
    assert command.main(quant.EXPERIMENT, ["--size", "32", "--output", str(tmp_path)]) == 0
    _, arrays, rows = store.load(tmp_path)
    np.testing.assert_array_equal(arrays["seconds"], seconds)
    assert [row["format"] for row in rows] == list(cases)
    last = rows[-1]
    assert (last["milliseconds"], last["over_copy"]) == (6000.0, 4.0)
    assert (last["over_copy_min"], last["over_copy_max"]) == (2.0, 5.0)
    assert "x copy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "text"),
    [(["--size", "33"], "a positive multiple of 32"), (["--num-rounds", "0"], "at least 1")],
)
def test_sizes_that_no_block_divides_and_no_rounds_are_refused(flags, text, tmp_path, capsys):
    assert command.main(quant.EXPERIMENT, [*flags, "--output", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_of_simulation_is_the_median_of_the_ratios_of_pairs(tmp_path, monkeypatch):
    seconds = np.array([[1.0, 2.0], [10.0, 40.0], [4.0, 12.0]])
    monkeypatch.setattr(timing, "interleave", lambda turns, num_rounds, seed: (seconds, seconds))
    checkpoint = worlds.save_tiny(tmp_path / "model")
    arrays, (row,) = fake_quant.EXPERIMENT.run(
        fake_quant.Config(checkpoint=str(checkpoint), num_steps=1, num_samples=1)
    )
    np.testing.assert_array_equal(arrays["seconds"], seconds)
    assert (row["float_seconds"], row["quantized_seconds"]) == (4.0, 12.0)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (3.0, 2.0, 4.0)

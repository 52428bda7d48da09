"""A miniature run of the predictions against the measured error, and what it refuses."""

import numpy as np
import pytest

from experiments import prediction_check
from experiments.harness import command, store
from tests import worlds

NET = worlds.TINY_DIT


@pytest.mark.slow
def test_in_a_miniature_run_rows_are_ratios_of_the_arrays(tmp_path, capsys):
    net = worlds.save_tiny(tmp_path / "net", NET)
    argv = ["--checkpoints", str(net), "--output", str(tmp_path / "out"), "--num-steps", "2",
            "--num-samples", "8", "--widths", "W4A4", "--input-steps", "2"]  # fmt: skip
    assert command.main(prediction_check.EXPERIMENT, argv) == 0
    _, arrays, (row, alone) = store.load(tmp_path / "out")
    for part, found, names in (("net W4A4", row, prediction_check.PREDICTIONS),
                               ("net input 2", alone, ("frozen",))):  # fmt: skip
        measured = np.sum(arrays[f"{part}/measured"] ** 2)
        for name in names:
            ratio = np.sqrt(np.sum(arrays[f"{part}/{name}"] ** 2) / measured)
            assert found[name] == pytest.approx(ratio, rel=1e-5)
            assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    assert alone["step"] > 0
    assert "input 4" in capsys.readouterr().out


def test_what_cannot_be_run_is_refused_first():
    with pytest.raises(ValueError, match="expected both, as W8A8"):
        command.check(prediction_check.Config(widths=("A8",)))
    with pytest.raises(FileNotFoundError, match="fashion_unet"):
        command.check(prediction_check.Config(checkpoints=("nothing",)))
    with pytest.raises(ValueError, match="got num_samples = 1, expected at least 2"):
        command.check(prediction_check.Config(num_samples=1))

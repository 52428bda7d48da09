"""`python -m experiments.train`: what a run leaves, that it goes on, and what it refuses."""

import shutil

import jax
import numpy as np
import pytest

from experiments.train import experiment as train
from experiments.train import fitting
from qdiffjax.networks import denoisers

TINY = ["--width", "8", "--depth", "1", "--patch", "4", "--steps", "2", "--batch", "4"]


pytestmark = pytest.mark.usefixtures("users_defaults")


@pytest.mark.slow
def test_a_run_leaves_a_checkpoint_with_its_curve_and_pictures_and_the_same_command_adds_nothing(
    tmp_path, capsys, monkeypatch
):
    command = ["--data", "digits", "--model", "dit", "--classes", *TINY, "--output", str(tmp_path)]
    assert train.main(command) == 0
    path = tmp_path / "checkpoint"
    assert {p.name for p in path.iterdir()} >= {"samples.png", "loss.png", "loss.npz"}
    denoiser = denoisers.load(path)
    assert denoiser.config.num_classes == 10
    assert denoiser.config.trained["command"] == " ".join(["python -m experiments.train", *command])
    with np.load(path / "loss.npz") as curve:
        assert curve["loss"].shape == (1,)
        # A fresh network answers zero, whose loss is E|eps|^2 = 1, per 64 pixels of 8 images.
        assert abs(curve["loss"][0] - 1) < 5 * np.sqrt(2 / 512)
    # Its pictures were seen above.
    monkeypatch.setattr(fitting, "sample_grid", lambda denoiser, num: np.zeros((num, 8, 8, 1)))
    assert train.main(command) == 0
    again = denoisers.load(path)
    jax.tree.map(np.testing.assert_array_equal, again.params, denoiser.params)
    capsys.readouterr()
    assert train.main([*command, "--depth", "2"]) == 2
    assert "does not fit this model or these settings" in capsys.readouterr().err
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert train.main([*command, "--rate", "0.5"]) == 2
    assert "got learning_rate = 0.5, expected learning_rate = 0.001" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "state")
    assert train.main([*command, "--rate", "0.5"]) == 2
    assert "a checkpoint whose run is not there" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_a_network_may_learn_averages_over_squares_of_pixels(tmp_path):
    command = ["--data", "digits", "--side", "4", "--model", "dit", *TINY]
    assert train.main([*command, "--output", str(tmp_path)]) == 0
    assert denoisers.load(tmp_path / "checkpoint").shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nothing/here"], "nothing/here"),
        (["--data", "digits", "--model", "autoencoder", "--classes"], "got --classes with --model"),
        (["--data", "digits", "--devices", "999"], "got 999 x 1 devices, expected 1"),
        (
            ["--data", "digits", "--latent", "nothing/here"],
            "nothing/here: got no checkpoint, expected config.json",
        ),
        (["--data", "digits", "--model", "dit", "--patch", "3"], "divisible by patch=3; pad the"),
        (["--data", "digits", "--steps", "0"], "got steps = 0, expected at least 1"),
        (["--data", "digits", "--model", "dit", "--depth", "0"], "got depth = 0"),
        (["--data", "digits", "--model", "dit", "--patch", "0"], "got patch = 0"),
        (["--data", "digits", "--depth", "2"], "got --depth with --model unet"),
        (["--data", "digits", "--model", "autoencoder", "--latent", "x"], "got --latent with"),
        (["--data", "digits", "--side", "3"], "got images of shape (8, 8, 1), expected (3, 3, 1)"),
        (["--data", "digits", "--seed", "4294967296"], "got seed = 4294967296, expected at most"),
        (["--data", "digits", "--rate", "nan"], "got rate = nan, expected a finite number"),
        ([], "--data: got none"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    assert train.main([*flags, "--output", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]

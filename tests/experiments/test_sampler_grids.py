"""The experiment that draws every network's samples by every sampler."""

import dataclasses

import numpy as np
import pytest

from experiments.harness import command, store
from experiments.sampler_grids import experiment as sampler_grids
from qdiffjax import diffusion
from tests import worlds

PROCESSES = {
    "linear": diffusion.Interpolated(diffusion.linear()),
    "cosine": diffusion.Interpolated(diffusion.cosine()),
    "flow": diffusion.Flow(),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("entry", sampler_grids.ENTRIES.values(), ids=lambda entry: entry.name)
def test_every_sampler_reaches_clean_data_in_about_the_calls_it_is_given(entry, name):
    steps = sampler_grids.table(entry, PROCESSES[name], 24)
    assert steps.s[-1] == 0
    if entry.name != "one step":
        assert 20 <= diffusion.nfe(steps) <= 25
    level = PROCESSES[name].exact(np.float64(steps.t[0]))
    assert level.sigma / level.alpha > 30


@pytest.mark.slow
def test_a_miniature_run_draws_each_sampler_from_the_same_noise(tmp_path, capsys):
    config = dataclasses.replace(
        worlds.TINY, network="dit", num_classes=3,
        arguments={"patch": 4, "width": 8, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    path = worlds.save_tiny(tmp_path / "net", config, worlds.tiny_params(config))
    names, folder = ["DDIM", "DEIS", "one step"], tmp_path / "out"
    argv = ["--checkpoints", path, "--nfe", 8, "--num-samples", 4, "--samplers", *names,
            "--output", folder]  # fmt: skip
    assert command.main(sampler_grids.EXPERIMENT, [str(a) for a in argv]) == 0
    _, arrays, rows = store.load(folder)
    assert arrays["net/samples"].shape == (3, 4, 8, 8, 1)
    assert list(arrays["samplers"]) == [row["sampler"] for row in rows] == names
    assert list(arrays["net/nfe"]) == [8, 8, 1]
    assert [row["rms_from_first"] == 0 for row in rows] == [True, False, False]
    assert all(row["not_finite"] == 0 for row in rows)
    assert (folder / "net.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("DEIS") == 1


def test_an_unknown_sampler_is_refused_with_the_known_ones(tmp_path, capsys):
    argv = ["--samplers", "ddim", "--output", str(tmp_path)]
    assert command.main(sampler_grids.EXPERIMENT, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "DDIM" in err


def test_what_is_not_finite_is_grey():
    found = sampler_grids.as_bytes(np.array([np.nan, np.inf, -9.0, 9.0, 1.0, -1.0]))
    np.testing.assert_array_equal(found, [128, 128, 0, 255, 255, 0])

"""The experiment that certifies a tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.certificates import experiment as certificates
from experiments.certificates import measure
from experiments.harness import command, store


def test_every_input_is_in_the_box_that_is_said_to_hold_it():
    x = np.random.default_rng(0).uniform(-2, 2, (500, 2))
    low, high = measure.grid_boxes(2.0, 7)
    box = measure.box_of(x, 2.0, 7)
    assert low.shape == (49, 1, 2)
    assert np.all((low[box, 0] <= x) & (x <= high[box, 0]))


def one_layer(params, x, t):
    """A network that compiles in a third of the time."""
    return x + jnp.tanh(x @ params["mid"][:2]) @ params["out"]


@pytest.mark.slow
def test_a_miniature_run_certifies_all_it_measures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "eps_fn", one_layer)
    flags = {"bits": 8, "times": 300, "grids": 2, "num-inputs": 64, "num-keys": 1, "num-steps": 2,
             "num-samples": 3, "width": 3, "train-steps": 40, "radii": 0.01}  # fmt: skip
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert command.main(certificates.EXPERIMENT, [*argv, "--output", str(tmp_path)]) == 0
    _, arrays, rows = store.load(tmp_path)
    kinds = [row["kind"] for row in rows]
    assert kinds == ["network", "call", "call", "sampler", "set", "sampler", "set"]
    assert sum(row.get("violations", 0) for row in rows) == 0
    assert rows[2]["checks"] == 64 * (1 + 8 + 1)  # nearest, unlucky in 8 directions, random
    for name in ("W8", "W8A8"):
        certified, measured = arrays[f"{name}/certified"], arrays[f"{name}/measured"]
        assert certified.shape == (3, 3)
        assert np.all(certified[:, 1:] >= measured[:, 1:])
        assert np.all(measured[:, -1] <= arrays[f"{name}/worst_found"])
    assert (tmp_path / "certificates.png").stat().st_size > 1000
    assert "violated" in capsys.readouterr().out
    assert len(jax.tree.leaves(arrays)) == 6


def test_impossible_flags_are_refused_before_any_work(tmp_path, capsys):
    idle = certificates.EXPERIMENT._replace(measure=lambda *a, **k: pytest.fail("work began"))
    assert command.main(idle, ["--bits", "1", "--output", str(tmp_path)]) == 2
    assert "got bits = 1, expected at least 2" in capsys.readouterr().err

"""Sensitivity of kinds of operations: groups, rows on made-up numbers, a miniature run."""

import dataclasses
import io
from contextlib import redirect_stdout

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.group_sensitivity import experiment
from experiments.harness import command, store
from qdiffjax.sites import Site
from tests import worlds

NET = worlds.TINY_DIT


@pytest.mark.parametrize(
    ("site", "group"),
    [
        ("mid_attn_0/query/kernel", "attention projections"),
        ("block_1/attention/dot_0", "attention products"),
        ("down_1_block_0/time/kernel", "time and modulation"),
        ("up_1_pool/kernel", "convolutions, high resolution"),
        ("up_1_block_0/conv_1/kernel", "convolutions, low resolution"),
        ("head/modulation/out/kernel", "time and modulation"),
        ("head/out/kernel", "last layer"),
    ],
)
def test_sites_belong_to_groups(site, group):
    made = Site(site, "dot", 1, site, ((1, 2), (2, 2)), (1, 2), ((1,), (0,)))
    assert experiment.group_of(made) == group
    stored = dataclasses.replace(made, kind="softmax", weight=None, weight_path=None)
    assert experiment.group_of(stored) == "stored: softmax"


def test_rounded_norms_are_on_their_grid_and_nothing_else_moves():
    params = {"norm_1": {"scale": jnp.array([1.27, 0.5, -0.031])}, "conv": jnp.array([0.123])}
    found = experiment.round_norms(params, 8)
    np.testing.assert_allclose(found["norm_1"]["scale"], [1.27, 0.5, -0.03], atol=1e-7)
    assert found["conv"] is params["conv"]
    assert experiment.round_norms({"conv": jnp.ones(2)}, 8) is None


def test_shares_are_of_squares_and_leave_the_whole_out():
    arrays = {"a": np.full(5, 3.0), "b": np.full(5, 4.0), "all": np.full(5, 9.0)}
    rows = experiment.rows_of(arrays, {"bits": 8, "macs": {"a": 1, "b": 3}})
    assert [r["group"] for r in rows] == ["b", "a", "all"]
    assert [r["share"] for r in rows[:2]] == pytest.approx([16 / 25, 9 / 25])
    assert rows[1]["per_mac"] == pytest.approx(9 / 25 / 0.25)


@pytest.mark.slow
def test_in_a_miniature_run_fewer_bits_cost_more_in_every_group(tmp_path):
    argv = ["--checkpoint", str(worlds.save_tiny(tmp_path / "net", NET)), "--output",
            str(tmp_path / "out"), "--num-steps", "2", "--num-samples", "2", "--bits", "8",
            "3", "--values"]  # fmt: skip
    with redirect_stdout(io.StringIO()) as printed:
        assert command.main(experiment.EXPERIMENT, argv) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    assert (tmp_path / "out" / "groups.png").stat().st_size > 10_000
    assert "attention products" in printed.getvalue()
    groups = {r["group"] for r in rows}
    assert {"all", "MLP", "attention projections", "input", "last layer"} <= groups
    assert {"all stored values", "stored: residual", "stored: softmax"} <= groups
    assert experiment.NORMS not in groups  # those of a DiT have no parameters
    for group in groups:
        assert np.all(arrays[f"W3A3/{group}"] > 2 * arrays[f"W8A8/{group}"])
        assert np.all(arrays[f"W8A8/{group}"] > 0)


def test_what_cannot_be_run_is_refused_first():
    with pytest.raises(ValueError, match="got 17 bits"):
        command.check(experiment.Config(bits=(8, 17)))
    with pytest.raises(ValueError, match="got num_samples = 1"):
        command.check(experiment.Config(num_samples=1))

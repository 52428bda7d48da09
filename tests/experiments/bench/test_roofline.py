"""The benchmark of rooflines: a miniature run, and a machine that is known."""

import functools

import jax
import numpy as np
import pytest

from experiments.bench import roofline
from experiments.harness import command, networks, store
from qdiffjax import hardware
from qdiffjax.networks.models.dit import DiT


@pytest.fixture
def _tiny(monkeypatch):
    small = functools.partial(DiT, patch=8, width=16, depth=1, num_heads=2)
    monkeypatch.setitem(networks.SIZES, "dit_s_2", small)
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # the network computes in bfloat16
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.usefixtures("_tiny")
@pytest.mark.slow
def test_a_miniature_run_measures_and_predicts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hardware, "find_chip", lambda kind: hardware.CHIPS[0])
    argv = ["--batch", "2", "--side", "32", "--megabytes", "1",
            "--num-rounds", "2", "--output", str(tmp_path)]  # fmt: skip
    monkeypatch.setenv("PATH", "")  # no meter
    assert command.main(roofline.EXPERIMENT, argv) == 0
    _, _, rows = store.load(tmp_path)
    calls = {r["format"]: r for r in rows if r["part"] == "call"}
    assert set(calls) == {"f32", "bf16"}
    for row in calls.values():
        assert set(row["roofline"]) == {"here", "H100"}
        assert row["joules"] is None
        assert row["compiled_peak"] > 0
    ratio = calls["f32"]["roofline"]["H100"] / calls["bf16"]["roofline"]["H100"]
    np.testing.assert_allclose(ratio, 2, rtol=0.01)  # so small a call waits for memory
    assert "the vendor says" in capsys.readouterr().out

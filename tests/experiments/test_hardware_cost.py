"""What precision costs: a miniature run, and the published size of a network of shapes."""

import io
from contextlib import redirect_stdout

import jax
import numpy as np
import pytest

from experiments.hardware_cost import experiment as hardware_cost
from experiments.hardware_cost import measure
from experiments.harness import command, store
from tests import worlds

NET = worlds.TINY_DIT
COMMAND = ["--batches", "1", "--measured-batch", "2", "--num-rounds", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A miniature run from the command line: config, arrays, rows, and what it printed."""
    folder = tmp_path_factory.mktemp("hardware")
    net = str(worlds.save_tiny(folder / "net", NET, jax.jit(lambda: worlds.tiny_params(NET))()))
    argv = ["--networks", net, "dit_s_2", *COMMAND, "--output", str(folder / "out")]
    with redirect_stdout(io.StringIO()) as printed:
        assert command.main(hardware_cost.EXPERIMENT, argv) == 0
    for name in ("layers", "chips", "roofline"):
        assert (folder / "out" / f"{name}.png").stat().st_size > 10_000
    return *store.load(folder / "out"), printed.getvalue()


def test_every_number_says_what_it_is(finished):
    _, _, rows, printed = finished
    kinds = [r["kind"] for r in rows]
    assert kinds == ["predicted"] * 12 + ["counted by the compiler", "measured"]
    assert "W4A16" in printed
    assert max(len(line) for line in printed.splitlines() if "/" not in line) <= 100


def test_the_network_of_shapes_has_the_published_size(finished):
    # Peebles & Xie 2023, table 4: DiT-S/2 has 33 million parameters and 6.06 G multiply-adds.
    row = next(r for r in finished[2] if r.get("network") == "dit_s_2")
    assert round(row["parameters"] / 1e6) == 33
    assert round(row["gmacs"], 2) == 6.06


def test_sums_are_those_of_the_sites(finished):
    config, arrays, rows, _ = finished
    for name in config["networks"]:
        for batch in config["batches"]:
            chosen = [r for r in rows if (r["network"], r.get("batch")) == (name, batch)]
            for i, row in enumerate(chosen[: len(measure.PRECISIONS)]):
                get = lambda key, i=i, at=f"{name}/{batch}": arrays[f"{at}/{key}"][i]  # noqa: E731
                np.testing.assert_allclose(get("traffic").sum(), row["traffic"])
                np.testing.assert_allclose(get("bops").sum(), row["bops"])
                joules = row["joules_compute"] + row["joules_memory"]
                np.testing.assert_allclose(get("joules").sum(), joules)
                np.testing.assert_allclose(get("seconds").sum(-1), list(row["seconds"].values()))


def test_fewer_bits_hold_move_and_multiply_less(finished):
    rows = {r["precision"]: r for r in finished[2] if r.get("network") == "dit_s_2"}
    order = ["float32", "bf16", "W8A8", "W4A8"]
    for key in ("model_bytes", "traffic", "bops"):
        values = [rows[p][key] for p in order]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 4
    assert rows["W4A16"]["model_bytes"] == rows["W4A8"]["model_bytes"]
    assert rows["fp8"]["traffic"] == rows["W8A8"]["traffic"]


def test_the_measured_roofline_is_that_of_the_measured_machine(finished):
    _, arrays, rows, _ = finished
    (row,) = (r for r in rows if r["part"] == "measured")
    ops, at = 2 * arrays["measured/macs"], arrays["measured/intensity"]
    expected = np.maximum(ops / row["rate"], ops / at / row["bandwidth"])
    np.testing.assert_allclose(arrays["measured/roofline"], expected)
    assert 0 < row["call_best"] <= row["call"]
    assert len(arrays["measured/call"]) == 2


def test_what_cannot_be_run_is_refused_first():
    with pytest.raises(ValueError, match="at least 1"):
        command.check(hardware_cost.Config(batches=(0,)))
    with pytest.raises(ValueError, match="no weights to measure"):
        command.check(hardware_cost.Config(networks=("dit_xl_2",)))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        command.check(hardware_cost.Config(networks=("nothing",)))

"""The benchmark of sampling by the GPU compiler: what needs no compiler."""

import io

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import gpu_aot
from experiments.harness import command
from qdiffjax import _tables as tables
from qdiffjax.hardware.ahead import gpu
from qdiffjax.precision import Stored


@pytest.fixture
def tiny(tiny_dit_xl):
    return gpu_aot.Config(batches=(16,), num_steps=2)


def test_both_orders_hold_the_same_codes_of_the_same_weights(tiny):
    scans = {}
    for order, path in gpu_aot.ORDERS.items():
        fn, (q, x) = gpu_aot.scan(tiny, "W4A8 dynamic", 16, path)
        assert jax.eval_shape(fn, q, x).shape == x.shape == (16, 8, 8, 4)
        scans[order] = {name: operands.weight for name, operands in q.site_inputs.items()}
    assert all(isinstance(w, Stored) for w in scans["[N, K]"].values())
    for name, w in scans["[K, N]"].items():
        stored = scans["[N, K]"][name]
        assert stored.held.codes.shape == w.shape[::-1]
        assert stored.held.codes.dtype == w.codes.dtype == jnp.int4


def test_rows_compare_with_bfloat16_of_the_same_batch(tiny, monkeypatch):
    peaks = {"bf16": 100, "W4A16": 30}

    def cost(config, name, batch, path):
        launched = {"fusions": 3, "calls": 2, "copies": 1, "others": 0, "transposes": 4, "small": 5}
        peak = peaks[name] * batch
        return {"arguments": peak, "temporaries": 0, "peak": peak, "once": launched,
                "loop": launched}  # fmt: skip

    monkeypatch.setattr(gpu_aot, "cost", cost)
    config = gpu_aot.Config(batches=(1, 7), ways=tuple(peaks))
    _, rows = gpu_aot.run(config)
    assert [r["peak_over_bf16"] for r in rows] == [1, 0.3, 0.3] * 2
    tables.show(gpu_aot.EXPERIMENT.table(rows), text := io.StringIO())
    assert text.getvalue().count("[N, K]") == 2


@pytest.mark.skipif(not gpu.missing(), reason="the compiler is installed")
def test_without_the_compiler_it_says_how_to_get_it(tmp_path, capsys):
    assert command.main(gpu_aot.EXPERIMENT, ["--output", str(tmp_path)]) == 2
    assert "pip install 'qdiffjax[aot-gpu]'" in capsys.readouterr().err

"""The benchmark of kernels: right numbers, ratios and rooflines; failures stay in their row."""

import io
import time

import jax.numpy as jnp
import pytest

from experiments.bench.kernels import cases, experiment
from experiments.bench.kernels.cases import Case
from experiments.bench.products import Product
from experiments.harness import command, timing
from qdiffjax import _tables as tables

TINY = experiment.Config(ceiling=32, repeats=1, least_ms=0.1, stall=30.0)
SHAPE = Product((4, 32), (32, 16))


def test_every_way_multiplies_what_its_codes_stand_for():
    ways = cases.many(SHAPE)[:5] + cases.few(SHAPE, 2)[1:]
    arrays, rows = experiment.group(ways, TINY, 1e6)
    assert [r for r in rows if "failed" in r] == []
    # A result rounded to bfloat16 is off by at most 2^-9 of itself.
    assert all(0 < r["error"] < 2.0**-9 for r in rows)
    assert all(r["us"] > 0 for r in rows)
    assert len(arrays) == len({r["name"] for r in rows})


def test_a_way_that_fails_keeps_its_error_and_the_others_their_times():
    def broken(x):
        raise ValueError("no such kernel")

    x = [(jnp.ones(8, jnp.float32),)]
    ways = [lambda: Case("bad", "int8", broken, x, None, 0.0, 64.0),
            lambda: Case("good", "int8", lambda x: x + 1, x, None, 0.0, 64.0)]  # fmt: skip
    _, (bad, good) = experiment.group(ways, TINY, 1e6)
    assert bad["failed"] == "ValueError: no such kernel"
    assert good["us"] > 0


def test_a_job_that_stalls_is_left_behind():
    stalled, done = timing.with_limit([lambda: time.sleep(30), lambda: 3], 0.2)
    assert isinstance(stalled, TimeoutError)
    assert done == 3


def test_nothing_begins_after_the_time_limit():
    arrays, rows = experiment.run(experiment.Config(time_limit=0.0))
    assert arrays == {}
    assert {r["failed"] for r in rows} == {"not reached"}
    screen = io.StringIO()
    tables.show(experiment.EXPERIMENT.table(rows), screen)
    assert "conv 16x32x640, all: not reached" in screen.getvalue()


def test_ratios_are_to_the_fastest_float_and_the_peer_of_the_kind():
    def row(name, kind, us, **more):
        return {"name": name, "kind": kind, "us": us, "flops": 100.0, "bytes": 6.0, **more}

    groups = {
        "ceilings": [row("copy", "bandwidth", 2.0), row("product", "int8", 10.0)],
        "p": [row("a", "bf16", 8.0, is_base=True), row("b", "bf16", 6.0, is_base=True),
              row("ours", "int8", 3.0), row("theirs", "int8", 4.5, is_peer=True)],
    }  # fmt: skip
    ours = next(r for r in experiment.summary(groups) if r["name"] == "ours")
    assert ours["over_bf16"] == 2.0
    assert ours["over_cublaslt"] == 1.5
    # 100 flops at 10 a microsecond; 6 bytes at 3.
    assert ours["roofline_us"] == 10.0


def test_flops_and_bytes_of_a_convolution():
    p = Product((2, 4, 4, 8), (3, 3, 8, 5))
    assert p.flops == 2 * (2 * 4 * 4) * 5 * (3 * 3 * 8)
    assert p.bytes(8, 4) == 2 * 4 * 4 * 8 + 3 * 3 * 8 * 5 / 2 + 2 * (2 * 4 * 4 * 5)


def test_images_that_cannot_be_read_are_refused(tmp_path, capsys):
    assert (
        command.main(experiment.EXPERIMENT, ["--images", "16x64", "--output", str(tmp_path)]) == 2
    )
    assert "number x side x channels" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [16, 8])
def test_a_slow_memory_bounds_what_a_fast_unit_computes(bits):
    row = {"kind": "int8", "flops": 10.0, "bytes": float(bits)}
    assert experiment.roofline(row, {"int8": 10.0, "bandwidth": 1.0}) == bits
    assert experiment.roofline(row, {"int8": 10.0}) is None

"""The benchmark of sites alone: what runs is what the network runs, and what the rows say of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.site_latency import experiment as site_latency
from experiments.bench.site_latency import plots
from experiments.bench.site_latency.plots import CALL, FULL, SUM
from experiments.harness import alone, command, store, subject, timing
from qdiffjax import diffusion, precision
from qdiffjax.sites import rules, transform
from tests import worlds
from tests.worlds import quick_jit

STEPS = functools.partial(diffusion.ddim, num_steps=2)


def test_percentiles_are_in_microseconds_and_those_of_all_rounds():
    seconds = 1e-6 * np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    found = site_latency.latency(seconds, np.full(101, 34e-6), seed=0)
    assert found["p50"] == pytest.approx(51.0)
    assert found["p99"] == pytest.approx(100.0)
    assert found["ratio"] == pytest.approx(1.5)
    assert 1.0 < found["low"] < 1.5 < found["high"] < 2.0


def test_rounds_that_are_slow_together_leave_the_ratio_exact():
    base = np.random.default_rng(0).lognormal(size=50)
    found = site_latency.latency(2 * base, base, seed=0)
    assert found["low"] == found["ratio"] == found["high"] == 2.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(worlds.save_tiny(tmp_path_factory.mktemp("net") / "net", worlds.TINY_DIT))


@pytest.mark.slow
def test_rows_say_the_times_of_their_own_site_and_recipe(tiny, tmp_path, monkeypatch, capsys):
    calls = []

    def interleave(turns, num_rounds, seed):
        calls.append(list(turns))
        # The n-th part takes n microseconds in full precision, its recipes 3 times as long.
        wall = 1e-6 * len(calls) * np.where(np.arange(len(turns)) == 0, 1.0, 3.0)
        wall = np.broadcast_to(wall, (num_rounds, len(turns)))
        return wall, 2 * wall

    monkeypatch.setattr(timing, "interleave", interleave)
    argv = ["--checkpoint", tiny, "--recipe", "W8A8", "W8", "--batch", "3", "--num-steps", "2"]
    argv += ["--num-rounds", "4", "--output", str(tmp_path / "out")]
    assert command.main(site_latency.EXPERIMENT, argv) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    *sites, whole, call = rows
    assert (whole["site"], call["site"]) == (SUM, CALL)
    is_plain = [[r["times"][name]["way"] == "plain" for name in ("W8A8", "W8")] for r in sites]
    assert {(True, True), (False, False)} == set(map(tuple, is_plain))
    for n, (row, plain, turns) in enumerate(zip(sites, is_plain, calls, strict=False), start=1):
        assert turns == ([FULL] if all(plain) else [FULL, "W8A8", "W8"])
        factor = 1 if all(plain) else 3
        for name, times in row["times"].items():
            expected = n * (1 if name == FULL else factor)
            assert (times["p50"], times["p99"]) == pytest.approx((expected, expected))
            assert times["ratio"] == pytest.approx(expected / n)
        np.testing.assert_allclose(arrays[f"{row['site']}/seconds"][0, 1], 1e-6 * n * factor)
    by_name = {row["site"]: row for row in sites}
    # 8 x 8 pixels in patches of 4 x 4 to a width of 8: 4 tokens of 3 samples.
    assert by_name["patchify/kernel"]["flops"] == 2 * 3 * 4 * 16 * 8
    assert by_name["block_0/mlp/up/kernel"]["shapes"][1] == [8, 32]
    assert whole["flops"] == sum(row["flops"] for row in sites)
    total = sum(row["times"]["W8"]["p50"] for row in sites)
    assert whole["times"]["W8"]["p50"] == pytest.approx(total)
    assert whole["times"]["W8"]["ratio"] == pytest.approx(total / whole["times"][FULL]["p50"])
    assert (tmp_path / "out" / "latency.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in printed.splitlines() if "/tmp" not in line) <= 100
    order = [row["site"] for row in plots.of_sites(rows)]
    assert order == [row["site"] for row in reversed(sites)]


@pytest.fixture(scope="module")
def target(tiny):
    return subject.prepare(tiny, STEPS, ("*",), 0, takes_cond=True)


@pytest.mark.slow
def test_a_site_alone_computes_what_it_does_in_the_network(target):
    denoiser, t = target.denoiser, jnp.float32(5)
    q = precision.lower(target.calibration, "W4A8")
    x = subject.noise(denoiser, 2, 0)

    def rule(site, op, operands, inputs):
        y, _ = q.rule(site, op, operands, inputs)
        return y, (operands, y)

    @quick_jit
    def seen(params, x, t, site_inputs):
        return transform(denoiser.eps_fn, rule)(params, x, t, site_inputs=site_inputs)[1]

    found = seen(denoiser.params, x, t, q.site_inputs)
    products = alone.products(denoiser.eps_fn, denoiser.params, x, t)
    assert set(products) == {site.name for site in target.sites if site.product is not None}
    for name, product in products.items():
        operands, expected = found[name]
        assert tuple(a.shape for a in operands) == product.site.shapes
        own = product.operands(target.calibration.weights.get(name))
        assert [a.shape for a in own] == [a.shape for a in operands]
        for i, (value, given) in enumerate(zip(operands, own, strict=True)):
            if i == product.site.weight:
                np.testing.assert_array_equal(value, given, err_msg=name)
        y = site_latency.program(product.under(q.rule), operands, q.site_inputs.get(name))()
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_layers_in_a_scan_are_products_by_the_names_of_their_sites():
    net = worlds.layers()
    products = alone.products(net.fn, *net.args)
    layers = [f"layers/kernel[{i}]" for i in range(3)]
    assert list(products) == [*layers, "out/kernel"]
    for name, product in products.items():
        assert (product.site.name, product.site.loops) == (name, ())
        y = jax.eval_shape(product.under(rules.plain), product.shapes, None)
        assert y.shape == product.site.out_shape


@pytest.mark.slow
def test_what_changes_from_call_to_call_is_run_as_in_the_first(target):
    q = precision.lower(target.calibration, "W8A8; steps 0: W4A8")
    steps = STEPS(target.denoiser.schedule)
    fixed = site_latency.at_first_call(q, steps)
    changing = [name for name, inputs in q.site_inputs.items() if inputs.needs_call]
    assert changing
    assert all(fixed.site_inputs[name].call == 0 for name in changing)
    plain = dataclasses.replace(q, site_inputs={})
    assert site_latency.at_first_call(plain, steps).site_inputs == {}

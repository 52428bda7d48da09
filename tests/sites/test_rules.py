"""Observation, perturbation, local errors and switches, each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import precision
from qdiffjax.precision.ranges import range_of
from qdiffjax.sites import list_sites, rules, transform
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close
from tests.worlds import normal

NET = worlds.handwritten()
SITES = list_sites(NET.fn, *NET.args)
NAMES = [s.name for s in SITES]


def coarse(net, bits=3, span=2.0):
    """Three-bit activations at every site of a network, weights rounded to multiples of 1/4."""
    grid = by_hand.how(by_hand.affine(-span, span, bits))
    weights = precision.weight_operands(net.fn, *net.args)
    return {
        s.name: precision.SiteQuant(
            jnp.round(4 * weights[s.name]) / 4 if s.weight is not None else None,
            (grid,) * len(s.activations),
        )
        for s in list_sites(net.fn, *net.args)
    }


def apply(net, rule, site_inputs=None):
    return jax.jit(transform(net.fn, rule))(*net.args, site_inputs=site_inputs)


def test_observe_returns_the_exact_extremes_of_every_operand_and_changes_nothing():
    expected = {}

    def record(name, index, value):
        expected[name, index] = (value.min(), value.max())
        return value

    by_hand.handwritten(*NET.args, a=record)
    out, seen = apply(NET, rules.observe(range_of))
    assert np.asarray(out).tobytes() == np.asarray(jax.jit(NET.fn)(*NET.args)).tobytes()
    assert set(seen) == set(NAMES)
    for (name, index), extremes in expected.items():
        assert_close(jnp.stack(seen[name][index]), np.array(extremes), factor=64)
    assert sum(map(len, seen.values())) == len(expected)


def test_observe_in_a_scan_sees_each_iteration():
    net = worlds.layers()
    _, seen = apply(net, rules.observe(range_of))
    h = np.asarray(net.x)
    for i, w in enumerate(np.asarray(net.params["layers"]["kernel"])):
        ((low, high),) = seen[f"layers/kernel[{i}]"]
        assert_close(jnp.stack([low, high]), np.array([h.min(), h.max()]), factor=64)
        h = h + np.tanh(h @ w + float(net.t))


def test_collected_weights_and_operands_are_what_the_operation_saw():
    _, weights = apply(NET, rules.collect_weights)
    assert set(weights) == {s.name for s in SITES if s.weight is not None}
    np.testing.assert_array_equal(weights["out/kernel"], NET.params["out"]["kernel"])
    _, operands = apply(NET, rules.collect_operands)
    assert {n: tuple(o.shape for o in v) for n, v in operands.items()} == {
        s.name: s.shapes for s in SITES
    }
    q, k = operands["attn/dot_0"]
    scores = np.asarray(q) @ np.asarray(k).transpose(0, 2, 1) / np.sqrt(6)
    assert_close(operands["attn/dot_1"][0], by_hand.softmax(scores), factor=64)


def test_the_adjoint_of_a_tap_is_the_sensitivity_to_an_added_constant():
    g = transform(NET.fn, rules.perturb)
    probe, step = normal(9, *NET.x.shape), 1e-5

    @jax.jit
    def value(taps):
        return jnp.sum(g(*NET.args, site_inputs=taps)[0] * probe)

    zeros = {s.name: jnp.zeros(s.out_shape) for s in SITES}
    adjoints = jax.jit(jax.grad(value))(zeros)
    for i, site in enumerate(SITES):
        direction = normal(i, *site.out_shape)
        up, down = ({**zeros, site.name: sign * step * direction} for sign in (1, -1))
        numeric = (value(up) - value(down)) / (2 * step)
        slope = jnp.sum(adjoints[site.name] * direction)
        np.testing.assert_allclose(slope, numeric, rtol=1e-7, atol=1e-7, err_msg=site.name)


@pytest.mark.slow
def test_a_tap_adds_to_the_result_of_its_operation_and_nowhere_else():
    tap = normal(8, 2, 3, 3, 2)
    out, _ = apply(NET, rules.perturb, {"output": tap})
    assert_close(out, by_hand.handwritten(*NET.args) + np.asarray(tap), factor=64)
    out, _ = apply(NET, rules.perturb, {"input": tap})
    expected = by_hand.handwritten(NET.params, np.asarray(NET.x + tap), NET.t)
    assert_close(out, expected, factor=64)
    tap = normal(8, 2, 3, 3, 6)
    out, _ = apply(NET, rules.perturb, {"conv/kernel": tap})

    def shifted(params, x, t):
        h = jnp.tanh(worlds.convolve(x, params["conv"]["kernel"]) + tap + jnp.sin(t))
        y = h.reshape(2, 9, 6)
        y = y + worlds.attend(params["attn"], y)
        return (y @ params["out"]["kernel"]).reshape(x.shape)

    assert_close(out, jax.jit(shifted)(*NET.args), factor=64)


@pytest.mark.slow
@pytest.mark.parametrize("network", [worlds.handwritten, worlds.layers], ids=["attn", "scan"])
def test_local_errors_injected_into_the_plain_run_reproduce_the_quantized_run(network):
    """Induction over sites: equal operands, plus the recorded error, give equal results."""
    net = network()
    inputs = coarse(net)
    quantized, _ = apply(net, precision.quantize_site, inputs)
    followed, errors = apply(
        net, rules.local_errors(precision.quantize_site, follow_rule=True), inputs
    )
    assert_close(followed, quantized, factor=64)
    assert set(errors) == {s.name for s in list_sites(net.fn, *net.args)}
    replayed, _ = apply(net, rules.perturb, errors)
    np.testing.assert_allclose(replayed, quantized, rtol=0, atol=1e-12)
    plain = jax.jit(net.fn)(*net.args)
    assert float(jnp.max(jnp.abs(plain - quantized))) > 1e-2  # the theorem is not about nothing


def test_local_errors_along_the_plain_run_leave_it_plain():
    inputs = coarse(NET)
    out, errors = apply(NET, rules.local_errors(precision.quantize_site, follow_rule=False), inputs)
    assert_close(out, jax.jit(NET.fn)(*NET.args), factor=64)
    y = np.asarray(NET.x)  # the first operation is the input itself
    grid = by_hand.affine(-2.0, 2.0, 3)
    assert_close(errors["input"], by_hand.on_grid(y, *grid) - y, factor=64)
    kernel = np.asarray(NET.params["conv"]["kernel"])
    expected = by_hand.convolve(by_hand.on_grid(y, *grid), np.round(4 * kernel) / 4)
    assert_close(errors["conv/kernel"], expected - by_hand.convolve(y, kernel), factor=64)


def test_only_sites_with_inputs_commit_errors():
    inputs = {"attn/dot_0": coarse(NET)["attn/dot_0"]}
    _, errors = apply(NET, rules.local_errors(precision.quantize_site, follow_rule=True), inputs)
    assert set(errors) == {"attn/dot_0"}


@pytest.mark.slow
@pytest.mark.parametrize("network", [worlds.handwritten, worlds.layers], ids=["attn", "scan"])
def test_a_gate_is_the_rule_when_on_and_plain_when_off(network):
    net = network()
    inputs = coarse(net)
    g = jax.jit(transform(net.fn, rules.gated(precision.quantize_site)))

    def run(on):
        return g(*net.args, site_inputs={n: (jnp.asarray(on), i) for n, i in inputs.items()})[0]

    assert_close(run(True), apply(net, precision.quantize_site, inputs)[0], factor=64)
    assert_close(run(False), jax.jit(net.fn)(*net.args), factor=64)


def test_one_open_gate_quantizes_one_site():
    inputs = coarse(NET)
    switched = {n: (jnp.asarray(n == "attn/dot_1"), i) for n, i in inputs.items()}
    got, _ = apply(NET, rules.gated(precision.quantize_site), switched)
    expected, _ = apply(NET, precision.quantize_site, {"attn/dot_1": inputs["attn/dot_1"]})
    assert_close(got, expected, factor=64)


def test_merge_replaces_field_by_field_and_keeps_what_is_none():
    grid_a, grid_b = (by_hand.how(by_hand.affine(-1, 1, bits)) for bits in (4, 8))
    base = {
        "a": precision.SiteQuant(jnp.ones(2), (grid_a,)),
        "b": precision.SiteQuant(None, (grid_a,)),
    }
    merged = precision.merge(base, {"a": precision.SiteQuant(None, (grid_b,)), "c": jnp.zeros(())})
    assert merged["a"].weight is base["a"].weight
    assert merged["a"].activations == (grid_b,)
    assert merged["b"] is base["b"]
    assert set(merged) == {"a", "b", "c"}
    merged = precision.merge(base, {"a": precision.SiteQuant(jnp.zeros(2))})
    assert merged["a"].activations == (grid_a,)
    assert float(merged["a"].weight[0]) == 0.0
    assert precision.merge(base, None) == base
    assert set(base) == {"a", "b"}

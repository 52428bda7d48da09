"""Whole networks in real low precision: every site, their weights, steps, batches, bad input."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import diffusion, kernels, precision
from qdiffjax.kernels.operands import quantized
from qdiffjax.precision import inputs
from qdiffjax.precision.settings import static_grid
from qdiffjax.quant import (
    ActivationGrid,
    QTensor,
    calibration,
    dequantize,
)
from qdiffjax.sites import list_sites, rules, transform
from tests import worlds
from tests.precision.lowering import (
    LOWER,
    UNSIGNED,
    audit,
    calibrated,
    lowered,
    ranges_of,
    w8a8,
)
from tests.tolerances import assert_close
from tests.worlds import NETWORKS, dot, normal, quick_jit

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits"),
    [ ("nnx_net", (4, 8)), ("eqx_net", (8, 8)), ("handwritten", (8, 8)),
     ("handwritten", (8, None)), ("layers", (8, 8)), ("linen_layers", (4, 8))],
)  # fmt: skip
def test_every_site_of_a_network_is_the_simulation_at_its_operands(name, bits):
    net = NETWORKS[name]()
    sites, q = lowered(net, *bits)
    errors = quick_jit(transform(q.eps_fn, audit))(*net.args, site_inputs=q.site_inputs)[1]
    assert set(errors) == set(q.site_inputs)
    how = precision.lowering_of(sites, q.site_inputs)
    expected = {"weight codes"} if bits[1] is None else {"codes", "rounded"}
    assert {how[s.name] for s in sites if bits[1] or s.weight is not None} == expected
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize(
    ("bits", "calibrate"), [(b, calibration.absmax) for b in (2, 4, 5, 8)] + [(3, calibration.mse)]
)
def test_codes_of_weights_stand_for_what_the_simulation_rounds_to(bits, calibrate):
    net = dot("w in the middle")
    calibrated_net = calibrated(net)
    recipe = precision.uniform(calibrated_net.sites, weight_bits=bits, activation_bits=None)
    for granularity in (precision.output_channels, precision.whole_tensor):
        codes, values = (
            road(calibrated_net, recipe, calibrate_fn=calibrate, granularity=granularity)
            .site_inputs["w"].weight
            for road in (precision.lower, precision.quantize)
        )  # fmt: skip
        np.testing.assert_array_equal(dequantize(codes), values)
        assert codes.codes.dtype == (jnp.int4 if bits <= 4 else jnp.int8)


def test_a_recipe_by_step_goes_through_per_call():
    net = worlds.linen_layers()
    sites, q = lowered(net, 8, 8)
    steps = diffusion.ddim(diffusion.linear(50), 3)
    ranges = {
        n: tuple((low * factors, high * factors) for low, high in operands)
        for n, operands in ranges_of(net).items()
        for factors in [jnp.asarray([1.0, 0.7, 0.5], jnp.float32)]
    }
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=8)
    per_call = inputs.site_inputs(recipe, {}, ranges, static_grid)
    x_T = net.x.astype(jnp.float32)
    call_fn = jax.jit(precision.quantized_call(q))
    run = diffusion.sample(call_fn, x_T, steps, per_call=per_call)
    x = x_T
    for i in range(3):
        at_step = jax.tree.map(lambda a, i=i: a[i], per_call)
        eps, *_ = call_fn(x, jnp.float32(steps.t[i]), at_step)
        assert_close(run.xs[i], x)
        x = jax.tree.map(lambda a, i=i: a[i], steps.coeffs).advance(x, eps)
    assert (
        jnp.max(
            jnp.abs(
                call_fn(x_T, jnp.float32(1), at_step)[0] - call_fn(x_T, jnp.float32(1), None)[0]
            )
        )
        > 0
    )


def test_it_maps_over_batches_and_compiles_once_for_other_scales():
    net = worlds.nnx_net()
    _, q = lowered(net, 8, 8)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(q, x):
        return precision.quantized_call(q)(x, net.t, None)[0]

    x = net.x
    y = run(q, x)
    each = jax.jit(jax.vmap(lambda x: precision.quantized_call(q)(x[None], net.t, None)[0][0]))(x)
    assert_close(each, y)
    other = jax.tree.map(lambda a: a, q)
    inputs = {
        n: s._replace(
            activations=tuple(
                ActivationGrid(a.format, a.scale * 2, a.zero_point) for a in s.activations
            )
        )
        for n, s in other.site_inputs.items()
    }
    run(dataclasses.replace(q, site_inputs=inputs), x)


@pytest.mark.parametrize("name", ["nnx_net", "handwritten", "layers", "linen_layers"])
def test_dropped_weights_take_no_bytes_and_change_no_bit(name):
    net = NETWORKS[name]()
    sites, q = lowered(net, 8, 8)
    light = precision.drop_weights(q, net.x, net.t)
    run = quick_jit(lambda q, x: precision.quantized_call(q)(x, net.t, None)[0])
    np.testing.assert_array_equal(run(light, net.x), run(q, net.x))
    num_weights = sum(s.parameters for s in sites)
    assert size(q.params) - size(light.params) == num_weights
    arguments = run.lower(light, net.x).compile().memory_analysis().argument_size_in_bytes
    assert arguments <= sum(a.nbytes for a in jax.tree.leaves((light, net.x)))


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


def test_a_weight_that_something_else_reads_stays():
    def fn(params, x, t):
        return (x @ params["both"]) @ params["alone"] + jnp.sum(params["both"]) * x

    params = {"both": normal(0, 4, 4), "alone": normal(1, 4, 4)}
    net = worlds.Network(fn, params, normal(2, 3, 4), jnp.float64(0))
    _, q = lowered(net, 8, 8)
    light = precision.drop_weights(q, net.x, net.t)
    assert [a.shape for a in jax.tree.leaves(light.params)] == [(4, 4)]
    assert light.params["both"] is params["both"]


def test_a_network_without_its_weights_says_what_it_misses():
    net = worlds.handwritten()
    _, q = lowered(net, 8, 8)
    light = precision.drop_weights(q, net.x, net.t)
    with pytest.raises(ValueError, match=r"conv/kernel.*dropped"):
        transform(net.fn, rules.plain)(light.params, net.x, net.t)


def test_inputs_of_the_simulation_are_simulated():
    net = dot("x w")
    sites = list_sites(net.fn, *net.args)
    recipe = precision.uniform(sites, weight_bits=12, activation_bits=12)
    inputs = precision.quantize(calibrated(net, ranges_of(net)), recipe).site_inputs
    runs = [
        jax.jit(transform(net.fn, rule))(*net.args, site_inputs=inputs)[0]
        for rule in (LOWER, precision.quantize_site)
    ]
    np.testing.assert_array_equal(*runs)
    assert precision.lowering_of(sites, inputs)["w"].startswith("simulated")


def test_activations_rounded_at_random_are_simulated_and_no_kernel_takes_them():
    net = dot("x w")
    sites, q = lowered(net, 8, 8)
    site_inputs, key = q.site_inputs["w"], jax.random.key(3)
    grid = dataclasses.replace(site_inputs.activations[0], key=key)
    inputs = {"w": site_inputs._replace(activations=(grid,))}
    assert precision.lowering_of(sites, inputs)["w"].endswith("an activation is rounded at random")
    w = site_inputs.weight
    simulated = {"w": inputs["w"]._replace(weight=dequantize(w))}
    runs = [
        jax.jit(transform(net.fn, rule))(*net.args, site_inputs=each)[0]
        for rule, each in ((LOWER, inputs), (precision.quantize_site, simulated))
    ]
    np.testing.assert_array_equal(*runs)
    with pytest.raises(ValueError, match="activation: got a key, expected None"):
        kernels.matmul(net.x, w, activation=grid)


def test_bad_input_says_what_to_do():
    net = dot("x w")
    sites = list_sites(net.fn, *net.args)
    recipe = precision.uniform(sites, weight_bits=9, activation_bits=None)
    with pytest.raises(ValueError, match=r"w: got 9 bits, expected 2\.\.8"):
        precision.lower(calibrated(net), recipe)
    how = ActivationGrid(UNSIGNED, jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.int32))
    inputs = {"w": w8a8(sites[1], net)._replace(activations=(how,))}
    with pytest.raises(ValueError, match=r"scalar.*per_call"):
        transform(net.fn, LOWER)(*net.args, site_inputs=inputs)
    with pytest.raises(TypeError, match="expected a SiteQuant"):
        transform(net.fn, LOWER)(*net.args, site_inputs={"w": 3})


def test_weights_are_codes_and_nothing_else():
    sites, q = lowered(worlds.handwritten(), 4, 8)
    stored = {n: s.weight for n, s in q.site_inputs.items() if s.weight is not None}
    assert set(stored) == {s.name for s in sites if s.weight is not None}
    assert all(isinstance(w, QTensor) and w.codes.dtype == jnp.int4 for w in stored.values())


def test_a_bfloat16_network_rounds_once_more_in_simulation_and_its_table_says_so():
    shapes = {"w": (8, 16), "out": (16, 8)}
    params = {name: normal(1, *shape).astype(jnp.bfloat16) for name, shape in shapes.items()}

    def fn(p, x, t):
        y = jnp.tanh(x.astype(jnp.bfloat16) @ p["w"])
        return (y @ p["out"]).astype(jnp.float32)

    denoiser = qd.Denoiser(fn, params, qd.linear(), (8,))
    calibration = qd.calibrate(denoiser, qd.ddim(denoiser.schedule, 2), jax.random.key(0))
    simulated, lowered = (f(calibration, "W8A8", sites=["w"]) for f in (qd.quantize, qd.lower))
    assert "bfloat16 keep less" in str(simulated)
    assert "bfloat16" not in str(lowered)
    x = normal(3, 4, 8).astype(jnp.float32)
    # By hand: the grid's numbers of this x, in float64 and as bfloat16 keeps them.
    grid, codes = lowered.site_inputs["w"].activations[0], lowered.site_inputs["w"].weight
    exact = dequantize(quantized(x.astype(jnp.bfloat16), grid, (1,))), dequantize(codes)
    kept = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in exact]
    assert not np.array_equal(kept[0], exact[0])

    def hidden(q):
        _, outputs = transform(q.eps_fn, watch(q.rule))(q.params, x, 0.5, site_inputs=q.site_inputs)
        return np.asarray(outputs["w"].astype(jnp.float32))

    def as_bfloat16(y):
        return np.asarray(jnp.asarray(y, jnp.bfloat16).astype(jnp.float32))

    assert np.array_equal(hidden(lowered), as_bfloat16(np.matmul(*map(np.float64, exact))))
    assert np.array_equal(hidden(simulated), as_bfloat16(np.matmul(*kept)))


def watch(rule):
    """The rule, with the result of every site as its output."""

    def watched(*args):
        y, _ = rule(*args)
        return y, y

    return watched

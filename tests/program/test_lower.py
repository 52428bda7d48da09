"""`lower` multiplies codes: the simulation's codes, and its sums to float32 rounding.

The reference of a site is the simulation in float64 at the operands that reach it, so that no
flipped rounding upstream blurs the comparison.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, program
from qdiffjax.kernels import Activation
from qdiffjax.kernels.operands import native, quantized, rounded_codes
from qdiffjax.precision import ptq
from qdiffjax.program import rules
from qdiffjax.quant import (
    E4M3FN,
    E5M2,
    IntFormat,
    QTensor,
    absmax,
    calibration,
    dequantize,
    fake_quant,
    quantize,
)
from tests.helpers import assert_close
from tests.program import networks
from tests.program.networks import normal

UNSIGNED = IntFormat(8, signed=False)
LOWER = program.lower()
NETWORKS = {
    f.__name__: f
    for f in (
        networks.linen_unet, networks.nnx_net, networks.eqx_net, networks.handwritten,
        networks.layers, networks.linen_layers,
    )
}  # fmt: skip


def in_float64(site, op, operands, inputs):
    """The simulation at these operands, in float64."""
    values = [jnp.asarray(a).astype(jnp.float64) for a in operands]
    if inputs.weight is not None:
        values[site.weight] = dequantize(inputs.weight, jnp.float64)
    for i, how in zip(site.activations, inputs.activations, strict=False):
        x = operands[i]
        axes = site.contract_axes[i] or tuple(range(x.ndim))
        if site.kind == "conv":
            axes = tuple(a for a in range(x.ndim) if a != site.product.lhs[0])
        x = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
        values[i] = dequantize(quantized(x, how, axes), jnp.float64)
    if site.product is None:
        return values[0]
    return op(*values)


def audit(site, op, operands, inputs):
    """Rule: `lower`, with its distance from the simulation, relative to the largest number."""
    y, _ = LOWER(site, op, operands, inputs)
    if inputs is None:
        return y, None
    exact = in_float64(site, lambda *v: _wide(op, v), operands, inputs)
    return y, jnp.max(jnp.abs(y.astype(jnp.float64) - exact)) / jnp.max(jnp.abs(exact))


def _wide(op, values):
    """The product itself in float64; the equation keeps the dtype it was traced with."""
    jaxpr = jax.make_jaxpr(op)(*[v.astype(jnp.float32) for v in values])
    (eqn,) = jaxpr.eqns
    params = eqn.params | {"preferred_element_type": jnp.dtype(jnp.float64)}
    return eqn.primitive.bind(*values, **params)


# Exactness does not wait for LLVM's optimizations.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def ranges_of(net):
    return compiled(program.transform(net.fn, rules.observe(ptq.range_of)))(*net.args)[1]


def lowered(net, weight_bits, activation_bits):
    sites = program.sites(net.fn, *net.args)
    recipe = program.uniform(sites, weight_bits=weight_bits, activation_bits=activation_bits)
    weights = program.weight_operands(net.fn, *net.args)
    codes = program.prepare_codes(weights, sites, recipe)
    inputs = ptq.code_inputs(recipe, codes, ranges_of(net))
    return sites, program.Quantized(net.fn, net.params, inputs, LOWER)


def one_site(fn, *shapes, weight=None, seed=0):
    """A network of one operation: (fn, params, x, t) and its only site but the edges."""
    arrays = [normal(seed + i, *shape, dtype=np.float32) for i, shape in enumerate(shapes)]
    x, w = arrays
    if weight is None:  # both operands from the input, as in attention
        sizes = np.cumsum([x.size, w.size])

        def both(params, z, t):
            return fn(z[: sizes[0]].reshape(shapes[0]), z[sizes[0] :].reshape(shapes[1]))

        return networks.Network(both, {}, jnp.concatenate([x.ravel(), w.ravel()]), jnp.float32(0))
    if weight == 0:
        return networks.Network(lambda p, z, t: fn(p["w"], z), {"w": x}, w, jnp.float32(0))
    return networks.Network(lambda p, z, t: fn(z, p["w"]), {"w": w}, x, jnp.float32(0))


def check_site(net, inputs_fn, tolerance=4e-7):
    (site,) = [s for s in program.sites(net.fn, *net.args) if s.product]
    inputs = {site.name: inputs_fn(site, net)}
    g = compiled(program.transform(net.fn, audit))
    error = g(*net.args, site_inputs=inputs)[1][site.name]
    assert error < tolerance
    return program.lowering([site], inputs)[site.name]


def affine(x, format=UNSIGNED):
    return Activation(format, *map(jnp.squeeze, calibration.minmax(x, format=format)))


def activations(site, net, how_fn=affine):
    if site.weight is not None:
        return (how_fn(net.x),)
    n = np.prod(site.shapes[0])
    return how_fn(net.x[:n]), how_fn(net.x[n:])


def w8a8(site, net, bits=8):
    weight = None
    if site.weight is not None:
        w, format, shape = net.params["w"], IntFormat(bits), program.output_channels(site)
        weight = program.recipe.narrow(quantize(w, *absmax(w, format=format, scale_shape=shape),
                                                format=format))  # fmt: skip
    return rules.SiteQuant(weight, activations(site, net))


def weight_only(site, net):
    return w8a8(site, net, 4)._replace(activations=())


def dynamic(site, net):
    how = Activation(IntFormat(8))
    return w8a8(site, net)._replace(activations=(how,) * len(site.activations))


def groups(site, net):
    w, format = net.params["w"], IntFormat(4)
    shape = tuple(
        2 if a == site.contract_axes[site.weight][0] else n
        for a, n in enumerate(program.output_channels(site))
    )
    q = quantize(w, *absmax(w, format=format, scale_shape=shape), format=format)
    return rules.SiteQuant(q, activations(site, net))


DOTS = {
    "x w": (((3, 4, 8), (8, 6)), (((2,), (0,)), ((), ())), 1),
    "w x": (((6, 8), (4, 8, 3)), (((1,), (1,)), ((), ())), 0),
    "rows of w": (((5, 8), (6, 8)), (((1,), (1,)), ((), ())), 1),
    "two axes": (((3, 2, 4, 5), (4, 7, 2)), (((1, 2), (2, 0)), ((), ())), 1),
    "w in the middle": (((8, 5), (2, 8, 3)), (((0,), (1,)), ((), ())), 1),
    "batch of w": (((4, 3, 8), (4, 8, 5)), (((2,), (1,)), ((0,), (0,))), 1),
    "q k": (((2, 5, 3, 4), (2, 6, 3, 4)), (((3,), (3,)), ((0, 2), (0, 2))), None),
    "p v": (((2, 6, 3, 4), (2, 3, 5, 6)), (((1,), (3,)), ((0, 2), (0, 1))), None),
}


def dot(name):
    shapes, dims, weight = DOTS[name]
    return one_site(lambda a, b: jax.lax.dot_general(a, b, dims), *shapes, weight=weight)


@pytest.mark.parametrize("name", DOTS)
def test_products_of_any_axes_are_the_simulation(name):
    assert check_site(dot(name), w8a8) == "codes"


@pytest.mark.parametrize("name", ["w x", "batch of w", "q k"])
@pytest.mark.parametrize(
    "inputs_fn", [functools.partial(w8a8, bits=4), dynamic], ids=["W4A8", "dynamic"]
)
def test_narrow_weights_and_scales_of_tokens_are_the_simulation(name, inputs_fn):
    assert check_site(dot(name), inputs_fn) == "codes"


@pytest.mark.parametrize("name", ["w x", "two axes"])
@pytest.mark.parametrize(("inputs_fn", "how"), [(weight_only, "weight codes"), (groups, "codes")])
def test_real_activations_and_groups_of_inputs_are_the_simulation(name, inputs_fn, how):
    assert check_site(dot(name), inputs_fn) == how


@pytest.mark.parametrize("formats", [(E4M3FN, E4M3FN), (IntFormat(8), E5M2)])
@pytest.mark.parametrize("name", ["x w", "q k"])
def test_8_bit_floats_are_the_simulation(name, formats):
    net = dot(name)

    def inputs_fn(site, net):
        hows = activations(site, net, lambda x: symmetric(x, formats[0]))
        if site.weight is None:
            return rules.SiteQuant(None, (hows[0], symmetric(net.x, formats[1])))
        w = net.params["w"]
        weight = quantize(w, *absmax(w, format=formats[1]), format=formats[1])
        return rules.SiteQuant(weight, hows)

    assert check_site(net, inputs_fn) == "codes"


def symmetric(x, format):
    return Activation(format, jnp.squeeze(absmax(x, format=format)[0]))


def convolution(spec, x, w, **window):
    defaults = {"window_strides": (1,) * (len(x) - 2), "padding": "SAME"} | window
    fn = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=spec, **defaults)
    return one_site(fn, x, w, weight=1)


LAST, FIRST = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
CONVS = {
    "same": (LAST, (2, 5, 6, 4), (3, 3, 4, 5), {}),
    "stride 2": (LAST, (2, 7, 6, 4), (3, 3, 4, 5), {"window_strides": (2, 2)}),
    "1x1": (LAST, (2, 4, 4, 3), (1, 1, 3, 5), {}),
    "valid": (LAST, (1, 5, 5, 3), (3, 3, 3, 4), {"padding": "VALID"}),
    "wide uneven padding": (LAST, (1, 4, 5, 3), (3, 2, 3, 4), {"padding": ((4, 1), (0, 3))}),
    "cropping padding": (LAST, (1, 6, 5, 3), (3, 2, 3, 4), {"padding": ((-1, 1), (0, -1))}),
    "dilated window": (LAST, (1, 7, 7, 3), (3, 3, 3, 4), {"rhs_dilation": (2, 1)}),
    "channels first": (FIRST, (2, 4, 5, 6), (3, 4, 3, 3), {}),
    "mixed axes": (("CNWH", "IWOH", "HNWC"), (4, 2, 5, 6), (4, 3, 3, 2), {}),
    "1-D": (("NCH", "OIH", "NCH"), (2, 3, 7), (4, 3, 3), {"window_strides": (2,)}),
    "3-D": (("NDHWC", "DHWIO", "NDHWC"), (1, 3, 4, 4, 2), (3, 3, 3, 2, 3), {}),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_any_layout_are_the_simulation_padding_included(name):
    spec, x, w, window = CONVS[name]
    assert check_site(convolution(spec, x, w, **window), w8a8) == "codes"


@pytest.mark.parametrize("name", ["stride 2", "cropping padding", "mixed axes"])
@pytest.mark.parametrize(("inputs_fn", "how"), [(weight_only, "weight codes"), (dynamic, "codes")])
def test_convolutions_of_real_activations_and_scales_of_samples_too(name, inputs_fn, how):
    spec, x, w, window = CONVS[name]
    assert check_site(convolution(spec, x, w, **window), inputs_fn) == how


@pytest.mark.parametrize(
    ("window", "reason"),
    [({"feature_group_count": 2}, "groups of channels"), ({"lhs_dilation": (2, 2)}, "dilated")],
)
def test_what_kernels_do_not_convolve_is_simulated_and_says_so(window, reason):
    channels = 2 if "feature_group_count" in window else 4
    net = convolution(LAST, (1, 5, 5, 4), (3, 3, channels, 4), padding=((1, 1), (1, 1)), **window)
    how = check_site(net, w8a8, tolerance=1e-6)
    assert how.startswith("simulated")
    assert reason in how


@pytest.mark.parametrize(
    ("name", "bits"),
    [ ("nnx_net", (4, 8)), ("eqx_net", (8, 8)), ("handwritten", (8, 8)),
     ("handwritten", (8, None)), ("layers", (8, 8)), ("linen_layers", (4, 8))],
)  # fmt: skip
def test_every_site_of_a_network_is_the_simulation_at_its_operands(name, bits):
    net = NETWORKS[name]()
    sites, q = lowered(net, *bits)
    errors = compiled(program.transform(q.eps_fn, audit))(*net.args, site_inputs=q.site_inputs)[1]
    assert set(errors) == set(q.site_inputs)
    how = program.lowering(sites, q.site_inputs)
    expected = {"weight codes"} if bits[1] is None else {"codes", "rounded"}
    assert {how[s.name] for s in sites if bits[1] or s.weight is not None} == expected
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize(
    ("bits", "calibrate"), [(b, calibration.absmax) for b in range(2, 9)] + [(3, calibration.mse)]
)
def test_codes_of_weights_stand_for_what_the_simulation_rounds_to(bits, calibrate):
    net = dot("w in the middle")
    sites = program.sites(net.fn, *net.args)
    recipe = program.uniform(sites, weight_bits=bits, activation_bits=None)
    for granularity in (program.output_channels, program.whole_tensor):
        given = net.params, sites, recipe
        how = {"calibrate": calibrate, "granularity": granularity}
        codes = program.prepare_codes(*given, **how)["w"]
        np.testing.assert_array_equal(dequantize(codes), program.prepare(*given, **how)["w"])
        assert codes.codes.dtype == (jnp.int4 if bits <= 4 else jnp.int8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize(
    "format", [UNSIGNED, IntFormat(4, signed=False), IntFormat(8), IntFormat(3, narrow=False)]
)
def test_codes_of_activations_are_the_simulation_s_bit_for_bit(format, dtype):
    x = jnp.concatenate([
        3 * normal(0, 4096), jnp.linspace(-50, 50, 401), jnp.asarray([jnp.inf, -jnp.inf, 1e30])
    ]).astype(dtype)  # fmt: skip
    zero_point = jnp.int32(format.qmax // 3) if not format.signed else None
    how = Activation(format, jnp.float32(0.5), zero_point)
    fast = jax.jit(lambda x: rounded_codes(x, how, (0,)))(x)
    plain = native(quantized(x, how, (0,)))
    np.testing.assert_array_equal(fast.values, plain.values)
    if fast.zero is not None:
        np.testing.assert_array_equal(fast.zero, plain.zero)
    zero = 0 if fast.zero is None else fast.zero
    grid = None if zero_point is None else zero_point.reshape(1)
    x = x if dtype == jnp.float64 else x.astype(jnp.float32)
    simulated = fake_quant(x, jnp.full(1, 0.5, jnp.float32), grid, format=format)
    steps = np.asarray(fast.values, np.int32) - np.asarray(zero)
    np.testing.assert_array_equal(0.5 * steps, simulated)


def test_input_output_and_marks_round_as_the_simulation_does():
    def fn(params, x, t):
        return jnp.tanh(program.site(x * 2, "mark"))

    x, how = (
        normal(0, 3, 5, dtype=np.float32),
        Activation(UNSIGNED, jnp.float32(0.03), jnp.int32(99)),
    )
    inputs = {name: rules.SiteQuant(None, (how,)) for name in ("input", "mark", "output")}
    simulated = {
        name: rules.SiteQuant(None, (rules.ActivationQuant(how.scale, how.zero_point, 0, 255),))
        for name in inputs
    }
    run = [
        jax.jit(program.transform(fn, rule))({}, x, jnp.float32(0), site_inputs=given)[0]
        for rule, given in ((LOWER, inputs), (rules.quantize, simulated))
    ]
    np.testing.assert_array_equal(*run)


def test_a_recipe_by_step_goes_through_per_call():
    net = networks.linen_layers()
    sites, q = lowered(net, 8, 8)
    steps = diffusion.ddim(diffusion.linear(50), 3)
    ranges = {
        n: tuple((low * factors, high * factors) for low, high in operands)
        for n, operands in ranges_of(net).items()
        for factors in [jnp.asarray([1.0, 0.7, 0.5], jnp.float32)]
    }
    recipe = program.uniform(sites, weight_bits=8, activation_bits=8)
    per_call = ptq.code_inputs(recipe, {}, ranges)
    x_T = net.x.astype(jnp.float32)
    call_fn = jax.jit(program.quantized_call(q))
    run = diffusion.sample(call_fn, x_T, steps, per_call=per_call)
    x = x_T
    for i in range(3):
        at_step = jax.tree.map(lambda a, i=i: a[i], per_call)
        eps, _ = call_fn(x, jnp.float32(steps.t[i]), at_step)
        assert_close(run.xs[i], x)
        x = diffusion.step(x, eps, jax.tree.map(lambda a, i=i: a[i], steps.coeffs))
    assert (
        jnp.max(
            jnp.abs(
                call_fn(x_T, jnp.float32(1), at_step)[0] - call_fn(x_T, jnp.float32(1), None)[0]
            )
        )
        > 0
    )


def test_it_maps_over_batches_and_compiles_once_for_other_scales():
    net = networks.nnx_net()
    _, q = lowered(net, 8, 8)
    traces = []

    def fn(q, x):
        traces.append(1)
        return program.quantized_call(q)(x, net.t, None)[0]

    run = jax.jit(fn)
    x = net.x
    y = run(q, x)
    each = jax.jit(jax.vmap(lambda x: program.quantized_call(q)(x[None], net.t, None)[0][0]))(x)
    assert_close(each, y)
    other = jax.tree.map(lambda a: a, q)
    inputs = {
        n: s._replace(
            activations=tuple(
                Activation(a.format, a.scale * 2, a.zero_point) for a in s.activations
            )
        )
        for n, s in other.site_inputs.items()
    }
    run(program.Quantized(q.eps_fn, q.params, inputs, LOWER), x)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["nnx_net", "handwritten", "layers", "linen_layers"])
def test_dropped_weights_take_no_bytes_and_change_no_bit(name):
    net = NETWORKS[name]()
    sites, q = lowered(net, 8, 8)
    light = program.drop_weights(q, net.x, net.t)
    run = compiled(lambda q, x: program.quantized_call(q)(x, net.t, None)[0])
    np.testing.assert_array_equal(run(light, net.x), run(q, net.x))
    kernels = sum(s.parameters for s in sites)
    assert size(q.params) - size(light.params) == kernels
    arguments = run.lower(light, net.x).compile().memory_analysis().argument_size_in_bytes
    assert arguments <= sum(a.nbytes for a in jax.tree.leaves((light, net.x)))


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


def test_a_weight_that_something_else_reads_stays():
    def fn(params, x, t):
        return (x @ params["both"]) @ params["alone"] + jnp.sum(params["both"]) * x

    params = {"both": normal(0, 4, 4), "alone": normal(1, 4, 4)}
    net = networks.Network(fn, params, normal(2, 3, 4), jnp.float64(0))
    _, q = lowered(net, 8, 8)
    light = program.drop_weights(q, net.x, net.t)
    assert [a.shape for a in jax.tree.leaves(light.params)] == [(4, 4)]
    assert light.params["both"] is params["both"]


def test_a_network_without_its_weights_says_what_it_misses():
    net = networks.handwritten()
    _, q = lowered(net, 8, 8)
    light = program.drop_weights(q, net.x, net.t)
    with pytest.raises(ValueError, match=r"conv/kernel.*dropped"):
        program.transform(net.fn, rules.plain)(light.params, net.x, net.t)


def test_inputs_of_the_simulation_are_simulated():
    net = dot("x w")
    sites = program.sites(net.fn, *net.args)
    recipe = program.uniform(sites, weight_bits=12, activation_bits=12)
    weights = program.prepare(program.weight_operands(net.fn, *net.args), sites, recipe)
    inputs = ptq.site_inputs(recipe, weights, ranges_of(net))
    runs = [
        jax.jit(program.transform(net.fn, rule))(*net.args, site_inputs=inputs)[0]
        for rule in (LOWER, rules.quantize)
    ]
    np.testing.assert_array_equal(*runs)
    assert program.lowering(sites, inputs)["w"].startswith("simulated")


def test_bad_input_says_what_to_do():
    net = dot("x w")
    sites = program.sites(net.fn, *net.args)
    weights = program.weight_operands(net.fn, *net.args)
    recipe = program.uniform(sites, weight_bits=9, activation_bits=None)
    with pytest.raises(ValueError, match=r"w: got 9 bits, expected 2\.\.8"):
        program.prepare_codes(weights, sites, recipe)
    how = Activation(UNSIGNED, jnp.ones(3, jnp.float32), jnp.zeros(3, jnp.int32))
    inputs = {"w": w8a8(sites[1], net)._replace(activations=(how,))}
    with pytest.raises(ValueError, match=r"scalar.*per_call"):
        program.transform(net.fn, LOWER)(*net.args, site_inputs=inputs)
    with pytest.raises(TypeError, match="expected a SiteQuant"):
        program.transform(net.fn, LOWER)(*net.args, site_inputs={"w": 3})


def test_weights_are_codes_and_nothing_else():
    sites, q = lowered(networks.handwritten(), 4, 8)
    stored = {n: s.weight for n, s in q.site_inputs.items() if s.weight is not None}
    assert set(stored) == {s.name for s in sites if s.weight is not None}
    assert all(isinstance(w, QTensor) and w.codes.dtype == jnp.int4 for w in stored.values())

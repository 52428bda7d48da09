"""`lower` multiplies codes: the simulation's codes, and its sums to float32 rounding.

The reference of a site is the simulation in float64 at the operands that reach it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import precision
from qdiffjax.kernels.operands import _codes_anywhere, native, quantized, rounded_codes
from qdiffjax.quant import (
    E4M3FN,
    E5M2,
    ActivationGrid,
    IntFormat,
    dequantize,
    fake_quant,
)
from qdiffjax.sites import list_sites, site, transform
from tests.precision.lowering import (
    LOWER,
    UNSIGNED,
    activations,
    check_site,
    codes_of,
    dynamic,
    groups,
    symmetric,
    w8a8,
    weight_only,
)
from tests.tolerances import assert_close
from tests.worlds import DOTS, dot, normal, one_site, quick_jit

pytestmark = pytest.mark.usefixtures("compile_fast")


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
            return precision.SiteQuant(None, (hows[0], symmetric(net.x, formats[1])))
        w = net.params["w"]
        weight = codes_of(w, formats[1], (1,) * w.ndim)
        return precision.SiteQuant(weight, hows)

    assert check_site(net, inputs_fn) == "codes"


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


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_any_layout_are_the_simulation_padding_included(name):
    spec, x, w, window = CONVS[name]
    assert check_site(convolution(spec, x, w, **window), w8a8) == "codes"


@pytest.mark.parametrize(
    ("name", "inputs_fn"),
    [(name, w8a8) for name in ("x w", "two axes", "q k", "same", "mixed axes", "3-D")]
    + [("batch of w", dynamic), ("stride 2", dynamic)],
)
def test_a_missing_number_is_missing_where_the_simulation_misses_it(name, inputs_fn):
    net = dot(name) if name in DOTS else convolution(*CONVS[name][:3], **CONVS[name][3])
    (place,) = [s for s in list_sites(net.fn, *net.args) if s.product]
    inputs = {place.name: inputs_fn(place, net)}  # calibrated on numbers
    x = net.x.ravel().at[net.x.size // 3].set(jnp.nan).reshape(net.x.shape)

    def is_missing(rule):
        y = quick_jit(transform(net.fn, rule))(net.params, x, *net.args[2:], site_inputs=inputs)[0]
        return np.isnan(np.asarray(y))

    def simulation(site, op, values, inputs):
        if inputs is not None and inputs.weight is not None:
            inputs = inputs._replace(weight=dequantize(inputs.weight))
        return precision.quantize_site(site, op, values, inputs)

    expected = is_missing(simulation)
    assert expected.any()
    np.testing.assert_array_equal(is_missing(LOWER), expected)


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize(
    "format", [UNSIGNED, IntFormat(4, signed=False), IntFormat(8), IntFormat(3, narrow=False)]
)
def test_codes_of_activations_are_the_simulation_s_bit_for_bit(format, dtype):
    x = jnp.concatenate([
        3 * normal(0, 4096), jnp.linspace(-50, 50, 401), jnp.asarray([jnp.inf, -jnp.inf, 1e30])
    ]).astype(dtype)  # fmt: skip
    zero_point = jnp.int32(format.qmax // 3) if not format.signed else None
    how = ActivationGrid(format, jnp.float32(0.5), zero_point)
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


@pytest.mark.parametrize(
    "format", [UNSIGNED, IntFormat(4, signed=False), IntFormat(8), IntFormat(3, narrow=False)]
)
def test_codes_by_clipping_after_the_shift_are_those_by_clipping_before(format):
    v = jnp.concatenate([
        90 * normal(0, 4096), jnp.linspace(-300, 300, 1201), jnp.asarray([jnp.inf, -jnp.inf, 1e30]),
        jnp.asarray([2.0**23, -(2.0**23) - 1, 2.0**24 + 2]),
    ]).astype(jnp.float32)  # fmt: skip
    move = 128 if format is UNSIGNED else 0
    zero = jnp.int32(0 if format.signed else format.qmax // 3)
    bounds = format.qmin - move, format.qmax - move
    low, high = (jnp.float32(q - zero) for q in (format.qmin, format.qmax))
    codes = _codes_anywhere(v, low, high, zero - move, bounds=bounds)
    before = np.clip(np.round(np.asarray(v, np.float64)), low, high) + (int(zero) - move)
    np.testing.assert_array_equal(codes, before)


def test_input_output_and_marks_round_as_the_simulation_does():
    def fn(params, x, t):
        return jnp.tanh(site(x * 2, "mark"))

    x, how = (
        normal(0, 3, 5, dtype=np.float32),
        ActivationGrid(UNSIGNED, jnp.float32(0.03), jnp.int32(99)),
    )
    inputs = {name: precision.SiteQuant(None, (how,)) for name in ("input", "mark", "output")}
    simulated = {name: precision.SiteQuant(None, (how.with_bits_as_data(),)) for name in inputs}
    run = [
        jax.jit(transform(fn, rule))({}, x, jnp.float32(0), site_inputs=given)[0]
        for rule, given in ((LOWER, inputs), (precision.quantize_site, simulated))
    ]
    np.testing.assert_array_equal(*run)


@pytest.mark.parametrize("name", ["q k", "batch of w", "w x"])
def test_derivatives_are_the_simulation_s(name):
    net = dot(name)
    (site,) = [s for s in list_sites(net.fn, *net.args) if s.product]
    inputs = w8a8(site, net)
    weight = None if inputs.weight is None else dequantize(inputs.weight)
    hows = tuple(a.with_bits_as_data() for a in inputs.activations)
    tangent = normal(9, *net.x.shape, dtype=np.float32)

    def derivative(rule, given):
        g = transform(net.fn, rule)
        fn = lambda x: g(net.params, x, net.t, site_inputs={site.name: given})[0]  # noqa: E731
        return quick_jit(lambda x, d: jax.jvp(fn, (x,), (d,))[1])(net.x, tangent)

    lowered = derivative(LOWER, inputs)
    simulated = derivative(precision.quantize_site, precision.SiteQuant(weight, hows))
    assert_close(lowered, simulated)
    assert np.all(np.isfinite(lowered))
    assert np.any(lowered != 0)

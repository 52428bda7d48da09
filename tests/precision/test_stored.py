"""Codes stored as kernels read them: the same numbers, and nothing left to move."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import kernels, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.kernels.gpu import products as gpu_products
from qdiffjax.precision.codes import Stored, unstored
from qdiffjax.precision.lowering import as_matrix
from qdiffjax.quant import IntFormat, QTensor, dequantize
from qdiffjax.sites import list_sites, transform
from tests import worlds
from tests.precision.lowering import (
    activations,
    calibrated,
    lowered,
    ranges_of,
    w8a8,
    weight_only,
)
from tests.worlds import DOTS, NETWORKS, dot, normal, one_site, quick_jit

# Kernels of XLA that ask for the order of the GPU's; those leave small sizes to XLA as well.
ORDERED = dataclasses.replace(kernels.XLA, sums_last=True)
WEIGHTED = [name for name in DOTS if DOTS[name][2] is not None]
LAST, MIXED = ("NHWC", "HWIO", "NHWC"), ("CNWH", "IWOH", "HNWC")


pytestmark = pytest.mark.usefixtures("compile_fast")


def mixed():
    def fn(a, b):
        return jax.lax.conv_general_dilated(a, b, (1, 1), "SAME", dimension_numbers=MIXED)

    return one_site(fn, (4, 2, 5, 6), (4, 3, 3, 2), weight=1)


def the_site(net):
    (site,) = [s for s in list_sites(net.fn, *net.args) if s.product]
    return site


def run(net, path, inputs):
    g = quick_jit(transform(net.fn, precision.lower_site(path)))
    return g(*net.args, site_inputs=inputs)[0]


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, ORDERED) for name in (*WEIGHTED, "mixed axes")] + [("w x", kernels.GPU)],
)
def test_where_codes_lie_changes_no_bit_of_a_product(name, path):
    net = mixed() if name == "mixed axes" else dot(name)
    site = the_site(net)
    inputs = {site.name: w8a8(site, net)}
    stored = precision.stored(inputs, [site], path)
    assert isinstance(stored[site.name].weight, Stored)
    assert precision.lowering_of([site], stored) == precision.lowering_of([site], inputs)
    np.testing.assert_array_equal(run(net, path, stored), run(net, path, inputs))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", [n for n in WEIGHTED if n != "batch of w"])
def test_stored_codes_are_the_matrix_that_kernels_read(name, bits):
    net = dot(name)
    site = the_site(net)
    codes = w8a8(site, net, bits).weight
    given = {site.name: precision.SiteQuant(codes)}
    weight = precision.stored(given, [site], kernels.GPU)[site.name].weight
    rows = site.product.contract[site.weight]
    matrix = as_matrix(codes, rows, site.product.free(site.weight, codes.ndim))
    np.testing.assert_array_equal(weight.held.codes.reshape(matrix.codes.T.shape), matrix.codes.T)
    assert weight.held.codes.dtype == codes.codes.dtype
    back = unstored(precision.SiteQuant(weight)).weight
    assert back.format == codes.format
    np.testing.assert_array_equal(back.codes, codes.codes)
    np.testing.assert_array_equal(back.scale, codes.scale)


def test_the_matrix_of_codes_stands_for_the_same_numbers_whatever_shares_a_scale():
    """Columns of two axes, of which the last has two scales and zero points, the first none."""
    codes = jnp.arange(18, dtype=jnp.uint8).reshape(3, 3, 2)
    scale, zero = jnp.float32([[[0.5, 0.125]]]), jnp.int32([[[3, 7]]])
    matrix = as_matrix(QTensor(codes, scale, zero, IntFormat(8, signed=False)), (0,), (1, 2))
    expected = np.arange(18.0).reshape(3, 6) - np.array([[3, 7, 3, 7, 3, 7]])
    expected *= np.array([[0.5, 0.125, 0.5, 0.125, 0.5, 0.125]])
    np.testing.assert_array_equal(dequantize(matrix), expected)


def plain_product(x, w, vectors, *, act_fn, out_dtype, taps=None, **_):
    """`gpu.products.product` in a few lines."""
    depth = x.shape[1]
    rows = np.arange(len(x) if taps is None else len(x) // taps.outer * taps.inner)
    sums = -vectors.shift[None]
    for tap in range(1 if taps is None else taps.number):
        place = rows if taps is None else taps.first(rows) + tap * taps.down
        part = w[:, tap * depth : (tap + 1) * depth]
        sums = sums + jnp.matmul(x[place].astype(jnp.int32), part.T.astype(jnp.int32))
    return act_fn(sums.astype(jnp.float32) * vectors.column[None]).astype(out_dtype)


def image_net():
    def fn(a, b):
        return jax.lax.conv_general_dilated(a, b, (1, 1), "SAME", dimension_numbers=LAST)

    return one_site(fn, (1, 16, 8, 64), (3, 3, 64, 64), weight=1)


@pytest.mark.parametrize("kind", ["ragged tokens", "images"])
def test_sums_that_come_with_stored_codes_are_those_a_kernel_subtracts(kind, monkeypatch):
    """Around the kernel, whose product a plain one stands in for; activations are affine."""
    monkeypatch.setattr(gpu_products, "product", plain_product)
    net = image_net()
    if kind == "ragged tokens":
        net = one_site(lambda x, w: x @ w, (300, 192), (192, 128), weight=1)
    site = the_site(net)
    inputs = {site.name: w8a8(site, net)}
    stored = precision.stored(inputs, [site], kernels.GPU)
    held = stored[site.name].weight.held
    sums = np.asarray(held.codes, np.int64).sum(tuple(range(1, held.ndim)))
    np.testing.assert_array_equal(held.sums.ravel(), sums)
    y, expected = run(net, kernels.GPU, stored), run(net, kernels.REFERENCE, inputs)
    np.testing.assert_array_equal(y, run(net, kernels.GPU, inputs))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_stored_window_has_what_is_summed_last_and_channels_the_very_last():
    net = mixed()
    site = the_site(net)
    codes = w8a8(site, net).weight
    stored = precision.stored({site.name: precision.SiteQuant(codes)}, [site], kernels.GPU)
    held, w = stored[site.name].weight.held.codes, np.asarray(codes.codes)
    np.testing.assert_array_equal(held, np.einsum("iwoh->owhi", w))


@pytest.mark.parametrize("name", WEIGHTED[:3])
def test_real_tokens_times_stored_codes_are_the_simulation(name):
    net = dot(name)
    site = the_site(net)
    inputs = {site.name: weight_only(site, net)}
    simulated = run(net, kernels.REFERENCE, inputs)
    y = run(net, kernels.GPU, precision.stored(inputs, [site], kernels.GPU))
    np.testing.assert_allclose(y, simulated, rtol=4e-6, atol=4e-6 * np.abs(simulated).max())


@pytest.mark.parametrize("name", ["nnx_net", "linen_layers"])
def test_networks_run_alike_without_their_float_weights(name):
    """Layers of a scan, one stored weight for each, included."""
    net = NETWORKS[name]()
    sites, q = lowered(net, 8, 8)
    path, runs = ORDERED, []
    for inputs in (q.site_inputs, precision.stored(q.site_inputs, sites, path)):
        light = precision.Quantized(q.denoiser, inputs, precision.lower_site(path))
        light = precision.drop_weights(light, net.x, net.t)
        call = quick_jit(lambda q, x: precision.quantized_call(q)(x, net.t, None)[0])
        runs.append(call(light, net.x))
    np.testing.assert_array_equal(*runs)


def test_derivatives_batches_and_changes_of_scale_by_step_pass_stored_codes():
    net, path = dot("x w"), ORDERED
    site = the_site(net)
    plain = {site.name: w8a8(site, net)}
    other = {site.name: precision.SiteQuant(None, activations(site, net)[:1])}
    results = []
    for inputs in (plain, precision.stored(plain, [site], path)):
        q = precision.Quantized(Denoiser(net.fn, net.params), inputs, precision.lower_site(path))
        call = lambda x, q=q: precision.quantized_call(q)(x, net.t, other)[0]  # noqa: E731
        tangent = normal(5, *net.x.shape, dtype=np.float32)
        derivative = quick_jit(lambda x, call=call, d=tangent: jax.jvp(call, (x,), (d,)))
        batch = quick_jit(jax.vmap(call))(jnp.stack([net.x, 2 * net.x]))
        results.append((*derivative(net.x), batch))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_lowered_denoiser_is_stored_for_its_path():
    net = worlds.nnx_net()
    calibration = calibrated(net, ranges_of(net))
    recipe = precision.uniform(calibration.sites, weight_bits=8, activation_bits=8)
    for path in (kernels.GPU, kernels.XLA):
        inputs = precision.lower(calibration, recipe, path=path).site_inputs.values()
        found = {isinstance(i.weight, Stored) for i in inputs if i.weight is not None}
        assert found == {path is kernels.GPU}

"""Bytes, multiplications and bit-operations against hand counts, storage and the compiler."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import hardware, precision, quant
from qdiffjax.hardware import costs
from qdiffjax.networks.models import dit
from qdiffjax.precision import Recipe, SiteBits
from qdiffjax.quant import QTensor
from qdiffjax.sites import list_sites
from tests import foreign, worlds
from tests.precision.lowering import calibrated

T = worlds.shape()


def count(fn, params, *x):
    return hardware.count(list_sites(fn, params, worlds.shape(*x), T))


@functools.cache
def unet():
    net = worlds.linen_unet()
    sites = list_sites(net.fn, *net.args)
    return sites, hardware.count(sites), net.params


def test_dense_layers_counted_by_hand():
    c = count(worlds.dense, worlds.DENSE, 5, 3)
    assert c.names == ("first/kernel", "second/kernel")
    np.testing.assert_array_equal(c.macs, [5 * 3 * 7, 5 * 7 * 3])
    np.testing.assert_array_equal(c.weights, [21, 21])
    np.testing.assert_array_equal(c.scales, [7, 3])
    np.testing.assert_array_equal(c.activations, [15, 35])
    np.testing.assert_array_equal(c.outputs, [35, 15])
    w = hardware.uniform(3, 8)  # 21 codes of 3 bits fill 8 bytes
    np.testing.assert_array_equal(hardware.weight_bytes(c, w), [8 + 28, 8 + 12])
    np.testing.assert_array_equal(hardware.activation_bytes(c, w), [15, 35])
    np.testing.assert_array_equal(hardware.output_bytes(c, w), [140, 60])
    np.testing.assert_array_equal(hardware.traffic(c, w), [8 + 28 + 15 + 140, 8 + 12 + 35 + 60])
    np.testing.assert_array_equal(hardware.bops(c, w), [105 * 24, 105 * 24])
    assert hardware.working_set(c, w) == 15 + 140
    other = hardware.other_elements(worlds.DENSE, c)
    assert other == 7
    assert hardware.model_bytes(c, w, other) == 36 + 20 + 28


def test_a_product_of_activations_has_no_weight_and_costs_the_square_of_its_width():
    c = count(worlds.attention, {"query": {"kernel": worlds.shape(4, 4)}}, 2, 5, 4)
    np.testing.assert_array_equal(c.macs, [2 * 5 * 16, 2 * 25 * 4, 2 * 25 * 4])
    np.testing.assert_array_equal(c.activations, [40, 80, 90])
    w = hardware.uniform(4, 8)
    np.testing.assert_array_equal(hardware.bops(c, w), [160 * 32, 200 * 64, 200 * 64])
    np.testing.assert_array_equal(hardware.weight_bytes(c, w), [8 + 16, 0, 0])
    np.testing.assert_array_equal(costs.operand_bits(c, hardware.uniform(16, 4)), [16, 4, 4])


def test_tied_weights_are_stored_once_and_read_twice():
    c = count(worlds.tied, {"kernel": worlds.shape(3, 3)}, 5, 3)
    w = hardware.uniform(32, 32)
    np.testing.assert_array_equal(hardware.weight_bytes(c, w), [36, 0])
    np.testing.assert_array_equal(hardware.traffic(c, w), [36 + 120, 36 + 120])


@pytest.mark.parametrize(("extra_bits", "stored"), [(None, 32), (2, 6)])
def test_what_is_rounded_anew_at_every_call_multiplies_as_codes_and_moves_as_it_is_stored(
    extra_bits, stored
):
    net = worlds.handwritten()
    listed = list_sites(net.fn, *net.args)
    names = [s.name for s in listed if s.weight is not None]
    four, shaped = (Recipe({name: SiteBits(precision.parse_operand(words), 8) for name in names})
                    for words in ("4", "4 shaped"))  # fmt: skip
    c = hardware.count(listed, recipe=four)
    once, anew = hardware.widths(c, four), hardware.widths(c, shaped, extra_bits=extra_bits)
    assert once.stored is None
    np.testing.assert_array_equal(hardware.bops(c, once), hardware.bops(c, anew))
    for cost_fn, numbers in ((hardware.weight_bytes, c.stored), (hardware.traffic, c.weights)):
        more = -(-numbers * stored // 8) - -(-numbers * 4 // 8)
        np.testing.assert_array_equal(cost_fn(c, anew) - cost_fn(c, once), more)


def scanned(p, x, t):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, length=3)[0]


def indexed(p, x, t):
    def layer(h, i):
        return jnp.tanh(h @ jax.lax.dynamic_index_in_dim(p["w"], i, keepdims=False)), None

    return jax.lax.scan(layer, x, jnp.arange(3))[0]


def unrolled(p, x, t, index=lambda w, i: w[i]):
    for i in range(3):
        x = jnp.tanh(x @ index(p["w"], i))
    return x


SLICED = {
    "columns": (lambda p, x, t: sum(x @ p["w"][:, 4 * i : 4 * i + 4] for i in range(3)), (4, 12)),
    "split": (lambda p, x, t: sum(x @ w for w in jnp.split(p["w"], 3, 1)), (4, 12)),
    "transposed": (lambda p, x, t: sum(x @ w.T for w in jnp.split(p["w"], 3)), (12, 4)),
    "scaled": (
        lambda p, x, t: sum(x @ (p["g"][:, None] * w) for w in jnp.split(p["w"], 3, 1)),
        (4, 12),
    ),
    "unrolled": (unrolled, (3, 4, 4)),
    "dynamic": (lambda p, x, t: unrolled(p, x, t, jax.lax.dynamic_index_in_dim)[0], (3, 4, 4)),
    "taken": (lambda p, x, t: unrolled(p, x, t, lambda w, i: jnp.take(w, i, 0)), (3, 4, 4)),
    "in a jit": (jax.jit(unrolled), (3, 4, 4)),
    "unstacked": (lambda p, x, t: functools.reduce(jnp.matmul, jnp.unstack(p["w"]), x), (3, 4, 4)),
    "listed": (lambda p, x, t: functools.reduce(jnp.matmul, list(p["w"]), x), (3, 4, 4)),
    "by an array": (
        lambda p, x, t: unrolled(p, x, t, lambda w, i: w[jnp.array([i])][0]),
        (3, 4, 4),
    ),
    "reshaped": (lambda p, x, t: unrolled(p, x, t, lambda w, i: w.reshape(4, 3, 4)[:, i]), (4, 12)),
    "by iteration": (indexed, (3, 4, 4)),
}


@pytest.mark.parametrize(("fn", "shape"), SLICED.values(), ids=SLICED)
def test_slices_of_one_parameter_are_stored_each(fn, shape):
    c = count(fn, {"w": worlds.shape(*shape), "g": worlds.shape(4)}, 5, 4)
    np.testing.assert_array_equal(c.stored, [16, 16, 16])
    np.testing.assert_array_equal(hardware.weight_bytes(c, hardware.uniform(4, 8)), [8 + 16] * 3)
    params = {"w": worlds.shape(*shape), "g": worlds.shape(4)}
    assert hardware.other_elements(params, c) == 4


SHARED = {
    "one slice twice": (lambda p, x, t: x @ p["w"][0] @ p["w"][0], (3, 4, 4), [16, 0]),
    "by two names of an index": (
        lambda p, x, t: x @ p["w"][-1] @ jax.lax.dynamic_slice(p["w"], (2, 0, 0), (1, 4, 4))[0],
        (3, 4, 4), [16, 0],
    ),
    "by an index that is clipped": (
        lambda p, x, t: x @ p["w"][2] @ jax.lax.dynamic_slice(p["w"], (7, 0, 0), (1, 4, 4))[0],
        (3, 4, 4), [16, 0],
    ),
    "a slice of a slice": (lambda p, x, t: x @ p["w"][:2][0] @ p["w"][1:][0], (3, 4, 4), [16, 16]),
    "all, then a slice": (lambda p, x, t: (x @ p["w"])[:, :4] @ p["w"][:, :4], (4, 12), [48, 0]),
    "all, turned": (lambda p, x, t: x @ p["w"] @ p["w"].T, (4, 12), [48, 0]),
    "all by a slice": (lambda p, x, t: x @ p["w"] @ p["w"][:4, :].T, (4, 12), [48, 0]),
    "unstacked and indexed": (
        lambda p, x, t: x @ jnp.unstack(p["w"])[1] @ p["w"][1] @ p["w"][0], (3, 4, 4), [16, 0, 16],
    ),
    "in a loop": (scanned, (4, 4), [16, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize(("fn", "shape", "stored"), SHARED.values(), ids=SHARED)
def test_no_element_of_a_parameter_is_stored_twice(fn, shape, stored):
    c = count(fn, {"w": worlds.shape(*shape)}, 5, 4)
    np.testing.assert_array_equal(c.stored, stored)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bytes_of_weights_are_those_of_packed_storage(bits):
    sites, c, _ = unet()
    format = quant.IntFormat(bits)
    found = dict(zip(c.names, hardware.weight_bytes(c, hardware.uniform(bits, 8)), strict=True))
    for s in (s for s in sites if s.weight is not None):
        codes = worlds.shape(*s.shapes[s.weight], dtype=format.storage_dtype)
        scale = worlds.shape(*precision.output_channels(s))
        assert found[s.name] == quant.footprint(QTensor(codes, scale, None, format)).total


def test_memory_is_the_surveys_share_of_float32_but_for_the_scales():
    _, c, _ = unet()
    full = hardware.weight_bytes(c, hardware.uniform(32, 32)).sum()
    for bits in (2, 4, 8, 16):
        held = hardware.weight_bytes(c, hardware.uniform(bits, 8)).sum()
        scales = costs.SCALE_BYTES * c.scales.sum()
        assert 0 <= held - scales - full * bits / 32 < c.macs.size  # eq. 13, and rounding up


def test_products_without_padding_have_the_compilers_flops():
    for fn, params, x in (
        (worlds.dense, worlds.DENSE, (5, 3)),
        (worlds.attention, {"query": {"kernel": worlds.shape(4, 4)}}, (2, 5, 4)),
        (worlds.conv("VALID"), {"kernel": worlds.shape(3, 3, 2, 4)}, (2, 8, 8, 2)),
    ):
        c = count(fn, params, *x)
        found = hardware.compiled_cost(fn, params, worlds.shape(*x), T)
        bias = 35 if fn is worlds.dense else 0
        assert found.flops == 2 * c.macs.sum() + bias


def test_the_compiler_leaves_the_products_with_padding_out():
    n, params = 8, {"kernel": worlds.shape(3, 3, 2, 4)}
    c = count(worlds.conv("SAME"), params, 2, n, n, 2)
    assert c.macs[0] == 2 * n**2 * 9 * 2 * 4
    found = hardware.compiled_cost(worlds.conv("SAME"), params, worlds.shape(2, n, n, 2), T)
    assert found.flops == 2 * 2 * (3 * n - 2) ** 2 * 2 * 4


def test_traffic_of_one_product_is_what_the_compiler_reads_and_writes():
    fn = lambda p, x, t: x @ p["kernel"]  # noqa: E731
    params = {"kernel": worlds.shape(3, 7)}
    c = count(fn, params, 5, 3)
    found = hardware.compiled_cost(fn, params, worlds.shape(5, 3), T)
    assert found.accessed == hardware.traffic(c, hardware.uniform(32, 32)).sum()
    assert found.outputs == hardware.output_bytes(c, hardware.uniform(32, 32))[0]


@pytest.mark.slow
def test_dit_xl_2_has_the_published_size():
    # Peebles & Xie 2023, table 4: 675 million parameters, 118.64 G multiply-adds at 32 x 32 x 4.
    net = dit.dit_xl_2(num_classes=1000, learn_sigma=True)
    x, label = worlds.shape(1, 32, 32, 4), worlds.shape(1, dtype=jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), x, T, label)
    c = hardware.count(list_sites(net.apply, params, x, T, label))
    assert round(c.macs.sum() / 1e9, 1) == 118.6
    assert round((c.stored.sum() + hardware.other_elements(params, c)) / 1e6) == 675


def test_a_recipe_gives_its_widths_and_full_ones_elsewhere():
    sites, c, _ = unet()
    recipe = precision.uniform(sites, weight_bits=4, activation_bits=None, globs=("conv_in*",))
    w = hardware.widths(c, recipe, full=16)
    at = c.names.index("conv_in/kernel")
    assert w.weight[at] == 4
    assert (np.delete(w.weight, at) == 16).all()
    assert (w.activation == 16).all()


def test_costs_of_steps_and_of_candidates_are_those_of_each_alone():
    _, c, _ = unet()
    rng = np.random.default_rng(0)
    steps = costs.Widths(*rng.integers(2, 17, (2, 6, c.macs.size)))
    table = costs.Widths(np.array([[2], [4], [8]]), np.array([[8], [6], [3]]))
    for cost_fn in (hardware.weight_bytes, hardware.traffic, hardware.bops, hardware.working_set):
        for w in (steps, table):
            found = cost_fn(c, w)
            for i, row in enumerate(zip(w.weight, w.activation, strict=True)):
                np.testing.assert_array_equal(found[i], cost_fn(c, costs.Widths(*row)))


def test_traced_costs_are_the_exact_ones_within_a_byte_a_site():
    _, c, _ = unet()
    rng = np.random.default_rng(0)
    bits = rng.integers(2, 17, (2, 6, c.macs.size))
    for cost_fn, slack in ((hardware.weight_bytes, 1), (hardware.traffic, 2), (hardware.bops, 0)):
        traced = jax.jit(jax.vmap(lambda b, f=cost_fn: f(c, costs.Widths(*b)), in_axes=1))(
            jnp.asarray(bits)
        )
        gap = cost_fn(c, costs.Widths(*bits)) - np.asarray(traced)
        assert ((gap >= -1e-6) & (gap < slack + 1e-6)).all()


@pytest.mark.slow
@pytest.mark.parametrize("traced", ["weight", "activation"])
def test_one_traced_width_beside_one_that_is_not(traced):
    _, c, _ = unet()
    exact = hardware.uniform(4, 8)
    fns = (hardware.weight_bytes, hardware.activation_bytes, hardware.traffic, hardware.bops,
           lambda c, w: hardware.predict_times(c, w, hardware.CHIPS[0]).seconds,
           lambda c, w: hardware.predict_energy(c, w).compute)  # fmt: skip
    for dtype in (jnp.int32, jnp.float32):
        bits = jnp.asarray(getattr(exact, traced), dtype)
        for fn in fns:
            found = jax.jit(lambda b, f=fn: f(c, dataclasses.replace(exact, **{traced: b})))(bits)
            np.testing.assert_allclose(found, fn(c, exact), rtol=1e-6)


def test_derivatives_of_costs_in_the_widths():
    _, c, _ = unet()
    ones = jnp.ones(c.macs.size)
    weight, activation = 4.0 * ones, 8.0 * ones
    of = lambda cost_fn: jax.grad(  # noqa: E731
        lambda b: cost_fn(c, costs.Widths(b, activation)).sum()
    )(weight)
    np.testing.assert_allclose(of(hardware.weight_bytes), c.stored / 8)
    np.testing.assert_allclose(of(hardware.bops), np.where(c.weights > 0, 8 * c.macs, 0))


def test_parameters_of_another_network_are_refused():
    _, c, _ = unet()
    with pytest.raises(ValueError, match="expected the parameters"):
        hardware.other_elements({"a": worlds.shape(3)}, c)


def test_layers_of_a_scan_store_a_weight_each():
    def fn(params, x, t):
        twice = lambda h, w: ((h @ w) @ w, None)  # noqa: E731
        return jax.lax.scan(twice, x, params["layers"])[0]

    params = {"layers": worlds.shape(3, 4, 4)}
    c = count(fn, params, 5, 4)
    assert set(c.names) == {f"layers{use}[{i}]" for use in ("", "#2") for i in range(3)}
    assert c.stored.sum() == 3 * 16
    assert c.weights.sum() == 2 * 3 * 16
    assert hardware.other_elements(params, c) == 0


def test_a_lowered_network_takes_the_bytes_that_are_counted():
    net = worlds.linen_layers()
    sites = list_sites(net.fn, *net.args)
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=None, globs=("*",))
    q = precision.lower(calibrated(net), recipe)
    light = precision.drop_weights(q, net.x, net.t)
    held = jax.tree.leaves((light.params, [i.weight for i in light.site_inputs.values()]))
    c = hardware.count(sites)
    w = hardware.widths(c, recipe)
    full = np.dtype(jax.tree.leaves(net.params)[0].dtype).itemsize
    other = hardware.other_elements(net.params, c)
    assert sum(a.nbytes for a in held) == hardware.weight_bytes(c, w).sum() + full * other


def test_constants_are_multiplied_but_are_no_parameters():
    denoiser = foreign.of_vectors(foreign.hidden_layer)
    counts = hardware.count(denoiser.sites())
    np.testing.assert_array_equal(counts.weights, [36, 36])
    np.testing.assert_array_equal(counts.stored, [0, 36])
    assert hardware.other_elements(denoiser.params, counts) == 0

"""The rule `quantize` is the network a person would have quantized by hand, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import precision
from qdiffjax.quant import ActivationGrid, IntFormat
from qdiffjax.sites import list_sites, transform
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close
from tests.worlds import normal

NET = worlds.handwritten()
SITES = list_sites(NET.fn, *NET.args)
G = jax.jit(transform(NET.fn, precision.quantize_site))
KERNELS = {
    "conv/kernel": NET.params["conv"]["kernel"],
    "out/kernel": NET.params["out"]["kernel"],
    **{f"attn/{n}/kernel": NET.params["attn"][n]["kernel"] for n in ("query", "key", "value")},
}
BITS = 4


def run(site_inputs):
    return G(*NET.args, site_inputs=site_inputs)[0]


def round_kernel(name, value):
    """One scale per output channel, the last axis of every kernel here."""
    return by_hand.weight(value, BITS, tuple(range(np.ndim(value) - 1)))


def record_grids():
    """Grid of every activation operand over its exact range, from the NumPy network."""
    grids = {}

    def record(name, index, value):
        grids[name, index] = by_hand.affine(np.min(value), np.max(value), BITS)
        return value

    by_hand.handwritten(*NET.args, a=record)
    return grids


GRIDS = record_grids()


def activations_of(site):
    return tuple(by_hand.how(GRIDS[site.name, index]) for index in range(len(site.activations)))


def round_operand(name, index, value):
    return by_hand.on_grid(value, *GRIDS[name, index])


def test_the_network_in_numpy_is_the_network():
    assert_close(jax.jit(NET.fn)(*NET.args), by_hand.handwritten(*NET.args), factor=64)


def test_weight_only_quantization_is_the_network_with_rounded_weights():
    inputs = {n: precision.SiteQuant(jnp.asarray(round_kernel(n, w))) for n, w in KERNELS.items()}
    assert_close(run(inputs), by_hand.handwritten(*NET.args, w=round_kernel), factor=64)


def test_activation_only_quantization_is_the_network_with_rounded_activations():
    inputs = {s.name: precision.SiteQuant(None, activations_of(s)) for s in SITES}
    assert_close(run(inputs), by_hand.handwritten(*NET.args, a=round_operand), factor=64)


def test_full_quantization_is_q_of_eps_of_q_of_x():
    inputs = {
        s.name: precision.SiteQuant(
            jnp.asarray(round_kernel(s.name, KERNELS[s.name])) if s.weight is not None else None,
            activations_of(s),
        )
        for s in SITES
    }
    expected = by_hand.handwritten(*NET.args, w=round_kernel, a=round_operand)
    assert_close(run(inputs), expected, factor=64)
    scale = GRIDS["output", 0][0]  # the result lies on the grid of the site `output`
    assert_close(run(inputs) / scale, np.round(expected / scale), factor=64)


@pytest.mark.parametrize("name", ["input", "conv/kernel", "attn/dot_0", "output"])
def test_each_site_can_be_quantized_alone(name):
    (site,) = [s for s in SITES if s.name == name]

    def only(at, index, value):
        return round_operand(at, index, value) if at == name else value

    expected = by_hand.handwritten(*NET.args, a=only)
    assert_close(run({name: precision.SiteQuant(None, activations_of(site))}), expected, factor=64)


def test_an_operand_without_a_grid_is_left_alone():
    inputs = {"attn/dot_0": precision.SiteQuant(None, (None, by_hand.how(GRIDS["attn/dot_0", 1])))}

    def only(at, index, value):
        return round_operand(at, index, value) if (at, index) == ("attn/dot_0", 1) else value

    assert_close(run(inputs), by_hand.handwritten(*NET.args, a=only), factor=64)


def test_no_inputs_and_empty_inputs_are_the_plain_network_to_the_bit():
    plain = np.asarray(jax.jit(NET.fn)(*NET.args)).tobytes()
    assert np.asarray(run(None)).tobytes() == plain
    assert np.asarray(run({s.name: precision.SiteQuant() for s in SITES})).tobytes() == plain


def test_a_left_hand_weight_is_replaced_on_its_side():
    w, x = normal(1, 4, 3), normal(2, 3, 5)
    g = transform(lambda p, x, t: p @ x, precision.quantize_site)
    got, _ = g(w, x, 0.0, site_inputs={"params": precision.SiteQuant(2.0 * w)})
    assert_close(got, 2.0 * np.asarray(w) @ np.asarray(x))


def test_a_scale_per_channel_of_an_activation_rounds_each_channel_by_itself():
    w, x = normal(1, 4, 3), normal(2, 5, 4)
    scale = jnp.asarray([[0.1, 0.5, 1.0, 0.25]])
    quant = precision.SiteQuant(None, (ActivationGrid(IntFormat(jnp.int32(8)), scale),))
    got, _ = transform(lambda p, x, t: x @ p, precision.quantize_site)(
        w, x, 0.0, site_inputs={"params": quant}
    )
    assert_close(got, np.round(np.asarray(x) / np.asarray(scale)) * np.asarray(scale) @ w)


def test_bfloat16_networks_stay_bfloat16_and_round_in_float32():
    w, x = normal(1, 8, 8, dtype=jnp.bfloat16), normal(2, 5, 8, dtype=jnp.bfloat16)
    grid = by_hand.affine(-3.0, 3.0, 8)
    quant = {"params": precision.SiteQuant(w.astype(jnp.float32), (by_hand.how(grid),))}
    g = jax.jit(transform(lambda p, x, t: x @ p, precision.quantize_site))
    got, _ = g(w, x, 0.0, site_inputs=quant)
    rounded = by_hand.on_grid(np.asarray(x, np.float32), *grid).astype(jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    expected = jax.jit(jnp.matmul)(jnp.asarray(rounded), w)
    assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_stochastic_rounding_takes_neighbours_and_is_right_on_average():
    x = jnp.full((100, 100), 0.3)
    one = jnp.float64(1)

    def rounded(key):
        quant = ActivationGrid(IntFormat(jnp.int32(5)), one, key=key)
        g = transform(lambda p, x, t: x, precision.quantize_site)
        return jax.jit(g)(None, x, 0.0, site_inputs={"input": precision.SiteQuant(None, (quant,))})[
            0
        ]

    a, b = rounded(jax.random.key(0)), rounded(jax.random.key(1))
    assert set(np.unique(a)) == {0.0, 1.0}
    deviation = np.sqrt(0.3 * 0.7 / x.size)  # of a mean of Bernoulli(0.3)
    assert abs(float(jnp.mean(a)) - 0.3) < 4 * deviation
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(a, rounded(jax.random.key(0)))


def test_in_a_scan_every_iteration_has_its_own_grid_and_weight():
    net = worlds.layers()
    kernels = np.asarray(net.params["layers"]["kernel"])
    grids = [by_hand.affine(-2.0, 2.0, bits) for bits in (2, 3, 8)]
    rounded = [by_hand.weight(w, bits, (0,)) for w, bits in zip(kernels, (8, 3, 2), strict=True)]
    inputs = {
        f"layers/kernel[{i}]": precision.SiteQuant(
            jnp.asarray(rounded[i]), (by_hand.how(grids[i]),)
        )
        for i in range(3)
    }
    got, _ = jax.jit(transform(net.fn, precision.quantize_site))(*net.args, site_inputs=inputs)
    h = np.asarray(net.x)
    for w, grid in zip(rounded, grids, strict=True):
        h = h + np.tanh(by_hand.on_grid(h, *grid) @ w + float(net.t))
    assert_close(got, h @ np.asarray(net.params["out"]["kernel"]), factor=64)


def test_stochastic_keys_reach_each_iteration_of_a_scan():
    net = worlds.layers()
    keys = jax.random.split(jax.random.key(0), 3)
    grid = by_hand.affine(-2.0, 2.0, 3)
    inputs = {
        f"layers/kernel[{i}]": precision.SiteQuant(None, (by_hand.how(grid, keys[i]),))
        for i in range(3)
    }
    got, _ = jax.jit(transform(net.fn, precision.quantize_site))(*net.args, site_inputs=inputs)
    h, (scale, zero, qmin, qmax) = np.asarray(net.x), grid
    for w, key in zip(np.asarray(net.params["layers"]["kernel"]), keys, strict=True):
        uniform = np.asarray(jax.random.uniform(key, h.shape, jnp.float32), np.float64)
        codes = np.clip(np.floor(h / scale + uniform) + zero, qmin, qmax)
        h = h + np.tanh(scale * (codes - zero) @ w + float(net.t))
    assert_close(got, h @ np.asarray(net.params["out"]["kernel"]), factor=64)


def test_a_sample_rounded_to_its_own_range_does_not_know_the_others():
    grid = ActivationGrid(IntFormat(BITS))
    inputs = {s.name: precision.SiteQuant(None, (grid,) * len(s.activations)) for s in SITES}
    params, x, t = NET.args
    both = run(inputs)
    wide = G(params, x.at[1].multiply(9.0), t, site_inputs=inputs)[0]
    assert_close(wide[0], both[0])
    assert np.max(np.abs(wide[1] - both[1])) > 0.1

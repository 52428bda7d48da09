"""Recipes in words: what they stand for, what they leave out, and what is said of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ledger, runs
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import OperandFormat, Recipe, SiteBits
from qdiffjax.precision.settings import EDGE_MARGIN
from qdiffjax.quant import IntFormat
from qdiffjax.sites import match
from tests import worlds
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(100)
STEPS = diffusion.ddim(SCHEDULE, 3)
EDGES = "input", "output"


@functools.cache
def calibrated():
    """In float64: a convolution, attention and a dense layer."""
    net = worlds.handwritten()
    return precision.calibrate(Denoiser(net.fn, net.params), STEPS, x_T=net.x)


def grids_of(q):
    return {n: [g for g in s.activations if g is not None] for n, s in q.site_inputs.items()}


def test_words_take_the_layers_but_the_last_and_are_dynamic_and_affine():
    for road in (precision.quantize, precision.lower):
        q = road(calibrated(), "W8A8")
        names = {s.name for s in calibrated().sites}
        products = {s.name for s in calibrated().sites if s.weight is None and s.product}
        expected = {*EDGES, *products, "out/kernel"}
        assert products
        assert names - set(q.site_inputs) == expected == set(q.settings.left_out)
        grids = [g for grids in grids_of(q).values() for g in grids]
        assert grids
        assert all(g.scale is None and not g.format.signed for g in grids)


def test_a_recipe_is_taken_at_its_word():
    c = calibrated()
    recipe = precision.uniform(c.sites, weight_bits=4, activation_bits=8)
    q = precision.quantize(c, recipe)
    weights = precision.round_weights(c.weights, c.sites, recipe)
    by_hand = precision.site_inputs(recipe, weights, precision.over_steps(c.ranges))
    jax.tree.map(np.testing.assert_array_equal, q.site_inputs, by_hand)
    part = precision.quantize(c, recipe, sites=("attn/*",))
    assert set(part.site_inputs) == set(match(c.sites, ("attn/*",)))


def test_the_last_layer_is_the_last_site_with_a_weight_unless_a_site_is_called_so():
    sites = calibrated().sites
    assert match(sites, ("last",)) == ("out/kernel",)
    assert "out/kernel" not in match(sites, ("*", "!last"))
    assert match(sites, ("products",)) == tuple(s.name for s in sites if "dot_" in s.name)
    assert match(calibrated().sites[:2], ("*", "!products"))  # of which there may be none


def test_static_words_widen_what_enters_the_network():
    c = calibrated()
    q, plain = (
        precision.quantize(c, "A8", activations="static", sites=("*",), **margin)
        for margin in ({}, {"edge_margin": 1.0})
    )
    for name in ("input", "output", "conv/kernel"):  # which reads what `input` reads
        pair = grids_of(q)[name], grids_of(plain)[name]
        assert_close(pair[0][0].scale / pair[1][0].scale, EDGE_MARGIN)
    assert_close(grids_of(q)["out/kernel"][0].scale, grids_of(plain)["out/kernel"][0].scale)


@pytest.mark.parametrize("grids", ["static", "dynamic"])
def test_formats_that_leave_their_scales_open_take_those_of_the_settings(grids):
    """But a group has no static scale, and what a format itself says stays."""
    c, number = calibrated(), IntFormat(8)
    recipe = precision.Recipe({
        "conv/kernel": SiteBits(None, OperandFormat(number)),
        "attn/query/kernel": SiteBits(None, OperandFormat(number, 2)),
        "attn/key/kernel": SiteBits(None, OperandFormat(number, scales="static")),
        "out/kernel": SiteBits(None, OperandFormat(number, scales="dynamic")),
    })  # fmt: skip
    found = grids_of(precision.quantize(c, recipe, activations=grids))
    is_static = {name: grid.scale is not None for name, (grid,) in found.items()}
    assert is_static == {
        "conv/kernel": grids == "static", "attn/query/kernel": False,
        "attn/key/kernel": True, "out/kernel": False,
    }  # fmt: skip


def test_words_keep_the_sum_of_each_output_channel():
    c = calibrated()
    kept, nearest = (
        precision.quantize(c, "W4", sites=("*",), **options).site_inputs
        for options in ({}, {"adjust_fn": None})
    )
    for site in c.sites:
        if site.weight is None:
            continue
        w, axes = c.weights[site.name], site.contract_axes[site.weight]
        step = np.abs(np.asarray(w)).max(axes) / 7
        miss = np.abs(np.asarray(kept[site.name].weight - w).sum(axes))
        assert np.all(miss <= step * (0.5 + 1e-6))
        assert np.any(np.asarray(kept[site.name].weight != nearest[site.name].weight))


def test_widths_and_settings_share_a_compilation():
    net, run = worlds.handwritten(), jax.jit(lambda q, x: precision.quantized_call(q)(x, 0.4)[0])
    first = precision.quantize(calibrated(), "W8A8")
    assert first.settings.name == "W8A8"
    for q in (
        first,
        precision.quantize(calibrated(), "W4A6"),
        precision.Quantized(first.denoiser, first.site_inputs, widths=first.widths),
    ):
        run(q, net.x)
    assert run._cache_size() == 1


@pytest.mark.slow
def test_codes_with_dynamic_grids_are_the_simulation_and_have_its_derivatives():
    net, sites = worlds.handwritten(), ("*",)
    both = [
        road(calibrated(), "W8A8", sites=sites) for road in (precision.quantize, precision.lower)
    ]

    @jax.jit
    def run(q):
        f = lambda x: precision.quantized_call(q)(x, jnp.float64(0.4))[0]  # noqa: E731
        y, tangent = jax.jvp(f, (net.x,), (jnp.ones_like(net.x),))
        return y, tangent, jax.grad(lambda x: jnp.sum(f(x)))(net.x)

    for simulated, lowered in zip(*map(run, both), strict=True):
        np.testing.assert_allclose(lowered, simulated, rtol=1e-5, atol=1e-4)


def test_samples_keep_apart_under_dynamic_grids():
    net = worlds.handwritten()
    x = net.x * jnp.asarray([1.0, 7.0])[:, None, None, None]
    q = precision.quantize(calibrated(), "W4A4", sites=("*",))
    run = jax.jit(lambda x: precision.quantized_call(q)(x, jnp.float64(0.4))[0])
    assert_close(jnp.concatenate([run(x[:1]), run(x[1:])]), run(x), factor=64)


@pytest.mark.slow
def test_a_ledger_of_dynamic_grids_sums_to_the_change():
    q = precision.quantize(calibrated(), "W8A8", sites=("*",))
    net = worlds.handwritten()
    book = jax.jit(lambda q, x: ledger.attribution(q, x, STEPS, num_nodes=4))(q, net.x)
    assert np.all(ledger.defect(book) < 1e-3)
    pair = runs.couple(precision.full_call(q), precision.quantized_call(q), net.x, STEPS)
    share = jnp.mean(pair.errors[-1] ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(book.change, share, rtol=1e-3)  # grids of tokens are float32


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("W8A8", {"activations": "sometimes"}, "expected 'dynamic' or 'static'"),
        ("W8A8", {"edge_margin": 1.2}, "activations='static'"),
        ("8 bits", {}, "expected a form like W4A8"),
        ("W8A8", {"sites": ("convolution*",)}, "no site matches"),
        ("W8A8", {"sites": ("attn/*", "!attn/*")}, "for no site"),
        ("input: W8", {}, "a width of weights for input, expected one of activations alone"),
        ("W8A8; products: W4A8", {}, "attn/dot_0, attn/dot_1, expected one of activations alone"),
        (Recipe({"output": SiteBits(8, 8)}), {}, "a stored value has no weight; such as 'residual"),
        ("W8A8; steps 0-1: W4A8; steps 1-2: A4", {}, "got 1 in two phases"),
        ("W8A8; steps 0-1,1: W4A8", {}, "got 1 twice, expected each step in one"),
        ("steps 0-1: W8A8", {}, r"nothing for 1 of 3 steps, such as \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(recipe, options, message):
    with pytest.raises(ValueError, match=message):
        precision.quantize(calibrated(), recipe, **options)
    with pytest.raises(ValueError, match=message):
        precision.lower(calibrated(), recipe, **options)


def test_a_glob_that_is_one_text_is_not_read_letter_by_letter():
    told = r"globs: got '\*', expected a tuple of them; \('\*',\)"
    for recipe in ("W8", Recipe({"out/kernel": SiteBits(8)})):
        with pytest.raises(TypeError, match=told):
            precision.quantize(calibrated(), recipe, sites="*")


def test_weights_that_were_never_prepared_are_refused():
    without = dataclasses.replace(calibrated(), weights={})
    for run in (precision.quantize, precision.lower):
        with pytest.raises(ValueError, match="weight: got none that was prepared"):
            run(without, "W8A8")
    assert "out/kernel" not in precision.quantize(without, "A8").widths  # there is nothing to do


def test_codes_for_the_rule_that_multiplies_numbers_are_refused():
    q = precision.lower(calibrated(), "W8A8")
    simulated = dataclasses.replace(q, rule=precision.quantize_site)
    with pytest.raises(TypeError, match=r"expected rounded numbers, .* codes are for `lower_site`"):
        precision.quantized_call(simulated)(worlds.handwritten().x, jnp.float64(0.4))


def test_settings_are_said_in_words():
    text = str(precision.quantize(calibrated(), "w8a8").settings)
    for part in ("W8A8", "dynamic, affine", "edges        in full precision", "sum of each",
                 "sites: input", "out/kernel, output"):  # fmt: skip
        assert part in text
    recipe = precision.uniform(calibrated().sites, weight_bits=8, activation_bits=8)
    settings = precision.quantize(calibrated(), recipe, edge_margin=1.5).settings
    assert settings.edges == "input and output quantized"
    assert settings.activations.endswith("times 1.5")
    assert settings.left_out == ()


def test_options_of_weights_pass_through():
    q = precision.quantize(calibrated(), "W4", granularity=precision.whole_tensor)
    assert q.settings.weights.startswith("whole tensor")
    floats = precision.quantize(calibrated(), "W8", format_fn=lambda bits: IntFormat(bits + 1))
    assert set(floats.site_inputs) == set(q.site_inputs)


def test_a_margin_of_edges_is_taken_where_the_recipe_says_static():
    """It was refused as one of dynamic activations, with a remedy that was followed already."""
    said, asked = (
        precision.quantize(calibrated(), words, sites=("input",), edge_margin=1.5, **options)
        for words, options in (("A8 static", {}), ("A8", {"activations": "static"}))
    )
    scales = [q.site_inputs["input"].activations[0].scale for q in (said, asked)]
    assert_close(*scales)
    assert "static ranges of the edges times 1.5" in str(said.settings)

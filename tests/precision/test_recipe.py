"""Recipes as data, and the weights they ask for against NumPy."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import precision
from qdiffjax.precision import Recipe, SiteBits
from qdiffjax.precision.codes import weight_codes
from qdiffjax.precision.weights import simulated
from qdiffjax.quant import calibration, dequantize
from qdiffjax.sites import list_sites
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close
from tests.worlds import normal

NET = worlds.handwritten()
SITES = list_sites(NET.fn, *NET.args)
WEIGHTS = precision.weight_operands(NET.fn, *NET.args)


def test_uniform_gives_weights_bits_only_where_there_are_weights():
    recipe = precision.uniform(SITES, weight_bits=4, activation_bits=8)
    assert set(recipe.bits) == {s.name for s in SITES}
    assert recipe.bits["conv/kernel"] == SiteBits(4, 8)
    assert recipe.bits["attn/dot_0"] == recipe.bits["input"] == SiteBits(None, 8)


def test_uniform_of_sites_without_weights_rounds_their_activations():
    recipe = precision.uniform(SITES, weight_bits=4, activation_bits=8, globs=("input", "output"))
    assert recipe.bits == dict.fromkeys(("input", "output"), SiteBits(None, 8))
    with pytest.raises(ValueError, match="a width of weights for input"):
        precision.uniform(SITES, weight_bits=4, activation_bits=None, globs=("input",))


def test_uniform_leaves_out_what_negated_globs_take_away():
    globs = ("*", "!input", "!output", "!attn/*", "attn/dot_?")
    recipe = precision.uniform(SITES, weight_bits=4, activation_bits=None, globs=globs)
    assert list(recipe.bits) == ["conv/kernel", "attn/dot_0", "attn/dot_1", "out/kernel"]


def test_a_recipe_survives_json():
    bits = {"conv/kernel": SiteBits(1, 8), "input": SiteBits(None, 16), "out/kernel": SiteBits()}
    text = Recipe(bits).to_json()
    assert json.loads(text)["input"] == {"weight": None, "activation": 16}
    assert Recipe.from_json(text, SITES) == Recipe(bits)


def test_recipes_are_equal_where_their_ranges_are():
    bits = {"input": SiteBits(None, 8)}

    def recipe(high):
        return Recipe(bits, ranges={"input": ((np.zeros(3), np.full(3, high)),)})

    assert recipe(1.0) == recipe(1.0)
    assert recipe(1.0) == Recipe.from_json(recipe(1.0).to_json(), SITES)
    assert recipe(1.0) != recipe(2.0)
    assert recipe(1.0) != Recipe(bits)


def test_a_recipe_that_was_changed_after_it_was_written_is_refused_unless_it_says_no_hash():
    text = Recipe({"conv/kernel": SiteBits(4, 8), "input": SiteBits(None, 16)}).to_json()
    for i, letter in enumerate(text):
        for other in {chr(ord(letter) ^ 1 << bit) for bit in range(7)} | {""}:
            with pytest.raises(ValueError, match=r"recipe|expected"):
                Recipe.from_json(text[:i] + other + text[i + 1 :], SITES)
    for i in range(len(text)):
        with pytest.raises(ValueError, match="recipe: got"):
            Recipe.from_json(text[:i], SITES)
    table = json.loads(text)
    del table["sha256"]
    assert Recipe.from_json(json.dumps(table), SITES).bits["conv/kernel"] == SiteBits(4, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"conv/kernal": {"weight": 4}}', r"recipe: got 'conv/kernal'.*conv/kernel"),
        ('{"conv/kernel": {"weight": 17}}', r"got 17 bits, expected 1\.\.16"),
        ('{"conv/kernel": {"activation": "8"}}', r"got '8' bits"),
        ('{"conv/kernel": {"weight": true}}', r"got True bits"),
        (
            '{"conv/kernel": {"weights": 4}}',
            r"got 'weights', expected one of 2 names; perhaps weight",
        ),
        ('{"conv/kernel": 4}', r"got 'conv/kernel': 4, expected an object"),
        ('{"conv/kernel": {}, "conv/kernel": {}}', "expected each name once"),
        ('{"sha256": "0", "conv/kernel": {}}', "damaged or changed"),
        ("[]", "got list, expected an object of sites"),
        ("{", "got no JSON"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(text, SITES)


@pytest.mark.parametrize("bits", [0, 17, -1, 4.0])
def test_widths_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match=r"expected 1\.\.16, or none for float"):
        precision.uniform(SITES, weight_bits=bits, activation_bits=None)
    with pytest.raises(ValueError, match=r"expected 1\.\.16"):
        precision.uniform(SITES, weight_bits=None, activation_bits=bits)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("W4A8", (4, 8)), ("w2", (2, None)), (" A8 ", (None, 8)), ("W16A16", (16, 16))],
)
def test_shorthand_reads_as_it_is_written(text, bits):
    assert precision.parse_shorthand(text) == SiteBits(*bits)


@pytest.mark.parametrize("text", ["", "  ", "W", "A8W4", "4", "W4A8x", "W0", "W4A17", "W4.5"])
def test_other_shorthand_is_refused(text):
    with pytest.raises(ValueError, match=r"expected (a form like W4A8|1\.\.16)"):
        precision.parse_shorthand(text)


def test_weight_operands_are_the_weights_as_sites_see_them():
    assert set(WEIGHTS) == {s.name for s in SITES if s.weight is not None}

    def fn(p, x, t):
        return x @ (p["a"] * 2.0) @ p["a"].T

    a = normal(1, 4, 3)
    weights = precision.weight_operands(fn, {"a": a}, normal(2, 5, 4), 0.0)
    np.testing.assert_array_equal(weights["a"], 2.0 * a)
    np.testing.assert_array_equal(weights["a#2"], a.T)


def test_weights_in_a_scan_come_out_by_iteration():
    net = worlds.layers()
    weights = precision.weight_operands(net.fn, *net.args)
    for i in range(3):
        np.testing.assert_array_equal(
            weights[f"layers/kernel[{i}]"], net.params["layers"]["kernel"][i]
        )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_prepare_rounds_each_output_channel_by_itself(bits):
    recipe = precision.uniform(SITES, weight_bits=bits, activation_bits=8)
    prepared = precision.round_weights(WEIGHTS, SITES, recipe)
    assert set(prepared) == set(WEIGHTS)
    for name, w in WEIGHTS.items():
        expected = by_hand.weight(w, bits, tuple(range(w.ndim - 1)))
        assert_close(prepared[name], expected, factor=64)


def test_prepare_follows_granularity_and_calibration():
    recipe = precision.uniform(SITES, weight_bits=3, activation_bits=None, globs=["conv/*"])
    prepared = precision.round_weights(WEIGHTS, SITES, recipe, granularity=precision.whole_tensor)
    w = WEIGHTS["conv/kernel"]
    assert_close(prepared["conv/kernel"], by_hand.weight(w, 3, (0, 1, 2, 3)), factor=64)
    searched = precision.round_weights(WEIGHTS, SITES, recipe, calibrate_fn=calibration.mse)[
        "conv/kernel"
    ]
    absmax = precision.round_weights(WEIGHTS, SITES, recipe)["conv/kernel"]
    assert float(jnp.mean((searched - w) ** 2)) < float(jnp.mean((absmax - w) ** 2))


def squared(words, **options):
    """Return the mean squared error of a weight that is rounded by its own words and options."""
    entry = precision.parse_operand(words)
    w = WEIGHTS["out/kernel"]
    recipe = Recipe({"out/kernel": SiteBits(entry)})
    rounded = precision.round_weights({"out/kernel": w}, SITES, recipe, **options)["out/kernel"]
    return float(jnp.mean((rounded - w) ** 2))


@pytest.mark.parametrize("rule", ["mse", "percentile"])
def test_calibrations_of_affine_grids_keep_the_negative_numbers(rule):
    widest = squared("4 affine")
    assert squared(f"4 affine {rule}") < 2 * widest
    if rule == "mse":
        assert squared("4 affine mse") <= widest


@pytest.mark.parametrize("rule", ["absmax", "kl", "gaussian", "laplace"])
def test_calibrations_without_zero_points_are_refused_of_affine_grids(rule):
    with pytest.raises(ValueError, match="a rule that finds zero points"):
        precision.parse_operand(f"4 affine {rule}")


def test_calibrations_of_block_formats_are_refused():
    with pytest.raises(ValueError, match="find their own scales"):
        precision.parse_operand(":nvfp4 mse")


@pytest.mark.parametrize("words", ["4", "4g2", "4 affine", ":fp4"])
def test_options_hold_of_formats_that_say_nothing_else(words):
    assert squared(words, calibrate_fn=calibration.mse) == squared(f"{words} mse")
    assert squared(words, calibrate_fn=calibration.mse) < squared(words)
    shape = {"granularity": precision.whole_tensor}
    assert squared(f"{words} mse", calibrate_fn=calibration.absmax) == squared(f"{words} mse")
    if "g" not in words:
        assert squared(words, **shape) == squared(f"{words} tensor") != squared(words)


def test_one_bit_weights_are_signs_times_one_scale_per_channel():
    bits = {"conv/kernel": SiteBits(1), "out/kernel": SiteBits(5)}
    prepared = precision.round_weights(WEIGHTS, SITES, Recipe(bits), calibrate_fn=calibration.mse)
    w = np.asarray(WEIGHTS["conv/kernel"])
    # The least-squares binary scale is the mean magnitude (Rastegari et al. 2016).
    expected = np.sign(w) * np.abs(w).mean((0, 1, 2), keepdims=True)
    assert_close(prepared["conv/kernel"], expected, factor=64)
    assert set(prepared) == set(bits)


def test_a_recipe_without_weight_bits_prepares_nothing():
    recipe = precision.uniform(SITES, weight_bits=None, activation_bits=8)
    assert precision.round_weights(WEIGHTS, SITES, recipe) == {}


def test_tied_weights_used_alike_are_rounded_alike():
    def fn(p, x, t):
        return (x @ p["a"]) @ p["a"]

    args = ({"a": normal(1, 4, 4)}, normal(2, 5, 4), 0.0)
    listed = list_sites(fn, *args)
    recipe = precision.uniform(listed, weight_bits=3, activation_bits=None)
    prepared = precision.round_weights(precision.weight_operands(fn, *args), listed, recipe)
    np.testing.assert_array_equal(prepared["a"], prepared["a#2"])


def test_a_sweep_over_widths_compiles_the_rounding_once():
    @chex.assert_max_traces(n=1)
    def counted(w, *, format, scale_shape):
        return calibration.absmax(w, format=format, scale_shape=scale_shape)

    for bits in range(2, 9):
        recipe = precision.uniform(SITES, weight_bits=bits, activation_bits=None, globs=["conv/*"])
        precision.round_weights(WEIGHTS, SITES, recipe, calibrate_fn=counted)


def test_weight_operands_take_parameters_of_any_dtype():
    w = normal(1, 4, 4, dtype=jnp.bfloat16)

    def fn(p, x, t):
        return x @ p

    args = (w, normal(2, 3, 4, dtype=jnp.bfloat16), 0.0)
    listed = list_sites(fn, *args)
    weights = precision.weight_operands(fn, *args)
    recipe = precision.uniform(listed, weight_bits=4, activation_bits=None)
    prepared = precision.round_weights(weights, listed, recipe)
    assert jax.tree.map(lambda a: a.dtype, prepared) == {"params": jnp.bfloat16}


def test_a_traced_weight_with_nan_gives_nan_simulated_and_as_codes():
    sites = list_sites(lambda p, x, t: x @ p["a"], {"a": jnp.ones((2, 3), jnp.float32)},
                       jnp.ones((1, 2), jnp.float32), 0.0)  # fmt: skip
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=None)
    w = jnp.ones((2, 3), jnp.float32).at[1, 1].set(jnp.nan)
    for round_fn in (simulated, weight_codes):
        rounded = jax.jit(
            lambda w, f=round_fn: precision.round_weights({"a": w}, sites, recipe, f)["a"]
        )(w)
        values = rounded if isinstance(rounded, jax.Array) else dequantize(rounded)
        product = np.isnan(jnp.ones((1, 2), jnp.float32) @ values)
        np.testing.assert_array_equal(product, [[False, True, False]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value):
    weights = {"a": jnp.ones((2, 3), jnp.float32).at[1, 1].set(value)}
    sites = list_sites(lambda p, x, t: x @ p["a"], weights, jnp.ones((1, 2), jnp.float32), 0.0)
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=None)
    for round_fn in (simulated, weight_codes):
        with pytest.raises(ValueError, match="a, weight: got NaN or infinity"):
            precision.round_weights(weights, sites, recipe, round_fn)


def test_a_weight_of_integers_is_refused_by_name():
    weights = {"a": jnp.ones((2, 3), jnp.float32)}
    sites = list_sites(lambda p, x, t: x @ p["a"], weights, jnp.ones((1, 2), jnp.float32), 0.0)
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=None)
    with pytest.raises(ValueError, match=r"a, weight: got int32.*astype\(jnp.float32\)"):
        precision.round_weights({"a": weights["a"].astype(jnp.int32)}, sites, recipe)

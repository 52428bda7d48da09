"""Recipes with everything said mean what the words meant."""

import dataclasses

import jax
import numpy as np
import pytest

from qdiffjax import precision, quant
from qdiffjax.precision import OperandFormat, Recipe, SiteBits
from tests.precision.small import STEPS, X_T, calibrated, lowered_calibration


@jax.jit
def sampled(q, x_T):
    return precision.final_samples(q, x_T, STEPS)


WORDS = (
    ("W4A8", {}),
    ("W4A8", {"activations": "static"}),
    ("W3g5 A:e4m3; out: W:nf4 A4 token; steps 0-1: W8A8", {}),
    ("W4 mse A8 by-step; input output: A6", {"activations": "static", "edge_margin": 1.5}),
    ("W4 shaped A8 shaped", {}),
)


@pytest.mark.parametrize(("words", "options"), WORDS)
def test_it_gives_what_the_words_give_after_json_and_with_other_ranges(words, options):
    c = calibrated()
    recipe = precision.spelled_out(c, words, **options)
    read = Recipe.from_json(recipe.to_json(), c.sites)
    assert read == recipe
    other = dataclasses.replace(c, ranges=jax.tree.map(lambda end: 3 * end, c.ranges))
    expected = sampled(precision.quantize(c, words, **options), X_T)
    np.testing.assert_array_equal(sampled(precision.quantize(other, read), X_T), expected)


def test_lowered_it_is_the_words_lowered():
    c, x_T = lowered_calibration(), X_T.astype(np.float32)
    words = "W4A8; steps 0-1: W8A8"
    recipe = precision.spelled_out(c, words, sites=("in", "out"))
    pair = precision.lower(c, words, sites=("in", "out")), precision.lower(c, recipe)
    np.testing.assert_array_equal(*(sampled(q, x_T) for q in pair))


def test_a_table_keeps_what_it_says_and_is_rounded_to_nearest():
    bits = {"in": SiteBits(4, OperandFormat(quant.E4M3FN, "token"))}
    found = precision.spelled_out(calibrated(), Recipe(bits)).bits["in"]
    assert [str(entry) for entry in found] == ["4 symmetric", ":e4m3 token dynamic"]
    words = precision.spelled_out(calibrated(), "W4 nearest A8")
    assert words.bits["in"].weight.rounding == "nearest"
    assert words.bits["in"].activation == OperandFormat(quant.IntFormat(8, False), scales="dynamic")


def test_a_width_that_is_data_is_refused():
    bits = {"in": SiteBits(np.int32(4))}
    with pytest.raises(ValueError, match="in: got a width that is data"):
        precision.spelled_out(calibrated(), Recipe(bits))

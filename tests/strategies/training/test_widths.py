"""Widths that are learned: derivatives, budgets, and what comes after them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdiffjax import precision, strategies
from qdiffjax.strategies import tables
from qdiffjax.strategies.training import values as learned
from qdiffjax.strategies.training import widths
from tests import worlds
from tests.precision.small import STEPS, calibrated
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 4, 6, 6, 3)
KEY = jax.random.key(1)
SITES = ("conv", "in", "out")


def made(cures, recipe="W4A8", **options):
    options = {"sites": SITES} | options
    return strategies.improve(calibrated(), recipe, cures, STEPS, KEY, x_T=NOISE, **options)


def test_the_derivative_in_a_width_is_the_difference_of_the_grids_beside_it():
    start, _ = learned.starting_point(made([]), None, learned.Choice({}, ("weights",), None, "lsq"))
    values = {"bits": {name: jnp.asarray(0.3) for name in SITES}}
    along = {"bits": {name: jnp.asarray(1.0 if name == "in" else 0.0) for name in SITES}}

    def at(values):
        return widths.fractional(start, values).site_inputs["in"].weight

    value, slope = jax.jvp(at, (values,), (along,))
    w, s = np.asarray(start.grids["in"].w), np.asarray(start.grids["in"].scale)

    def rounded(bits):
        qmax = 2 ** (bits - 1) - 1
        step = s * 7 / qmax
        return step * np.clip(np.round(w / step), -qmax, qmax)

    assert_close(value, 0.7 * rounded(4) + 0.3 * rounded(5), factor=64)
    assert_close(slope, rounded(5) - rounded(4), factor=64)


@given(st.lists(st.tuples(st.floats(2, 8), st.integers(1, 50)), min_size=1, max_size=5),
       st.floats(2, 8))  # fmt: skip
def test_whole_widths_keep_the_budget_and_are_beside_the_real_ones(pairs, budget):
    bits = {str(i): b for i, (b, _) in enumerate(pairs)}
    sizes = {str(i): n for i, (_, n) in enumerate(pairs)}
    found = widths.whole_bits(bits, sizes, budget)
    total = sum(sizes.values())
    assert sum(found[n] * sizes[n] for n in found) <= budget * total * (1 + 1e-6)
    assert all(2 <= found[n] <= np.ceil(bits[n]) for n in found)
    room = budget * total - sum(found[n] * sizes[n] for n in found)
    for name, b in bits.items():  # none that wants a bit and fits is left out
        assert found[name] >= np.floor(b + 1e-6) - 1e-9 or room < max(sizes.values())


def test_a_table_of_equal_widths_is_the_recipe_in_words():
    draft = made([])
    same = widths.with_widths(draft, dict.fromkeys(SITES, 4))
    inputs = same.quantized().site_inputs
    for name, each in draft.quantized().site_inputs.items():
        assert_close(inputs[name].weight, each.weight)
    recipe, options = tables.explicit(draft)
    again = precision.quantize(calibrated(), recipe, **options)
    assert_close(again.site_inputs["in"].weight, draft.quantized().site_inputs["in"].weight)


def test_widths_are_those_of_all_phases():
    """Phases of activations kept the width that weights had before, at twice the storage."""
    done = widths.with_widths(made([], "W4A4; steps 0-1: W4A8"), dict.fromkeys(SITES, 3))
    weight = done.quantized().site_inputs["in"].weight
    assert_close(weight, made([], "W3A8").quantized().site_inputs["in"].weight)


def test_widths_within_a_budget_take_roundings_and_training_after_them():
    cures = [strategies.smoothing(), strategies.learned_widths(3.5, 60, progress=False),
             strategies.gptq()]  # fmt: skip
    done = made(cures)
    bits = {name: int(grid.format.bits) for name, grid in done.weight_grids().items()}
    sizes = {name: grid.w.size for name, grid in done.weight_grids().items()}
    mean = sum(bits[name] * sizes[name] for name in bits) / sum(sizes.values())
    assert 3 <= mean <= 3.5
    found = {name: int(done.quantized().widths[name].weight) for name in SITES}
    assert found == bits
    assert done.bill.optimizer_steps == 60


@pytest.mark.parametrize("recipe", ["W4 affine A8", "W:fp4 A8"])
def test_weights_that_are_no_symmetric_integers_are_refused(recipe):
    with pytest.raises(ValueError, match="symmetric integers"):
        made([strategies.learned_widths(4, 5, progress=False)], recipe)


@pytest.mark.parametrize("budget", [0, 1.5, 9, float("nan")])
def test_a_budget_is_between_two_and_eight_bits(budget):
    with pytest.raises(ValueError, match="budget"):
        strategies.learned_widths(budget)

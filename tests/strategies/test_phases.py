"""Phases of shaped weights chosen by runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import precision, strategies
from tests import worlds
from tests.precision.small import STEPS, calibrated

NOISE = worlds.normal(31, 4, 6, 6, 3)
KEY = jax.random.key(1)


def made(*cures, words="W3 shaped A8"):
    return strategies.improve(calibrated(), words, cures, STEPS, KEY, x_T=NOISE)


def error(draft) -> float:
    q = draft.quantized()
    full, low = (jax.jit(precision.final_samples, static_argnames="in_full")(
        q, NOISE, STEPS, draft.key, in_full=on
    ) for on in (True, False))  # fmt: skip
    return float(jnp.mean(jnp.square(low - full)))


def test_the_phases_are_the_best_of_those_drawn():
    plain, chosen = made(), made(strategies.chosen_phases(6))
    own = plain.options["key"]
    drawn = [own, *(jax.random.fold_in(own, j) for j in range(1, 6))]
    errors = [error(made_with(plain, key)) for key in drawn]
    assert len(set(errors)) == 6
    np.testing.assert_allclose(error(chosen), min(errors), rtol=1e-5)
    assert chosen.bill.evaluations - plain.bill.evaluations == 7 * 5 * 4


def made_with(draft, key):
    return dataclasses.replace(draft, options={**draft.options, "key": key})


def test_one_draw_is_the_recipe_itself():
    plain, chosen = made(), made(strategies.chosen_phases(1))
    assert error(chosen) == error(plain)


def test_it_comes_before_corrections_and_after_a_basis():
    cures = [strategies.compensation(), strategies.chosen_phases(3), strategies.smoothing()]
    names = [cure.name for cure in made(*cures).cures]
    assert names[1] == "best of 3 phases"


def test_weights_that_are_rounded_once_have_no_phases():
    with pytest.raises(ValueError, match="no weight that is rounded anew"):
        made(strategies.chosen_phases(2), words="W3A8")

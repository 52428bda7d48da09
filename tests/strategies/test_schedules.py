"""Widths by step: their ceiling and the best of whole bits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.schedules import experiment as schedules
from qdiffjax import strategies
from qdiffjax.precision import parse_recipe
from tests import worlds

KEY = jax.random.key(0)


def test_the_ceiling_is_half_the_log_of_the_means():
    squares = jnp.tile(jnp.asarray([1.0, 4.0, 16.0, 64.0]), (6, 1))
    found = strategies.step_ceiling(squares, key=KEY)
    expected = np.log2(85 / 4 / 8) / 2
    np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-6)
    coherent = strategies.step_ceiling(-jnp.sqrt(squares), key=KEY, coherent=True)
    np.testing.assert_allclose(coherent.value, np.log2(15 / 4 / 8**0.5), rtol=1e-6)


def test_equal_steps_have_nothing_to_gain():
    found = strategies.step_ceiling(jnp.full((5, 7), 0.3), key=KEY)
    np.testing.assert_allclose(found.value, 0, atol=1e-6)


def test_real_widths_reach_the_ceiling():
    squares = np.exp(np.asarray(worlds.normal(3, 9)))
    bits = strategies.lagrangian_bits(squares * 4.0**6, 6.0)
    gain = np.log2(squares.sum() / np.sum(squares * 4.0 ** (6 - bits))) / 2
    found = strategies.step_ceiling(jnp.tile(jnp.asarray(squares), (2, 1)), key=KEY)
    np.testing.assert_allclose(gain, found.value, rtol=1e-6)


def test_whole_widths_are_the_best_of_all():
    squares = np.exp(2 * np.asarray(worlds.normal(4, 5)))
    bits = strategies.widths_by_step(squares, 4, 3, 5)
    every = np.array([b for b in itertools.product((3, 4, 5), repeat=5) if sum(b) <= 20])
    errors = (squares * 4.0 ** (4 - every)).sum(1)
    np.testing.assert_allclose((squares * 4.0 ** (4 - bits)).sum(), errors.min(), rtol=1e-12)
    assert bits.sum() <= 20


@pytest.mark.parametrize(("num", "width"), [(50, 4), (20, 6), (9, 5)])
def test_the_rule_takes_no_more_bits(num, width):
    bits = strategies.ends_rule(num, width)
    assert bits.sum() == num * width
    assert bits[0] == bits[-1] == width + 1
    assert bits.min() == width - 1


@pytest.mark.parametrize(
    ("call", "words"),
    [(lambda: strategies.step_ceiling(jnp.ones((1, 4)), key=KEY), "two samples"),
     (lambda: strategies.step_ceiling(-jnp.ones((3, 4)), key=KEY), "contributions"),
     (lambda: strategies.step_ceiling(jnp.zeros((3, 4)), key=KEY), "a step that adds nothing"),
     (lambda: strategies.widths_by_step(np.ones(4), 9), "widen the range"),
     (lambda: strategies.ends_rule(3, 4), "at least 4")],
)  # fmt: skip
def test_what_means_nothing_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_words_say_the_widths_of_every_step():
    widths = [4, 4, 6, 4, 5, 6]
    lines = parse_recipe(schedules.words_of(np.array(widths), "stochastic"))
    told = dict.fromkeys(range(6), lines[0].bits.activation.format.bits)
    told |= {step: line.bits.activation.format.bits for line in lines for step in line.steps}
    assert list(told.values()) == widths

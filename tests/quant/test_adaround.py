"""AdaRound against its equations, and against the brute-force optimum it relaxes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, fake_quant
from qdiffjax.quant.adaround import (
    adaround_init,
    adaround_regularizer,
    adaround_schedule,
    fake_quant_adaround,
    rectified_sigmoid,
)
from tests.tolerances import assert_close, both_modes

X = jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
SCALE = jax.random.uniform(jax.random.key(1), (4, 2), X.dtype, 0.2, 0.5)
ZERO = jnp.array([[1], [0], [-1], [2]], jnp.int32)
LOGITS = 2 * jax.random.normal(jax.random.key(2), X.shape, X.dtype)
WIDTHS = jnp.array([2, 3, 4, 8])


def test_soft_rounding_at_its_initial_value_is_the_identity_inside():
    logits = jax.jit(adaround_init)(X, SCALE)
    assert_close(fake_quant_adaround(X, SCALE, logits, format=IntFormat(8)), X)


def test_hard_rounding_at_its_initial_value_is_nearest_rounding():
    logits = adaround_init(X, SCALE)
    got = fake_quant_adaround(X, SCALE, logits, ZERO, format=IntFormat(3), hard=True)
    assert_close(got, fake_quant(X, SCALE, ZERO, format=IntFormat(3)))


def test_rectified_sigmoid_reaches_zero_and_one():
    """1.2 / (1 + e^-V) - 0.1 = 0 at V = -log 11, and 1 at log 11; 1/2 at 0."""
    end = math.log(11)
    h = rectified_sigmoid(jnp.array([-99.0, -end, 0.0, end, 99.0]))
    assert_close(h, np.array([0, 0, 0.5, 1, 1]))


def _plain(bits, x, scale, logits, zero=0.0):
    """The published expression, literally (Nagel et al. 2020, eqs. 22, 23)."""
    s, qmax = jnp.repeat(scale, 3, 1), 2.0 ** (bits - 1.0) - 1
    h = jnp.clip(1.2 / (1 + jnp.exp(-logits)) - 0.1, 0, 1)
    floor = jax.lax.stop_gradient(jnp.floor(x / s))
    return s * (jnp.clip(floor + h + zero, -qmax, qmax) - zero)


def test_derivatives_are_those_of_the_published_form_in_both_modes_and_for_traced_bits():
    def ours(bits):
        function = lambda *p: fake_quant_adaround(*p, ZERO, format=IntFormat(bits))  # noqa: E731
        return both_modes(function, X, SCALE, LOGITS)

    def plain(bits):
        zero = jnp.broadcast_to(ZERO, X.shape).astype(X.dtype)
        return both_modes(lambda *p: _plain(bits, *p, zero), X, SCALE, LOGITS)

    traced = jax.jit(jax.vmap(ours))(WIDTHS)
    jax.tree.map(assert_close, traced, jax.jit(jax.vmap(plain))(WIDTHS.astype(X.dtype)))


def test_hard_rounding_of_traced_bits_is_bit_for_bit_that_of_static_bits():
    hard = lambda b: fake_quant_adaround(X, SCALE, LOGITS, ZERO, format=IntFormat(b), hard=True)  # noqa: E731
    traced = jax.jit(jax.vmap(hard))(WIDTHS)
    np.testing.assert_array_equal(traced[2], jax.jit(hard, static_argnums=0)(4))


def test_code_at_the_end_of_the_range_has_the_gradient_of_the_inside():
    """x = 6.5: h = 1/2 at V = 0, slope 1.2 / 4; at 7 the code 7 + h is beyond qmax = 7."""
    function = lambda v, x: fake_quant_adaround(x, jnp.array(1.0), v, format=IntFormat(4))  # noqa: E731
    slope = jax.jit(jax.vmap(jax.grad(function)))
    logits = jnp.array([0.0, 0.0, -2.0, 2.0])
    h = 1.2 / (1 + np.exp(-2.0)) - 0.1
    inside = 1.2 * np.exp(-2.0) / (1 + np.exp(-2.0)) ** 2
    assert 0 < h < 1
    assert_close(
        slope(logits, jnp.array([6.5, 7.0, -7.0, -7.0])), np.array([0.3, 0, inside, inside])
    )
    at_end = jax.grad(function)(jnp.array(-9.0), jnp.array(7.0))  # h = 0: the code is 7 exactly
    assert at_end == 0


def test_regularizer_is_zero_when_decided_and_largest_at_a_half():
    logits = jnp.array([-99.0, 99.0, 0.0])
    assert_close(adaround_regularizer(logits, 3.0), 1.0)
    h = 1.2 / (1 + np.exp(-0.7)) - 0.1
    assert_close(adaround_regularizer(jnp.array([0.7]), 2.5), 1 - (2 * h - 1) ** 2.5)
    expected = -2.5 * (2 * h - 1) ** 1.5 * 2 * 1.2 * np.exp(-0.7) / (1 + np.exp(-0.7)) ** 2
    assert_close(jax.grad(adaround_regularizer)(jnp.array([0.7]), 2.5), np.array([expected]))
    assert np.all(np.isfinite(jax.grad(adaround_regularizer)(logits, jnp.array(2.0))))


def test_schedule_waits_a_fifth_and_falls_linearly_to_two():
    steps = jnp.array([0, 199, 200, 600, 1000, 2000])
    weight, beta = jax.jit(jax.vmap(lambda step: adaround_schedule(step, 1000)))(steps)
    np.testing.assert_array_equal(weight, [0, 0, 1, 1, 1, 1])
    assert_close(beta, np.array([20, 20, 20, 11, 2, 2], np.float32))


def test_learning_beats_nearest_rounding_where_inputs_are_correlated():
    """|W_hat a - W a|^2 halves, every h is decided, and few of all 2^8 roundings are better."""
    rng = np.random.default_rng(4)
    w = jnp.asarray(rng.normal(size=8))
    scale, format = jnp.array([0.5]), IntFormat(6)
    inputs = rng.normal(size=(64, 2)) @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(64, 8))
    gram = jnp.asarray(inputs.T @ inputs / 64)

    def loss(logits, step):
        weight, beta = adaround_schedule(step, 2000)
        error = fake_quant_adaround(w, scale, logits, format=format) - w
        price = weight.astype(w.dtype) * adaround_regularizer(logits, beta)
        return error @ gram @ error + 0.2 * price

    @jax.jit
    def learn(logits):
        down = lambda v, step: (v - 0.5 * jax.grad(loss)(v, step), None)  # noqa: E731
        return jax.lax.scan(down, logits, jnp.arange(2000))[0]

    logits = learn(adaround_init(w, scale))
    h = np.asarray(rectified_sigmoid(logits))
    assert np.all(np.minimum(h, 1 - h) < 0.2)
    hard = fake_quant_adaround(w, scale, logits, format=format, hard=True)
    ups = np.array(list(itertools.product([0, 1], repeat=8)))
    candidates = [hard, fake_quant(w, scale, format=format), *(np.floor(w / 0.5) + ups) * 0.5]
    errors = np.array(candidates) - np.asarray(w)
    learned, nearest, *every = np.einsum("ri,ij,rj->r", errors, np.asarray(gram), errors)
    assert learned < 0.5 * nearest
    assert np.mean(np.array(every) < learned) < 0.15


def test_misuse_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"begin with adaround_init"):
        fake_quant_adaround(X, SCALE, LOGITS[0], format=IntFormat(4))
    with pytest.raises(ValueError, match="expected IntFormat of 2 bits"):
        fake_quant_adaround(X, SCALE, LOGITS, format=IntFormat(1))

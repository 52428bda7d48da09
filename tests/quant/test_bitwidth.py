"""Bit widths with a gradient, against differences and plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, fake_quant
from qdiffjax.quant.learned import (
    bit_width,
    fake_quant_fractional,
    fake_quant_parametric,
    scale_at,
)
from tests.tolerances import assert_close, both_modes

X = jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
CLIP = jax.random.uniform(jax.random.key(1), (4, 2), X.dtype, 0.8, 1.6)
hold = jax.lax.stop_gradient


def _spread(param):
    return jnp.repeat(param, 3, 1)


def _quantizer(bits, x, clip, *, signed=True):
    """Straight-through autodiff of the integer quantizer of range clip."""
    qmax = 2.0 ** (bits - int(signed)) - 1
    s = _spread(clip) / qmax
    c = jnp.clip(x / s, -qmax if signed else 0.0, qmax)
    return (c + hold(jnp.round(c) - c)) * s


@pytest.mark.parametrize("signed", [True, False])
def test_whole_width_is_the_integer_quantizer(signed):
    run = jax.jit(lambda b: fake_quant_fractional(X, CLIP, b, signed=signed))
    for bits in (2, 3, 8):
        format = IntFormat(bits, signed=signed)
        expected = fake_quant(X, CLIP / format.qmax, format=format)
        assert_close(run(jnp.array(float(bits))), expected)


@pytest.mark.parametrize("signed", [True, False])
def test_derivatives_are_those_of_the_interpolated_quantizers(signed):
    """In both modes, vmapped over widths; in bits it is the difference of the two."""

    def plain(x, clip, bits):
        n = hold(jnp.floor(bits))
        below, above = (_quantizer(b, x, clip, signed=signed) for b in (n, n + 1))
        return below + (bits - n) * (above - below)

    def ours(x, clip, bits):
        return fake_quant_fractional(x, clip, bits, signed=signed)

    widths = jnp.array([2.0, 2.3, 3.5, 7.9])
    results = [
        jax.jit(jax.vmap(lambda b, f=f: both_modes(f, X, CLIP, b)))(widths) for f in (ours, plain)
    ]
    jax.tree.map(assert_close, *results)


def test_widths_may_differ_by_group():
    bits = jnp.array([[2.0, 3.5], [4.0, 2.25], [8.0, 6.0], [2.5, 3.0]])
    whole = jax.jit(fake_quant_fractional)(X, CLIP, bits)
    part = jax.jit(fake_quant_fractional)(X[:1, 3:], CLIP[:1, 1:], jnp.array(3.5))
    assert_close(whole[:1, 3:], part)


def test_the_groups_of_a_vector_have_widths_of_their_own():
    x, clip, bits = X[0], CLIP[0], jnp.array([2.0, 3.5])
    whole = jax.jit(fake_quant_fractional)(x, clip, bits)
    for group in range(2):
        part = slice(3 * group, 3 * group + 3)
        own = (_quantizer(b, X[:1, part], CLIP[:1, group : group + 1]) for b in (2.0, 3.0, 4.0))
        two, three, four = own
        expected = two if group == 0 else (three + four) / 2
        assert_close(whole[part], expected[0])


def test_fractional_is_continuous_in_bits():
    run = jax.jit(lambda b: fake_quant_fractional(X, CLIP, b))
    at, before = run(jnp.array(4.0)), run(jnp.array(4.0 - 1e-9))
    assert np.max(np.abs(at - before)) < 1e-8


def _parametric(x, scale, clip):
    """Uhlich et al. 2020, case U3, by straight-through autodiff."""
    s, c = _spread(scale), _spread(clip)
    v = jnp.abs(x) / s
    rounded = (v + hold(jnp.floor(v + 0.5) - v)) * s
    return jnp.sign(x) * jnp.where(jnp.abs(x) <= c, rounded, c)


def test_parametric_form_has_the_published_gradients():
    results = [
        jax.jit(lambda *p, f=f: both_modes(f, *p))(X, CLIP / 6.5, CLIP)
        for f in (fake_quant_parametric, _parametric)
    ]
    jax.tree.map(assert_close, *results)


def test_parametric_saturates_at_the_clip_itself_and_rounds_half_away():
    x = jnp.array([0.5, -0.5, 1.5, 2.4, 2.6, -9.0, jnp.inf, jnp.nan])
    got = fake_quant_parametric(x, jnp.ones(1), jnp.array([2.5]))
    np.testing.assert_array_equal(got, [1, -1, 2, 2, 2.5, -2.5, 2.5, np.nan])


def test_bit_width_inverts_scale_at_and_is_exact_at_whole_widths():
    bits = jnp.arange(2.0, 17.0)
    for dtype in (jnp.float32, jnp.float64):
        clip = jnp.full(15, 1.3, dtype)
        np.testing.assert_array_equal(bit_width(scale_at(clip, bits.astype(dtype)), clip), bits)
    np.testing.assert_array_equal(
        bit_width(scale_at(jnp.array(1.3), jnp.array(3.2)), jnp.array(1.3)), 4
    )


def test_gradient_of_bit_width_is_that_without_the_ceiling():
    """b = log2(clip / s + 1) + 1:  db/ds = -clip / (s (clip + s) ln 2)."""
    s, c = 0.3, 1.7
    ds, dc = jax.grad(bit_width, (0, 1))(jnp.array(s), jnp.array(c))
    assert_close(ds, -c / (s * (c + s) * np.log(2)))
    assert_close(dc, 1 / ((c + s) * np.log(2)))


def test_derivative_in_bits_at_fixed_clip_is_the_error_times_the_log_step():
    """d x_hat / d b = (round(v) - v) ds/db,  ds/db = -s ln2 2^(b-1) / (2^(b-1) - 1)."""
    bits, clip = 3.7, jnp.array([[1.2]])

    def of_bits(b):
        return fake_quant_parametric(X, scale_at(clip, b), clip)

    got = jax.jit(jax.jacfwd(of_bits))(jnp.array(bits))
    power = 2 ** (bits - 1)
    s = 1.2 / (power - 1)
    v = np.asarray(X) / s
    expected = (np.round(v) - v) * -s * np.log(2) * power / (power - 1)
    assert_close(got, np.where(np.abs(X) <= 1.2, expected, 0.0))


def test_misuse_is_refused_with_a_remedy():
    for bits, signed in ((1.5, True), (0.5, False), (16.5, True)):
        with pytest.raises(ValueError, match="clip them there"):
            fake_quant_fractional(X, CLIP, jnp.array(bits), signed=signed)
    with pytest.raises(ValueError, match="expected positive finite steps"):
        fake_quant_parametric(X, CLIP, -CLIP)

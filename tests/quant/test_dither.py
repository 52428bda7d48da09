"""Theorems of subtractive dither, by exact integration over the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat
from qdiffjax.quant.fake_quant_variants import fake_quant_subtractive
from qdiffjax.quant.rounding import rectangular_like, triangular_like
from tests.tolerances import assert_close

FORMAT = IntFormat(4)
SCALE = jnp.full((1, 1), 0.25)
POINTS = 64


def _uniform_lattice():
    """All of -1/2..1/2 in equal cells, and x on the cell edges: sums are integrals."""
    d = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    x = 0.25 * np.arange(-7 * 8, 7 * 8 + 1) / 8  # the whole window, every eighth of a step
    return jnp.asarray(np.tile(x[:, None], POINTS)), jnp.asarray(np.tile(d, (x.size, 1)))


def test_error_is_uniform_on_one_step_whatever_x_is():
    """Each cell of -scale/2..scale/2 is hit once, for every x of the window, its ends included."""
    x, d = _uniform_lattice()
    error = np.sort(np.asarray(fake_quant_subtractive(x, SCALE, None, d, format=FORMAT) - x), 1)
    uniform = 0.25 * ((np.arange(POINTS) + 0.5) / POINTS - 0.5)
    np.testing.assert_array_equal(error, np.tile(uniform, (x.shape[0], 1)))
    np.testing.assert_allclose((error**2).mean(1), 0.25**2 / 12 * (1 - POINTS**-2.0), rtol=1e-13)


def test_triangular_noise_gives_the_same_law_half_a_step_inside():
    """Modulo one step the triangular law is uniform: equal mass on every cell of the error."""
    points = 2 * POINTS
    d = ((np.arange(points) + 0.5) / points * 2 - 1)[None]
    x = 0.25 * np.arange(-6 * 8, 6 * 8 + 1)[:, None] / 8
    x, d = np.tile(x, points), np.tile(d, (x.size, 1))
    weight = (1 - np.abs(d)) * 2 / points
    x_hat = fake_quant_subtractive(jnp.asarray(x), SCALE, None, jnp.asarray(d), format=FORMAT)
    cell = np.floor((np.asarray(x_hat) - x) / 0.25 * POINTS + POINTS / 2).astype(int)
    mass = np.zeros((x.shape[0], POINTS))
    np.add.at(mass, (np.arange(x.shape[0])[:, None], cell), weight)
    np.testing.assert_allclose(mass, 1 / POINTS, rtol=1e-12)


def test_beyond_the_window_the_output_is_the_last_code_less_the_noise():
    d = jnp.array([[0.25, -0.5]])
    for zero_point, top in ((None, 7), (jnp.array([[3]]), 4)):
        got = fake_quant_subtractive(jnp.full((1, 2), 9.0), SCALE, zero_point, d, format=FORMAT)
        np.testing.assert_array_equal(got, [[0.25 * (top - 0.25), 0.25 * (top + 0.5)]])


def _case():
    x = 1.5 * jax.random.normal(jax.random.key(0), (4, 6), jnp.float64)
    scale = jax.random.uniform(jax.random.key(1), (4, 2), x.dtype, 0.2, 0.5)
    zero = jnp.ones((4, 2))
    noise = triangular_like(jax.random.key(2), x)
    return x, scale, zero, noise


def _plain(x, scale, zero, noise, bits):
    """Autodiff form: the piecewise smooth function with rounding errors held constant."""
    s, z = jnp.repeat(scale, 3, 1), jnp.repeat(zero, 3, 1)
    qmax = 2.0 ** (bits - 1) - 1
    c = jnp.clip(x / s, -qmax - z, qmax - z)
    q = jnp.clip(jnp.round(jax.lax.stop_gradient(x / s) + noise), -qmax - z, qmax - z)
    return s * (c + jax.lax.stop_gradient(jnp.where(c == q, 0.0, q - c)) - noise)


def test_derivatives_are_those_of_the_plain_form_in_both_modes_and_for_traced_bits():
    x, scale, zero, noise = _case()
    noise = noise.astype(x.dtype)
    tangents = jax.tree.map(lambda a: jnp.cos(7 * a), (x, scale))
    u = jnp.sin(5 * x)

    def everything(function, bits):
        out, forward = jax.jvp(lambda x, s: function(x, s, bits), (x, scale), tangents)
        return out, forward, jax.vjp(lambda x, s: function(x, s, bits), x, scale)[1](u)

    def ours(x, s, bits):
        return fake_quant_subtractive(x, s, zero, noise, format=IntFormat(bits))

    widths = jnp.array([2, 3, 4, 8])
    traced = jax.jit(jax.vmap(lambda b: everything(ours, b)))(widths)
    plain = jax.jit(
        jax.vmap(lambda b: everything(lambda x, s, b: _plain(x, s, zero, noise, b), b))
    )(widths.astype(jnp.float64))
    jax.tree.map(assert_close, traced, plain)
    static = jax.jit(lambda x, s: ours(x, s, 4))(x, scale)
    np.testing.assert_array_equal(traced[0][2], static)


def test_dtype_nan_and_infinity():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e-40, 0.3], jnp.bfloat16)
    d = jnp.full(5, 0.25)
    got = fake_quant_subtractive(x, jnp.ones(1), None, d, format=IntFormat(2))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), [np.nan, 0.75, -1.25, -0.25, 0.75])
    for shape in ((0,), (1,)):
        x = jnp.zeros(shape)
        noise = rectangular_like(jax.random.key(0), x)
        got = fake_quant_subtractive(x, jnp.ones(1), None, noise, format=FORMAT)
        assert_close(got, -np.asarray(noise, np.float64))


def test_misuse_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="expected IntFormat of 2 bits"):
        fake_quant_subtractive(jnp.ones(3), jnp.ones(1), None, jnp.ones(3), format=IntFormat(1))
    with pytest.raises(ValueError, match=r"dither: got shape \(1,\) for x of shape \(3,\)"):
        fake_quant_subtractive(jnp.ones(3), jnp.ones(1), None, jnp.ones(1), format=FORMAT)

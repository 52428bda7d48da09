import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax.quant.rounding import (
    binary,
    dithered,
    floor,
    half_away,
    nearest_even,
    rectangular_like,
    stochastic,
    ternary,
    triangular_like,
    uniform_like,
)


def test_ties_round_to_even():
    x = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_array_equal(nearest_even(x), [-2, -2, 0, 0, 2, 2])


def test_floor_has_mean_error_of_minus_half_and_four_times_the_mse():
    points = 64
    x = jnp.asarray((np.arange(points) + 0.5) / points - 3)
    down, near = floor(x) - x, nearest_even(x) - x
    assert float(down.mean()) == -0.5
    assert float(near.mean()) == 0.0
    np.testing.assert_allclose((down**2).mean(), 1 / 3 - 1 / (12 * points**2), rtol=1e-12)
    np.testing.assert_allclose((near**2).mean(), 1 / 12 - 1 / (12 * points**2), rtol=1e-12)


def test_stochastic_rounding_is_floor_of_x_plus_u():
    x = jnp.array([-1.75, -0.25, 0.5, 3.125])
    for u in (0.0, 0.25, 0.5, 0.75, 0.875):  # dyadic: the sum x + u is exact
        expected = np.floor(np.asarray(x) + u)
        np.testing.assert_array_equal(stochastic(x, jnp.full(4, u)), expected)


def test_stochastic_rounding_never_moves_integers():
    x = jnp.array([-300.0, -1.0, 0.0, 1.0, 100.0, 65535.0], jnp.float32)
    for u in (0.0, 0.5, 1 - 2.0**-24):  # floor(100 + u) in float32 would be 101
        np.testing.assert_array_equal(stochastic(x, jnp.full(6, u, jnp.float32)), x)


def test_stochastic_rounding_is_unbiased_with_variance_f_times_1_minus_f():
    num = 40_000
    x = jnp.broadcast_to(jnp.array([[-1.9], [-0.5], [0.1], [2.75]], jnp.float32), (4, num))
    r = np.asarray(stochastic(x, uniform_like(jax.random.key(0), x)), np.float64)
    f = np.asarray(x[:, 0], np.float64) % 1.0
    variance = f * (1 - f)
    assert np.all(np.abs(r.mean(1) - np.asarray(x[:, 0])) < 4 * np.sqrt(variance / num))
    kurtosis_term = variance * (1 - 3 * variance) - variance**2  # 4th central moment - var^2
    se = np.sqrt(np.maximum(kurtosis_term, 0) / num) + variance / num
    assert np.all(np.abs(r.var(1) - variance) < 4 * se + 4 * variance / num)


def test_binary_sends_both_zeros_to_plus_one_and_keeps_nan():
    x = jnp.array([-3.0, -0.0, 0.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(binary(x), [-1, 1, 1, 1, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_away_is_nearest_with_ties_away_from_zero(dtype):
    """Against the decimal module, on ties, their neighbours, and beyond the last fraction."""
    last = 2.0 ** np.finfo(dtype).nmant  # from here on, floats are integers
    points = np.array([0.5, 1.5, 2.5, 1e3 + 0.5, last / 2 - 0.5, last + 1, 2 * last + 2], dtype)
    near = [np.nextafter(points, dtype(0)), points, np.nextafter(points, dtype(np.inf))]
    x = np.concatenate([*near, [dtype(0.3), dtype(1e30)]])
    x = np.concatenate([x, -x])
    expected = [decimal.Decimal(float(v)).to_integral_value(decimal.ROUND_HALF_UP) for v in x]
    for function in (half_away, jax.jit(half_away)):
        got = np.asarray(function(jnp.asarray(x)))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, [float(e) for e in expected])
    assert np.any(np.floor(np.abs(x) + dtype(0.5)) != np.abs(got))  # the naive form is wrong here


def test_half_away_keeps_signs_infinities_and_nan():
    x = jnp.array([-0.0, 0.0, -0.2, jnp.inf, -jnp.inf, jnp.nan, 1e-45], jnp.float32)
    got = np.asarray(half_away(x))
    np.testing.assert_array_equal(got, [0, 0, 0, np.inf, -np.inf, np.nan, 0])
    np.testing.assert_array_equal(np.signbit(got[:3]), [True, False, True])


def _lattice(width, points=64):
    """Dither values at the middle of `points` cells of -width..width, and x on the cell edges.

    For these x every decision threshold is a cell edge, so that a sum over cells is an integral.
    """
    middles = ((np.arange(points) + 0.5) / points * 2 - 1) * width
    x = np.concatenate([np.arange(-12, 13) / 8, np.arange(-12, 13) / 8 + 1000])
    return jnp.asarray(np.tile(x[:, None], points)), jnp.asarray(np.tile(middles, (x.size, 1)))


def test_rectangular_dither_frees_the_mean_but_not_the_variance():
    """Exact integral over d: E e = 0, E e^2 = f (1 - f)."""
    x, d = _lattice(0.5)
    error = np.asarray(dithered(x, d) - x)
    f = np.asarray(x[:, 0]) % 1
    np.testing.assert_array_equal(error.mean(1), 0.0)
    np.testing.assert_array_equal((error**2).mean(1), f * (1 - f))


def test_triangular_dither_frees_the_variance_too():
    """Exact integral over d with density 1 - |d|: E e = 0, E e^2 = 1/4; E e^3 still moves."""
    x, d = _lattice(1.0)
    weight = np.asarray(1 - jnp.abs(d)) * 2 / d.shape[1]  # midpoint rule: exact, it is linear
    error = np.asarray(dithered(x, d) - x)
    np.testing.assert_array_equal((weight * error).sum(1), 0.0)
    np.testing.assert_array_equal((weight * error**2).sum(1), 0.25)
    assert np.ptp((weight * error**3).sum(1)) > 0.05


def test_rectangular_dither_is_stochastic_rounding():
    x = jnp.asarray(np.random.default_rng(0).normal(size=4096) * 50)
    uniform = uniform_like(jax.random.key(1), x)
    np.testing.assert_array_equal(dithered(x, uniform - 0.5), stochastic(x, uniform))


def test_dither_never_moves_large_integers():
    """In float32, 8388609 + 0.4 is 8388609 but 4194305 + 0.4 is 4194305.5, a tie to 4194306."""
    x = jnp.array([4194305.0, 8388609.0, -4194305.0, jnp.inf], jnp.float32)
    assert np.any(np.round(np.asarray(x) + np.float32(0.4)) != np.asarray(x))
    np.testing.assert_array_equal(dithered(x, jnp.full(4, 0.4)), x)


def test_dither_draws_have_the_moments_of_their_laws():
    """Uniform: 1/12 and 1/80; triangular: 1/6 and 1/15; within 4 standard errors."""
    x = jnp.zeros(60_000)
    for draw, end, second, fourth, eighth in (
        (rectangular_like, 0.5, 1 / 12, 1 / 80, 1 / 2304),
        (triangular_like, 1.0, 1 / 6, 1 / 15, 1 / 45),
    ):
        d = np.asarray(draw(jax.random.key(2), x), np.float64)
        assert np.all(np.abs(d) <= end)
        assert abs(d.mean()) < 4 * np.sqrt(second / d.size)
        assert abs((d**2).mean() - second) < 4 * np.sqrt((fourth - second**2) / d.size)
        assert abs((d**4).mean() - fourth) < 4 * np.sqrt((eighth - fourth**2) / d.size)


def test_ternary_is_the_sign_outside_a_dead_zone():
    x = jnp.array([-9.0, -0.8, -0.7, 0.0, 0.7, 0.8, 2.0, jnp.nan])
    got = ternary(x, jnp.array(0.7)[None])
    np.testing.assert_array_equal(got, [-1, -1, 0, 0, 0, 1, 1, np.nan])


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e9, 1e9, width=32), st.floats(-0.5, 0.5, width=32))
def test_half_away_and_dither_stay_within_their_distance_and_half_away_is_odd_and_idempotent(x, d):
    value = jnp.array(x, jnp.float32)
    rounded = half_away(value)
    assert abs(float(rounded) - x) <= 0.5
    assert rounded == -half_away(-value) == half_away(rounded)
    assert abs(float(dithered(value, jnp.array(d, jnp.float32))) - x) <= 1

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax.quant import binary, floor, nearest_even, stochastic, uniform_like


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

"""Scales from moments: constants against tables and algebra, fits against brute force."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, fake_quant
from qdiffjax.quant.calibration import (
    absmax,
    binary_fit,
    gaussian_clip,
    laplace_clip,
    power_of_two,
    rms,
    ternary_fit,
)
from qdiffjax.quant.calibration.moments import LAPLACE
from qdiffjax.quant.noise import optimal_scale
from qdiffjax.quant.rounding import floor, nearest_even, ternary
from tests.tolerances import assert_close

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 10)), jnp.float32)


def test_aciq_overestimates_the_clip_of_the_symmetric_grid():
    """Banner et al. 2019: the root of 2 a / (3 * 4^b) = 2 exp(-a), for 2^b equal cells."""
    for bits, published in ((2, 2.83), (3, 3.89), (4, 5.03)):
        residual = lambda a, b=bits: 2 * a / (3 * 4**b) - 2 * math.exp(-a)  # noqa: E731
        assert residual(published - 0.01) < 0 < residual(published + 0.01)
        clip = optimal_scale(IntFormat(bits), LAPLACE) * IntFormat(bits).qmax
        assert 0.7 * published < clip < published


def test_clips_scale_the_constant_by_the_moment_of_each_granule():
    data = np.asarray(X, np.float64)
    size = {"rms": np.sqrt((data**2).mean((0, 1))), "mean": np.abs(data).mean((0, 1))}
    format, shape = IntFormat(4), (1, 1, 10)
    got = gaussian_clip(X, format=format, scale_shape=shape)[0]
    assert_close(got[0, 0], (0.3534113 * size["rms"]).astype(np.float32))
    got = laplace_clip(X, format=format, scale_shape=shape)[0]
    expected = optimal_scale(format, LAPLACE) * size["mean"]
    assert_close(got[0, 0], expected.astype(np.float32))
    got = rms(X, format=format, scale_shape=shape, multiple=3.0, overhang=0.5)[0]
    assert_close(got[0, 0], (3 * size["rms"] / 7.5).astype(np.float32))


def test_gaussian_clip_is_nearly_the_best_scale_for_gaussian_data():
    """MSE within 1 % of .0128894 (its standard error at n = 2^17 is 0.5 %)."""
    x = jax.random.normal(jax.random.key(0), (2**17,), jnp.float32)
    format = IntFormat(4)
    error = np.asarray(fake_quant(x, *gaussian_clip(x, format=format), format=format) - x)
    assert abs(np.mean(error.astype(np.float64) ** 2) / 0.0128894 - 1) < 0.02


@pytest.mark.slow
def test_traced_bits_look_up_the_static_constants():
    x = X[0]
    widths = jnp.arange(2, 17)
    fit = lambda x, b: laplace_clip(x, format=IntFormat(b))[0]  # noqa: E731
    traced = jax.jit(jax.vmap(fit, (None, 0)))(x, widths)
    for bits in (2, 8, 16):
        static = jax.jit(fit, static_argnums=1)(x, bits)
        np.testing.assert_array_equal(traced[bits - 2], static)
    per_row = gaussian_clip(x, format=IntFormat(jnp.full((6, 1), 4)), scale_shape=(6, 1))[0]
    np.testing.assert_array_equal(
        per_row, gaussian_clip(x, format=IntFormat(4), scale_shape=(6, 1))[0]
    )


def test_rms_of_large_numbers_does_not_overflow():
    x = jnp.full((8,), 1e30, jnp.float32)
    assert_close(rms(x, format=IntFormat(2), multiple=1.0)[0], np.full(1, 1e30, np.float32))


def test_ternary_fit_of_a_hand_worked_case():
    """mean|x| = 2, threshold 1.4, above it 2, 3 and 5 (and not 1 or -1): scale 10/3."""
    x = jnp.array([[1.0, -1.0, 2.0, -3.0, 5.0, 0.0]])
    scale, threshold = ternary_fit(x)
    assert_close(threshold, np.array([[1.4]]))
    assert_close(scale, np.array([[10 / 3]]))
    round_fn = functools.partial(ternary, threshold=threshold / scale)
    got = fake_quant(x, scale, format=IntFormat(2), round_fn=round_fn)
    assert_close(got, np.array([[0, 0, 1, -1, 1, 0]]) * 10 / 3)


def test_the_ternary_scale_of_one_large_number_is_that_number():
    """mean|x| = 5/4, threshold 7/8, above it 5 alone."""
    scale, threshold = ternary_fit(jnp.array([0.0, 0.0, -5.0, 0.0]))
    assert_close(threshold, np.array([0.875]))
    assert_close(scale, np.array([5.0]))


def test_ternary_scale_is_the_best_for_its_threshold():
    """Against least squares by channel; an all-zero channel has scale 1."""
    x = X[0].at[:, 3].set(0.0)
    scale, threshold = ternary_fit(x, scale_shape=(1, 10))
    assert scale[0, 3] == 1
    for c in (0, 5):
        column = np.asarray(x[:, c], np.float64)
        code = np.sign(column) * (np.abs(column) > float(threshold[0, c]))
        assert_close(scale[0, c], np.float32(column @ code / (code @ code)))


def test_binary_fit_is_the_mean_magnitude():
    got, zero = binary_fit(jnp.array([-3.0, 1.0, 2.0, -2.0]))
    assert zero is None
    np.testing.assert_array_equal(got, [2.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_of_two_is_exact_at_every_exponent(dtype):
    finfo = np.finfo(dtype)
    exponents = np.arange(finfo.minexp, finfo.maxexp - 1)
    one = np.ldexp(dtype(1), exponents)
    x = np.stack([one, np.nextafter(one, dtype(np.inf)), np.nextafter(2 * one, dtype(0))])
    for round_fn, steps in ((jnp.ceil, (0, 1, 1)), (floor, (0, 0, 0)), (nearest_even, (0, 0, 1))):
        got = jax.jit(power_of_two, static_argnums=1)(jnp.asarray(x), round_fn)
        assert got.dtype == dtype
        expected = np.stack([np.ldexp(one, s) for s in steps])
        np.testing.assert_array_equal(got, expected)


def test_nearest_power_of_two_has_its_boundary_at_sqrt_2():
    x = jnp.array([1.4142, 1.4143, 2.828, 2.829])
    np.testing.assert_array_equal(power_of_two(x, nearest_even), [1, 2, 2, 4])


def test_power_of_two_up_clips_nothing():
    scale = power_of_two(absmax(X, format=IntFormat(4), scale_shape=(4, 1, 1))[0])
    assert np.all(np.asarray(scale) * 7 >= np.abs(X).max((1, 2), keepdims=True))


def test_misuse_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="got NaN or infinity"):
        gaussian_clip(X.at[0].set(jnp.nan), format=IntFormat(4))

"""Searched ranges against brute force, for any format."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax.quant import IntFormat, absmax, minmax, mse, per_channel, percentile
from qdiffjax.quant.calibration import (
    binary_fit,
    covering,
    gaussian_clip,
    kl,
    laplace_clip,
    lp,
    rms,
)
from qdiffjax.quant.calibration.observers import histogram_observer, kl_range
from qdiffjax.quant.calibration.search import magnitude_histogram, spread
from tests.tolerances import assert_close

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 10)), jnp.float32)
UNSIGNED = IntFormat(4, signed=False)


@dataclasses.dataclass(frozen=True)
class Quarters:
    """A minimal format that is not an integer grid: multiples of 1/4 up to 1."""

    bits: int = 4
    low: float = -1.0
    high: float = 1.0
    is_static: bool = True
    storage_dtype: np.dtype | None = None

    def round(self, v, round_fn):
        return round_fn(v * 4) / 4

    def levels(self):
        return np.arange(-4, 5) / 4


def _scale(x, fit, format, **options):
    """Compiled as one, which is faster than one operation after the other."""
    return jax.jit(lambda x: fit(x, format=format, **options)[0])(x)


@pytest.mark.parametrize("p", [0.5, 2.4, 8.0])
def test_lp_returns_the_best_ratio_of_its_grid(p):
    """Against a plain loop in float64, for each channel on its own."""
    shape, format = per_channel(X, 2), IntFormat(3)
    scale, zero = lp(X, format=format, scale_shape=shape, p=p)
    assert zero is None

    def error(part, scale):
        return np.mean(np.abs(scale * np.clip(np.round(part / scale), -3, 3) - part) ** p)

    for c in range(10):
        part = np.asarray(X[:, :, c], np.float64)
        full = np.abs(part).max() / 3
        best = min(error(part, full * r / 80) for r in range(1, 81))
        np.testing.assert_allclose(error(part, float(scale[0, 0, c])), best, rtol=1e-4)


def test_larger_powers_spare_the_outliers_and_infinity_is_absmax():
    x = jnp.concatenate([X.reshape(-1), jnp.array([8.0], jnp.float32)])
    fits = jax.jit(lambda x: [lp(x, format=IntFormat(4), p=p)[0][0] for p in (1.0, 2.0, 4.0, 60.0)])
    scales, data = np.asarray(fits(x), np.float64), np.asarray(x, np.float64)
    assert np.all(np.diff(scales) >= 0)
    assert scales[0] < scales[-1]

    def largest(scale):
        return np.abs(scale * np.clip(np.round(data / scale), -7, 7) - data).max()

    shrunk = [largest(8 / 7 * r / 80) for r in range(1, 81)]
    np.testing.assert_allclose(largest(scales[-1]), min(shrunk), rtol=0.03)


def test_mse_is_lp_with_p_2():
    for symmetric in (True, False):
        ours = mse(X, format=UNSIGNED, symmetric=symmetric)
        theirs = lp(X, format=UNSIGNED, symmetric=symmetric, p=2.0)
        np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(mse(X, format=IntFormat(1))[0], binary_fit(X)[0])


def test_binary_lp_search_finds_the_median_at_p_1():
    """argmin of mean ||x| - s| is the median of |x|: within one ratio of it."""
    scale, _ = lp(X, format=IntFormat(1), p=1.0)
    assert abs(float(scale[0, 0, 0]) - np.median(np.abs(X))) <= np.abs(X).max() / 80


def test_every_symmetric_calibrator_takes_any_format():
    """Quarters with scale s is the integer grid -4..4 with scale s / 4, of the same range."""

    @dataclasses.dataclass(frozen=True)
    class Nine(Quarters):
        low: float = -4.0
        high: float = 4.0

        def round(self, v, round_fn):
            return round_fn(v)

        def levels(self):
            return np.arange(-4.0, 5)

    for fit in (absmax, covering, percentile, mse, lp, kl, gaussian_clip, laplace_clip, rms):
        extra = {rms: {"multiple": 2.0}, kl: {"num_bins": 64}}.get(fit, {})
        quarters, nine = (_scale(X, fit, f(), **extra) for f in (Quarters, Nine))
        assert_close(quarters, np.asarray(nine) * 4)
    for fit in (minmax, lambda x, format: mse(x, format=format, symmetric=False)):
        with pytest.raises(
            ValueError, match="expected IntFormat of 2 bits or more, or unsigned; other grids"
        ):
            fit(X, format=Quarters())


def test_search_over_traced_bits_is_the_static_search():
    traced = jax.jit(jax.vmap(lambda b: lp(X, format=IntFormat(b))[0]))(jnp.array([3, 6]))
    for row, bits in zip(traced, (3, 6), strict=True):
        static = jax.jit(lambda x, b=bits: lp(x, format=IntFormat(b))[0])(X)
        np.testing.assert_array_equal(row, static)


def test_spread_of_the_example_on_the_slides():
    """Migacz 2017: 1 0 2 3 | 5 3 1 7 in two levels is 2 0 2 2 | 4 4 4 4."""
    counts = jnp.array([1.0, 0, 2, 3, 5, 3, 1, 7])
    got = spread(counts, jnp.array([0, 0, 0, 0, 1, 1, 1, 1]))
    np.testing.assert_array_equal(got, [2, 0, 2, 2, 4, 4, 4, 4])


def test_magnitude_histogram_is_that_of_numpy_for_each_granule():
    counts, top = magnitude_histogram(X, (4, 1, 2), 16)
    for i in range(4):
        for j in range(2):
            part = np.abs(np.asarray(X)[i, :, 5 * j : 5 * j + 5])
            assert top[i, 0, j] == part.max()
            bins = np.minimum(np.floor(part * (16 / part.max())), 15).astype(int)
            np.testing.assert_array_equal(counts[i, 0, j], np.bincount(bins.ravel(), minlength=16))


def _slow_kl_range(x, qmax, num_bins):
    """The definition, bin by bin, in float64; nearest rounding of the bins' centres."""
    counts, _ = np.histogram(np.abs(x), num_bins, (0, np.abs(x).max()))
    best = (np.inf, None)
    for i in range(num_bins, qmax, -1):
        p, q = counts[:i].astype(float), np.zeros(i)
        p[-1] += counts[i:].sum()
        cell = np.round((np.arange(i) + 0.5) * qmax / i)
        for c in np.unique(cell):
            members = (cell == c) & (counts[:i] > 0)
            q[members] = counts[:i][cell == c].sum() / max(members.sum(), 1)
        p, q = p / p.sum(), q / q.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            divergence = np.sum(np.where(p > 0, p * np.log(p / q), 0.0))
        best = min(best, (divergence, -i))
    return np.abs(x).max() * -best[1] / num_bins


def test_kl_range_is_that_of_the_slow_definition():
    rng = np.random.default_rng(1)
    x = np.stack([rng.laplace(size=3000), rng.standard_t(3, size=3000)]).astype(np.float32)
    format = IntFormat(5)
    got, zero = jax.jit(lambda x: kl(x, format=format, scale_shape=(2, 1), num_bins=128))(x)
    assert zero is None
    expected = [[_slow_kl_range(row.astype(np.float64), 15, 128) / 15] for row in x]
    assert_close(got, np.asarray(expected, np.float32))
    assert np.all(np.asarray(got) < np.abs(x).max(1, keepdims=True) / 15)  # it does clip


def test_kl_clips_a_lone_outlier_and_leaves_uniform_data_alone():
    x = np.linspace(-1, 1, 4001)
    format = IntFormat(4)
    assert_close(_scale(jnp.asarray(x), kl, format, num_bins=256), np.array([1 / 7]))
    outlier = jnp.asarray(np.append(np.random.default_rng(0).normal(size=4000), 100.0))
    assert float(_scale(outlier, kl, format, num_bins=512)[0]) * 7 < 10


@pytest.mark.parametrize("format", [IntFormat(4), IntFormat(4, signed=False)])
def test_exact_zeros_move_neither_the_kl_range_nor_that_of_its_observer(format):
    x = np.abs(np.random.default_rng(0).laplace(size=(400, 1))).astype(np.float32)
    with_zeros = np.concatenate([np.zeros((3600, 1), np.float32), x])
    fit = jax.jit(functools.partial(kl, format=format, num_bins=64))
    np.testing.assert_array_equal(fit(with_zeros)[0], fit(x)[0])
    observer = histogram_observer(functools.partial(kl_range, format=format), num_bins=128)

    @jax.jit
    def observed(x):
        state = observer.init((1, 1))
        for batch in (x[::2], x[1::2]):
            state = observer.update(state, batch)
        return observer.finalize(state)

    ends = [observed(data) for data in (with_zeros, x)]
    np.testing.assert_array_equal(*ends)


def test_kl_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="num_bins: got 64 for 128 levels"):
        kl(X, format=IntFormat(8), num_bins=64)
    with pytest.raises(TypeError, match="expected a static format"):
        jax.vmap(lambda b: kl(X, format=IntFormat(b))[0])(jnp.array([4]))


@pytest.mark.parametrize("fit", [lp, kl])
def test_all_zero_channel_has_scale_one(fit):
    x = X.at[:, :, 3].set(0.0)
    scale = _scale(x, fit, IntFormat(4), scale_shape=per_channel(x, 2))
    assert scale[0, 0, 3] == 1.0


FITS = {
    "absmax": absmax,
    "covering": covering,
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "lp": lp,
    "kl": functools.partial(kl, num_bins=32),
    "rms": functools.partial(rms, multiple=2.0),
    "gaussian_clip": gaussian_clip,
    "laplace_clip": laplace_clip,
}


@jax.jit
def _all_fits(x):
    return {name: fit(x, format=IntFormat(4)) for name, fit in FITS.items()}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-40, 40))
def test_every_scale_follows_the_data_by_powers_of_two_bitwise(seed, exponent):
    x = jnp.asarray(np.random.default_rng(seed).standard_t(3, size=32), jnp.float32)
    fits, scaled = _all_fits(x), _all_fits(x * 2.0**exponent)
    for name in FITS:
        if name != "lp":  # |error|^2.4 rounds differently
            np.testing.assert_array_equal(scaled[name][0], fits[name][0] * 2.0**exponent)
    np.testing.assert_array_equal(scaled["minmax"][1], fits["minmax"][1])


@pytest.mark.parametrize("name", FITS)
def test_one_element_is_a_distribution_too_and_none_is_refused(name):
    scale = _scale(jnp.array([-3.0]), FITS[name], IntFormat(4))
    assert 0 < float(scale[0]) <= 3
    with pytest.raises(ValueError, match=r"got shape \(0,\), expected data"):
        FITS[name](jnp.zeros(0), format=IntFormat(4))

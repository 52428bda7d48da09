"""Observers against the same statistic of all data at once."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, scale_from_range
from qdiffjax.quant.calibration.observers import (
    ema_minmax,
    histogram_observer,
    kl_range,
    mse_range,
    percentile_range,
    running_minmax,
)
from qdiffjax.quant.calibration.search import kl_ratio
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("compile_fast")

SHAPE = (1, 3)
GROWING = 10.0 ** np.arange(-3, 3)[:, None, None]
BATCHES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 3)) * GROWING, jnp.float32)
ALL = np.asarray(BATCHES).reshape(48, 3)
HISTOGRAM = histogram_observer(percentile_range, num_bins=64)


@functools.partial(jax.jit, static_argnums=0)
def _scan(observer, batches):
    state = observer.init(SHAPE)
    return jax.lax.scan(lambda s, x: (observer.update(s, x), None), state, batches)[0]


@functools.partial(jax.jit, static_argnums=0)
def _update(observer, state, x):
    return observer.update(state, x)


def _by_numpy(x, num_bins):
    """Histogram on -2^e..2^e, 2^e the least power above max|x|, by channel."""
    ends = 2.0 ** (np.floor(np.log2(np.abs(x).max(0))) + 1)
    return [np.histogram(c, num_bins, (-e, e))[0] for c, e in zip(x.T, ends, strict=True)], ends


def test_running_range_is_that_of_all_data_in_any_order():
    observer = running_minmax()
    for batches in (BATCHES, BATCHES[::-1]):
        low, high = observer.finalize(_scan(observer, batches))
        np.testing.assert_array_equal(low[0], ALL.min(0))
        np.testing.assert_array_equal(high[0], ALL.max(0))


@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_moving_average_begins_with_the_first_batch_and_follows_its_recurrence(momentum):
    observer = ema_minmax(momentum)
    low, high = observer.finalize(_scan(observer, BATCHES))
    lows, highs = np.asarray(BATCHES).min(1), np.asarray(BATCHES).max(1)
    weights = (1 - momentum) * momentum ** np.arange(5, -1, -1.0)
    weights[0] = momentum**5
    assert_close(low[0], (weights @ lows).astype(np.float32))
    assert_close(high[0], (weights @ highs).astype(np.float32))
    assert observer.merge is None


def test_streamed_histogram_is_bit_for_bit_that_of_all_data_in_any_order():
    counts, ends = _by_numpy(ALL, 64)
    for batches in (BATCHES, BATCHES[::-1]):
        state = _scan(HISTOGRAM, batches)
        np.testing.assert_array_equal(2.0 ** np.asarray(state.exponent[0]), ends)
        np.testing.assert_array_equal(state.counts[0], counts)
        np.testing.assert_array_equal(state.range.low[0], ALL.min(0))


@pytest.mark.parametrize("observer", [running_minmax(), HISTOGRAM], ids=["range", "histogram"])
def test_merge_is_the_state_of_both(observer):
    parts = [_scan(observer, b) for b in (BATCHES[:2], BATCHES[2:])]
    whole = _scan(observer, BATCHES)
    for pair in (parts, parts[::-1]):
        jax.tree.map(np.testing.assert_array_equal, observer.merge(*pair), whole)
    empty = observer.init(SHAPE)
    jax.tree.map(np.testing.assert_array_equal, observer.merge(empty, whole), whole)


def test_percentiles_are_exact_to_one_bin():
    x = (np.random.default_rng(1).normal(size=(4000, 3)) * [1, 3, 0.1] + [0, 5, 0]).astype(
        np.float32
    )
    state = jax.jit(HISTOGRAM.update)(HISTOGRAM.init(SHAPE), x)
    width = 2 * 2.0 ** np.asarray(state.exponent[0]) / 64
    for quantile in (0.5, 0.9, 0.999):
        for symmetric in (False, True):
            options = {"quantile": quantile, "symmetric": symmetric}
            ends = jax.jit(functools.partial(percentile_range, **options))(state)
            low, high = (np.asarray(end[0]) for end in ends)
            data = np.abs(x) if symmetric else x
            least = (
                -np.quantile(data, quantile, 0) if symmetric else np.quantile(x, 1 - quantile, 0)
            )
            assert np.all(np.abs(low - least) <= width)
            assert np.all(np.abs(high - np.quantile(data, quantile, 0)) <= width)


def test_percentile_one_is_the_exact_range():
    low, high = percentile_range(_scan(HISTOGRAM, BATCHES), quantile=1.0)
    np.testing.assert_array_equal(low[0], ALL.min(0))
    np.testing.assert_array_equal(high[0], ALL.max(0))


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_range_is_the_best_shrink_of_the_data(symmetric):
    """MSE on the data themselves within 1 % of the best ratio's, by brute force."""
    format = IntFormat(4, signed=symmetric)
    finalize = functools.partial(mse_range, format=format, symmetric=symmetric)
    observer = histogram_observer(finalize)
    rng = np.random.default_rng(2)
    x = rng.standard_t(4, size=(2000, 3)).astype(np.float32)
    low, high = jax.jit(lambda x: observer.finalize(observer.update(observer.init(SHAPE), x)))(x)

    def mse(c, low, high):
        if symmetric:
            scale, zero = max(-low, high) / 7, 0
        else:
            scale = (high - low) / 15
            zero = np.round(-low / scale)
        codes = np.clip(np.round(x[:, c] / scale) + zero, format.qmin, format.qmax)
        return np.mean((scale * (codes - zero) - x[:, c]) ** 2)

    for c in range(3):
        ends = x[:, c].min(), x[:, c].max()
        best = min(mse(c, *(r / 80 * e for e in ends)) for r in range(1, 81))
        assert best <= mse(c, float(low[0, c]), float(high[0, c])) * 1.0001 <= 1.01 * best


def test_kl_range_is_kl_of_the_folded_histogram():
    """Positive and mirrored negative bins make the histogram of |x| on 0..2^e."""
    format, rng = IntFormat(4), np.random.default_rng(3)
    x = rng.laplace(size=(3000, 1)).astype(np.float32)
    observer = histogram_observer(functools.partial(kl_range, format=format), num_bins=128)
    state = _update(observer, observer.init((1, 1)), x)
    low, high = jax.jit(observer.finalize)(state)
    end = 2.0 ** (np.floor(np.log2(np.abs(x).max())) + 1)
    counts, _ = np.histogram(np.abs(x), 64, (0, end))
    ratio = jax.jit(functools.partial(kl_ratio, format=format))
    expected = ratio(counts[None, None]) * np.float32(end)
    np.testing.assert_array_equal(high, np.minimum(expected, np.abs(x).max()))
    assert 0 < float(high[0, 0]) < np.abs(x).max()
    np.testing.assert_array_equal(low, -high)


@pytest.mark.parametrize(
    "observer", [running_minmax(), ema_minmax(), HISTOGRAM], ids=["range", "ema", "histogram"]
)
def test_states_with_a_leading_axis_of_steps_are_one_observer_each(observer):
    """Inside a scan over steps, repeated for each batch; against each step on its own."""
    data = BATCHES.reshape(2, 3, 8, 3)  # batches, steps

    @jax.jit
    def observe(data):
        states = jax.tree.map(lambda s: jnp.stack([s] * 3), observer.init(SHAPE))

        def sample(states, trajectory):
            one_step = lambda _, sx: (None, observer.update(*sx))  # noqa: E731
            return jax.lax.scan(one_step, None, (states, trajectory))[1], None

        states = jax.lax.scan(sample, states, data)[0]
        return states, jax.vmap(observer.finalize)(states)

    states, ranges = observe(data)
    for step in range(3):
        alone = _scan(observer, data[:, step])
        expected = alone, jax.jit(observer.finalize)(alone)
        of_step = jax.tree.map(operator.itemgetter(step), (states, ranges))
        jax.tree.map(np.testing.assert_array_equal, of_step, expected)


@pytest.mark.parametrize(
    "observer", [running_minmax(), ema_minmax(), HISTOGRAM], ids=["range", "ema", "histogram"]
)
def test_nothing_and_zeros_are_the_range_of_zero_with_scale_one(observer):
    empty = observer.init(SHAPE)
    for state in (empty, observer.update(empty, jnp.zeros((4, 3)))):
        low, high = observer.finalize(state)
        np.testing.assert_array_equal(low, np.zeros(SHAPE))
        np.testing.assert_array_equal(high, np.zeros(SHAPE))
        scale, _ = scale_from_range(low, high, qmin=-7, qmax=7, symmetric=True)
        np.testing.assert_array_equal(scale, np.ones(SHAPE))


def test_histogram_survives_any_growth_of_the_range():
    tiny, huge = (jnp.full((4, 1), v, jnp.float32) for v in (1e-29, 3e38))
    observer = histogram_observer(percentile_range, num_bins=8)
    state = observer.init((1, 1))
    for x in (tiny, -tiny, huge, jnp.full((4, 1), 1e-45, jnp.float32)):
        state = _update(observer, state, x)
    np.testing.assert_array_equal(state.counts, [[[0, 0, 0, 4, 8, 0, 0, 4]]])


def test_bfloat16_data_are_observed_exactly():
    x = jnp.asarray(BATCHES[3], jnp.bfloat16)
    state = _update(HISTOGRAM, HISTOGRAM.init(SHAPE), x)
    counts, _ = _by_numpy(np.asarray(x, np.float32), 64)
    np.testing.assert_array_equal(state.counts[0], counts)


def test_misuse_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"momentum: got 1\.0"):
        ema_minmax(1.0)
    with pytest.raises(ValueError, match="num_bins: got 7, expected an even number"):
        histogram_observer(percentile_range, num_bins=7)
    observer = running_minmax()
    with pytest.raises(ValueError, match="got NaN or infinity"):
        observer.update(observer.init(SHAPE), jnp.full((4, 3), jnp.nan))
    with pytest.raises(ValueError, match="divisor"):
        observer.update(observer.init((2,)), jnp.zeros(3))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qdiffjax import quant
from qdiffjax.quant import (
    IntFormat,
    absmax,
    fake_quant,
    minmax,
    minmax_range,
    mse,
    per_channel,
    per_group,
    per_tensor,
    per_token,
    percentile,
    quantization_error,
    scale_from_range,
)
from tests.tolerances import assert_close

# Optimal symmetric integer quantizer of N(0, 1): bits -> (step, MSE); Max 1960 to 4 digits.
GAUSSIAN = {
    2: (1.224006, 0.1901740),
    3: (0.650770, 0.0468600),
    4: (0.353411, 0.0128894),
    5: (0.193249, 3.69322e-3),
    6: (0.105488, 1.06929e-3),
    7: (0.0572613, 3.08622e-4),
    8: (0.0308701, 8.83080e-5),
}
X = jax.random.normal(jax.random.key(0), (4, 6, 10), jnp.float32)


def _gaussian_nodes(num=200_001, end=9.0):
    x = np.linspace(-end, end, num)
    return x, stats.norm.pdf(x) * (x[1] - x[0])


def test_scale_shapes():
    assert per_tensor(X) == (1, 1, 1)
    assert per_channel(X, -1) == (1, 1, 10)
    assert per_channel(X, (0, 2)) == (4, 1, 10)
    assert per_group(X, 1, 3) == (4, 2, 10)
    assert per_group(X, -1, 5) == (4, 6, 2)
    assert per_token(X) == (4, 6, 1)
    with pytest.raises(ValueError, match="group_size: got 4 for axis 1"):
        per_group(X, 1, 4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 10), (4, 2, 10), (4, 6, 1), (2, 3, 5)])
def test_range_of_each_granule_equals_slicing_by_hand(shape):
    low, high = minmax_range(X, shape)
    widths = [n // g for n, g in zip(X.shape, shape, strict=True)]
    for index in np.ndindex(shape):
        part = X[tuple(slice(i * w, (i + 1) * w) for i, w in zip(index, widths, strict=True))]
        assert low[index] == part.min()
        assert high[index] == part.max()


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_gaussian_mse_of_the_optimal_step_by_integration(bits):
    step, expected = GAUSSIAN[bits]
    x, weight = _gaussian_nodes(1_000_001)
    error = quantization_error(jnp.asarray(x), jnp.array([step]), format=IntFormat(bits))
    np.testing.assert_allclose(np.sum(weight * np.asarray(error) ** 2), expected, rtol=2e-6)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_mse_search_finds_the_optimal_gaussian_step(bits):
    """Within 4 standard errors of the sample minimizer plus half a grid spacing."""
    num, spacing = 60_000, 0.01
    step, _ = GAUSSIAN[bits]
    x = jax.random.normal(jax.random.key(bits), (num,), jnp.float32)
    full, _ = absmax(x, format=IntFormat(bits))
    centre = round(step / float(full[0]), 2)
    ratios = np.clip(centre + spacing * np.arange(-12, 13), 0.01, 1.0)
    scale, zero = mse(x, format=IntFormat(bits), ratios=ratios)
    assert zero is None
    se = _standard_error_of_step(step, 2 ** (bits - 1) - 1, num)
    assert abs(float(scale[0]) - step) < 4 * se + 0.5 * spacing * float(full[0])


def _standard_error_of_step(step, qmax, num):
    """Sandwich formula for the minimizer of a sample mean of (Q_s(x) - x)^2 in s."""
    x, weight = _gaussian_nodes()

    def slope(s):
        q = np.clip(np.round(x / s), -qmax, qmax)
        return 2 * (s * q - x) * q

    h = 1e-3 * step
    curvature = np.sum(weight * (slope(step + h) - slope(step - h))) / (2 * h)
    return np.sqrt(np.sum(weight * slope(step) ** 2) / num) / curvature


def test_mse_search_returns_the_best_ratio_of_its_grid():
    """Against a plain loop over the grid, for each channel on its own."""
    shape, format = per_channel(X, 2), IntFormat(3)
    for symmetric in (True, False):
        scale, zero = mse(X, format=format, scale_shape=shape, symmetric=symmetric)
        for c in range(10):
            part = np.asarray(X[:, :, c], np.float64)
            errors = [
                _mse_of_ratio(part, r / 80, format, symmetric=symmetric) for r in range(80, 0, -1)
            ]
            z = None if zero is None else zero[:, :, c : c + 1]
            got = quantization_error(X[:, :, c : c + 1], scale[:, :, c : c + 1], z, format=format)
            np.testing.assert_allclose(np.mean(np.asarray(got) ** 2), min(errors), rtol=1e-4)


def _mse_of_ratio(x, ratio, format, *, symmetric):
    if symmetric:
        scale, zero = ratio * np.abs(x).max() / format.qmax, 0
    else:
        low, high = ratio * min(x.min(), 0), ratio * max(x.max(), 0)
        scale = (high - low) / (format.qmax - format.qmin)
        zero = np.round(format.qmin - low / scale)
    codes = np.clip(np.round(x / scale) + zero, format.qmin, format.qmax)
    return np.mean((scale * (codes - zero) - x) ** 2)


def test_optimal_binary_scale_is_the_mean_magnitude():
    """N(0, 1): scale sqrt(2 / pi), MSE 1 - 2 / pi."""
    x, weight = _gaussian_nodes()
    error = quantization_error(jnp.asarray(x), jnp.array([np.sqrt(2 / np.pi)]), format=IntFormat(1))
    np.testing.assert_allclose(np.sum(weight * np.asarray(error) ** 2), 1 - 2 / np.pi, rtol=1e-4)
    data = jnp.array([-3.0, 1.0, 2.0, -2.0])
    np.testing.assert_array_equal(mse(data, format=IntFormat(1))[0], [2.0])


def test_absmax_clips_nothing_and_is_attained():
    x = jnp.array([[-3.0, 1.0], [0.5, 2.0]])
    scale, zero = absmax(x, format=IntFormat(3), scale_shape=(2, 1))
    assert zero is None
    assert_close(scale, np.array([[1.0], [2 / 3]]))


def test_percentile_is_the_interpolated_quantile():
    x = jnp.arange(-50.0, 51.0)  # |x| has quantile 0.9 at 45 (0, 1, 1, 2, 2, ...)
    scale, _ = percentile(x, format=IntFormat(4), quantile=0.9)
    assert_close(scale, np.array([np.quantile(np.abs(np.asarray(x)), 0.9) / 7]))
    unsigned = IntFormat(4, signed=False)
    scale, zero = percentile(x, format=unsigned, quantile=0.9, symmetric=False)
    assert_close(scale, np.array([(40.0 + 40.0) / 15]))
    np.testing.assert_array_equal(zero, [8])


def test_percentile_one_is_the_full_range():
    format = IntFormat(4)
    shape = per_channel(X, 2)
    for symmetric, full in ((True, absmax), (False, minmax)):
        got = percentile(X, format=format, scale_shape=shape, quantile=1.0, symmetric=symmetric)
        assert_close(got[0], full(X, format=format, scale_shape=shape)[0])


def test_range_away_from_zero_is_widened_to_it():
    """U(2, 3) at 8 bits: the largest error stays half a step of 3 / 255."""
    x = jnp.linspace(2.0, 3.0, 1001)
    format = IntFormat(8, signed=False)
    scale, zero = minmax(x, format=format)
    assert_close(scale, np.array([3 / 255]))
    np.testing.assert_array_equal(zero, [0])
    error = quantization_error(x, scale, zero, format=format)
    assert float(jnp.max(jnp.abs(error))) <= 1.5 / 255 * (1 + 1e-9)


@pytest.mark.parametrize("grid", [absmax, minmax, percentile, mse])
@pytest.mark.parametrize("signed", [True, False])
def test_all_zero_channel_has_scale_one_and_stays_zero(grid, signed):
    x = X.at[:, :, 3].set(0.0)
    format = IntFormat(4, signed=signed)
    scale, zero = grid(x, format=format, scale_shape=per_channel(x, 2))
    assert scale[0, 0, 3] == 1.0
    np.testing.assert_array_equal(fake_quant(x, scale, zero, format=format)[:, :, 3], 0.0)


def test_subnormal_range_does_not_divide_by_zero():
    x = jnp.array([1e-44, -1e-44], jnp.float32)
    scale, _ = absmax(x, format=IntFormat(8))
    np.testing.assert_array_equal(scale, [1.0])


def test_one_observed_range_serves_every_width():
    low, high = minmax_range(X, (1, 1, 10))

    @jax.jit
    @jax.vmap
    def scales(bits):
        format = IntFormat(bits)
        ends = {"qmin": format.qmin, "qmax": format.qmax}
        return scale_from_range(low, high, **ends, symmetric=True)[0]

    for bits, got in zip((2, 4, 8), scales(jnp.array([2, 4, 8])), strict=True):
        largest = np.abs(np.asarray(X)).max((0, 1), keepdims=True)
        assert_close(got, largest / np.float32(2 ** (bits - 1) - 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("grid", [absmax, minmax, percentile, mse])
def test_data_that_are_not_finite_are_refused(grid, bad):
    with pytest.raises(ValueError, match="got NaN or infinity"):
        grid(X.at[0, 0, 0].set(bad), format=IntFormat(4))


def test_misuse_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"\(4, 6, 10\)"):
        absmax(X, format=IntFormat(4), scale_shape=(3, 1, 1))
    for grid in (minmax, lambda x, format: mse(x, format=format, symmetric=False)):
        with pytest.raises(ValueError, match="affine grid"):
            grid(X, format=IntFormat(1))


ONE_BIT = {
    name: lambda x, name=name: getattr(quant, name)(
        x, format=quant.IntFormat(1), scale_shape=(2, 1)
    )
    for name in (
        "absmax",
        "covering",
        "percentile",
        "mse",
        "gaussian_clip",
        "laplace_clip",
        "lsq_init",
    )
} | {"binary_fit": lambda x: quant.binary_fit(x, scale_shape=(2, 1))}


@pytest.mark.parametrize("name", ONE_BIT)
def test_a_channel_of_zeros_stays_zero_at_one_bit(name):
    """The codes are -1 and +1: only the scale can say that the channel is empty."""
    x = jnp.asarray([[0.0, 0.0], [0.5, -0.5]], jnp.float32)
    found = ONE_BIT[name](x)
    scale = found[0] if isinstance(found, tuple) else found
    x_hat = quant.fake_quant(x, scale, format=quant.IntFormat(1))
    assert float(jnp.max(jnp.abs(x_hat[0]))) < 1e-30
    assert float(jnp.max(jnp.abs(x_hat[1]))) > 0.1

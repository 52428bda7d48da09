"""Fitted codebooks against published tables, quadrature, and exhaustive search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad

from qdiffjax.quant.formats.codebook_fits import (
    GAUSSIAN,
    LAPLACE,
    kmeans_codebook,
    lloyd_max,
    quantile_codebook,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("compile_fast")

# J. Max, "Quantizing for minimum distortion", IRE Trans. Inform. Theory 6, 1960, table I: the
# positive thresholds and outputs; as transcribed in public code that cites it, the original was
# not seen. His 32 levels are left out: they had not converged, and are off by up to two units.
MAX_1960 = {
    2: ("0.9816", "0.4528 1.510"),
    3: ("0.5006 1.050 1.748", "0.2451 0.7560 1.344 2.152"),
    4: (
        "0.2582 0.5224 0.7996 1.099 1.437 1.844 2.401",
        "0.1284 0.3881 0.6568 0.9424 1.256 1.618 2.069 2.733",
    ),
}
# Positive outputs and mean squared error by Lloyd's iteration in 30 digits, apart from this code.
# (The table of Paez and Glisson, 1972, for Laplace was not available to compare with.)
CONVERGED = {
    (1, GAUSSIAN): ("0.79788456", "0.363380228"),
    (2, GAUSSIAN): ("0.45278003 1.5104176", "0.117481848"),
    (3, GAUSSIAN): ("0.24509418 0.75600528 1.3439093 2.1519457", "0.0345477608"),
    (4, GAUSSIAN): (
        "0.12839503 0.3880483 0.65675912 0.94234046 1.2562312 1.6180464 2.0690172 2.7325896",
        "0.00950100801",
    ),
    (1, LAPLACE): ("0.70710678", "0.5"),
    (2, LAPLACE): ("0.41975574 1.8339693", "0.176194881"),
    (3, LAPLACE): ("0.23340092 0.83296178 1.6724733 3.0866868", "0.0544759879"),
    (4, LAPLACE): (
        "0.123986 0.40483922 0.72865035 1.1109841 1.5777859 2.1773468 3.0168582 4.4310718",
        "0.0153725271",
    ),
}
# Mean squared errors alone, seven digits, likewise.
CONVERGED_ERRORS = {5: "0.00250467", 6: "0.000644240", 7: "0.000163478", 8: "0.0000411851"}


def _units(printed):
    """Value, and one unit of the last digit, of a printed number."""
    return float(printed), 10.0 ** -len(printed.split(".")[1])


def _mean_squared_error(y, density):
    """By quadrature over each cell, from nothing but the levels and the density."""
    edges = np.concatenate([[-np.inf], (y[1:] + y[:-1]) / 2, [np.inf]])
    cells = zip(y, edges[:-1], edges[1:], strict=True)
    terms = [
        quad(lambda x, c=c: (x - c) ** 2 * density(x), a, b, epsabs=1e-14) for c, a, b in cells
    ]
    return sum(t[0] for t in terms)


GAUSSIAN_PDF = scipy.stats.norm.pdf
LAPLACE_PDF = scipy.stats.laplace(scale=np.sqrt(0.5)).pdf


DENSITIES = {GAUSSIAN: GAUSSIAN_PDF, LAPLACE: LAPLACE_PDF}


@pytest.mark.parametrize("bits", MAX_1960)
def test_lloyd_max_agrees_with_max_1960_to_one_unit_of_the_last_digit(bits):
    """He prints 0.7996 for 0.79955, 0.3881 for 0.38805 and 0.9424 for 0.94234: so not half one."""
    y = lloyd_max(bits).levels()[2 ** (bits - 1) :]
    for found, printed in zip(((y[1:] + y[:-1]) / 2, y), MAX_1960[bits], strict=True):
        for got, digits in zip(found, printed.split(), strict=True):
            want, unit = _units(digits)
            assert abs(got - want) <= unit


@pytest.mark.parametrize(("bits", "source"), CONVERGED)
def test_lloyd_max_agrees_with_converged_values_to_their_last_digit(bits, source):
    outputs, error = CONVERGED[bits, source]
    y = lloyd_max(bits, source).levels()
    for got, printed in zip(y[2 ** (bits - 1) :], outputs.split(), strict=True):
        want, unit = _units(printed)
        assert abs(got - want) <= 0.51 * unit
    want, unit = _units(error)
    assert abs(_mean_squared_error(y, DENSITIES[source]) - want) <= 0.51 * unit


def test_gaussian_lloyd_max_error_agrees_with_converged_values_to_their_last_digit():
    for bits, printed in CONVERGED_ERRORS.items():
        want, unit = _units(printed)
        y = lloyd_max(bits).levels()
        assert abs(_mean_squared_error(y, GAUSSIAN_PDF) - want) <= 0.51 * unit


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_last_laplace_level_lies_one_mean_behind_its_threshold(bits):
    """The exponential law forgets: the mean beyond t is t + 1 / rate, the rate being sqrt(2)."""
    y = lloyd_max(bits, LAPLACE).levels()
    assert_close(y[-1] - (y[-1] + y[-2]) / 2, np.sqrt(0.5))


@pytest.mark.parametrize(
    ("source", "law"),
    [(GAUSSIAN, scipy.stats.norm), (LAPLACE, scipy.stats.laplace(scale=np.sqrt(0.5)))],
)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_lloyd_max_levels_are_the_means_of_their_cells(source, law, bits):
    y = lloyd_max(bits, source).levels()
    edges = np.concatenate([[-40.0], (y[1:] + y[:-1]) / 2, [40.0]])
    for level, a, b in list(zip(y, edges[:-1], edges[1:], strict=True))[:: max(1, 2**bits // 8)]:
        mass, mean = (quad(f, a, b, epsabs=1e-15)[0] for f in (law.pdf, lambda x: x * law.pdf(x)))
        assert abs(level - mean / mass) <= 1e-8
    np.testing.assert_array_equal(y, -y[::-1])


@pytest.mark.parametrize(
    ("source", "constant"), [(GAUSSIAN, np.sqrt(3) * np.pi / 2), (LAPLACE, 4.5)]
)
def test_lloyd_max_error_tends_to_that_of_panter_and_dite(source, constant):
    """MSE = 1 - E y^2 at the optimum; its ratio to (int p^(1/3))^3 / 12 n^2 tends to one."""
    gaps = []
    for bits in (6, 8, 10):
        y = lloyd_max(bits, source).levels()
        positive = y[y > 0]
        edges = np.append(np.append(0.0, (positive[1:] + positive[:-1]) / 2), np.inf)
        error = 1 - 2 * np.sum(positive**2 * -np.diff(source.tail(edges)))
        gaps.append(abs(error / (constant * 4.0**-bits) - 1))
    slopes = np.diff(np.log2(gaps)) / 2
    assert np.all(np.abs(slopes + 1) < 0.1)  # first order in 1 / n


# --- Fits to data -------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=500)


@functools.partial(jax.jit, static_argnames="bits")
def _kmeans(x, weights=None, *, bits, max_steps=500):
    return kmeans_codebook(x, bits, weights=weights, max_steps=max_steps)


def _error(x, levels):
    return np.mean(np.min((x[:, None] - np.asarray(levels)) ** 2, axis=1))


def test_kmeans_on_a_weighted_grid_is_lloyd_max_of_that_density():
    """Thresholds between samples h apart move the means by at most h / 2 in one step.

    The fixed point then moves by at most |(I - J)^-1| h, where J is the Jacobian of the step;
    the norm is 9.7 for eight levels.
    """
    h = 0.002
    x = np.arange(-6, 6, h) + h / 2
    levels = _kmeans(x, scipy.stats.norm.pdf(x), bits=3)
    assert np.max(np.abs(levels - lloyd_max(3).levels())) <= 9.7 * h / 2


def test_kmeans_levels_are_the_means_of_their_members():
    levels = np.asarray(_kmeans(X, bits=3))
    member = np.argmin(np.abs(X[:, None] - levels), axis=1)
    assert_close(levels, np.array([X[member == j].mean() for j in range(8)]))


def test_kmeans_of_one_step_moves_each_level_to_the_mean_of_its_members_once():
    start = np.asarray(jax.jit(lambda x: quantile_codebook(x, 3))(X))
    member = np.argmin(np.abs(X[:, None] - start), axis=1)
    means = np.array([X[member == j].mean() for j in range(8)])
    assert np.max(np.abs(means - start)) > 0.01
    assert_close(_kmeans(X, bits=3, max_steps=1), means)


def test_kmeans_error_never_grows():
    errors = [_error(X, _kmeans(X, bits=3, max_steps=k)) for k in (0, 2, 500)]
    assert np.all(np.diff(errors) <= 0)
    assert errors[-1] < 0.95 * errors[0]


def test_kmeans_finds_the_best_of_all_partitions_of_separated_clusters():
    x = np.sort(np.concatenate([c + 0.1 * RNG.normal(size=4) for c in (-5.0, -1.0, 2.0, 7.0)]))

    def cost(cuts):
        return sum(np.sum((part - part.mean()) ** 2) for part in np.split(x, cuts))

    best = min(itertools.combinations(range(1, x.size), 3), key=cost)
    expected = np.array([part.mean() for part in np.split(x, best)])
    assert_close(_kmeans(x, bits=2), expected)


def test_weights_count_repetitions():
    counts = RNG.integers(0, 4, X.size)
    repeated = _kmeans(np.repeat(X, counts), np.ones(counts.sum()), bits=3)
    assert_close(_kmeans(X, counts.astype(float), bits=3), repeated)
    quantiles = jax.jit(lambda x, w: quantile_codebook(x, 3, weights=w))
    again = quantiles(np.repeat(X, counts), None)
    np.testing.assert_array_equal(quantiles(X, counts.astype(float)), again)


def test_kmeans_maps_over_channels_as_it_runs_one_by_one():
    x = np.stack([X[:250], 3 * X[250:]])
    together = jax.jit(jax.vmap(lambda row: kmeans_codebook(row, 2)))(x)
    singly = [_kmeans(row, bits=2) for row in x]
    assert_close(together, np.stack(singly))


def test_quantile_codebook_is_the_median_of_equally_filled_cells():
    x = RNG.permutation(np.arange(21.0))[:20]  # four cells of five, whose median is a sample
    cells = np.sort(x).reshape(4, 5)
    levels = jax.jit(lambda x: quantile_codebook(x, 2))(x)
    np.testing.assert_array_equal(levels, np.median(cells, axis=1))


def test_one_element_gives_its_value_at_every_level():
    np.testing.assert_array_equal(_kmeans(np.array([0.3]), bits=1), [0.3, 0.3])


def test_bad_arguments_are_refused():
    for bits in (0, 13, 2.0):
        with pytest.raises(ValueError, match=r"bits: got .*, expected"):
            lloyd_max(bits)
    with pytest.raises(ValueError, match="not empty"):
        kmeans_codebook(jnp.zeros(0), 2)
    with pytest.raises(ValueError, match="expected equal"):
        quantile_codebook(jnp.zeros(3), 1, weights=jnp.zeros(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        kmeans_codebook(jnp.array([0.0, jnp.nan]), 1)
    with pytest.raises(TypeError, match="cast x first"):
        quantile_codebook(jnp.arange(4), 1)

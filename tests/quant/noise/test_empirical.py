"""Errors of data, predicted from their histograms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import noise
from qdiffjax.quant.formats import floats
from qdiffjax.quant.formats.codebook_fits import lloyd_max
from qdiffjax.quant.formats.codebooks import nf4
from qdiffjax.quant.formats.integers import IntFormat
from qdiffjax.quant.formats.logarithmic import LogFormat
from qdiffjax.quant.qtensor import quantization_error
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("compile_fast")

DATA_FORMATS = {
    "int4": IntFormat(4), "int8": IntFormat(8), "e2m1": floats.E2M1, "e4m3fn": floats.E4M3FN,
    "e5m2": floats.E5M2, "bf16": floats.BF16, "log2": LogFormat(4, 1.0, True), "nf4": nf4(),
    "lloyd4": lloyd_max(4),
}  # fmt: skip
DATA_SHAPE = (16, 2048)


def heavy_tails(name) -> np.ndarray:
    rng = np.random.default_rng(7)
    spread = np.exp(rng.standard_normal((16, 1)))  # of the channels
    if name == "student":
        return spread * rng.standard_t(3, DATA_SHAPE)
    if name == "mixture":
        is_wide = rng.uniform(size=DATA_SHAPE) < 0.02
        return spread * np.where(is_wide, 20.0, 1.0) * rng.standard_normal(DATA_SHAPE)
    return np.maximum(rng.standard_normal(DATA_SHAPE) - 0.3, 0)  # relu: many exact zeros


@functools.partial(jax.jit, static_argnames="format")
def errors(x, scale, format):
    return quantization_error(x, scale, format=format)


@pytest.mark.parametrize("data", ["student", "mixture", "relu"])
@pytest.mark.parametrize("name", DATA_FORMATS)
def test_a_histogram_predicts_the_error_of_data_within_five_percent(name, data):
    format, x = DATA_FORMATS[name], heavy_tails(data)
    absmax = np.abs(x).max(1, keepdims=True)
    whole = np.full((16, 1), absmax.max())
    for scale in (absmax / format.high, whole / format.high, 0.3 * absmax / format.high):
        e = errors(x, scale, format)
        mse = float(np.mean(np.asarray(e) ** 2))
        predicted = noise.predict_error(x, scale, format=format)
        assert abs(predicted.mse / mse - 1) < 0.05
        cross = np.asarray(e) * x
        difference = (predicted.gain - 1) * np.mean(x**2) - cross.mean()
        assert abs(difference) < 5 * cross.std() / math.sqrt(x.size)
        if 0 in format.levels() or data != "relu":  # else zeros are ties, with a law of their own
            assert abs(predicted.mean - np.mean(e)) < 5 * np.std(e) / math.sqrt(x.size)


def test_a_histogram_predicts_the_error_of_affine_channels():
    x = heavy_tails("student") + np.linspace(-3, 3, 16)[:, None]
    format = IntFormat(6, signed=False)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = (high - low) / format.qmax
    zero = np.round(-low / scale)
    args = (jnp.asarray(a) for a in (x, scale, zero))
    e = np.asarray(quantization_error(*args, format=format))
    predicted = noise.predict_error(x, scale, zero, format=format)
    np.testing.assert_allclose(predicted.mse, np.mean(e**2), rtol=0.05)
    assert abs(predicted.mean - e.mean()) < 5 * e.std() / math.sqrt(e.size)
    assert abs(predicted.gain - np.mean(x * (x + e)) / np.mean(x**2)) < 0.2 * e.std() / x.std()


def test_numbers_that_are_alone_in_their_bin_or_repeat_stay_where_they_are():
    x = np.array([-2.0, -2.0, 0.0, 0.0, 0.0, 0.7, 1.0, 1.0 + 1e-9, 3.0 - 1e-9, 3.0])
    weights = np.arange(10.0)
    histogram = functools.partial(noise.histogram, per_octave=4, num_atoms=0)
    law, weighted = histogram(x), histogram(x, weights)
    for points in (x, x - 1e-6, np.linspace(-3, 4, 99)):
        for found, w in ((law, np.ones(10)), (weighted, weights)):
            below = np.array([np.sum(w[x <= p]) for p in points]) / w.sum()
            is_sure = np.all(np.abs(points - np.array([[1.0], [3.0]])) > 1e-8, 0)  # within bins
            assert_close(found.cumulative(points)[0][is_sure], below[is_sure])
    assert law.masses.size < 2 * 6  # six bins, and what is between


def test_data_of_few_distinct_numbers_are_predicted_exactly():
    """A time embedding: 128 numbers, eight times each, in channels of different scales."""
    angles = 0.98 * 100.0 ** -np.linspace(0, 1, 64)
    x = np.tile(np.concatenate([np.sin(angles), np.cos(angles)]), (8, 1))
    for format in (IntFormat(8), floats.BF16, floats.FP16, nf4()):
        for scale in (np.full((1, 1), 1 / format.high), np.full((8, 2), [0.3, 0.5]) / format.high):
            e = np.asarray(errors(x, scale, format))
            predicted = noise.predict_error(x, scale, format=format).mse
            assert_close(predicted, np.mean(e**2), scale=np.mean(x**2))


def test_a_few_outliers_that_decide_the_error_of_a_float_are_kept():
    """(sum x^2)^2 / sum x^4 numbers count, 83 here: bins alone may be off by .9 / sqrt(83)."""
    x = np.exp(1.3 * np.random.default_rng(1).standard_normal(2**15))
    assert np.sum(x**2) ** 2 / np.sum(x**4) < 84
    scale = np.ones(1) * x.max() / floats.FP16.high
    mse = np.mean(np.asarray(errors(x, scale, floats.FP16)) ** 2)
    assert abs(noise.predict_error(x, scale, format=floats.FP16).mse / mse - 1) < 0.005


def test_the_number_that_matters_most_is_an_atom_between_its_neighbours():
    """All in one octave: 1.03 counts 100 times, so that bins end before and begin behind it."""
    x = np.array([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06])
    weights = np.array([1.0, 1, 1, 100, 1, 1, 1])
    law = noise.histogram(x, weights, per_octave=1, num_atoms=1)
    points = np.array([1.0205, 1.029999, 1.030001, 1.0395])  # between it and its neighbours
    assert_close(law.cumulative(points)[0], np.array([3, 3, 103, 103]) / 106)
    spread = noise.histogram(x, weights, per_octave=1, num_atoms=0)
    assert np.all(spread.cumulative(points)[0] != law.cumulative(points)[0])


def test_the_entropy_of_a_law_with_an_atom_is_minus_infinity():
    """The limit of a bin of width w and mass m, whose -m log(m / w) goes there with log w."""
    law = noise.Histogram(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.25]))
    assert law.entropy == -math.inf


def test_a_histogram_is_small_whatever_the_data():
    for size in (10, 1000, 2**18):
        x = np.random.default_rng(2).standard_cauchy(size)
        assert noise.histogram(x).masses.size + noise.histogram(x).edges.size < 3 * 6000
        assert noise.histogram(x, num_atoms=10, per_octave=1).masses.size < 2 * (62 + 22)


@pytest.mark.parametrize("x", [np.zeros(3), np.full(1, -2.5), np.array([5e-324, 1.0])])
def test_degenerate_data_have_a_histogram(x):
    law = noise.histogram(x)
    assert_close(law.cumulative(np.array(np.inf))[1], x.mean(), scale=np.abs(x).max() + 1)

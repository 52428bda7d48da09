"""Closed forms of the theory of one rounding against sums over cells and quadrature."""

import math

import numpy as np
import pytest

from qdiffjax.quant import noise
from qdiffjax.quant.formats import floats
from qdiffjax.quant.formats.codebook_fits import LAPLACE, lloyd_max
from qdiffjax.quant.formats.codebooks import nf4
from qdiffjax.quant.formats.integers import IntFormat
from tests.quant.noise import oracles
from tests.tolerances import assert_close, assert_digits
from tests.worlds import GAUSSIAN, HISTOGRAM, LAPLACIAN, MANY


@pytest.mark.parametrize("law", [GAUSSIAN, LAPLACIAN, HISTOGRAM, oracles.uniform(-0.3, 1.1)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_widrows_series_is_the_sum_over_cells(law, scale):
    exact = noise.predict(MANY, scale, law).mse
    # The series ends after 1e5 terms; those of a law with jumps decay as 1 / k^3.
    np.testing.assert_allclose(oracles.widrow_mse(scale, law), exact, rtol=1e-8)


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.0, 3.9, 4.1, 8.0])
def test_bussgang_gain_of_the_uniform_quantizer_is_a_theta_function(scale):
    gain = noise.predict(MANY, scale, GAUSSIAN).gain
    assert_close(oracles.bussgang_gain(1.7 * scale, 1.7), gain, scale=1.0)


@pytest.mark.parametrize("format", [IntFormat(3), floats.E2M1, nf4(), lloyd_max(4)])
def test_gain_of_a_saturating_quantizer_is_a_sum_over_thresholds(format):
    for scale in (0.1, 0.9, 4.0):
        expected = noise.predict(format, scale, noise.Gaussian(0.8)).gain
        assert_close(oracles.saturating_gain(format, scale, 0.8), expected)


@pytest.mark.parametrize(("law", "source"), [(GAUSSIAN, None), (LAPLACIAN, LAPLACE)])
@pytest.mark.parametrize("bits", [1, 3, 6])
def test_at_the_lloyd_max_optimum_the_gain_is_one_minus_the_distortion(law, source, bits):
    format = lloyd_max(bits, source) if source else lloyd_max(bits)
    stats = noise.predict(format, 1.0, law)
    assert_close(stats.gain, 1 - stats.mse)


def test_one_bit_of_a_laplacian_is_half():
    assert_close(noise.predict(lloyd_max(1, LAPLACE), 1.0, LAPLACIAN).mse, 0.5)


@pytest.mark.parametrize(("law", "constant"), [
    (GAUSSIAN, math.sqrt(3) * math.pi / 2), (LAPLACIAN, 4.5), (oracles.uniform(-2.0, 4.0), 3.0),
])  # fmt: skip
def test_panter_dite_constants(law, constant):
    assert_close(noise.panter_dite_mse(0, law), constant)
    assert_close(noise.panter_dite_mse(3, law), constant / 64)


def test_lloyd_max_tends_to_panter_dite_with_an_error_that_halves_with_each_bit():
    for law, source in ((GAUSSIAN, ()), (LAPLACIAN, (LAPLACE,))):
        gaps = [
            1 - noise.predict(lloyd_max(b, *source), 1.0, law).mse / noise.panter_dite_mse(b, law)
            for b in (5, 6, 7, 8, 9)
        ]
        slopes = np.diff(np.log2(gaps))
        np.testing.assert_allclose(slopes, -1.0, atol=0.1)


def test_rate_distortion_bounds_of_a_gaussian():
    assert_close(noise.shannon_mse(3, noise.Gaussian(2.0)), 4 / 64)
    for law in (GAUSSIAN, LAPLACIAN):
        ratio = oracles.entropy_coded_mse(4, law) / noise.shannon_mse(4, law)
        assert_close(ratio, math.pi * math.e / 6)
        assert_digits(10 * math.log10(ratio), "1.533")
        assert_digits(math.log(ratio, 4), ".2546")
        assert noise.shannon_mse(4, law) < noise.predict(lloyd_max(4), 1.0, law).mse


def test_entropy_coding_of_a_fine_uniform_quantizer_attains_its_law():
    s = 2.0**-6
    edges = s * (np.arange(-800, 800) + 0.5)
    mass = np.diff(GAUSSIAN.cumulative(edges)[0])
    bits = -np.sum(mass[mass > 0] * np.log2(mass[mass > 0]))
    predicted = noise.predict(MANY, s, GAUSSIAN).mse
    np.testing.assert_allclose(oracles.entropy_coded_mse(bits, GAUSSIAN), predicted, rtol=1e-4)

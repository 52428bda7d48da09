"""Laws, and the exact error of each format and rounding, against integrals and the functions."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from qdiffjax.quant import noise, rounding
from qdiffjax.quant.formats import floats
from qdiffjax.quant.formats.codebook_fits import lloyd_max
from qdiffjax.quant.formats.codebooks import nf4
from qdiffjax.quant.formats.integers import IntFormat
from qdiffjax.quant.formats.logarithmic import LogFormat
from qdiffjax.quant.qtensor import quantization_error
from tests.quant.noise import oracles
from tests.tolerances import assert_close
from tests.worlds import GAUSSIAN, HISTOGRAM, LAPLACIAN, MANY

pytestmark = pytest.mark.usefixtures("compile_fast")

LAWS = {
    "gaussian": (noise.Gaussian(1.5, -0.5), scipy.stats.norm(-0.5, 1.5)),
    "laplace": (noise.Laplace(0.7), scipy.stats.laplace(0, 0.7 / math.sqrt(2))),
    "uniform": (oracles.uniform(-0.5, 2.0), scipy.stats.uniform(-0.5, 2.5)),
    "histogram": (
        HISTOGRAM, scipy.stats.rv_histogram((HISTOGRAM.masses, HISTOGRAM.edges), density=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_moments_up_to_a_point_are_the_integrals(name):
    law, reference = LAWS[name]
    points = np.array([-40.0, -2.0, -0.5, -0.1, 0.0, 0.3, 1.7, 60.0])
    found = law.cumulative(points)
    kinks = HISTOGRAM.edges if name == "histogram" else np.array([-0.5, 0.0, 2.0])
    for j, point in enumerate(points):
        ends = np.unique(np.clip(np.concatenate([[-40.0, point], kinks]), -40.0, point))
        for k in range(4):
            integrals = [
                scipy.integrate.quad(lambda u, k=k: u**k * reference.pdf(u), a, b, epsabs=1e-13)[0]
                for a, b in itertools.pairwise(ends)
            ]
            np.testing.assert_allclose(found[k, j], sum(integrals), rtol=0, atol=1e-10)
    np.testing.assert_allclose(law.cumulative(np.array(-np.inf)), 0.0, atol=1e-200)
    assert_close(law.cumulative(np.array(np.inf))[2], reference.moment(2))


@pytest.mark.parametrize("name", LAWS)
def test_entropy_quantiles_and_characteristic_function_are_those_of_scipy(name):
    law, reference = LAWS[name]
    assert_close(law.entropy, float(reference.entropy()), factor=1e6)
    p = np.array([0.01, 0.2, 0.5, 0.77, 0.999])
    assert_close(law.quantile(p), reference.ppf(p), factor=256)
    nodes = law.quantile((np.arange(200_000) + 0.5) / 200_000)
    t = np.array([0.3, 1.0, 2.5])
    by_hand = np.mean(np.exp(1j * t[:, None] * nodes), 1)
    np.testing.assert_allclose(oracles.characteristic(law, t), by_hand, atol=2e-5)
    cubes = scipy.integrate.quad(lambda u: reference.pdf(u) ** (1 / 3), -60, 60, limit=2000,
                                 points=[-6, -1.5, -0.5, 0, 0.25, 2, 2.5])[0]  # fmt: skip
    np.testing.assert_allclose(law.cube_norm, cubes**3, rtol=1e-6)


def test_moments_of_the_magnitude_are_those_of_the_mirrored_points():
    law, folded = noise.Gaussian(1.5), noise.Folded(noise.Gaussian(1.5))
    x = np.random.default_rng(0).uniform(0, 5, 9)
    parts = law.cumulative(x) - law.cumulative(-x)  # even powers of -x..x
    assert_close(folded.cumulative(x)[::2], parts[::2])
    mean = 1.5 * math.sqrt(2 / math.pi)
    assert_close(folded.cumulative(np.array(np.inf))[:2], np.array([1, mean]))
    assert_close(folded.cumulative(-x), np.zeros((4, 9)))


EXACT_FORMATS = {
    "int3": IntFormat(3), "int8": IntFormat(8), "int4_full": IntFormat(4, narrow=False),
    "uint4": IntFormat(4, signed=False), "binary": IntFormat(1), "e2m1": floats.E2M1,
    "e4m3fn": floats.E4M3FN, "e4m3b11fnuz": floats.E4M3B11FNUZ, "e5m2": floats.E5M2,
    "bf16": floats.BF16, "fp16": floats.FP16, "log2": LogFormat(4),
    "log2_signed": LogFormat(4, 1.0, True), "sqrt2_signed": LogFormat(5, 0.5, True),
    "nf4": nf4(), "lloyd3": lloyd_max(3),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT_FORMATS)
@pytest.mark.parametrize("how", ["nearest", "floor"])
def test_prediction_for_the_law_of_the_samples_is_their_error(name, how):
    format = EXACT_FORMATS[name]
    rng = np.random.default_rng(3)
    scale = 0.25  # levels times the scale are exact, so that floor at a level is tested
    levels = format.levels()[np.abs(format.levels()) < 9]
    x = np.concatenate([rng.choice(levels, 100), 5 * rng.standard_normal(412)]) * scale
    round_fn = {"nearest": rounding.nearest_even, "floor": rounding.floor}[how]
    scales = jnp.asarray([scale])
    e = np.asarray(quantization_error(jnp.asarray(x), scales, format=format, round_fn=round_fn))
    stats = noise.predict(format, scale, oracles.samples(x), getattr(noise, how))
    size = np.sqrt(np.mean(x**2))
    assert_close(stats.mse, np.mean(e**2), scale=size**2)
    assert_close(stats.mean, np.mean(e), scale=size)
    assert_close(stats.gain, np.mean(x * (x + e)) / np.mean(x**2), factor=64)
    assert_close(stats.variance, np.var(e), scale=size**2)
    assert_close(10 ** (-stats.sqnr_db / 10), np.mean(e**2) / np.mean(x**2), scale=1.0)


def test_the_affine_prediction_for_samples_is_their_error():
    x = np.random.default_rng(4).gamma(2.0, size=512) - 0.3
    format, scale, zero = IntFormat(4, signed=False), 0.25, 2
    e = quantization_error(jnp.asarray(x), jnp.asarray([scale]), jnp.asarray([zero]), format=format)
    stats = noise.predict(format, scale, oracles.samples(x), zero_point=zero)
    assert_close(stats.mse, np.mean(np.asarray(e) ** 2), scale=np.mean(x**2))
    assert_close(stats.mean, np.mean(np.asarray(e)), scale=1.0)


def test_mse_of_nearest_rounding_is_the_squared_wasserstein_distance():
    x = np.sort(np.random.default_rng(5).laplace(size=300))
    e = quantization_error(jnp.asarray(x), jnp.asarray([0.5]), format=IntFormat(3))
    coupled = np.sort(x + np.asarray(e)) - x  # in one dimension the optimal coupling is sorted
    predicted = noise.predict(IntFormat(3), 0.5, oracles.samples(x)).mse
    assert_close(predicted, np.mean(coupled**2), factor=64)


def test_triangular_dither_has_the_moments_of_its_density_up_to_both_ends():
    """clip(round(v + d)) with density 1 - |d|: level y where y - 1/2 < v + d < y + 1/2."""
    format = IntFormat(2, signed=False)
    pieces, triangle = noise.triangular_dither(format), scipy.stats.triang(0.5, -1, 2)
    for v in np.linspace(-1.45, 4.45, 60):
        levels = np.arange(-4, 8)
        mass = triangle.cdf(levels + 0.5 - v) - triangle.cdf(levels - 0.5 - v)
        errors = np.clip(levels, 0, 3) - v
        (here,) = np.flatnonzero((pieces.lower < v) & (v <= pieces.upper))
        u = v - pieces.centre[here]
        found = [np.polynomial.Polynomial(c[here])(u) for c in (pieces.mean, pieces.square)]
        assert_close(np.array(found), np.array([mass @ errors, mass @ errors**2]), scale=1.0)


FINE = {"nearest": (0, 1 / 12), "floor": (-1 / 2, 1 / 3), "stochastic": (0, 1 / 6),
        "triangular_dither": (0, 1 / 4), "subtractive_dither": (0, 1 / 12)}  # fmt: skip


@pytest.mark.parametrize("how", FINE)
@pytest.mark.parametrize(
    "law", [GAUSSIAN, LAPLACIAN, HISTOGRAM], ids=["gaussian", "laplace", "mix"]
)
def test_with_a_fine_step_every_rounding_has_its_textbook_error(how, law):
    scale = 2.0**-9
    mean, mse = FINE[how]
    stats = noise.predict(MANY, scale, law, getattr(noise, how))
    np.testing.assert_allclose(stats.mse / scale**2, mse, rtol=1e-4)
    np.testing.assert_allclose(stats.mean / scale, mean, atol=1e-4)
    first, second = law.cumulative(np.array(np.inf))[1:3]
    gain = 1 + mean * scale * first / second  # e is uncorrelated with x
    np.testing.assert_allclose(stats.gain, gain, atol=1e-5)


@pytest.mark.parametrize("how", FINE)
def test_prediction_is_equivariant_under_powers_of_two(how):
    for exponent in (-30, 5, 40):
        factor = 2.0**exponent
        unit = noise.predict(IntFormat(4), 0.37, noise.Gaussian(1.0, 0.2), getattr(noise, how))
        law = noise.Gaussian(factor, 0.2 * factor)
        scaled = noise.predict(IntFormat(4), 0.37 * factor, law, getattr(noise, how))
        assert scaled.mse == factor**2 * unit.mse
        assert scaled.mean == factor * unit.mean
        assert scaled.gain == unit.gain


def test_odd_quantizers_of_symmetric_laws_have_no_bias():
    for format in (IntFormat(4), floats.E3M2, LogFormat(4, 1.0, True), lloyd_max(3)):
        for law in (GAUSSIAN, LAPLACIAN, oracles.uniform(-2, 2)):
            assert_close(noise.predict(format, 0.4, law).mean, 0.0, scale=1.0)


def test_bad_input_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="scale: got 0"):
        noise.predict(IntFormat(4), 0, GAUSSIAN)
    with pytest.raises(ValueError, match="equal steps"):
        noise.predict(floats.E2M1, 1.0, GAUSSIAN, noise.triangular_dither)
    with pytest.raises(ValueError, match="at most"):
        noise.predict(floats.FloatFormat(8, 23, "ieee"), 1.0, GAUSSIAN)
    with pytest.raises(ValueError, match="static"):
        noise.predict(IntFormat(jnp.asarray(4)), 1.0, GAUSSIAN)
    with pytest.raises(ValueError, match="std: got -1"):
        noise.Gaussian(-1)
    with pytest.raises(ValueError, match="not descending"):
        noise.Histogram(np.array([1.0, 0.0]), np.ones(1))
    with pytest.raises(ValueError, match=r"got shape \(0, 3\)"):
        noise.histogram(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="finite"):
        noise.predict_error(np.array([np.nan]), 1.0, format=IntFormat(4))
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        noise.predict_error(np.ones(4), np.zeros(1), format=IntFormat(4))
    with pytest.raises(ValueError, match="same rank"):
        noise.predict_error(np.ones(4), np.ones((1, 4)), format=IntFormat(4))

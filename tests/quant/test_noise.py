"""The theory of one rounding against tables, brute force and Monte Carlo."""

import functools
import itertools
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from qdiffjax.quant import blocks, floats, noise, rounding
from qdiffjax.quant.block_scales import absmax_scale, e4m3_scale, floor_scale
from qdiffjax.quant.codebook_fits import LAPLACE, lloyd_max
from qdiffjax.quant.codebooks import CodebookFormat, nf4
from qdiffjax.quant.dither import fake_quant_subtractive
from qdiffjax.quant.formats import IntFormat
from qdiffjax.quant.logarithmic import LogFormat
from qdiffjax.quant.qtensor import quantization_error
from tests.helpers import assert_close

GAUSSIAN, LAPLACIAN = noise.Gaussian(), noise.Laplace()
MANY = IntFormat(16)  # far more levels than any test reaches: no saturation
MIXTURE = noise.Histogram(
    np.array([-6.0, -1.5, -0.5, 0.0, 0.25, 2.5]), np.array([0.05, 0.25, 0.2, 0.3, 0.2])
)


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
    """These tests compile much and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def assert_digits(value, printed: str):
    """Assert that value, rounded to as many digits, is the printed number."""
    unit = 10.0 ** Decimal(printed).as_tuple().exponent
    assert abs(value - float(printed)) <= 0.50001 * unit, (value, printed)


def midrise(num: int) -> CodebookFormat:
    """`num` equally spaced levels with zero between two of them (even) or among them (odd)."""
    return CodebookFormat(np.arange(num) - (num - 1) / 2)


def best(format, law=GAUSSIAN):
    scale = noise.optimal_scale(format, law)
    return scale, noise.predict(format, scale, law)


# bits, symmetric step, its MSE, mid-rise step, its MSE, survey's eq. 4 MSE, its bias, Lloyd-Max
GAUSSIAN_TABLE = [
    (2, "1.224006", ".1901740", ".995687", ".1188461", ".1494311", "-6.07e-2", ".1174818"),
    (3, ".650770", ".0468600", ".586019", ".0374397", ".0406382", "-1.06e-2", ".0345478"),
    (4, ".353411", ".0128894", ".335201", ".0115429", ".0118640", "-1.88e-3", ".0095010"),
    (5, ".193249", "3.69322e-3", ".188139", "3.49521e-3", "3.52596e-3", None, "2.50467e-3"),
    (6, ".105488", "1.06929e-3", ".104063", "1.04005e-3", "1.04285e-3", None, "6.44240e-4"),
    (7, ".0572613", "3.08622e-4", ".0568677", "3.04333e-4", "3.04579e-4", None, "1.63478e-4"),
    (8, ".0308701", "8.83080e-5", ".0307624", "8.76862e-5", "8.77069e-5", None, "4.11851e-5"),
]


@pytest.mark.parametrize("row", GAUSSIAN_TABLE, ids=lambda row: f"{row[0]}bits")
def test_optimal_quantizers_of_a_gaussian_have_the_tabulated_steps_and_errors(row):
    bits, step, mse, rise_step, rise_mse, full_mse, full_bias, lloyd_mse = row
    scale, stats = best(IntFormat(bits))
    assert_digits(scale, step)
    assert_digits(stats.mse, mse)
    scale, stats = best(midrise(2**bits))
    assert_digits(scale, rise_step)
    assert_digits(stats.mse, rise_mse)
    stats = best(IntFormat(bits, narrow=False))[1]
    assert_digits(stats.mse, full_mse)
    if full_bias:
        assert_digits(stats.mean, full_bias)
    assert_digits(noise.predict(lloyd_max(bits), 1.0, GAUSSIAN).mse, lloyd_mse)


def test_the_binary_quantizer_of_a_gaussian_is_max_1960():
    scale, stats = best(IntFormat(1))
    assert_digits(2 * scale, "1.595769")
    assert_digits(stats.mse, ".3633802")
    assert_close(scale, math.sqrt(2 / math.pi), factor=1e8)  # a minimum is found to sqrt(eps)
    assert_close(stats.mse, 1 - 2 / math.pi)


# J. Max 1960, table II: number of equally spaced levels, step, mean squared error.
MAX_UNIFORM = [
    (2, "1.596", ".3634"), (3, "1.224", ".1902"), (4, ".9957", ".1188"), (5, ".8430", ".08218"),
    (6, ".7334", ".06065"), (7, ".6508", ".04686"), (8, ".5860", ".03744"), (9, ".5338", ".03069"),
    (10, ".4908", ".02568"), (11, ".4546", ".02185"), (12, ".4238", ".01885"),
    (13, ".3972", ".01645"), (14, ".3739", ".01450"), (15, ".3534", ".01289"),
    (16, ".3352", ".01154"), (32, ".1881", ".003495"),
]  # fmt: skip


@pytest.mark.parametrize(("num", "step", "mse"), MAX_UNIFORM)
def test_equally_spaced_levels_are_those_of_max_1960(num, step, mse):
    scale, stats = best(midrise(num))
    assert_digits(scale, step)
    unit = 10.0 ** Decimal(mse).as_tuple().exponent  # some of his errors are cut, not rounded
    assert -0.5 * unit < stats.mse - float(mse) < unit


FLOAT_TABLE = [
    (floats.E4M3FN, "7.0451e-4", None, None), (floats.E5M2, "2.79060e-3", None, None),
    (floats.E2M1, None, "2.9225", ".0126849"), (floats.E3M2, None, None, "2.76611e-3"),
    (floats.E2M3, None, None, "8.29147e-4"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "unit_mse", "clip", "mse"), FLOAT_TABLE)
def test_floats_on_a_gaussian_have_the_tabulated_errors(format, unit_mse, clip, mse):
    scale, stats = best(format)
    if unit_mse:
        assert_digits(noise.predict(format, 1.0, GAUSSIAN).mse, unit_mse)
    if clip:
        assert_digits(scale * format.high, clip)
    if mse:
        assert_digits(stats.mse, mse)


def test_no_scale_is_better_than_the_optimal_one():
    for format in (IntFormat(3), IntFormat(4, signed=False), floats.E2M1, LogFormat(4, 1.0, True)):
        for law in (GAUSSIAN, LAPLACIAN, MIXTURE):
            least = noise.predict(format, noise.optimal_scale(format, law), law).mse
            tried = [noise.predict(format, s, law).mse for s in np.geomspace(0.02, 20, 400)]
            assert least <= min(tried) * (1 + 1e-12)
            assert min(tried) < 1.001 * least  # and that is attained


LAWS = {
    "gaussian": (noise.Gaussian(1.5, -0.5), scipy.stats.norm(-0.5, 1.5)),
    "laplace": (noise.Laplace(0.7), scipy.stats.laplace(0, 0.7 / math.sqrt(2))),
    "uniform": (noise.uniform(-0.5, 2.0), scipy.stats.uniform(-0.5, 2.5)),
    "histogram": (
        MIXTURE, scipy.stats.rv_histogram((MIXTURE.masses, MIXTURE.edges), density=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_moments_up_to_a_point_are_the_integrals(name):
    law, reference = LAWS[name]
    points = np.array([-40.0, -2.0, -0.5, -0.1, 0.0, 0.3, 1.7, 60.0])
    found = law.cumulative(points)
    kinks = MIXTURE.edges if name == "histogram" else np.array([-0.5, 0.0, 2.0])
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
    np.testing.assert_allclose(law.characteristic(t), by_hand, atol=2e-5)
    cubes = scipy.integrate.quad(lambda u: reference.pdf(u) ** (1 / 3), -60, 60, limit=2000,
                                 points=[-6, -1.5, -0.5, 0, 0.25, 2, 2.5])[0]  # fmt: skip
    np.testing.assert_allclose(law.cube_norm, cubes**3, rtol=1e-6)


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
    stats = noise.predict(format, scale, noise.samples(x), getattr(noise, how))
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
    stats = noise.predict(format, scale, noise.samples(x), zero_point=zero)
    assert_close(stats.mse, np.mean(np.asarray(e) ** 2), scale=np.mean(x**2))
    assert_close(stats.mean, np.mean(np.asarray(e)), scale=1.0)


def test_mse_of_nearest_rounding_is_the_squared_wasserstein_distance():
    x = np.sort(np.random.default_rng(5).laplace(size=300))
    e = quantization_error(jnp.asarray(x), jnp.asarray([0.5]), format=IntFormat(3))
    coupled = np.sort(x + np.asarray(e)) - x  # in one dimension the optimal coupling is sorted
    predicted = noise.predict(IntFormat(3), 0.5, noise.samples(x)).mse
    assert_close(predicted, np.mean(coupled**2), factor=64)


@pytest.mark.parametrize("law", [GAUSSIAN, LAPLACIAN, MIXTURE, noise.uniform(-0.3, 1.1)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_widrows_series_is_the_sum_over_cells(law, scale):
    exact = noise.predict(MANY, scale, law).mse
    # The series ends after 1e5 terms; those of a law with jumps decay as 1 / k^3.
    found = noise.widrow_mse(scale, lambda t: np.concatenate(
        [law.characteristic(part) for part in np.array_split(t, 50)]))  # fmt: skip
    np.testing.assert_allclose(found, exact, rtol=1e-8)


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.0, 3.9, 4.1, 8.0])
def test_bussgang_gain_of_the_uniform_quantizer_is_a_theta_function(scale):
    gain = noise.predict(MANY, scale, GAUSSIAN).gain
    assert_close(noise.bussgang_gain(1.7 * scale, 1.7), gain, scale=1.0)


@pytest.mark.parametrize("format", [IntFormat(3), floats.E2M1, nf4(), lloyd_max(4)])
def test_gain_of_a_saturating_quantizer_is_a_sum_over_thresholds(format):
    for scale in (0.1, 0.9, 4.0):
        expected = noise.predict(format, scale, noise.Gaussian(0.8)).gain
        assert_close(noise.saturating_gain(format, scale, 0.8), expected)


@pytest.mark.parametrize(("law", "source"), [(GAUSSIAN, None), (LAPLACIAN, LAPLACE)])
@pytest.mark.parametrize("bits", [1, 3, 6])
def test_at_the_lloyd_max_optimum_the_gain_is_one_minus_the_distortion(law, source, bits):
    format = lloyd_max(bits, source) if source else lloyd_max(bits)
    stats = noise.predict(format, 1.0, law)
    assert_close(stats.gain, 1 - stats.mse)


def test_one_bit_of_a_laplacian_is_half():
    assert_close(noise.predict(lloyd_max(1, LAPLACE), 1.0, LAPLACIAN).mse, 0.5)


@pytest.mark.parametrize(("law", "constant"), [
    (GAUSSIAN, math.sqrt(3) * math.pi / 2), (LAPLACIAN, 4.5), (noise.uniform(-2.0, 4.0), 3.0),
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
        ratio = noise.entropy_coded_mse(4, law) / noise.shannon_mse(4, law)
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
    np.testing.assert_allclose(noise.entropy_coded_mse(bits, GAUSSIAN), predicted, rtol=1e-4)


@pytest.mark.parametrize("bits", [0, 1, 3, 7])
def test_relative_error_of_floats_is_the_integral_over_a_binade(bits):
    step = 2.0**-bits
    cuts = [1.0, *(1 + step * (np.arange(2**bits) + 0.5)), 2.0]

    def relative(x):
        return ((np.round(x / step) * step - x) / x) ** 2 / x / math.log(2)

    pieces = itertools.pairwise(cuts)
    whole = sum(scipy.integrate.quad(relative, a, b, epsabs=1e-16)[0] for a, b in pieces)
    np.testing.assert_allclose(noise.float_relative_mse(bits), whole, rtol=1e-9)


def test_relative_error_of_floats_tends_to_its_high_resolution_form():
    assert_digits(noise.float_relative_mse(3), "7.0205e-4")
    limit = 3 / (96 * math.log(2))
    assert_digits(limit, ".04508")
    gaps = [noise.float_relative_mse(m) * 4**m / limit - 1 for m in (3, 4, 5, 6)]
    np.testing.assert_allclose(np.diff(np.log2(np.abs(gaps))), -2.0, atol=0.1)
    assert_close(noise.float_relative_mse(11), limit / 4**11)


FINE = {"nearest": (0, 1 / 12), "floor": (-1 / 2, 1 / 3), "stochastic": (0, 1 / 6),
        "triangular_dither": (0, 1 / 4), "subtractive_dither": (0, 1 / 12)}  # fmt: skip


@pytest.mark.parametrize("how", FINE)
@pytest.mark.parametrize("law", [GAUSSIAN, LAPLACIAN, MIXTURE], ids=["gaussian", "laplace", "mix"])
def test_with_a_fine_step_every_rounding_has_its_textbook_error(how, law):
    scale = 2.0**-9
    mean, mse = FINE[how]
    stats = noise.predict(MANY, scale, law, getattr(noise, how))
    np.testing.assert_allclose(stats.mse / scale**2, mse, rtol=1e-4)
    np.testing.assert_allclose(stats.mean / scale, mean, atol=1e-4)
    first, second = law.cumulative(np.array(np.inf))[1:3]
    gain = 1 + mean * scale * first / second  # e is uncorrelated with x
    np.testing.assert_allclose(stats.gain, gain, atol=1e-5)


# --- Monte Carlo -----------------------------------------------------------------------------

NUM_SAMPLES = 2**14
MC_LAWS = (GAUSSIAN, LAPLACIAN, noise.uniform(-1.7, 1.7), MIXTURE)
# Format, scale, zero point. The scales clip often or never: a few clipped samples are no sample.
MC_FORMATS = {
    "int2": (IntFormat(2), 1.2, None), "int3": (IntFormat(3), 0.6, None),
    "int4": (IntFormat(4), 0.3, None), "int8": (IntFormat(8), 0.012, None),
    "int4 full": (IntFormat(4, narrow=False), 0.35, None),
    "int4 affine": (IntFormat(4, signed=False), 0.4, 6), "binary": (IntFormat(1), 0.8, None),
    "e2m1": (floats.E2M1, 0.5, None), "e3m2": (floats.E3M2, 0.1, None),
    "e2m3": (floats.E2M3, 0.4, None), "e4m3fn": (floats.E4M3FN, 0.006, None),
    "e5m2": (floats.E5M2, 1.0, None), "e4m3b11fnuz": (floats.E4M3B11FNUZ, 0.06, None),
    "bf16": (floats.BF16, 1.0, None), "fp16": (floats.FP16, 0.7, None),
    "log2": (LogFormat(3), 2.5, None), "log2 signed": (LogFormat(4, 1.0, True), 2.5, None),
    "sqrt2 signed": (LogFormat(5, 0.5, True), 3.0, None), "nf4": (nf4(), 2.8, None),
    "lloyd-max": (lloyd_max(3), 1.1, None),
}  # fmt: skip
ROUNDINGS = {
    "nearest": (noise.nearest, lambda x, key: rounding.nearest_even),
    "half away": (noise.nearest, lambda x, key: rounding.half_away),
    "floor": (noise.floor, lambda x, key: rounding.floor),
    "stochastic": (noise.stochastic, lambda x, key: functools.partial(
        rounding.stochastic, uniform=rounding.uniform_like(key, x))),
    "rectangular": (noise.stochastic, lambda x, key: functools.partial(
        rounding.dithered, dither=rounding.rectangular_like(key, x))),
    "triangular": (noise.triangular_dither, lambda x, key: functools.partial(
        rounding.dithered, dither=rounding.triangular_like(key, x))),
    "subtractive": (noise.subtractive_dither, None),
}  # fmt: skip


def monte_carlo_pairs():
    for name, (format, scale, zero) in MC_FORMATS.items():
        for how in ROUNDINGS:
            is_dithered = how in ("rectangular", "triangular", "subtractive")
            if not is_dithered or (isinstance(format, IntFormat) and not format.is_binary):
                yield name, how, format, scale, zero


def errors_of(how, format, scale, zero, x, key):
    """Errors [laws, samples] of one pair by the functions that users call."""
    scale = jnp.full((1, 1), scale, jnp.float32)
    zero = None if zero is None else jnp.full((1, 1), zero)
    if how == "subtractive":
        dither = rounding.rectangular_like(key, x)
        return fake_quant_subtractive(x, scale, zero, dither, format=format) - x
    round_fn = ROUNDINGS[how][1](x, key)
    return quantization_error(x, scale, zero, format=format, round_fn=round_fn)


@functools.cache
def z_scores():
    """(measured - predicted) / standard error of E e, E e^2, E x e [pairs, laws, 3]."""
    rng, scores = np.random.default_rng(11), []
    keys = jax.random.split(jax.random.key(11), len(MC_FORMATS) * len(ROUNDINGS))
    for key, (_, how, format, scale, zero) in zip(keys, monte_carlo_pairs(), strict=False):
        p = rng.uniform(size=(len(MC_LAWS), NUM_SAMPLES))
        x = np.stack([law.quantile(row) for law, row in zip(MC_LAWS, p, strict=True)])
        x = x.astype(np.float32)
        e = np.asarray(errors_of(how, format, scale, zero, jnp.asarray(x), key), np.float64)
        samples = np.stack([e, e**2, x * e], -1)
        predicted = []
        for law in MC_LAWS:
            s = noise.predict(format, scale, law, ROUNDINGS[how][0], zero_point=zero or 0)
            power = float(law.cumulative(np.array(np.inf))[2])
            predicted.append((s.mean, s.mse, (s.gain - 1) * power))
        standard_error = samples.std(1) / math.sqrt(NUM_SAMPLES)
        scores.append((samples.mean(1) - np.array(predicted)) / standard_error)
    return np.stack(scores)


def test_monte_carlo_agrees_for_every_format_rounding_and_law():
    # 380 pairs: the largest of 1140 standard normals is above 4.5 with probability 0.8 %.
    z = z_scores()
    names = [f"{name}, {how}" for name, how, *_ in monte_carlo_pairs()]
    worst = np.unravel_index(np.argmax(np.abs(z)), z.shape)
    assert np.abs(z).max() < 4.5, (names[worst[0]], worst[1:], z[worst])


def test_monte_carlo_scatters_as_its_standard_error_says():
    # The mean of n squared normals is 1 +- sqrt(2 / n); E e and E x e are correlated: n / 2.
    z = z_scores()
    assert abs(np.mean(z**2) - 1) < 4 * math.sqrt(2 / (z.size / 2))
    assert abs(np.mean(np.abs(z) < 1) - 0.683) < 4 * math.sqrt(0.683 * 0.317 / (z.size / 2))


# --- blocks ----------------------------------------------------------------------------------

BLOCKS = {  # format, mean squared error on N(0, 1) by Monte Carlo of 4.2e6, +-0.1 %
    "mxfp4": (blocks.MXFP4, 0.01321), "mxfp8_e4m3": (blocks.MXFP8_E4M3, 8.61e-4),
    "mxfp6_e2m3": (blocks.MXFP6_E2M3, 8.05e-4), "mxfp6_e3m2": (blocks.MXFP6_E3M2, 2.91e-3),
    "mxint8": (blocks.MXINT8, 6.82e-5),
    "int4_g32": (blocks.BlockFormat(IntFormat(4), 32, absmax_scale), 9.41e-3),
    "int4_g64": (blocks.BlockFormat(IntFormat(4), 64, absmax_scale), 0.01159),
    "int8_g32": (blocks.BlockFormat(IntFormat(8), 32, absmax_scale), 2.86e-5),
    "nvfp4_exact_scale": (blocks.BlockFormat(floats.E2M1, 16, absmax_scale), 8.86e-3),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_block_formats_on_a_gaussian_have_the_tabulated_errors(name):
    format, monte_carlo = BLOCKS[name]
    np.testing.assert_allclose(noise.predict_blocks(format, GAUSSIAN).mse, monte_carlo, rtol=4e-3)


@pytest.mark.parametrize("law", [LAPLACIAN, noise.Gaussian(0.01)], ids=["laplace", "gaussian"])
@pytest.mark.parametrize("scale_fn", [floor_scale, e4m3_scale, absmax_scale])
def test_block_prediction_agrees_with_monte_carlo(law, scale_fn):
    format, num_blocks = blocks.BlockFormat(floats.E2M1, 8, scale_fn), 2**14
    p = np.random.default_rng(6).uniform(size=(num_blocks, 8))
    x = jnp.asarray(law.quantile(p), jnp.float32)
    e = np.asarray(blocks.fake_quant_block(x, format) - x, np.float64)
    stats = noise.predict_blocks(format, law)
    for power, predicted in ((1, stats.mean), (2, stats.mse)):
        by_block = np.mean(e**power, 1)  # elements of a block are not independent
        assert abs(by_block.mean() - predicted) < 4 * by_block.std() / math.sqrt(num_blocks)


def test_a_block_of_one_element_with_its_own_magnitude_as_scale_has_no_error():
    stats = noise.predict_blocks(blocks.BlockFormat(IntFormat(4), 1, absmax_scale), GAUSSIAN)
    assert_close(stats.mse, 0.0, scale=1.0)
    assert_close(stats.gain, 1.0)


# --- data ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("data", ["student", "mixture", "relu"])
@pytest.mark.parametrize("name", DATA_FORMATS)
def test_a_histogram_predicts_the_error_of_data_within_five_percent(name, data):
    format, x = DATA_FORMATS[name], heavy_tails(data)
    absmax = np.abs(x).max(1, keepdims=True)
    for scale in (absmax / format.high, np.full((1, 1), absmax.max() / format.high),
                  0.3 * absmax / format.high):  # fmt: skip
        e = quantization_error(jnp.asarray(x), jnp.asarray(scale), format=format)
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
    law, weighted = noise.histogram(x, per_octave=4), noise.histogram(x, weights, per_octave=4)
    for points in (x, x - 1e-6, np.linspace(-3, 4, 99)):
        for found, w in ((law, np.ones(10)), (weighted, weights)):
            below = np.array([np.sum(w[x <= p]) for p in points]) / w.sum()
            is_sure = np.all(np.abs(points - np.array([[1.0], [3.0]])) > 1e-8, 0)  # within bins
            assert_close(found.cumulative(points)[0][is_sure], below[is_sure])
    assert law.masses.size < 2 * 6  # six bins, and what is between


@pytest.mark.parametrize("x", [np.zeros(3), np.full(1, -2.5), np.array([5e-324, 1.0])])
def test_degenerate_data_have_a_histogram(x):
    law = noise.histogram(x)
    assert_close(law.cumulative(np.array(np.inf))[1], x.mean(), scale=np.abs(x).max() + 1)


# --- invariances and refusals ----------------------------------------------------------------


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
        for law in (GAUSSIAN, LAPLACIAN, noise.uniform(-2, 2)):
            assert_close(noise.predict(format, 0.4, law).mean, 0.0, scale=1.0)


def test_bad_input_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="scale: got 0"):
        noise.predict(IntFormat(4), 0, GAUSSIAN)
    with pytest.raises(ValueError, match="equal steps"):
        noise.predict(floats.E2M1, 1.0, GAUSSIAN, noise.triangular_dither)
    with pytest.raises(ValueError, match="float_relative_mse"):
        noise.predict(floats.FloatFormat(8, 23, "ieee"), 1.0, GAUSSIAN)
    with pytest.raises(ValueError, match="static"):
        noise.predict(IntFormat(jnp.asarray(4)), 1.0, GAUSSIAN)
    with pytest.raises(ValueError, match="std: got -1"):
        noise.Gaussian(-1)
    with pytest.raises(ValueError, match="not descending"):
        noise.Histogram(np.array([1.0, 0.0]), np.ones(1))
    with pytest.raises(ValueError, match="no elements"):
        noise.histogram(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="finite"):
        noise.predict_error(np.array([np.nan]), 1.0, format=IntFormat(4))
    with pytest.raises(ValueError, match="positive steps"):
        noise.predict_error(np.ones(4), np.zeros(1), format=IntFormat(4))
    with pytest.raises(ValueError, match="same rank"):
        noise.predict_error(np.ones(4), np.ones((1, 4)), format=IntFormat(4))

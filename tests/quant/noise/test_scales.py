"""Best scales and their errors against published tables, high precision and brute force."""

import math

import numpy as np
import pytest
import scipy.stats

from qdiffjax.quant import noise
from qdiffjax.quant.formats import floats
from qdiffjax.quant.formats.codebook_fits import lloyd_max
from qdiffjax.quant.formats.codebooks import CodebookFormat
from qdiffjax.quant.formats.integers import IntFormat
from qdiffjax.quant.formats.logarithmic import LogFormat
from tests.tolerances import assert_close, assert_digits, last_digit
from tests.worlds import GAUSSIAN, HISTOGRAM, LAPLACIAN

UNIT_MEAN = noise.Laplace(math.sqrt(2))  # E|x| = 1


def midrise(num: int) -> CodebookFormat:
    """`num` equally spaced levels with zero between two of them (even) or among them (odd)."""
    return CodebookFormat(np.arange(num) - (num - 1) / 2)


def best(format, law=GAUSSIAN):
    scale = noise.optimal_scale(format, law)
    return scale, noise.predict(format, scale, law)


# Computed apart from this code, by quadrature and a search over the step:
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


def test_the_binary_quantizer_of_a_gaussian_has_a_closed_form():
    scale, stats = best(IntFormat(1))
    assert_close(scale, math.sqrt(2 / math.pi))
    assert_close(stats.mse, 1 - 2 / math.pi)


# Equally spaced levels for N(0, 1) and a Laplace law of variance 1, by root finding on the
# derivative of the error in 30 digits, apart from this code.
CONVERGED = [
    (GAUSSIAN, 2, "1.59576912", "0.363380228"), (GAUSSIAN, 3, "1.22400636", "0.190174039"),
    (GAUSSIAN, 5, "0.842986251", "0.0821776606"), (GAUSSIAN, 6, "0.733432611", "0.0606565850"),
    (GAUSSIAN, 9, "0.533822209", "0.0306958590"), (GAUSSIAN, 12, "0.423790466", "0.0188532879"),
    (GAUSSIAN, 16, "0.335200612", "0.0115428844"), (GAUSSIAN, 32, "0.188138790", "0.00349521136"),
    (GAUSSIAN, 255, "0.0308700860", "0.0000883080307"),
    (GAUSSIAN, 256, "0.0307623876", "0.0000876861858"),
    (LAPLACIAN, 3, "1.41421356", "0.264241118"), (LAPLACIAN, 4, "1.08739269", "0.196302263"),
    (LAPLACIAN, 7, "0.821752560", "0.0830865188"), (LAPLACIAN, 8, "0.730933182", "0.0717477963"),
    (LAPLACIAN, 15, "0.486884963", "0.0273952222"), (LAPLACIAN, 32, "0.279988547", "0.00871322068"),
]  # fmt: skip


@pytest.mark.parametrize(("law", "num", "step", "mse"), CONVERGED)
def test_optimal_clips_of_equally_spaced_levels_have_converged(law, num, step, mse):
    scale, stats = best(midrise(num), law)
    assert_digits(scale, step)
    assert_digits(stats.mse, mse)


# Steps of 2, 4, ... levels. Gaussian: J. Max 1960, table II (rounded). Laplace: the table of
# optimum uniform quantizers in Sayood, Introduction to Data Compression, chapter on scalar
# quantization (cut, not rounded).
PUBLISHED = {
    2: ("1.596", "1.414"), 4: ("0.9957", "1.0873"), 6: ("0.7334", "0.8707"),
    8: ("0.5860", "0.7309"), 10: ("0.4908", "0.6334"), 12: ("0.4238", "0.5613"),
    14: ("0.3739", "0.5055"), 16: ("0.3352", "0.4609"), 32: ("0.1881", "0.2799"),
}  # fmt: skip


@pytest.mark.parametrize("num", PUBLISHED)
def test_optimal_clips_agree_with_published_tables_to_their_last_digit(num):
    gaussian, laplacian = PUBLISHED[num]
    assert_digits(best(midrise(num))[0], gaussian)
    scale = best(midrise(num), LAPLACIAN)[0]
    assert float(laplacian) <= scale < float(laplacian) + last_digit(laplacian)


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


TRIED = np.geomspace(0.02, 20, 250)  # 2.8 % apart


@pytest.mark.slow
@pytest.mark.parametrize("rounding", [noise.nearest, noise.floor, noise.stochastic])
def test_no_scale_is_better_than_the_optimal_one(rounding):
    for format in (IntFormat(3), IntFormat(4, signed=False), floats.E2M1, LogFormat(4, 1.0, True)):
        for law in (GAUSSIAN, LAPLACIAN, HISTOGRAM):
            least = noise.predict(
                format, noise.optimal_scale(format, law, rounding), law, rounding
            ).mse
            tried = [noise.predict(format, s, law, rounding).mse for s in TRIED]
            assert least <= min(tried) * (1 + 1e-12)
            assert min(tried) < 1.01 * least  # and that is attained


def test_laplace_scales_that_have_a_closed_form():
    """3 levels: 1 + s/2 = s, s = 2. Binary: E|l| = 1. 1 bit unsigned is the mirrored 3 levels."""
    assert_close(noise.optimal_scale(IntFormat(2), UNIT_MEAN), 2.0)
    assert_close(noise.optimal_scale(IntFormat(1), UNIT_MEAN), 1.0)
    assert_close(noise.optimal_scale(IntFormat(1, signed=False), noise.Folded(UNIT_MEAN)), 2.0)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize(
    ("law", "density"), [(GAUSSIAN, scipy.stats.norm), (UNIT_MEAN, scipy.stats.laplace)]
)
def test_optimal_scale_beats_its_neighbours_by_numerical_integration(bits, narrow, law, density):
    format = IntFormat(bits, narrow=narrow)
    x = np.linspace(-30, 30, 400_001)
    weight = density.pdf(x) * (x[1] - x[0])
    step = noise.optimal_scale(format, law)

    def mse(s):
        return weight @ (s * np.clip(np.round(x / s), format.qmin, format.qmax) - x) ** 2

    assert mse(step) < min(mse(step * 0.99), mse(step * 1.01))
    assert mse(step) < min(mse(step * f) for f in (0.2, 0.5, 2, 5))

"""Laws and formats that the tests of `quant.noise` share."""

from decimal import Decimal

import numpy as np

from qdiffjax.quant import noise
from qdiffjax.quant.formats.integers import IntFormat

GAUSSIAN, LAPLACIAN = noise.Gaussian(), noise.Laplace()
MANY = IntFormat(16)  # far more levels than any test reaches: no saturation
MIXTURE = noise.Histogram(
    np.array([-6.0, -1.5, -0.5, 0.0, 0.25, 2.5]), np.array([0.05, 0.25, 0.2, 0.3, 0.2])
)


def last_digit(printed: str) -> float:
    """One unit of the last digit of a printed number."""
    return 10.0 ** Decimal(printed).as_tuple().exponent


def assert_digits(value, printed: str):
    """Assert that value, rounded to as many digits, is the printed number."""
    assert abs(value - float(printed)) <= 0.50001 * last_digit(printed), (value, printed)

"""Least errors that a width allows, in closed form: of any codebook, and of any code."""

import math

from qdiffjax._checks import NOT_NEGATIVE, checked
from qdiffjax.quant.noise.distributions import Distribution


@checked(bits=NOT_NEGATIVE)
def panter_dite_mse(bits: float, distribution: Distribution) -> float:
    """Return the mean squared error of the best codebook of 2^bits levels, as bits grow.

        (integral p^(1/3))^3 / 12 * 4^-bits

    Panter and Dite 1951, eq. 22: sqrt(3) pi / 2 std^2 for Gaussian, 9/2 std^2 for Laplace.
    """
    return distribution.cube_norm / 12 * 4.0**-bits


@checked(bits=NOT_NEGATIVE)
def shannon_mse(bits: float, distribution: Distribution) -> float:
    """Return the mean squared error that no code of `bits` per number is below, however long its
    blocks.

        exp(2 h) / (2 pi e) * 4^-bits

    Shannon's lower bound (Cover and Thomas 2006, section 10.3): the distortion-rate function
    std^2 4^-bits itself for a Gaussian.
    """
    return math.exp(2 * distribution.entropy) / (2 * math.pi * math.e) * 4.0**-bits

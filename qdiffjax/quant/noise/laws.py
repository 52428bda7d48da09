"""What a rounding does to a number, as polynomials: the conditional law of the error given x.

A rounding law is a function format -> Pieces. Between two thresholds every rounding here has
E[e | x] and E[e^2 | x] polynomial in x, so that with the moments of x up to each threshold the
statistics of the error are finite sums, without quadrature.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import require
from qdiffjax.quant.formats import Format, LogFormat, check_equal_steps, is_binary
from qdiffjax.quant.formats.base import check_number_format

MAX_LEVELS = 2**20
TINY = 1e-290  # below zero, and not lost by a scale
NUM_NODES = 24  # of the stochastic rounding of logarithms, whose error is no polynomial


class Pieces(NamedTuple):
    """Where x is, and moments of e = Q(x) - x there as polynomials in u = x - centre.

        E[e | x] = sum_k mean[i, k] u^k,   E[e^2 | x] = sum_k square[i, k] u^k,
        for lower[i] < x <= upper[i], summed over all such i

    Attributes:
      lower, upper: ends of each piece, in units of the scale [n].
      centre: a number close to the piece, usually its level [n]; keeps digits.
      mean: coefficients [n, 3].
      square: coefficients [n, 4].
    """

    lower: np.ndarray
    upper: np.ndarray
    centre: np.ndarray
    mean: np.ndarray
    square: np.ndarray


Law = Callable[[Format], Pieces]


def nearest(format: Format) -> Pieces:
    """Take the nearest level, whichever way ties go; logarithmic formats: the nearest
    exponent.

        e = y_j - x   for (y_{j-1} + y_j) / 2 < x <= (y_j + y_{j+1}) / 2

    Raises:
      ValueError: as for every law, a format with traced fields or more than 2^20 levels.
    """
    levels = _levels(format)
    if isinstance(format, LogFormat):
        return _steps(levels, _log_thresholds(format, levels, 0.5))
    return _steps(levels, (levels[1:] + levels[:-1]) / 2)


def floor(format: Format) -> Pieces:
    """Take the next level below, e = y_j - x for y_j <= x < y_{j+1}; logarithmic formats: towards
    zero.
    """
    levels = _levels(format)
    if is_binary(format):
        return nearest(format)
    if isinstance(format, LogFormat):
        return _steps(levels, _log_thresholds(format, levels, 0.0))
    # A level rounds to itself, so that pieces must end just below it.
    below = np.where(levels[1:] == 0, -TINY, np.nextafter(levels[1:], -np.inf))
    return _steps(levels, below)


def stochastic(format: Format) -> Pieces:
    """Take one of the two neighbours at random: also what non-subtractive rectangular
    dither does.

        E[e | x] = 0,   E[e^2 | x] = (x - y_j) (y_{j+1} - x)   between neighbouring levels

    Beyond the ends as `nearest`. Logarithmic formats round the exponent at random; the law is
    then the average of those of shifted thresholds, by Gauss-Legendre quadrature.
    """
    levels = _levels(format)
    if is_binary(format):
        return nearest(format)
    if isinstance(format, LogFormat):
        return _log_stochastic(format, levels)
    inside = np.diff(levels)
    zero = np.zeros_like(inside)
    square = np.stack([zero, inside, -np.ones_like(inside), zero], 1)
    between = Pieces(levels[:-1], levels[1:], levels[:-1], np.zeros((inside.size, 3)), square)
    return _joined(_outside(levels[0], levels[-1], levels), between)


def triangular_dither(format: Format) -> Pieces:
    """Add triangular dither and leave it, clip(round(v + d)), d with density 1 - |d| on [-1, 1].

        E[e | x] = 0,   E[e^2 | x] = 1/4    (in squared steps; an inner piece)

    (Lipshitz, Wannamaker, Vanderkooy 1992, theorem 6.) Half a step from an end, what would be
    rounded past it saturates: with u = x - high, E[e | x] = -(u + 1/2)^2 / 2 and
    E[e^2 | x] = 1/8 - u/4 + u^2/2 + u^3, and the mirror image at the low end.

    Raises:
      ValueError: a format that is not an integer grid, or is binary.
    """
    low, high = _uniform_ends(format)
    levels = np.array([low, high])
    end = np.array([-1 / 8, -1 / 2, -1 / 2]), np.array([1 / 8, -1 / 4, 1 / 2, 1.0])
    flip = np.array([1.0, -1.0, 1.0, -1.0])
    mean = np.stack([-flip[:3] * end[0], np.zeros(3), end[0]])
    square = np.stack([flip * end[1], np.array([1 / 4, 0, 0, 0]), end[1]])
    cuts = np.array([low - 0.5, low + 0.5, high - 0.5, high + 0.5])
    inner = Pieces(cuts[:-1], cuts[1:], np.array([low, low, high]), mean, square)
    return _joined(_outside(cuts[0], cuts[-1], levels), inner)


def subtractive_dither(format: Format) -> Pieces:
    """Add rectangular dither and take it away again: e is uniform over one step, independent of x.

        E[e | x] = y - x,   E[e^2 | x] = (y - x)^2 + 1/12,   y = clip(x, low, high)

    in steps (Schuchman 1964). Saturation adds the clipped part, independently: beyond an end
    e = y - x - d exactly.

    Raises:
      ValueError: a format that is not an integer grid, or is binary.
    """
    low, high = _uniform_ends(format)
    ends = np.array([low, high])
    clipped = _outside(low, high, ends)
    inside = Pieces(ends[:1], ends[1:], ends[:1], np.zeros((1, 3)), np.zeros((1, 4)))
    pieces = _joined(clipped, inside)
    return pieces._replace(square=pieces.square + np.array([1 / 12, 0, 0, 0]))


def _steps(levels, thresholds) -> Pieces:
    """Return a staircase: level j between thresholds j - 1 and j."""
    edges = np.concatenate([[-np.inf], thresholds, [np.inf]])
    mean, square = np.zeros((levels.size, 3)), np.zeros((levels.size, 4))
    mean[:, 1], square[:, 2] = -1, 1  # e = -u
    return Pieces(edges[:-1], edges[1:], levels, mean, square)


def _outside(low, high, levels) -> Pieces:
    """Return the two saturated pieces, up to low and from high."""
    pieces = _steps(levels[[0, -1]], np.array([0.0]))
    return pieces._replace(lower=np.array([-np.inf, high]), upper=np.array([low, np.inf]))


def _joined(*parts: Pieces) -> Pieces:
    return Pieces(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _log_thresholds(format, levels, offset):
    """Return the thresholds where |v| / 2^(k offset) is a level: 1/2 = nearest exponent, 0 =
    towards zero.
    """
    positive = levels[levels > 0]
    if not format.signed:
        return np.nextafter(positive[1:] * 2.0 ** (-format.base_exponent * offset), 0)
    positive = np.nextafter(positive * 2.0 ** (-format.base_exponent * offset), 0)
    return np.concatenate([-positive[::-1], positive])


def _log_stochastic(format, levels):
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    parts = []
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        p = _steps(levels, _log_thresholds(format, levels, node))
        parts.append(p._replace(mean=weight * p.mean, square=weight * p.square))
    return _joined(*parts)


def _levels(format) -> np.ndarray:
    check_number_format("format", format)
    require(
        format.is_static and format.bits <= np.log2(MAX_LEVELS),
        "format",
        got=format,
        expected=f"static fields and at most {MAX_LEVELS} levels",
        remedy="wider formats need no prediction",
    )
    return format.levels()


def _uniform_ends(format) -> tuple[float, ...]:
    check_equal_steps(format, "the theorems of dither need equal steps")
    return tuple(map(float, _levels(format)[[0, -1]]))

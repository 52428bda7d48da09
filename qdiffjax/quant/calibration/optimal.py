"""Steps of least mean squared error for known laws: float64, once per format, outside JAX."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from qdiffjax.quant.formats import Format

MAX_LEVELS = 2**17


class Law(NamedTuple):
    """A symmetric law of mean zero on the line.

    Attributes:
      survival: t -> P(x > t).
      moment: t -> E [x > t] x, the partial mean.
    """

    survival: Callable[[Any], Any]
    moment: Callable[[Any], Any]


# Unit standard deviation; unit mean magnitude.
GAUSSIAN = Law(lambda t: special.ndtr(-t), lambda t: np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi))
LAPLACE = Law(
    lambda t: np.where(t < 0, 1 - np.exp(-np.abs(t)) / 2, np.exp(-np.abs(t)) / 2),
    lambda t: (1 + np.abs(t)) * np.exp(-np.abs(t)) / 2,
)


@functools.lru_cache(maxsize=256)
def optimal_step(format: Format, law: Law) -> float:
    """Scale of least E (s Q(x / s) - x)^2 for x of a unit law, Q nearest rounding.

        d/ds E e^2 = 2 (s E Q^2 - E x Q) = 0,
        E x Q = sum_k (l_k+1 - l_k) moment(s t_k),   E Q^2 = l_0^2 + sum_k (l_k+1^2 - l_k^2)
        survival(s t_k)

    with levels l and decision thresholds t, which do not contribute to the derivative because
    they are optimal. A scan over ranges brackets the global minimum (a float grid has many);
    the root of the derivative refines it. An unsigned format is mirrored: its data are |x|.
    The cancellation in the derivative leaves s a relative error of about 1e-14 / E e^2.

    Args:
      format: static.
      law: the law of x.

    Raises:
      ValueError: more than 2^17 levels.
    """
    levels = _mirrored(format.levels())
    if levels.size > MAX_LEVELS:
        raise ValueError(
            f"format: got {levels.size} levels, expected at most {MAX_LEVELS}; a grid so fine "
            "has nothing to gain from clipping: use absmax."
        )
    jumps, squares = np.diff(levels), np.diff(levels**2)
    thresholds = (levels[1:] + levels[:-1]) / 2

    def second_moments(s):
        t = s * thresholds
        return jumps @ law.moment(t), levels[0] ** 2 + squares @ law.survival(t)

    def error(s):
        signal, power = second_moments(s)
        return s * (s * power - 2 * signal)

    def half_slope(s):
        signal, power = second_moments(s)
        return s * power - signal

    num_trials = int(np.clip(2**20 // levels.size, 8, 1024))  # wide grids have one minimum
    trials = np.geomspace(0.1, 50.0, num_trials) / levels[-1]
    best = int(np.argmin([error(s) for s in trials]))
    around = trials[max(best - 1, 0)], trials[min(best + 1, num_trials - 1)]
    if half_slope(around[0]) < 0 < half_slope(around[1]):
        return float(optimize.brentq(half_slope, *around, xtol=1e-300, rtol=1e-14))
    return float(trials[best])


def _mirrored(levels):
    return levels if levels[0] < 0 else np.concatenate([-levels[levels > 0][::-1], levels])

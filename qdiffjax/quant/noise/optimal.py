"""The scale of least error for a law of the input."""

import math

import numpy as np
import scipy.optimize

from qdiffjax.quant.formats import Format
from qdiffjax.quant.logarithmic import LogFormat
from qdiffjax.quant.noise.distributions import Moments
from qdiffjax.quant.noise.laws import Law, nearest
from qdiffjax.quant.noise.prediction import raw_stats


def optimal_scale(
    format: Format,
    distribution: Moments,
    rounding: Law = nearest,
    *,
    zero_point: float = 0,
    num_tried: int | None = None,
) -> float:
    """Return the scale of least mean squared error, in units of x.

        argmin over s of  predict(format, s, ...).mse

    The function has a local minimum an octave for floats, so num_tried scales are tried first,
    those at which the largest level lies between 1/4 and 64 standard deviations, and the best is
    refined between its neighbours. For nearest rounding by the root of the derivative,

        d/ds E e^2 = 2 E[e Q] / s

    (thresholds midway between levels do not contribute, Max 1960, eqs. 2-4): to about
    1e-15 / E e^2, relative. For others by Brent's method on the function, to 1e-8.

    Args:
      format, distribution, rounding, zero_point: as for `predict`.
      num_tried: points of the first search, equally spaced in log s; None = 96, or fewer for a
        grid so fine that the error hardly depends on which of its minima is found.

    Raises:
      ValueError: as `predict`.
    """
    pieces = rounding(format)
    rms = math.sqrt(float(distribution.cumulative(np.array(np.inf))[2]))
    reach = max(abs(float(level) - zero_point) for level in (format.low, format.high))
    num_tried = num_tried or int(np.clip(2**20 // len(pieces.centre), 12, 96))

    def raw(log_scale) -> np.ndarray:
        return raw_stats(pieces, math.exp(log_scale), float(zero_point), distribution)

    def slope(log_scale) -> float:
        _, square, cross, _ = raw(log_scale)
        return square + cross  # E[e Q], as Q = x + e

    tried = np.log(rms / reach) + np.linspace(math.log(0.25), math.log(64), num_tried)
    best = int(np.argmin([raw(t)[1] for t in tried]))
    around = tried[max(best - 1, 0)], tried[min(best + 1, num_tried - 1)]
    is_linear = rounding is nearest and not isinstance(format, LogFormat)
    if is_linear and slope(around[0]) < 0 < slope(around[1]):
        return math.exp(scipy.optimize.brentq(slope, *around, xtol=1e-15, rtol=1e-14))
    found = scipy.optimize.minimize_scalar(
        lambda t: raw(t)[1], bounds=around, method="bounded", options={"xatol": 1e-9}
    )
    return math.exp(found.x)

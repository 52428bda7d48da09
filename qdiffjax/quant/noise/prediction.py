"""Statistics of the error of one rounding, and the scale that makes its square least.

For any format, rounding and law of the input.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_number, check_numbers
from qdiffjax.quant.formats import BlockFormat, Format, LogFormat
from qdiffjax.quant.granularity import check_divides
from qdiffjax.quant.noise import distributions, empirical, laws

NUM_NODES = 512  # of the outer integral of blocks


class ErrorStats(NamedTuple):
    """What one rounding does to x, in its own units; the error is e = Q(x) - x.

    Attributes:
      mean: E e.
      variance: Var e.
      gain: E[x Q] / E[x^2] (Bussgang): Q = gain x + something uncorrelated with x, of mean square
        mse - (1 - gain)^2 E[x^2].
      mse: E e^2. For a rounding that is a monotone function it is also the squared Wasserstein-2
        distance between the laws of x and Q(x), whose optimal coupling is the monotone one.
      sqnr_db: 10 log10(E x^2 / E e^2)  [dB].
    """

    mean: float
    variance: float
    gain: float
    mse: float
    sqnr_db: float


def predict(
    format: Format,
    scale: float,
    distribution: distributions.Moments,
    rounding: laws.Law = laws.nearest,
    *,
    zero_point: float = 0,
) -> ErrorStats:
    """Return the exact statistics of scale * (Q(x / scale + zero_point) - zero_point) - x.

        E e^2 = sum over pieces i of integral E[e^2 | x] dF(x),   likewise E e and E[x e]

    Saturation included. The integrands are polynomials, so each integral is a difference of
    `Distribution.cumulative`; cost: proportional to the number of levels (8 bits: 0.1 ms,
    bfloat16: 50 ms).

    Args:
      format: static, at most 2^20 levels.
      scale: positive step, in units of x.
      distribution: law of x.
      rounding: one of noise.nearest, floor, stochastic, triangular_dither, subtractive_dither.
      zero_point: the code that means 0.

    Raises:
      ValueError: scale not positive, or a format that the rounding does not serve.
    """
    check_number("scale", scale, above=0)
    check_number("zero_point", zero_point)
    return _stats(raw_stats(rounding(format), float(scale), float(zero_point), distribution))


def predict_error(
    x,
    scale,
    zero_point=None,
    *,
    format: Format,
    rounding: laws.Law = laws.nearest,
) -> ErrorStats:
    """Return the statistics of the error on data, from histograms of x / scale + zero_point.

        E e^2 = E[scale^2] E_w[(Q(v) - v)^2],   v = x / scale + zero_point,  w ~ scale^2

    so that one weighted histogram serves all channels. Only the histogram is read, and the mean of
    x^2: the data are taken as evenly spread over each bin but for the largest, which are atoms, and
    atoms on a threshold (such as exact zeros in a format without zero) as below it.

    Args:
      x: data [*shape].
      scale: positive steps [*groups], each axis dividing that of x, or a scalar.
      zero_point: integers like scale, or None.
      format: static, at most 2^20 levels.
      rounding: as for `predict`.

    Raises:
      ValueError: as `predict`, data that are empty or not finite, or shapes that do not divide.
    """
    check_numbers("x", x)
    x = np.asarray(x, np.float64)
    check_number("scale", scale, above=0)
    step, zero = (_expanded(a, x.shape) for a in (scale, 0 if zero_point is None else zero_point))
    pieces, v, least = rounding(format), x / step + zero, zero.min()

    @functools.cache
    def plain() -> np.ndarray:
        return raw_stats(pieces, 1.0, 0.0, empirical.histogram(v))

    def total(weights) -> np.ndarray:
        """Return the mean over x of weights * (e, e^2, v e, v^2), e and v in steps."""
        mass = float(np.mean(weights))
        if not np.ptp(weights):
            return mass * plain() if mass else np.zeros(4)
        return mass * raw_stats(pieces, 1.0, 0.0, empirical.histogram(v, weights))

    by_square, by_zero = total(step**2), total(step**2 * (zero - least))
    cross = by_square[2] - by_zero[0] - least * by_square[0]
    return _stats(np.array([total(step)[0], by_square[1], cross, np.mean(x**2)]))


def predict_blocks(
    format: BlockFormat,
    distribution: distributions.Distribution,
    rounding: laws.Law = laws.nearest,
) -> ErrorStats:
    """Return the statistics of the error when each block of i.i.d. x sets its own scale.

        E = integral E[ . | max|x| = A ] dF(A),   P(max|x| <= a) = (2 F(a) - 1)^block_size,

    and given A, one element is +-A and the others are x truncated to [-A, A]. The inner law is
    exact, the outer integral the mean over 512 equally likely A: good to about 1 / 512 where
    scale_fn jumps. For data, use predict_error with their own block_scale.

    Args:
      format: a static element, a block size and a rule for the scale. NVFP4 takes the largest A
        for the largest of the tensor; bind tensor_absmax to say otherwise.
      distribution: symmetric law of the elements.
      rounding: as for `predict`.

    Raises:
      ValueError: as `predict`.
    """
    size, element = format.block_size, format.element
    p = ((np.arange(NUM_NODES) + 0.5) / NUM_NODES) ** (1 / size)
    limits = np.asarray(distribution.quantile((1 + p) / 2), np.float64)
    scales = np.asarray(format.scale_fn(jnp.asarray(limits), element), np.float64)
    pieces = rounding(element)
    raw = [
        raw_stats(pieces, float(scale), 0.0, Block(distribution, float(limit), size))
        for limit, scale in zip(limits, scales, strict=True)
    ]
    return _stats(np.mean(raw, 0))


@dataclasses.dataclass(frozen=True)
class Block:
    """Law of one element, drawn at random, of a block whose largest magnitude is `limit`."""

    base: distributions.Distribution
    limit: float
    size: int

    def cumulative(self, x) -> np.ndarray:
        """Return 1 / size of the atoms at +-limit, and the rest of the base law truncated there."""
        x = np.asarray(x, np.float64)
        ends = self.base.cumulative(np.array([-self.limit, self.limit]))
        inside = self.base.cumulative(np.clip(x, -self.limit, self.limit))
        column = (-1, *[1] * x.ndim)
        inside = (inside - ends[:, 0].reshape(column)) / (ends[0, 1] - ends[0, 0])
        powers = self.limit ** np.arange(4.0)
        low, high = (np.where(x >= end, 0.5, 0.0) for end in (-self.limit, self.limit))
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        atoms = np.multiply.outer(powers * signs, low) + np.multiply.outer(powers, high)
        return inside + (atoms - inside) / self.size


def raw_stats(pieces, scale, zero_point, distribution) -> np.ndarray:
    """Return (E e, E e^2, E x e, E x^2) of scaled pieces: sums of differences of moments."""
    ends = scale * (np.stack([pieces.lower, pieces.upper]) - zero_point)
    below = distribution.cumulative(ends)
    centre = scale * (pieces.centre - zero_point)
    local = distributions.shifted(below[:, 1] - below[:, 0], -centre)  # integrals of (x - centre)^k
    powers = scale ** np.arange(4.0)
    mean, square = pieces.mean * (scale / powers[:3]), pieces.square * (scale**2 / powers)
    error = np.sum(mean * local[:3].T)
    cross = np.sum(mean * (centre * local[:3] + local[1:]).T)
    power = distribution.cumulative(np.array(np.inf))[2]
    return np.array([error, np.sum(square * local.T), cross, power])


def _stats(raw) -> ErrorStats:
    mean, mse, cross, power = (float(a) for a in raw)
    sqnr = 10 * math.log10(power / mse) if power > 0 and mse > 0 else math.inf
    gain = 1 + cross / power if power > 0 else 1.0
    return ErrorStats(mean, mse - mean**2, gain, mse, sqnr)


def _expanded(param, shape) -> np.ndarray:
    """Return the parameter [*groups] or scalar, repeated to [*shape]."""
    param = np.asarray(param, np.float64)
    if param.ndim == 0:
        return np.broadcast_to(param, shape)
    check_divides(shape, param.shape)
    for axis, (n, g) in enumerate(zip(shape, param.shape, strict=True)):
        param = np.repeat(param, n // g, axis)
    return param


def optimal_scale(
    format: Format,
    distribution: distributions.Moments,
    rounding: laws.Law = laws.nearest,
    *,
    zero_point: float = 0,
) -> float:
    """Return the scale of least mean squared error, in units of x.

        argmin over s of  predict(format, s, ...).mse

    The function has a local minimum an octave for floats, so some scales are tried first,
    those at which the largest level lies between 1/4 and 64 standard deviations, and the best is
    refined between its neighbours. For nearest rounding by the root of the derivative,

        d/ds E e^2 = 2 E[e Q] / s

    (thresholds midway between levels do not contribute, Max 1960, eqs. 2-4): to about
    1e-15 / E e^2, relative. For others by Brent's method on the function, to 1e-8.

    Args:
      format, distribution, rounding, zero_point: as for `predict`.

    Raises:
      ValueError: as `predict`.
    """
    import scipy.optimize

    pieces = rounding(format)
    rms = math.sqrt(float(distribution.cumulative(np.array(np.inf))[2]))
    reach = max(abs(float(level) - zero_point) for level in (format.low, format.high))
    # Fewer for a grid so fine that the error hardly depends on which of its minima is found.
    num_tried = int(np.clip(2**20 // len(pieces.centre), 12, 96))

    def raw(log_scale) -> np.ndarray:
        return raw_stats(pieces, math.exp(log_scale), float(zero_point), distribution)

    def slope(log_scale) -> float:
        _, square, cross, _ = raw(log_scale)
        return square + cross  # E[e Q], as Q = x + e

    tried = np.log(rms / reach) + np.linspace(math.log(0.25), math.log(64), num_tried)
    best = int(np.argmin([raw(t)[1] for t in tried]))
    around = tried[max(best - 1, 0)], tried[min(best + 1, num_tried - 1)]
    is_linear = rounding is laws.nearest and not isinstance(format, LogFormat)
    if is_linear and slope(around[0]) < 0 < slope(around[1]):
        return math.exp(scipy.optimize.brentq(slope, *around, xtol=1e-15, rtol=1e-14))
    least = scipy.optimize.minimize_scalar(
        lambda t: raw(t)[1], bounds=around, method="bounded", options={"xatol": 1e-9}
    )
    return math.exp(least.x)

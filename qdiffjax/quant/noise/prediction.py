"""Statistics of the error of one rounding, for any format, rounding and law of the input."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from qdiffjax.quant._granularity import check_divides
from qdiffjax.quant.blocks import BlockFormat
from qdiffjax.quant.formats import Format
from qdiffjax.quant.noise import laws
from qdiffjax.quant.noise.distributions import Distribution, Moments, shifted
from qdiffjax.quant.noise.empirical import histogram


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
    distribution: Moments,
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
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}, expected a positive finite step.")
    return _stats(raw_stats(rounding(format), float(scale), float(zero_point), distribution))


def predict_error(
    x,
    scale,
    zero_point=None,
    *,
    format: Format,
    rounding: laws.Law = laws.nearest,
    per_octave: int = 64,
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
      per_octave: bins a factor of two of |v|, see `histogram`.

    Raises:
      ValueError: as `predict`, data that are empty or not finite, or shapes that do not divide.
    """
    x = np.asarray(x, np.float64)
    step, zero = (_expanded(a, x.shape) for a in (scale, 0 if zero_point is None else zero_point))
    if not np.all((step > 0) & np.isfinite(step)):
        raise ValueError(f"scale: got a smallest entry of {step.min()}, expected positive steps.")
    pieces, v, least = rounding(format), x / step + zero, zero.min()

    @functools.cache
    def plain() -> np.ndarray:
        return raw_stats(pieces, 1.0, 0.0, histogram(v, per_octave=per_octave))

    def total(weights) -> np.ndarray:
        """Mean over x of weights * (e, e^2, v e, v^2), e and v in steps."""
        mass = float(np.mean(weights))
        if not np.ptp(weights):
            return mass * plain() if mass else np.zeros(4)
        return mass * raw_stats(pieces, 1.0, 0.0, histogram(v, weights, per_octave=per_octave))

    by_square, by_zero = total(step**2), total(step**2 * (zero - least))
    cross = by_square[2] - by_zero[0] - least * by_square[0]
    return _stats(np.array([total(step)[0], by_square[1], cross, np.mean(x**2)]))


def predict_blocks(
    format: BlockFormat,
    distribution: Distribution,
    rounding: laws.Law = laws.nearest,
    *,
    num_nodes: int = 512,
) -> ErrorStats:
    """Return the statistics of the error when each block of i.i.d. x sets its own scale.

        E = integral E[ . | max|x| = A ] dF(A),   P(max|x| <= a) = (2 F(a) - 1)^block_size,

    and given A, one element is +-A and the others are x truncated to [-A, A]. The inner law is
    exact, the outer integral the mean over num_nodes equally likely A: good to about 1 / num_nodes
    where scale_fn jumps. For data, use predict_error with their own block_scale.

    Args:
      format: a static element, a block size and a rule for the scale. NVFP4 takes the largest A
        for the largest of the tensor; bind tensor_absmax to say otherwise.
      distribution: symmetric law of the elements.
      rounding: as for `predict`.
      num_nodes: of the outer integral.

    Raises:
      ValueError: as `predict`.
    """
    size, element = format.block_size, format.element
    p = ((np.arange(num_nodes) + 0.5) / num_nodes) ** (1 / size)
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

    base: Distribution
    limit: float
    size: int

    def cumulative(self, x) -> np.ndarray:
        """1 / size of the atoms at +-limit, and the rest of the base law truncated there."""
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
    """(E e, E e^2, E x e, E x^2) of scaled pieces: sums of differences of moments."""
    ends = scale * (np.stack([pieces.lower, pieces.upper]) - zero_point)
    below = distribution.cumulative(ends)
    centre = scale * (pieces.centre - zero_point)
    local = shifted(below[:, 1] - below[:, 0], -centre)  # integrals of (x - centre)^k
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
    """Parameter [*groups] or scalar, repeated to [*shape]."""
    param = np.asarray(param, np.float64)
    if param.ndim == 0:
        return np.broadcast_to(param, shape)
    check_divides(shape, param.shape)
    for axis, (n, g) in enumerate(zip(shape, param.shape, strict=True)):
        param = np.repeat(param, n // g, axis)
    return param

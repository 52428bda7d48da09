"""A learned schedule: a monotone network for log-SNR, variance preserved."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_key, checked, require
from qdiffjax._typing import Array, Key, float_dtype
from qdiffjax.diffusion.processes import Process
from qdiffjax.diffusion.schedules import NoiseLevel


class LogSNRParams(NamedTuple):
    """Of `learned_log_snr`: any real numbers; weights become positive by softplus.

    ends [2]: log-SNR at time 0 and at time 1; slope []: weight of the first layer; in_weight,
    in_bias, out_weight [width]: of the hidden layer.
    """

    ends: Any
    slope: Any
    in_weight: Any
    in_bias: Any
    out_weight: Any


@checked(key=check_key, width=check_count)
def init_log_snr(
    key: Key, *, width: int = 64, first: float = 13.3, last: float = -5.0
) -> LogSNRParams:
    """Draw parameters; by default with the ends of Kingma et al. 2021, nearly linear between."""
    in_key, bias_key, out_key = jax.random.split(key, 3)
    return LogSNRParams(
        jnp.array([first, last]), jnp.array(0.0), jax.random.normal(in_key, (width,)),
        jax.random.normal(bias_key, (width,)), jax.random.normal(out_key, (width,)),
    )  # fmt: skip


def learned_log_snr(params: LogSNRParams, t) -> Array:
    """Return log-SNR at times t in [0, 1] [*times], strictly falling whatever the parameters.

        log_snr = ends_0 + (ends_1 - ends_0) (g(t) - g(0)) / (g(1) - g(0))
        g(t) = w t + mean_j o_j sigmoid(i_j w t + b_j),   w, i, o positive

    Kingma et al. 2021, appendix H (their gamma is -log_snr, and they sum); falling if
    ends_0 > ends_1. A pure function, so that a loss trains it with the network.
    """
    return _log_snr(params, jnp.asarray(t).astype(float_dtype(t)), jnp)[0]


def learned_level(params: LogSNRParams, t) -> NoiseLevel:
    """Return alpha = sqrt(sigmoid(log_snr)) and sigma = sqrt(sigmoid(-log_snr)) [*times]."""
    return _level_at(learned_log_snr(params, t), jnp)


def _log_snr(params: LogSNRParams, t, xp):
    """Return log-SNR and its derivative in time [*times]."""
    ends, slope, *hidden = (xp.asarray(leaf).astype(t.dtype) for leaf in params)
    weight, bias, out = (leaf.reshape((1,) * t.ndim + (-1,)) for leaf in hidden)
    w, weight, out = (xp.logaddexp(leaf, xp.zeros_like(leaf)) for leaf in (slope, weight, out))

    def g(t):
        s = 1 / (1 + xp.exp(-(t[..., None] * (w * weight) + bias)))
        return w * t + xp.mean(out * s, -1), w + xp.mean(out * s * (1 - s) * (w * weight), -1)

    (value, speed), (low, _), (high, _) = g(t), g(xp.zeros_like(t)), g(xp.ones_like(t))
    gain = (ends[1] - ends[0]) / (high - low)
    return ends[0] + gain * (value - low), gain * speed


def _level_at(log_snr, xp) -> NoiseLevel:
    zero = xp.zeros_like(log_snr)
    return NoiseLevel(*(xp.exp(-xp.logaddexp(zero, sign * log_snr) / 2) for sign in (-1, 1)))


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(Process):
    """The process of trained parameters, 0 <= t <= 1, frozen; equal and hashed by content.

    Its time 0 has the largest log-SNR, not clean data. For training use `learned_level`.

    Raises:
      ValueError: if log-SNR does not fall, or parameters are not finite.
    """

    params: LogSNRParams

    def __post_init__(self):
        params = LogSNRParams(*(np.array(leaf, np.float64) for leaf in self.params))
        finite = all(np.all(np.isfinite(leaf)) for leaf in params)
        require(
            finite and params.ends[0] > params.ends[1],
            got=f"log-SNR from {params.ends[0]} to {params.ends[1]}",
            expected="finite parameters and a fall",
            remedy="see init_log_snr",
        )
        object.__setattr__(self, "params", params)

    def __eq__(self, other):
        return NotImplemented if not isinstance(other, Learned) else self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self):
        return tuple((leaf.shape, leaf.tobytes()) for leaf in self.params)

    def _level(self, t, xp):
        return _level_at(_log_snr(self.params, t, xp)[0], xp)

    def _velocity(self, t, xp):
        log_snr, speed = _log_snr(self.params, t, xp)
        alpha, sigma = _level_at(log_snr, xp)
        # alpha^2 and sigma^2 are sigmoids, whose derivative is alpha^2 sigma^2.
        return NoiseLevel(alpha * sigma**2 * speed / 2, -sigma * alpha**2 * speed / 2)

    def _time(self, log_snr):
        low, high = np.zeros_like(log_snr), np.ones_like(log_snr)
        for _ in range(60):  # bisection: one bit of t each
            middle = (low + high) / 2
            early = _log_snr(self.params, middle, np)[0] > log_snr
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return (low + high) / 2

"""Lines that turn what a network predicts into what it should: gain * y + shift."""

from typing import NamedTuple

import jax.numpy as jnp

from qdiffjax._checks import check_names
from qdiffjax._typing import Array

PIXEL, CHANNEL, WHOLE = "pixel", "channel", "tensor"


class Fit(NamedTuple):
    """A correction of one call: gain * y + shift, which broadcast to a sample of y."""

    gain: Array
    shift: Array


def least_squares(y: Array, wanted: Array, *, over: str = CHANNEL, ridge: float = 0.0) -> Fit:
    """Return the line that predicts `wanted` from y: the conditional mean of a joint Gaussian.

        gain = (Cov(y, wanted) + ridge Var y) / ((1 + ridge) Var y),
        shift = E[wanted] - gain E[y]

    D2-DPM (Zeng et al. 2025) models prediction and error as jointly Gaussian at each step.

    Args:
      y, wanted: [batch, *shape].
      over: "tensor": one gain, "channel": one for each of the last axis, "pixel": each number of a
        sample its own.
      ridge: pulls the gain towards 1.
    """
    axes = _axes(y, over)
    mean, target = (jnp.mean(a, axes, keepdims=True) for a in (y, wanted))
    variance = jnp.mean((y - mean) ** 2, axes, keepdims=True)
    covariance = jnp.mean((y - mean) * (wanted - target), axes, keepdims=True)
    safe = jnp.where(variance > 0, variance, 1.0)
    gain = jnp.where(variance > 0, (covariance / safe + ridge) / (1 + ridge), 1.0)
    return Fit(gain[0], (target - gain * mean)[0])


def correlated_noise(y: Array, wanted: Array) -> Fit:
    """Return PTQD's correction; He et al. 2023, eqs. 7 to 11.

        y = (1 + k) wanted + noise + bias,   gain = 1 / (1 + k),   shift = -bias / (1 + k)

    k is one slope of y - wanted on wanted, about the means of each channel (last axis), at least 0
    as in their code; the bias is the mean of the rest in each channel.
    """
    axes = _axes(y, CHANNEL)
    centered = wanted - jnp.mean(wanted, axes, keepdims=True)
    power = jnp.sum(centered**2)
    slope = jnp.sum(centered * (y - wanted)) / jnp.where(power > 0, power, 1.0)
    slope = jnp.maximum(slope, 0.0)
    bias = jnp.mean(y - (1 + slope) * wanted, axes)
    return Fit(1 / (1 + slope), -bias / (1 + slope))


def mean_shift(y: Array, wanted: Array, *, over: str = PIXEL) -> Fit:
    """Return the shift that removes the mean error, over samples and, by channel, over pixels."""
    shift = jnp.mean(wanted - y, _axes(y, over), keepdims=True)[0]
    return Fit(jnp.ones((), y.dtype), shift)


def matched_moments(y: Array, wanted: Array) -> Fit:
    """Return the gain and shift with which y has the mean and variance of `wanted`, by channel.

    Ours, for what Q-Drift (2026) is said to do: it treats the error as noise and corrects the drift
    so that the marginals stay; its text was not read.
    """
    axes = _axes(y, CHANNEL)
    stds = [jnp.std(a, axes, keepdims=True) for a in (y, wanted)]
    gain = jnp.where(stds[0] > 0, stds[1] / jnp.where(stds[0] > 0, stds[0], 1.0), 1.0)
    means = [jnp.mean(a, axes, keepdims=True) for a in (y, wanted)]
    return Fit(gain[0], (means[1] - gain * means[0])[0])


def check_over(what: str, over: str) -> None:
    """Refuse what is none of "pixel", "channel", "tensor"."""
    check_names(what, (over,), (PIXEL, CHANNEL, WHOLE))


def _axes(y: Array, over: str) -> tuple[int, ...]:
    check_over("over", over)
    last = {PIXEL: 1, CHANNEL: y.ndim - 1, WHOLE: y.ndim}[over]
    return tuple(range(last))

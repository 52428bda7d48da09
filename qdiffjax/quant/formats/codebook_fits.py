"""From data or a density to the levels of a codebook."""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import (
    NOT_NEGATIVE,
    check_count,
    check_number,
    check_numbers,
    checked,
    require,
    traceable,
)
from qdiffjax._typing import Array
from qdiffjax.quant.formats import base, codebooks
from qdiffjax.quant.granularity import check_finite, compute_dtype

MAX_BITS = 12


class Source(NamedTuple):
    """A symmetric density of variance 1, by functions of a threshold t >= 0.

    Attributes:
      density: p(t).
      tail: integral of p from t to infinity.
      tail_mean: integral of x p(x) from t to infinity.
      companded: quantile, for probabilities in (1/2, 1), of the density ~ p^(1/3), along which
        the levels of the best quantizer lie as their number grows (Panter and Dite 1951).
    """

    density: Callable[[np.ndarray], np.ndarray]
    tail: Callable[[np.ndarray], np.ndarray]
    tail_mean: Callable[[np.ndarray], np.ndarray]
    companded: Callable[[np.ndarray], np.ndarray]


def _normal_density(t):
    return np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)


def _laplace_tail(t):
    return np.exp(-np.sqrt(2) * t) / 2


def _special(name: str):
    """Return the function of scipy.special, imported when it is first needed."""
    return getattr(importlib.import_module("scipy.special"), name)


GAUSSIAN = Source(
    density=_normal_density,
    tail=lambda t: _special("ndtr")(-t),
    tail_mean=_normal_density,
    companded=lambda p: np.sqrt(3) * _special("ndtri")(p),
)
LAPLACE = Source(
    density=lambda t: np.sqrt(2) * _laplace_tail(t),
    tail=_laplace_tail,
    tail_mean=lambda t: _laplace_tail(t) * (t + np.sqrt(0.5)),
    companded=lambda p: -3 * np.sqrt(0.5) * np.log(2 * (1 - p)),
)


@functools.lru_cache
def lloyd_max(bits: int, source: Source = GAUSSIAN) -> codebooks.CodebookFormat:
    """Return the codebook of least mean squared error for a density of variance 1.

        t_i = (y_{i-1} + y_i) / 2,   y_i = integral x p / integral p  over (t_i, t_{i+1})

    Lloyd 1957/1982 and Max 1960, eqs. 5-6, solved by Newton's method to float64 rounding (levels
    to 1e-12 at 8 bits) on the positive half: the solution is symmetric, and unique for a
    log-concave density. The mean squared error is then 1 - E y^2. Scale: the standard deviation
    of the data.

    Args:
      bits: 1..12, for 2^bits levels.
      source: the density; `GAUSSIAN` and `LAPLACE` are given.

    Raises:
      ValueError: bits out of range, or no convergence (a density that is not log-concave).
    """
    import scipy.linalg

    base.check_static_integer("bits", bits, MAX_BITS)
    half = 2 ** (bits - 1)
    y = source.companded(0.5 + (np.arange(half) + 0.5) / (2 * half))
    for step in range(60):
        residual, slopes = _centroid_residual(y, source)
        # Lloyd's own step is safe far from the solution, Newton's fast near it.
        change = residual if step < 10 else scipy.linalg.solve_banded((1, 1), slopes, residual)
        y = y - change
        # Newton squares the error: after a step this small, only rounding is left.
        if step > 10 and np.max(np.abs(change)) <= 1e-8 * y[-1]:
            return codebooks.CodebookFormat(np.concatenate([-y[::-1], y]))
    require(False, "source", got="one on which Lloyd-Max diverges",
            expected="a log-concave density", remedy="fit data with kmeans_codebook")  # fmt: skip
    raise AssertionError


def _centroid_residual(y, source):
    """Return y - centroid(y) [k] and its Jacobian, three bands [3, k], for levels y > 0."""
    t = np.concatenate([[0.0], (y[1:] + y[:-1]) / 2])
    tail, tail_mean = (np.append(f(t), 0.0) for f in (source.tail, source.tail_mean))
    mass = tail[:-1] - tail[1:]
    centroid = (tail_mean[:-1] - tail_mean[1:]) / mass
    # Each inner threshold moves by half of either neighbouring level.
    p = source.density(t[1:]) / 2
    lower, upper = p * (centroid[1:] - t[1:]) / mass[1:], p * (t[1:] - centroid[:-1]) / mass[:-1]
    bands = np.zeros((3, y.size))
    bands[0, 1:], bands[2, :-1] = -upper, -lower
    bands[1] = 1 - np.append(0.0, lower) - np.append(upper, 0.0)
    return y - centroid, bands


def quantile_codebook(x: Array, bits: int, *, weights: Array | None = None) -> Array:
    """Return levels [2^bits], in units of x, that are used equally often.

        levels[i] = F^-1((i + 1/2) / 2^bits),   F^-1(p) = the least x with F(x) >= p

    the median of each of 2^bits equally likely cells. (Dettmers et al. 2022, eq. 5, and QLoRA,
    eq. 1, average the two ends of a cell instead, which is infinite for a Gaussian's last.)

    Args:
      x: finite data [*shape].
      bits: 1..12.
      weights: how often each element counts, >= 0 [*shape]; None = once.

    Raises:
      TypeError: x is not real.
      ValueError: empty or non-finite data, shapes that differ, bits out of range. Data with
        fewer values than levels repeat levels, which `CodebookFormat` refuses.
    """
    x, weights = _samples(x, weights, bits)
    order = jnp.argsort(x)
    share = jnp.cumsum(weights[order])
    wanted = (jnp.arange(2**bits, dtype=x.dtype) + 0.5) / 2**bits * share[-1]
    index = jnp.searchsorted(share, wanted, side="left")
    return x[order][jnp.minimum(index, x.size - 1)]


@checked(tolerance=NOT_NEGATIVE, max_steps=traceable(check_count))
def kmeans_codebook(
    x: Array,
    bits: int,
    *,
    weights: Array | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 500,
) -> Array:
    """Return levels [2^bits], in units of x, fitted to data by Lloyd's method: 1-D k-means.

        levels[j] <- mean of the elements nearest to levels[j]

    from `quantile_codebook`, until no level moves by more than tolerance * (max - min) or after
    max_steps. The squared error never grows; where it stops is a local minimum (the global one
    for samples of a log-concave density, in the limit of many). A level that no element is
    nearest to stays. Lloyd 1982. Can be jitted, and mapped over rows for a codebook per channel.

    Args:
      x: finite data [*shape].
      bits: 1..12.
      weights: how often each element counts, >= 0 [*shape]; None = once.
      tolerance: largest last move, relative to the range of x.
      max_steps: at most so many passes over the data.

    Raises:
      TypeError: x is not real.
      ValueError: as `quantile_codebook`.
    """
    start = quantile_codebook(x, bits, weights=weights)
    x, weights = _samples(x, weights, bits)
    limit = tolerance * (jnp.max(x) - jnp.min(x))

    def go_on(state):
        _, move, step = state
        return (move > limit) & (step < max_steps)

    def improve(state):
        levels, _, step = state
        better = _lloyd_step(x, weights, levels)
        return better, jnp.max(jnp.abs(better - levels)), step + 1

    return jax.lax.while_loop(go_on, improve, (start, limit + 1, jnp.asarray(0)))[0]


def _lloyd_step(x, weights, levels):
    middle = (levels[1:] + levels[:-1]) / 2
    cell = jnp.searchsorted(middle, x)
    # Sums of deviations keep digits that sums of x would lose.
    pull = weights * (x - levels[cell])
    total, mass = (jax.ops.segment_sum(a, cell, num_segments=levels.size) for a in (pull, weights))
    return levels + jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1), 0)


def _samples(x, weights, bits):
    check_numbers("x", x, least_size=0, finite=False)
    x = jnp.asarray(x)
    if weights is not None:
        check_number("weights", weights, least=0)
    weights = jnp.ones_like(x) if weights is None else jnp.asarray(weights)
    base.check_static_integer("bits", bits, MAX_BITS)
    is_paired, got = weights.shape == x.shape, f"shapes {x.shape} and {weights.shape}"
    require(is_paired and x.size, "x, weights", got=got, expected="equal and not empty",
            remedy="leave weights out to count each once")  # fmt: skip
    check_finite(x)
    dtype = compute_dtype(x)
    return x.astype(dtype).ravel(), weights.astype(dtype).ravel()

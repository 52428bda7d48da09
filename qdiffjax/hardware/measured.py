"""Latency, throughput and memory as they are: run, not modelled."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from qdiffjax._checks import FROM_0, FUNCTION, OPEN_SHARE, check_count, check_numbers, checked
from qdiffjax.labels import Kind


class Measured(NamedTuple):
    """Time of a call on the machine it ran on.

    Attributes:
      median: seconds.
      low, high: an interval of the median.
      coverage: with which probability it holds the median, if calls are independent.
      seconds: of every call [num_rounds].
      peak_bytes: most device memory that this process ever held, or None if it is not reported.
      device: kind of the device.
    """

    median: float
    low: float
    high: float
    coverage: float
    seconds: Any
    peak_bytes: int | None
    device: str

    @property
    def kind(self) -> Kind:
        """Run here."""
        return Kind.MEASURED


@checked(fn=FUNCTION, num_rounds=check_count, num_warmup=FROM_0, confidence=OPEN_SHARE)
def measure(
    fn: Callable,
    *args,
    num_rounds: int = 20,
    num_warmup: int = 2,
    confidence: float = 0.95,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Time fn(*args), waiting for its results, after `num_warmup` calls that compile and warm up.

    Args:
      fn: compiled already, or its dispatch is timed too.
      args: of fn.
      num_rounds: timed calls.
      num_warmup: calls before.
      confidence: asked of the interval, see `median_interval`.
      clock: seconds.

    Raises:
      ValueError: fewer than one round.
    """
    for _ in range(num_warmup):
        jax.block_until_ready(fn(*args))
    seconds = np.zeros(num_rounds)
    for i in range(num_rounds):
        start = clock()
        jax.block_until_ready(fn(*args))
        seconds[i] = clock() - start
    interval = median_interval(seconds, confidence)
    device = str(jax.devices()[0].device_kind)
    return Measured(float(np.median(seconds)), *interval, seconds, peak_bytes(), device)


@checked(values=check_numbers, confidence=OPEN_SHARE)
def median_interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (low, high, coverage): two order statistics around the median, whatever the law.

        P(x_(k) <= median <= x_(n+1-k)) >= 1 - 2 P(Bin(n, 1/2) <= k - 1)

    for the largest k that reaches the confidence; the extremes, and their lower coverage, if none
    does (fewer than six values at 95 %). David & Nagaraja 2003, section 7.1.
    """
    from scipy import stats

    x = np.sort(np.asarray(values, np.float64))
    ks = np.arange(1, (x.size + 1) // 2 + 1)
    coverage = 1 - 2 * stats.binom.cdf(ks - 1, x.size, 0.5)
    k = int(np.max(ks[coverage >= confidence], initial=1))
    return float(x[k - 1]), float(x[x.size - k]), max(float(coverage[k - 1]), 0.0)


def peak_bytes() -> int | None:
    """Return the most bytes that this process held on the first device, or None where it is not
    reported.
    """
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

"""A number of samples with its interval, what the interval covers, and its noise floor."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from qdiffjax import estimates
from qdiffjax._checks import check_callable, check_count, check_numbers, require
from qdiffjax.estimates import Estimate

POPULATION = "population value"  # what infinitely many samples would give
SIZE_N = "expectation at this size"  # what as many new samples would give on average
NUM_GROUPS = 20


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of samples with its 95 % interval.

    Attributes:
      value: the number.
      low, high: the ends of its interval; infinite where there is none.
      num_samples: of the smaller set.
      covers: what the interval is for, `POPULATION` or `SIZE_N`.
      floor: the same of independent full-precision samples, if it was measured.
    """

    value: float
    low: float
    high: float
    num_samples: int
    covers: str
    floor: "Metric | None" = None

    def beside(self, floor: "Metric") -> "Metric":
        """Return the same with a noise floor.

        Raises:
          ValueError: a floor of another size, beside an expectation at this size.
        """
        require(
            self.covers == floor.covers == POPULATION or self.num_samples == floor.num_samples,
            "floor", got=f"{floor.num_samples} samples beside {self.num_samples}",
            expected="as many", remedy="an expectation at a size has a floor of that size",
        )  # fmt: skip
        return dataclasses.replace(self, floor=floor)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them, with those of the floor."""
        return dataclasses.asdict(self)


def noise_floor(metric_fn: Callable, x, other) -> Metric:
    """Return what a metric says of two independent sets of full-precision samples.

    Only what stands out from it is a difference of laws; metrics of pairs on common noise have no
    such floor, and see far smaller differences.

    Args:
      metric_fn: (x, other) -> a Metric.
      x, other: independent samples, or their features, of one law.
    """
    check_callable("metric_fn", metric_fn, "(x, other) -> Metric")
    return metric_fn(x, other)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Compute in float64, whatever the user's default."""
    with jax.enable_x64(True):
        yield


def metric(estimate: Estimate, num_samples: int, covers: str) -> Metric:
    """Return an estimate with what it is of."""
    value, low, high = (float(end) for end in estimate)
    return Metric(value, low, high, num_samples, covers)


def mean_metric(values) -> Metric:
    """Return the mean of one value for each sample [num]; infinite if one of them is."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        return Metric(float(np.mean(values)), -math.inf, math.inf, len(values), POPULATION)
    with float64():
        return metric(estimates.mean_interval(values), len(values), POPULATION)


def proportion(hits) -> Metric:
    """Return the share of hits [num], booleans, with Wilson's interval (Wilson 1927)."""
    hits = np.asarray(hits, bool)
    num, share, z = len(hits), float(np.mean(hits)), 1.959964
    middle = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    width = z / (1 + z**2 / num) * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    return Metric(share, middle - width, middle + width, num, POPULATION)


def grouped(num_groups: int, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Return rows in groups, every num_groups-th row in one, the same rows of all arrays.

    Raises:
      ValueError: fewer than two groups, or fewer than two rows for each.
    """
    check_count("num_groups", num_groups, least=2)
    rows = min(len(a) for a in arrays)
    require(rows >= 2 * num_groups, "num_groups", got=f"{num_groups} groups of {rows} rows",
            expected="at least two rows in each", remedy="take fewer groups")  # fmt: skip
    return [tuple(a[g::num_groups] for a in arrays) for g in range(num_groups)]


def numbers(what: str, x: Any, *, rank: int | None = None, least: int = 2) -> np.ndarray:
    """Return an array in float64, refused if it is not finite, too short, or of another rank.

    Raises:
      TypeError, ValueError: says what was got.
    """
    check_numbers(what, x, least_rank=1, least_size=least)
    x = np.asarray(x, np.float64)
    require(rank is None or x.ndim == rank, what, got=f"shape {x.shape}", expected=f"{rank} axes",
            remedy="reshape it")  # fmt: skip
    return x


def flat(what: str, x: Any, *, least: int = 2) -> np.ndarray:
    """Return features as [num, dims] in float64."""
    x = numbers(what, x, least=least)
    return x.reshape(len(x), -1)


def alike(x: np.ndarray, y: np.ndarray, *, paired: bool) -> None:
    """Refuse features of two spaces, and pairs that do not pair up.

    Raises:
      ValueError: says which shapes were got.
    """
    first = 0 if paired else 1
    require(x.shape[first:] == y.shape[first:], "x, y", got=f"shapes {x.shape} and {y.shape}",
            expected="one shape" if paired else "samples of one shape",
            remedy="pass samples of one kind, and as many of both if they are pairs")  # fmt: skip

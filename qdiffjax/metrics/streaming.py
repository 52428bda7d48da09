"""Mean and covariance of features that do not fit in memory, or lie on several devices."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from qdiffjax._checks import check_count, require
from qdiffjax.metrics.records import flat


class Moments(NamedTuple):
    """First and second moments of features, in float64; merged, they are those of all.

    num: samples; mean [dims]; scatter: sum of (x - mean) (x - mean)^T [dims, dims].
    """

    num: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [dims, dims].

        Raises:
          ValueError: fewer than two samples.
        """
        require(self.num >= 2, "moments", got=f"{self.num} samples", expected="at least two",
                remedy="take more")  # fmt: skip
        return self.scatter / (self.num - 1)


def moments(features) -> Moments:
    """Return the moments of features [num, *shape], of every axis but the first.

    An array that is shared out over devices is taken shard by shard, each once; of several hosts
    each returns the moments of its own shards, to be merged.
    """
    if isinstance(features, jax.Array) and len(features.sharding.device_set) > 1:
        shards = [s.data for s in features.addressable_shards if s.replica_id == 0]
        return merged([_of_one(shard) for shard in shards])
    return _of_one(features)


def _of_one(features) -> Moments:
    x = flat("features", features, least=1)
    mean = x.mean(0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merged(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all samples from those of parts; Chan, Golub & LeVeque 1983, eq. 2.1.

        scatter = sum_i scatter_i + num_i (mean_i - mean) (mean_i - mean)^T

    Raises:
      ValueError: no parts, or of several spaces.
    """
    shapes = {part.mean.shape for part in parts}
    require(len(shapes) == 1, "parts", got=f"means of shapes {sorted(shapes)}",
            expected="moments of one space", remedy="use the same features for all")  # fmt: skip
    nums = np.array([part.num for part in parts], np.float64)
    means = np.stack([part.mean for part in parts])
    mean = nums @ means / nums.sum()
    gaps = np.sqrt(nums)[:, None] * (means - mean)
    scatter = gaps.T @ gaps
    for part in parts:  # of 2048 features 20 groups together would take 670 MB
        scatter += part.scatter
    return Moments(int(nums.sum()), mean, scatter)


def streamed(batches: Iterable, num_groups: int = 1) -> list[Moments]:
    """Return the moments of batches of features in `num_groups` groups, in bounded memory.

    Row i of all belongs to group i mod num_groups. `frechet_distance` takes the groups in the place
    of features; `merged` makes one of them.

    Args:
      batches: arrays [num, *shape], of any lengths.
      num_groups: as many as the jackknife is to leave out in turn.

    Raises:
      ValueError: no batches, or fewer samples than groups.
    """
    check_count("num_groups", num_groups)
    groups: list[Moments | None] = [None] * num_groups
    start = 0
    for batch in batches:
        x = flat("batches", batch, least=1)
        for g in range(num_groups):
            rows = x[(g - start) % num_groups :: num_groups]
            if len(rows):
                new, old = _of_one(rows), groups[g]
                groups[g] = new if old is None else merged([old, new])
        start += len(x)
    require(None not in groups, "batches", got=f"{start} samples in {num_groups} groups",
            expected="a sample in each", remedy="take fewer groups")  # fmt: skip
    return [group for group in groups if group is not None]

"""Fidelity and diversity by nearest neighbours: precision and recall, density and coverage.

A set's manifold is the union of balls around its samples that reach to their k-th neighbours.
Intervals are the jackknife's, for the expectation at this size. They are rather too wide, as balls
change where samples are left out: between two Gaussians in the plane, at 100 samples, they cover
96 % of precision, 97 % of recall, 98 to 99 % of coverage and density.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import check_count, require
from qdiffjax.estimates import Estimate, jackknife
from qdiffjax.metrics.records import NUM_GROUPS, SIZE_N, Metric, alike, flat, grouped, metric

ROWS = 1024  # of distances that are in memory at once
NONE = -1  # the group that is left out where none is


class PrecisionRecall(NamedTuple):
    """Share of samples in the manifold of the reference, and of the reference in theirs."""

    precision: Metric
    recall: Metric


class DensityCoverage(NamedTuple):
    """How many balls of the reference hold a sample; share of its balls that hold one at all."""

    density: Metric
    coverage: Metric


def precision_recall(
    x, reference, *, num_neighbours: int = 3, num_groups: int = NUM_GROUPS
) -> PrecisionRecall:
    """Return precision and recall of samples beside a reference; Kynkaanniemi et al. 2019, eq. 2.

    Both depend on the numbers of samples. Samples on common noise with the reference lie beside it,
    and have a precision near 1 whatever their law.

    Args:
      x: features of the samples [num, *shape].
      reference: features of data, or of full-precision samples [m, *shape].
      num_neighbours: k.
      num_groups: that the jackknife leaves out in turn.
    """
    return PrecisionRecall(
        *_with_intervals(_precision_recall, (1, 1), x, reference, num_neighbours, num_groups)
    )


def density_coverage(
    x, reference, *, num_neighbours: int = 5, num_groups: int = NUM_GROUPS
) -> DensityCoverage:
    """Return density and coverage of samples beside a reference; Naeem et al. 2020, eqs. 3 and 4.

        density  = 1 / (k num) sum_j #{i : |x_j - r_i| <= distance of r_i to its k-th neighbour}
        coverage = share of i whose ball holds an x_j

    Density is 1 on average between equal laws, coverage 1 - (1 / 2)^k for many samples of as many.

    Args:
      x, reference, num_neighbours, num_groups: as in `precision_recall`.
    """
    return DensityCoverage(
        *_with_intervals(_density_coverage, (np.inf, 1), x, reference, num_neighbours, num_groups)
    )


def _with_intervals(fn: Callable, most, x, reference, k: int, num_groups: int) -> list[Metric]:
    """Return both numbers of fn, whose largest possible values are `most`."""
    x, reference = flat("x", x), flat("reference", reference)
    alike(x, reference, paired=False)
    check_count("num_neighbours", k)
    groups = grouped(num_groups, x, reference)  # as `_balls` leaves them out
    num = min(len(x), len(reference))
    left = num - max(min(map(len, group)) for group in groups)
    require(left > k, "num_neighbours", got=f"{k} of {num} samples",
            expected="fewer than samples that are left without a group",
            remedy="draw more, or take fewer")  # fmt: skip

    found = fn(x, reference, k, num_groups)

    def stat(kept) -> np.ndarray:
        left_out = min(set(range(num_groups)) - set(kept), default=NONE)
        return found[left_out + 1]

    ends = (np.clip(end, 0, most) for end in jackknife(stat, range(num_groups)))
    return [metric(Estimate(*own), num, SIZE_N) for own in zip(*ends, strict=True)]


def _precision_recall(x, reference, k: int, num_groups: int) -> list[np.ndarray]:
    found = [_balls(*pair, k, num_groups) for pair in ((x, reference), (reference, x))]
    return [
        np.array([np.mean(balls > 0) for balls, _ in both]) for both in zip(*found, strict=True)
    ]


def _density_coverage(x, reference, k: int, num_groups: int) -> list[np.ndarray]:
    return [np.array([np.mean(balls) / k, np.mean(held)])
            for balls, held in _balls(x, reference, k, num_groups)]  # fmt: skip


def _balls(x, reference, k: int, num_groups: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return how many balls of the reference hold each x, and which hold any.

    Of all samples, then of those without each group, every num_groups-th row of both sides.
    Distances are found once for all.
    """
    from scipy.spatial.distance import cdist

    ways, step = range(NONE, num_groups), max(num_groups, 1)
    of_x, of_reference = (np.arange(len(side)) % step for side in (x, reference))
    balls = [np.zeros(len(x), int) for _ in ways]
    held = [np.zeros(len(reference), bool) for _ in ways]
    for start in range(0, len(reference), ROWS):
        rows = slice(start, start + ROWS)
        own, others = (cdist(reference[rows], side) for side in (reference, x))
        nearest = np.stack([others[:, of_x == group].min(1) for group in range(step)])
        for way, radii in zip(ways, _radii(own, of_reference, k, ways), strict=True):
            is_kept = of_reference[rows] != way
            balls[way + 1] += np.count_nonzero(others[is_kept] <= radii[is_kept, None], axis=0)
            groups = [group for group in range(step) if group != way]
            held[way + 1][rows] = nearest[groups].min(0) <= radii
    return [(num[of_x != way], any_[of_reference != way])
            for way, num, any_ in zip(ways, balls, held, strict=True)]  # fmt: skip


def _radii(distances, groups, k: int, ways) -> list[np.ndarray]:
    """Return the distance of each row to its k-th neighbour, itself not counted, for each group
    left out. A few of the nearest are looked at, all where most of those are left out.
    """
    num = min(4 * (k + 1), distances.shape[1])
    places = np.argpartition(distances, num - 1, axis=1)[:, :num]
    places = np.take_along_axis(
        places, np.argsort(np.take_along_axis(distances, places, 1), axis=1), 1
    )
    near, found = np.take_along_axis(distances, places, 1), []
    for way in ways:
        count = np.cumsum(groups[places] != way, axis=1)
        radii = np.take_along_axis(near, np.argmax(count > k, axis=1)[:, None], 1)[:, 0]
        is_short = count[:, -1] <= k
        if is_short.any():
            radii[is_short] = np.partition(distances[is_short][:, groups != way], k, axis=1)[:, k]
        found.append(radii)
    return found

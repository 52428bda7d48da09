"""The Frechet distance of features, at the size that was drawn and of infinitely many samples."""

from collections.abc import Sequence
from typing import Any

import jax

from qdiffjax._checks import require
from qdiffjax.diffusion.gaussian import gaussian_w2_squared
from qdiffjax.estimates import jackknife
from qdiffjax.metrics.records import (
    NUM_GROUPS,
    POPULATION,
    SIZE_N,
    Metric,
    alike,
    flat,
    float64,
    grouped,
    metric,
)
from qdiffjax.metrics.streaming import Moments, merged, moments

_distance = jax.jit(gaussian_w2_squared)
Groups = list[tuple[Moments, Moments]]


def moments_distance(x: Moments, y: Moments) -> float:
    """Return the Frechet distance of two sets by their moments, which need not be of full rank.

        |mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x^.5 C_y C_x^.5)^.5)

    Survey, eq. 17: the squared W2 of the Gaussians with these moments, see `gaussian_w2_squared`.
    """
    require(x.mean.shape == y.mean.shape, "x, y", got=f"{x.mean.shape} and {y.mean.shape} features",
            expected="as many", remedy="use the same features for both")  # fmt: skip
    with float64():
        return float(_distance(x.mean, x.covariance, y.mean, y.covariance))


def frechet_distance(x, y, *, num_groups: int = NUM_GROUPS) -> Metric:
    """Return the Frechet distance of features of two sets, with the interval of the jackknife.

    The value leans upwards by O(1 / N), more than most differences between recipes, so compare
    sets of one size; the interval is for its expectation at this size. Groups of both sets are left
    out together, which serves pairs on common noise and independent sets alike.

    Called FID for the pooled features of Inception-v3, sFID for spatial ones (Nash et al. 2021),
    the first 7 channels of its 17 x 17 map "mixed_6/conv", flattened to 2023 numbers.

    Args:
      x: features [num, *shape], or groups of moments, see `streamed`.
      y: features [m, *shape], as many groups of moments, or the moments of a reference set that is
        given, such as stored statistics; the interval is then of x alone.
      num_groups: that are left out in turn.
    """
    groups, num = _groups(x, y, num_groups)
    return metric(jackknife(_distance_of, groups), num, SIZE_N)


def frechet_of_infinite(x, y, *, num_groups: int = NUM_GROUPS) -> Metric:
    """Return the Frechet distance that infinitely many samples would have; FID_inf.

    The intercept of the line in 1 / N (Chong & Forsyth 2020, section 4) through the distance of all
    samples and those without a group each, which is the jackknife's. A line through halves and
    quarters has the same limit and twice the standard deviation between close laws. The interval is
    for the population value, which near zero may be below it.

    Args:
      x, y, num_groups: as in `frechet_distance`, with many more samples than features.
    """
    groups, num = _groups(x, y, num_groups)
    return metric(jackknife(_distance_of, groups, unbiased=True), num, POPULATION)


def _distance_of(groups: Sequence[tuple[Any, Any]]) -> float:
    return moments_distance(*_sides(groups))


def _sides(groups) -> tuple[Moments, Moments]:
    x, y = zip(*groups, strict=True)
    return merged(x), y[0] if all(part is y[0] for part in y) else merged(y)


def _groups(x, y, num_groups: int) -> tuple[Groups, int]:
    """Return groups of both sides, and the number of samples of the smaller one."""
    if not isinstance(y, Moments) and not _are_groups(x):
        x, y = flat("x", x), flat("y", y)
        alike(x, y, paired=False)
        groups = [(moments(a), moments(b)) for a, b in grouped(num_groups, x, y)]
        return groups, min(len(x), len(y))
    if not _are_groups(x):
        x = [moments(part) for (part,) in grouped(num_groups, flat("x", x))]
    y = [y] * len(x) if isinstance(y, Moments) else y
    require(_are_groups(y) and len(x) == len(y) >= 2, "x, y",
            got=f"{len(x)} groups beside {len(y)}",
            expected="as many groups of moments, two or more",
            remedy="stream both with one num_groups")  # fmt: skip
    sides = (x,) if y[0] is y[1] else (x, y)
    return list(zip(x, y, strict=True)), min(sum(part.num for part in side) for side in sides)


def _are_groups(x) -> bool:
    return isinstance(x, Sequence) and len(x) > 0 and all(isinstance(a, Moments) for a in x)

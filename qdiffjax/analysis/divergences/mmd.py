"""Kernel distances of two laws from samples: MMD and the energy distance, unbiased."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_number, check_numbers, require
from qdiffjax._typing import Array, float_dtype

KernelFn = Callable[[Array], Array]  # squared distances [*shape], positive -> values [*shape]
PairFn = Callable[[Array, Array, Array], Array]  # [n], [num, n], those left out [num] -> [num]


def rbf_mixture(bandwidths) -> KernelFn:
    """Return the kernel mean_s exp(-|x - y|^2 / (2 s^2)) of positive bandwidths [S], in units of x.

    Characteristic: MMD = 0 only between equal laws. A factor 4 between bandwidths around
    `median_distance` covers most scales.
    """
    check_numbers("bandwidths", bandwidths)
    check_number("bandwidths", bandwidths, above=0)
    widths = jnp.atleast_1d(jnp.asarray(bandwidths))

    def kernel(squared):
        rates = (1 / (2 * widths**2)).astype(squared.dtype).reshape(-1, *(1,) * squared.ndim)
        return jnp.mean(jnp.exp(-rates * squared[None]), axis=0)

    return kernel


def negative_distance(squared) -> Array:
    """Return the kernel -|x - y|, whose MMD^2 is the energy distance."""
    return -jnp.sqrt(squared)


def mmd_squared(x, y, kernel: KernelFn) -> Array:
    """Return the unbiased estimate of the squared maximum mean discrepancy [].

        E k(x, x') + E k(y, y') - 2 E k(x, y)

    U-statistics, so it is negative about half of the time between equal laws. Between samples of
    equal size the pairs (x_i, y_i) are left out (Gretton et al. 2012, eq. 4): they may share
    their noise, and would bias the cross term. Without them the estimate is unbiased whether or
    not they do. Samples of different size must be independent. The kernel, not the estimate, may
    be conditionally positive definite only. Interval: `block_mean`.

    Args:
      x: samples [n, *shape].
      y: samples [m, *shape].
      kernel: of squared distances, such as `rbf_mixture(...)` or `negative_distance`.

    Raises:
      ValueError: if the samples differ in shape, or one set has fewer than two.
    """
    x, y = _flat(x, y)
    pairs = of_distances(kernel)
    within = _mean_of_pairs(x, x, pairs, True) + _mean_of_pairs(y, y, pairs, True)
    return within - 2 * _mean_of_pairs(x, y, pairs, x.shape[0] == y.shape[0])


def kid(x, y, *, paired: bool = False) -> Array:
    """Return the kernel inception distance of features [], the unbiased MMD^2 of the cubic kernel.

        k(x, y) = (<x, y> / n + 1)^3

    Binkowski et al. 2018, section 4: U-statistics within each set, all pairs between them, which
    must then be independent. The kernel knows moments up to the third alone: MMD = 0 does not make
    laws equal. Interval: `block_mean`.

    Args:
      x: features [num, *shape] of n numbers each.
      y: features [m, *shape].
      paired: whether x_i and y_i share their noise, so that the pairs (x_i, y_i) are left out, as
        in `mmd_squared`.

    Raises:
      ValueError: if the samples differ in shape, or one set has fewer than two, or pairs do not
        pair up.
    """
    x, y = _flat(x, y)
    require(not paired or x.shape == y.shape, "paired", got=(x.shape, y.shape),
            expected="as many of both", remedy="leave paired out")  # fmt: skip
    within = _mean_of_pairs(x, x, cubic, True) + _mean_of_pairs(y, y, cubic, True)
    return within - 2 * _mean_of_pairs(x, y, cubic, paired)


def cubic(row, y, skip) -> Array:
    """Return KID's kernel (<row, y_j> / n + 1)^3 of one sample [n] and many [num, n]: [num]."""
    return (jnp.sum(row[None] * y, axis=1) / row.size + 1) ** 3


def energy_distance(x, y) -> Array:
    """Return the unbiased estimate of 2 E|x - y| - E|x - x'| - E|y - y'| [] (Szekely 2013).

    Zero only between equal laws with finite means; `mmd_squared` with the kernel -|x - y|
    (Sejdinovic et al. 2013). In units of x, not squared.
    """
    return mmd_squared(x, y, negative_distance)


def median_distance(x, y) -> Array:
    """Return the median of |x_i - y_j| over i != j [], a usual bandwidth; samples [num, *shape]."""
    x, y = _flat(x, y)
    away = jnp.where(_diagonal(x.shape[0], y.shape[0]), jnp.nan, 1.0).astype(x.dtype)
    squared = jax.lax.map(lambda row: jnp.sum((row[None] - y) ** 2, axis=1), x)
    return jnp.sqrt(jnp.nanmedian(squared * away))


def of_distances(kernel: KernelFn) -> PairFn:
    """Return a kernel of squared distances as one of pairs."""

    def of_pairs(row, y, skip):
        squared = jnp.sum((row[None] - y) ** 2, axis=1)
        # A skipped distance may be zero, where the root has no derivative.
        return kernel(jnp.where(skip, 1, squared))

    return of_pairs


def _mean_of_pairs(x, y, kernel: PairFn, off_diagonal: bool) -> Array:
    """Return the mean of k(x_i, y_j) over all i, j or over i != j."""
    n, m = x.shape[0], y.shape[0]
    total = sums_of_pairs(x, y, kernel, off_diagonal=off_diagonal)[0, 0]
    return total / (n * (m - 1) if off_diagonal else n * m)


def sums_of_pairs(x, y, kernel: PairFn, *, off_diagonal: bool, num_groups: int = 1) -> Array:
    """Return sums of k(x_i, y_j) [num_groups, num_groups] by the groups of i and j, row by row.

    Args:
      x: samples [n, dims]; i is in group i mod num_groups.
      y: samples [m, dims], likewise.
      kernel: of one row and many.
      off_diagonal: whether i = j is left out.
      num_groups: of both sets.
    """
    members = jnp.arange(y.shape[0]) % num_groups

    def row_sums(indexed):
        i, row = indexed
        skip = (jnp.arange(y.shape[0]) == i) & off_diagonal
        values = jnp.where(skip, 0, kernel(row, y, skip))
        return jax.ops.segment_sum(values, members, num_groups)

    rows = jax.lax.map(row_sums, (jnp.arange(x.shape[0]), x))
    return jax.ops.segment_sum(rows, jnp.arange(x.shape[0]) % num_groups, num_groups)


def _diagonal(n: int, m: int) -> np.ndarray:
    return np.eye(n, m, dtype=bool)


def _flat(x, y) -> tuple[Array, Array]:
    """Return both as [num, dims] in the float dtype of x."""
    check_numbers("x", x, least_rank=1, least_size=0)
    check_numbers("y", y, least_rank=1, least_size=0)
    require(
        jnp.shape(x)[1:] == jnp.shape(y)[1:] and min(len(x), len(y)) >= 2,
        "x, y",
        got=f"samples of shapes {jnp.shape(x)} and {jnp.shape(y)}",
        expected="at least two each of one shape [num, *shape]",
        remedy="draw more",
    )
    x, y = (jnp.asarray(a).astype(float_dtype(x)) for a in (x, y))
    return x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)

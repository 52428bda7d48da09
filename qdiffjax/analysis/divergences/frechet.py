"""The Frechet distance of features (FID) of finitely many samples: its bias, and its limit."""

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_numbers, require
from qdiffjax._typing import Array
from qdiffjax.estimates import Estimate, student_quantile


def frechet_bias(covariance, num: int) -> Array:
    """Return the leading bias of the Frechet distance of num samples to their own law [].

        (1 / N) [ sum_i l_i + sum_ij l_i l_j (1 + [i = j]) / (2 (l_i + l_j)) ]

    for Gaussian features with the eigenvalues l of their covariance: the first term is that of the
    mean, E |m - mean|^2; the second that of the covariance, by the metric of Bures, E |S - C|^2 of
    its entries. Of one feature it is 3 l / (2 N), the leading term of l (1 / N + 2 (1 - c_4(N))).
    Twice as much between two independent sets of N. For N much larger than the dimension.

    Args:
      covariance: of the features [n, n], or its eigenvalues [n].
      num: N, samples.
    """
    check_count("num", num, least=2)
    check_numbers("covariance", covariance, least_rank=1)
    covariance = jnp.asarray(covariance, jnp.result_type(float))
    values = covariance if covariance.ndim == 1 else jnp.linalg.eigvalsh(covariance)
    values = jnp.maximum(values, 0)
    sums = values[:, None] + values[None]
    products = values[:, None] * values[None] * (1 + jnp.eye(values.size, dtype=values.dtype))
    ratios = jnp.where(sums > 0, products / jnp.where(sums > 0, sums, 1), 0)
    return (jnp.sum(values) + jnp.sum(ratios) / 2) / num


def frechet_limit(nums, distances) -> Estimate:
    """Return the Frechet distance of infinitely many samples, by a line in 1 / N, with interval.

        d(N) = d_inf + c / N

    fitted by least squares to distances at several N; Chong & Forsyth 2020 (FID_inf), section 4.
    The interval is Student's of the intercept, for independent errors of one size; subsets of one
    set of samples are neither, which it does not cover.

    Args:
      nums: N, at least two different ones [num].
      distances: at each N [num].

    Raises:
      ValueError: lengths that differ, or fewer than three distances, or one N only.
    """
    check_numbers("nums", nums, least_rank=1)
    check_numbers("distances", distances, least_rank=1)
    nums, distances = (np.asarray(a, np.float64).ravel() for a in (nums, distances))
    require(nums.size == distances.size and nums.size >= 3 and np.unique(nums).size > 1
            and np.all(nums > 0), "nums, distances", got=(nums.size, distances.size),
            expected="as many, at least three, at two or more numbers of samples",
            remedy="measure the distance of more subsets")  # fmt: skip
    design = np.stack([np.ones_like(nums), 1 / nums], axis=1)
    (value, _), *_ = np.linalg.lstsq(design, distances, rcond=None)
    residual = distances - design @ np.linalg.lstsq(design, distances, rcond=None)[0]
    variance = residual @ residual / (nums.size - 2) * np.linalg.inv(design.T @ design)[0, 0]
    width = student_quantile(nums.size - 1) * variance**0.5
    return Estimate(*(jnp.asarray(v) for v in (value, value - width, value + width)))

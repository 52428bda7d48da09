"""W2 between laws: Gaussian, on the line, by assignment, from both sides.

Samples are paired: both samplers start from the same x_T and use the same noise.
"""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import POSITIVE, check_count, check_key, check_numbers, checked, require
from qdiffjax._typing import Array, Key, float_dtype
from qdiffjax.diffusion.gaussian import gaussian_w2_squared
from qdiffjax.estimates import Estimate, bootstrap, mean_interval
from qdiffjax.labels import Kind, bound


class Bracket(NamedTuple):
    """lower <= W2 of the two empirical laws <= upper; each with its interval."""

    lower: Estimate
    upper: Estimate


def gaussian_w2(mean_1, cov_1, mean_2, cov_2) -> Array:
    """Return W2 of two Gaussians, the root of `gaussian_w2_squared` []."""
    return jnp.sqrt(gaussian_w2_squared(mean_1, cov_1, mean_2, cov_2))


@bound(Kind.DISTRIBUTIONAL, "none: any coupling bounds W2 from above")
def w2_coupling(x, y) -> Estimate:
    """Return sqrt(E |x - y|^2) of paired samples [num, *shape], an upper bound of W2 [].

    The interval is that of the mean square, mapped by the root. Heavy tails (a few samples that
    change their mode) make it optimistic: look at the median of |x - y| too.
    """
    x, y = paired(x, y)
    return Estimate(*(jnp.sqrt(jnp.maximum(m, 0)) for m in mean_interval(jnp.sum((x - y) ** 2, 1))))


def gelbrich_squared(x, y) -> Array:
    """Return the squared W2 of the Gaussians with the samples' moments, covariances over num [].

    A lower bound of the squared W2 between the two empirical laws (Gelbrich 1990). With
    centred rows X, Y [num, n] it is |mean gap|^2 + min over orthogonal Q of |X - Q Y|^2 / num, as
    the n x n and the num x num cross products have the same nuclear norm; the smaller is used.
    Survey, eq. 17, on samples. Against the population it leans upwards, more so for num < n.

    Args:
      x: samples [num, *shape].
      y: samples [num, *shape].
    """
    x, y = paired(x, y)
    mean_x, mean_y = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    x, y = x - mean_x[None], y - mean_y[None]
    if x.shape[0] > x.shape[1]:
        cov_x, cov_y = (jnp.matmul(a.T, a, precision="highest") / a.shape[0] for a in (x, y))
        return gaussian_w2_squared(mean_x, cov_x, mean_y, cov_y)
    left, _, right = jnp.linalg.svd(jnp.matmul(x, y.T, precision="highest"))
    q = jnp.matmul(left, right, precision="highest")
    gap = x - jnp.matmul(q, y, precision="highest")
    return jnp.sum((mean_x - mean_y) ** 2) + jnp.sum(gap**2) / x.shape[0]


def w2_squared_1d(x, y) -> Array:
    """Return the exact squared W2 of two empirical laws on the line: [num, *batch] -> [*batch].

    The monotone coupling: the mean of (sorted x - sorted y)^2.
    """
    return jnp.mean((jnp.sort(x, axis=0) - jnp.sort(y, axis=0)) ** 2, axis=0)


def w1_1d(x, y) -> Array:
    """Return the exact W1 of two empirical laws on the line: [num, *batch] -> [*batch].

    The monotone coupling: the mean of |sorted x - sorted y|, which is the area between the two
    distribution functions. Closed forms of named pairs: `named_pairs`.
    """
    return jnp.mean(jnp.abs(jnp.sort(x, axis=0) - jnp.sort(y, axis=0)), axis=0)


def assignment_w2_squared(x, y) -> float:
    """Return the exact squared W2 of two empirical laws of equal size, samples [num, *shape].

    Linear assignment, O(num^3) in NumPy float64, not traced. Of the *empirical* laws: against the
    population it leans upwards by num^(-2/n), unusable beyond n about 4, and between paired
    samples closer than their neighbours it is the mean square of their gaps, an upper bound.
    """
    x, y = (np.asarray(a, np.float64) for a in paired(x, y))
    cost = squared_costs(x, y)
    from scipy import optimize

    return float(cost[optimize.linear_sum_assignment(cost)].mean())


def squared_costs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return |x_i - y_j|^2 [n, m] in NumPy, by differences, which do not cancel."""
    return np.stack([np.sum((row - y) ** 2, axis=1) for row in x])


@checked(key=check_key, num_frames=check_count, n=check_count)
def orthonormal_frames(key: Key, num_frames: int, n: int, dtype=None) -> Array:
    """Return uniformly random orthonormal frames of R^n, stacked [num_frames * n, n]."""
    gauss = jax.random.normal(key, (num_frames, n, n), dtype or jnp.result_type(float))
    return jnp.swapaxes(jnp.linalg.qr(gauss)[0], 1, 2).reshape(num_frames * n, n)


@checked(directions=functools.partial(check_numbers, least_rank=2))
def sliced_w2_squared(x, y, directions) -> Array:
    """Return the mean squared W2 of the projections on unit directions [] (Rabin et al. 2012).

    Over a full orthonormal frame n times this is at most W2^2, as the optimal coupling projects
    to one coupling per direction and sum_u <u, z>^2 = |z|^2. Independent directions obey that
    only in expectation.

    Args:
      x: samples [num, *shape].
      y: samples [num, *shape].
      directions: [num_directions, n] with n = prod(shape); see `orthonormal_frames`.
    """
    x, y = paired(x, y)
    directions = jnp.asarray(directions).astype(x.dtype)
    require(directions.shape[-1] == x.shape[1], "directions", got=f"shape {directions.shape}",
            expected=f"[num_directions, {x.shape[1]}]",
            remedy="see orthonormal_frames")  # fmt: skip
    projected = (jnp.matmul(a, directions.T, precision="highest") for a in (x, y))
    return jnp.mean(w2_squared_1d(*projected))


@bound(Kind.DISTRIBUTIONAL, "none, of the two empirical laws: a lower bound")
@checked(key=check_key, num_frames=check_count)
def w2_lower(x, y, key: Key, num_frames: int = 1) -> Array:
    """Return max(Gelbrich, sliced) <= W2 of the two empirical laws [], samples [num, *shape].

    With `w2_coupling` a bracket of W2 that needs no density. Pair the noise: two independent
    halves of one law are far from 0.
    """
    x, y = paired(x, y)
    frames = orthonormal_frames(key, num_frames, x.shape[1], x.dtype)
    sliced = x.shape[1] * sliced_w2_squared(x, y, frames)
    return jnp.sqrt(jnp.maximum(gelbrich_squared(x, y), sliced))


@checked(key=check_key, num_frames=check_count, num=check_count)
def w2_bracket(x, y, *, key: Key, num_frames: int = 1, num: int = 200) -> Bracket:
    """Return both sides of W2 with paired bootstrap intervals, samples [num_samples, *shape].

        max(Gelbrich, n sliced W2^2)^(1/2) <= W2 <= (E |x - y|^2)^(1/2)

    One resampling serves both sides. It resamples pairs: the spread of the lower side is that of
    the paired law, and its upward bias stays.
    """
    x, y = paired(x, y)
    key_frames, key_rows = jax.random.split(key)

    def both(x, y):
        upper = jnp.sqrt(jnp.mean(jnp.sum((x - y) ** 2, axis=1)))
        return jnp.stack([w2_lower(x, y, key_frames, num_frames), upper])

    sides = bootstrap(both, x, y, key=key_rows, num=num)
    return Bracket(*(Estimate(*(leaf[i] for leaf in sides)) for i in (0, 1)))


def paired(x, y) -> tuple[Array, Array]:
    """Return samples of equal shape [num, *shape], both as [num, n] in the float dtype of x.

    Raises:
      ValueError: if the shapes differ.
    """
    check_numbers("x", x, least_rank=1)
    check_numbers("y", y, least_rank=1)
    require(
        jnp.shape(x) == jnp.shape(y),
        "x, y",
        got=f"samples of shapes {jnp.shape(x)} and {jnp.shape(y)}",
        expected="equal [num, *shape]",
        remedy="generate both from the same noise",
    )
    x, y = (jnp.asarray(a).astype(float_dtype(x)) for a in (x, y))
    return x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)


@checked(epsilon=POSITIVE, threshold=POSITIVE, max_iterations=check_count)
def sinkhorn_divergence(
    x, y, epsilon: float, *, threshold: float = 1e-4, max_iterations: int = 2000
) -> Array:
    """Return the debiased entropic transport cost of two empirical laws [].

        S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2,
        OT = min over couplings P of <C, P> + epsilon KL(P || a b^T),   C = |x_i - y_j|^2

    Convention: the cost is the square without 1/2 and epsilon is in its units, absolute, never
    relative to the spread of C. S tends to W2^2 of the empirical laws as epsilon -> 0 and to
    |mean x - mean y|^2 as epsilon -> infinity; it is 0 between equal sets (Feydy et al. 2019).
    nan where one of the three problems has not converged.

    Args:
      x: samples [num, *shape].
      y: samples [num, *shape].
      epsilon: positive.
      threshold: on the marginals' error, in total variation.
      max_iterations: of each problem.

    Raises:
      ImportError: if ott-jax is not installed.
    """
    tools: Any = _import_ott()
    x, y = paired(x, y)
    with _default_promotion():
        value, out = tools.sinkdiv(
            x, y, epsilon=epsilon,
            solve_kwargs={"threshold": threshold, "max_iterations": max_iterations},
        )  # fmt: skip
    return jnp.where(jnp.all(jnp.stack([jnp.asarray(c) for c in out.converged])), value, jnp.nan)


def _import_ott():
    try:
        from ott.tools import sinkhorn_divergence as tools
    except ImportError as error:
        raise ImportError(
            "got no ott-jax, expected it for Sinkhorn divergences; pip install ott-jax, or use "
            "sliced_w2_squared and assignment_w2_squared"
        ) from error
    return tools


@contextlib.contextmanager
def _default_promotion():
    """ott-jax relies on JAX's default promotions, whatever the caller's."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield

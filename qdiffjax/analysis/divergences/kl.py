"""KL from densities and from samples alone, in nats; total variation from KL."""

import functools
import warnings

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import FROM_2, SAMPLES, check_count, check_numbers, checked, require
from qdiffjax._typing import Array
from qdiffjax.diffusion.gaussian import gaussian_kl
from qdiffjax.estimates import Estimate, mean_interval, student_quantile
from qdiffjax.labels import Kind, bound

MAX_NEIGHBOUR_DIMS = 10


@checked(log_p=SAMPLES, log_q=SAMPLES)
def log_ratio_kl(log_p, log_q, *, control: bool = False) -> Estimate:
    """Return KL(p || q) = E_p[log p - log q] from log-densities at samples of p, with interval [].

    The densities may come from anywhere: mixtures, or `diffusion.log_likelihood` of the
    probability-flow ODE of two *smooth* networks. That of a quantized network means nothing: the
    divergence of a piecewise constant field is zero almost everywhere.

    Args:
      log_p: log p(x_i), x_i ~ p [num].
      log_q: log q(x_i) [num].
      control: add q / p - 1, whose mean is 0. Between close laws, where the log-ratio is r and
        the KL about E r^2 / 2, the spread falls from r to r^2; but E_p[(q / p)^2] must be finite.
    """
    require(jnp.shape(log_p) == jnp.shape(log_q), "log_p, log_q",
            got=(jnp.shape(log_p), jnp.shape(log_q)), expected="equal shapes",
            remedy="both at the same samples")  # fmt: skip
    ratio = jnp.asarray(log_q).astype(jnp.result_type(float)) - jnp.asarray(log_p)
    return mean_interval(jnp.expm1(ratio) - ratio if control else -ratio)


@checked(x=SAMPLES, y=SAMPLES, num_neighbours=check_count, num_blocks=check_count)
def knn_kl(x, y, *, num_neighbours: int = 5, num_blocks: int = 10) -> Estimate:
    """Estimate KL(p || q) from samples x ~ p [n, *shape], y ~ q [m, *shape], independent.

        (d / n) sum_i log(nu_k(i) / rho_k(i)) + log(m / (n - 1))

    nu_k and rho_k are the distances from x_i to its k-th neighbour in y and in the other x. Wang,
    Kulkarni & Verdu 2009, eq. 5. Consistent, biased at finite n: more so in more dimensions, and
    downwards, so that it stays a lower bound, where the laws hardly overlap (one nat too low at
    2.8 nats, n = 3000, two dimensions). NumPy float64, not traced.

    The interval does not cover this bias. Its width is the spread of the estimate over disjoint
    blocks of the samples, divided by the root of their number, times Student's quantile; the spread
    of the terms themselves would be a third too small, since neighbours share their neighbours.
    Infinite when there are too few samples for two blocks.

    Warns:
      UserWarning: if d > 10, where the bias exceeds most KLs of interest.

    Raises:
      ValueError: if a set has no k-th neighbour, or points coincide.
    """
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    require(x.shape[1] == y.shape[1], "x, y", got=f"{x.shape[1]} and {y.shape[1]} dimensions",
            expected="the same", remedy="take samples of one space")  # fmt: skip
    if x.shape[1] > MAX_NEIGHBOUR_DIMS:
        warnings.warn(f"nearest neighbours in {x.shape[1]} dimensions are biased beyond use; "
                      f"project to at most {MAX_NEIGHBOUR_DIMS}", stacklevel=2)  # fmt: skip
    smallest = min(len(x) - 1, len(y))
    require(
        smallest >= num_neighbours,
        "x, y, num_neighbours",
        got=f"{len(x)} and {len(y)} samples",
        expected=f"more than {num_neighbours}",
        remedy="draw more",
    )
    value = _neighbour_kl(x, y, num_neighbours)
    num_blocks = min(num_blocks, smallest // (num_neighbours + 1))
    if num_blocks < 2:
        return Estimate(*(jnp.asarray(v) for v in (value, -np.inf, np.inf)))
    blocks = zip(np.array_split(x, num_blocks), np.array_split(y, num_blocks), strict=True)
    spread = np.std([_neighbour_kl(a, b, num_neighbours) for a, b in blocks], ddof=1)
    width = student_quantile(num_blocks) * spread / num_blocks**0.5
    return Estimate(*(jnp.asarray(v) for v in (value, value - width, value + width)))


def _neighbour_kl(x: np.ndarray, y: np.ndarray, num_neighbours: int) -> float:
    from scipy import spatial

    rho = spatial.cKDTree(x).query(x, [num_neighbours + 1])[0][:, 0]
    nu = spatial.cKDTree(y).query(x, [num_neighbours])[0][:, 0]
    require(
        rho.min() > 0 and nu.min() > 0,
        got="coinciding points",
        expected="samples of two densities",
        remedy="rounded samples have none",
    )
    return x.shape[1] * float(np.mean(np.log(nu / rho))) + float(np.log(len(y) / (len(x) - 1)))


@checked(x=check_numbers, y=check_numbers, num_bins=FROM_2)
def histogram_kl(x, y, *, num_bins: int = 16) -> Array:
    """Estimate KL between two laws on the line, binned: samples x, y [num] -> [].

        sum_b p_b log(p_b / q_b) - (num_bins - 1) (1 / n + 1 / m) / 2

    with bins of equal mass in the pooled sample. Binning only lowers the KL (data processing), so
    this estimates a lower bound; the correction is the leading bias of the counts, exact for
    close laws (Miller 1955), so it may be negative. Half a count is added to empty bins.
    Traceable.
    """
    x, y = jnp.ravel(jnp.asarray(x)), jnp.ravel(jnp.asarray(y))
    edges = jnp.quantile(jnp.concatenate([x, y]), jnp.linspace(0, 1, num_bins + 1)[1:-1])

    def frequencies(a):
        counts = jnp.bincount(jnp.searchsorted(edges, a), length=num_bins).astype(edges.dtype)
        counts = jnp.where(counts == 0, 0.5, counts)
        return counts / jnp.sum(counts)

    p, q = frequencies(x), frequencies(y)
    return jnp.sum(p * jnp.log(p / q)) - (num_bins - 1) * (1 / x.size + 1 / y.size) / 2


@bound(Kind.DISTRIBUTIONAL, "none: Pinsker; Bretagnolle and Huber")
def total_variation_bounds(kl) -> tuple[Array, Array]:
    """Return two upper bounds of the total variation distance from KL in nats, each [*shape].

    sqrt(KL / 2) (Pinsker) and sqrt(1 - exp(-KL)) (Bretagnolle & Huber 1979); the first is the
    smaller up to KL = 1.5936, the second stays below 1. A negative KL, which is an estimate's
    error, counts as 0; NaN stays.
    """
    kl = jnp.asarray(kl)
    kl = jnp.maximum(kl, jnp.zeros_like(kl))
    return jnp.sqrt(kl / 2), jnp.sqrt(-jnp.expm1(-kl))


@bound(Kind.DISTRIBUTIONAL, "none, data processing: a lower bound")
def gaussian_projected_kl(mean_1, cov_1, mean_2, cov_2, frame) -> Array:
    """Return KL(A x || A y) of two Gaussians seen through frame A [k, n] of full rank, nats []."""
    frame = jnp.asarray(frame)

    def seen(mean, cov):
        half = jnp.matmul(frame, cov, precision="highest")
        covariance = jnp.matmul(half, frame.T, precision="highest")
        return jnp.matmul(frame, mean, precision="highest"), covariance

    return gaussian_kl(*seen(mean_1, cov_1), *seen(mean_2, cov_2))


@checked(x=SAMPLES, y=SAMPLES, frames=functools.partial(check_numbers, least_rank=3))
def projected_kl(x, y, frames, *, num_neighbours: int = 5) -> Estimate:
    """Estimate the KL of projections of samples by nearest neighbours, nats, leaves [num_frames].

    Samples must be independent between the two sets: with paired noise every x_i has its y_i
    much too near. Each frame's interval holds for that frame; their maximum is biased upwards by
    the choice. Fix frames before looking, or choose them on other samples.

    Args:
      x: samples [n, *shape].
      y: samples [m, *shape].
      frames: [num_frames, k, prod(shape)], k small.
      num_neighbours: see `knn_kl`.
    """
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    n = jnp.shape(frames)[-1]
    require(x.shape[1] == y.shape[1] == n, "x, y, frames", got=(x.shape[1], y.shape[1], n),
            expected="one dimension", remedy="frames [num_frames, k, n] of samples [num, n]"
            )  # fmt: skip
    found = [knn_kl(x @ a.T, y @ a.T, num_neighbours=num_neighbours) for a in np.asarray(frames)]
    return Estimate(*(jnp.stack(leaf) for leaf in zip(*found, strict=True)))

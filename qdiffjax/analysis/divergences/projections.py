"""Lower bounds of a KL that can be measured: the KL of low-dimensional projections.

KL(law of A x || law of A x_hat) <= KL(x || x_hat) <= path KL, the data-processing inequality.
"""

import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.analysis.divergences.intervals import Estimate
from qdiffjax.analysis.divergences.kl import knn_kl
from qdiffjax.analysis.labels import Kind, bound
from qdiffjax.diffusion.gaussian_laws import gaussian_kl


@bound(Kind.DISTRIBUTIONAL, "none, data processing: a lower bound")
def gaussian_projected_kl(mean_1, cov_1, mean_2, cov_2, frame) -> Array:
    """Return KL(A x || A y) of two Gaussians seen through frame A [k, n] of full rank, nats []."""
    frame = jnp.asarray(frame)

    def seen(mean, cov):
        half = jnp.matmul(frame, cov, precision="highest")
        covariance = jnp.matmul(half, frame.T, precision="highest")
        return jnp.matmul(frame, mean, precision="highest"), covariance

    return gaussian_kl(*seen(mean_1, cov_1), *seen(mean_2, cov_2))


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
    found = [knn_kl(x @ a.T, y @ a.T, num_neighbours=num_neighbours) for a in np.asarray(frames)]
    return Estimate(*(jnp.stack(leaf) for leaf in zip(*found, strict=True)))

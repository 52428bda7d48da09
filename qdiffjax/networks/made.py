"""Data that is made here: points of a mixture in the plane, videos of moving images."""

import jax
import numpy as np

from qdiffjax.diffusion import gaussian

NUM_POINTS = 50_000


def mixture() -> gaussian.GaussianMixture:
    """Three tilted Gaussians in the plane, near enough that their flow is smooth.

    Densities, scores and the optimal eps at every time are closed forms, see `diffusion.gaussian`.
    """
    means = np.array([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.1]])
    roots = 0.5 * np.random.default_rng(3).normal(size=(3, 2, 2))
    covs = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(2)
    return gaussian.GaussianMixture(np.array([0.5, 0.3, 0.2]), means, covs)


def points(num: int = NUM_POINTS, seed: int = 0) -> np.ndarray:
    """Draw points of the mixture [num, 2], float32."""
    return np.asarray(gaussian.sample_mixture(jax.random.key(seed), mixture(), num), np.float32)


def moving(images, *, frames: int = 6, side: int = 12, paths: int = 4, seed: int = 0) -> np.ndarray:
    """Return videos of images that move before black and turn at the borders.

    Each image takes `paths` straight ways, one after the other: its place is drawn uniformly, its
    velocity from the eight steps to neighbouring pixels a frame.

    Args:
      images: [n, h, w, c] in [-1, 1], h and w at most side - 1.
      frames, side: of a video.
      paths: videos of each image.
      seed: of places and velocities.

    Returns:
      Videos [n * paths, frames, side, side, c].
    """
    random = np.random.default_rng(seed)
    images = np.repeat(images, paths, axis=0)
    num, *shape = images.shape
    most = np.array([side - size for size in shape[:2]])  # of a place [2]
    steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j])
    first = random.integers(0, most + 1, (num, 1, 2))
    places = first + random.choice(steps, (num, 1)) * np.arange(frames)[None, :, None]
    places = most - np.abs(most - places % (2 * most))  # [num, frames, 2], turned at the borders
    videos = np.full((num, frames, side, side, shape[-1]), -1, np.float32)
    rows, columns = (places[..., k, None] + np.arange(shape[k]) for k in (0, 1))
    which = np.arange(num)[:, None, None, None], np.arange(frames)[None, :, None, None]
    videos[*which, rows[..., :, None], columns[..., None, :]] = images[:, None]
    return videos

"""Data that is made here: points of a mixture in the plane, videos of moving images."""

import itertools

import jax
import numpy as np

from qdiffjax._checks import require
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


def moving(
    images, *, frames: int = 6, size: tuple[int, int] = (8, 12), paths: int = 4, seed: int = 0
) -> np.ndarray:
    """Return videos of images that move before black and turn at the borders.

    Each image takes `paths` straight ways, one after the other: its place is drawn uniformly, its
    velocity from the steps to neighbouring pixels a frame along the axes where there is room.

    Args:
      images: [n, h, w, c] in [-1, 1], smaller than a frame.
      frames: of a video.
      size: height and width of a frame.
      paths: videos of each image.
      seed: of places and velocities.

    Returns:
      Videos [n * paths, frames, *size, c].

    Raises:
      ValueError: images that do not fit into a frame, or fill it.
    """
    random = np.random.default_rng(seed)
    images = np.repeat(images, paths, axis=0)
    num, *shape = images.shape
    most = np.array([a - b for a, b in zip(size, shape, strict=False)])  # of a place [2]
    require(min(most) >= 0 and max(most) > 0, "images", got=f"{shape[:2]}",
            expected=f"smaller than frames of {size}", remedy="take larger frames")  # fmt: skip
    ways = [(-1, 0, 1) if room else (0,) for room in most]
    steps = np.array([step for step in itertools.product(*ways) if any(step)])
    first = random.integers(0, most + 1, (num, 1, 2))
    places = first + random.choice(steps, (num, 1)) * np.arange(frames)[None, :, None]
    turned = np.abs(most - places % np.maximum(2 * most, 1))  # from the far border
    places = most - turned  # [num, frames, 2]
    videos = np.full((num, frames, *size, shape[-1]), -1, np.float32)
    down, along = (places[..., k, None] + np.arange(shape[k]) for k in (0, 1))
    which = np.arange(num)[:, None, None, None], np.arange(frames)[None, :, None, None]
    videos[*which, down[..., :, None], along[..., None, :]] = images[:, None]
    return videos

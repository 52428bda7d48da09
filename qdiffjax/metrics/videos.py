"""Videos [samples, frames, ...]: how much they flicker, and how alike their frames are."""

import numpy as np

from qdiffjax._checks import require
from qdiffjax.metrics.perceptual import directions
from qdiffjax.metrics.records import Metric, mean_metric, numbers


def flicker(videos) -> Metric:
    """Return the mean over videos of E |x_{t + 1} - x_t|, over pixels and neighbouring frames.

    In units of a pixel (VBench, "temporal flickering", before it is turned and scaled). What moves
    counts too, so compare with the full-precision videos of the same noise.

    Args:
      videos: [num, frames, *shape].
    """
    x = _videos("videos", videos)
    return mean_metric(np.abs(np.diff(x, axis=1)).reshape(len(x), -1).mean(1))


def flicker_of_errors(videos, videos_hat) -> Metric:
    """Return the mean over pairs of E |d_{t + 1} - d_t|, d the quantized minus the full video.

    What moves in both drops out: errors that stay from frame to frame do not flicker.

    Args:
      videos: full-precision ones [num, frames, *shape].
      videos_hat: quantized ones on the same noise.
    """
    x, y = _videos("videos", videos), _videos("videos_hat", videos_hat)
    require(x.shape == y.shape, "videos_hat", got=f"shape {y.shape}", expected=f"{x.shape}",
            remedy="pass pairs")  # fmt: skip
    return flicker(y - x)


def temporal_consistency(features) -> Metric:
    """Return the mean over videos of the cosine of neighbouring frames' features.

    Args:
      features: of each frame [num, frames, *shape].
    """
    x = _videos("features", features)
    x = directions("features", x.reshape(*x.shape[:2], -1))
    return mean_metric(np.sum(x[:, 1:] * x[:, :-1], axis=2).mean(1))


def _videos(what: str, x) -> np.ndarray:
    x = numbers(what, x)
    require(x.ndim >= 3 and x.shape[1] >= 2, what, got=f"shape {x.shape}",
            expected="[num, frames, ...] of two frames or more",
            remedy="put the frames on the second axis")  # fmt: skip
    return x

"""Functions from samples to features that need no training and no files."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, require
from qdiffjax._typing import Array

NAME = "random convolutions 1"  # changes with the function: distances of two of them are unlike


def random_convolutions(shape: tuple[int, ...], *, num_features: int = 64) -> Callable[..., Array]:
    """Return a fixed function from images [num, *shape] to features [num, num_features].

    Three convolutions of 3 x 3 and stride 2 with random weights of one seed, each followed by
    |x|, then the mean over places. Of a network that knows no images, which ranks sets of samples
    nevertheless where trained features are far from their data (Naeem et al. 2020, section 5).
    Videos have those of each frame [num, frames, num_features].

    Args:
      shape: height, width, channels of an image; frames before them of a video.
      num_features: of the last layer.

    Raises:
      ValueError: samples that are neither.
    """
    check_count("num_features", num_features, least=4)
    require(len(shape) in (3, 4), "random_convolutions", got=f"samples of shape {tuple(shape)}",
            expected="(height, width, channels), or (frames, ...)",
            remedy="pass features of your own")  # fmt: skip
    widths = (shape[-1], num_features // 4, num_features // 2, num_features)
    keys = jax.random.split(jax.random.key(20_240), 3)
    kernels = [
        jax.random.normal(key, (3, 3, a, b), jnp.float32) / (9 * a) ** 0.5
        for key, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
    ]
    return functools.partial(_features, kernels)


@jax.jit
def _features(kernels, x) -> Array:
    x = jnp.asarray(x, jnp.float32)
    *samples, _, _, _ = x.shape
    x = x.reshape(-1, *x.shape[-3:])
    for kernel in kernels:
        x = jnp.abs(jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        ))  # fmt: skip
    return jnp.mean(x, axis=(1, 2)).reshape(*samples, -1)

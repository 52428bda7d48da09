"""Classifiers that were trained here: features and probabilities of samples, for metrics of them.

A distance of features is that of one classifier: it is called by its name, and compares with no
distance of other features.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from qdiffjax import _files
from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.networks.configs import ModelConfig, build
from qdiffjax.networks.denoisers import SHIPPED, load_params

FOLDER = SHIPPED / "classifiers"
BATCH = 512  # images at a time


class ImageClassifier(NamedTuple):
    """What a classifier says of images [num, *shape] in [-1, 1], in NumPy.

    name: to call distances of its features by; features_fn: images -> [num, features];
    probabilities_fn: images -> [num, classes]; config: of the checkpoint.
    """

    name: str
    features_fn: Callable[..., np.ndarray]
    probabilities_fn: Callable[..., np.ndarray]
    config: ModelConfig


def shipped_for(checkpoint) -> str | None:
    """Return the shipped classifier of the data of a network, by the first word of its name.

    Such as "fashion" of "fashion_dit"; None if there is none.
    """
    word = Path(str(checkpoint)).name.split("_")[0]
    return word if word and (FOLDER / word / "config.json").is_file() else None


def load_classifier(path) -> ImageClassifier:
    """Read a classifier that `experiments.train --model classifier` wrote.

    Args:
      path: a folder, or the name of a shipped one: "fashion".

    Raises:
      FileNotFoundError, ValueError: there is none; a file is not the one that was saved.
    """
    is_shipped = (FOLDER / str(path) / "config.json").is_file()
    folder = FOLDER / str(path) if is_shipped else Path(path)
    config, params = load_params(folder)
    require(config.network == "classifier", str(folder), got=config.network,
            expected="a classifier", remedy="train one with --model classifier")  # fmt: skip
    apply = jax.jit(build(config).apply)

    def in_batches(place: int, last: Callable[[Array], Array]):
        def of_images(images) -> np.ndarray:
            images = np.asarray(images, np.float32)
            require(images.shape[1:] == config.shape, "images", got=f"of shape {images.shape[1:]}",
                    expected=f"{config.shape}", remedy="take the classifier of these "
                    "images")  # fmt: skip
            starts = range(0, len(images), BATCH)
            return np.concatenate([np.asarray(last(apply(params, images[i : i + BATCH])[place]))
                                   for i in starts])  # fmt: skip

        return of_images

    sums = folder / _files.SUMS
    mark = f" {_files.digest(sums)[:6]}" if sums.is_file() else ""
    return ImageClassifier(f"{folder.name} classifier{mark}", in_batches(0, lambda x: x),
                           in_batches(1, jax.nn.softmax), config)  # fmt: skip

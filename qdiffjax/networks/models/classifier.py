"""A small convolutional classifier, whose features and probabilities are for metrics of samples."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.networks.models.layers import GroupNorm, check_groups


class Classifier(nn.Module):
    """Two convolutions a level, the first of which halves the image; the mean over places; a layer.

    Attributes:
      channels: width of each level, finest first, multiples of 8.
      num_features: of the layer before the classes.
      num_classes: how many there are.
      dtype: of the computation; parameters stay float32.
    """

    channels: tuple[int, ...] = (32, 64)
    num_features: int = 64
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Map images x [b, h, w, c] to features [b, num_features] and logits [b, num_classes]."""
        check_groups(self.channels)
        require(x.ndim == 4, "Classifier", got=f"images of shape {x.shape}",
                expected="[batch, height, width, channels]",
                remedy="add the axis that is missing")  # fmt: skip
        h = x.astype(self.dtype)
        for i, c in enumerate(self.channels):
            for k, stride in enumerate((2, 1)):
                name = f"{i}_{k}"
                h = nn.Conv(c, (3, 3), (stride, stride), dtype=self.dtype, name=f"conv_{name}")(h)
                h = nn.silu(GroupNorm(8, self.dtype, name=f"norm_{name}")(h))
        h = jnp.mean(h, axis=(1, 2))
        features = nn.silu(nn.Dense(self.num_features, dtype=self.dtype, name="features")(h))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="classes")(features)
        return features.astype(x.dtype), logits.astype(x.dtype)

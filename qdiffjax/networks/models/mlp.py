"""A small network for samples that are vectors."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.networks.models.dit import MLP, ZEROS, Condition, Modulation, modulate
from qdiffjax.networks.models.layers import check_condition


class VectorMLP(nn.Module):
    """Predict the noise eps in noisy vectors: a DiT's blocks without attention and norm.

    x += gate mlp(modulate(x)), all three by the time; Peebles & Xie 2023, figure 3.

    Attributes:
      width: of the hidden vectors.
      depth: number of blocks.
      num_classes: classes of `label`, without the null class; 0 = no labels.
      dtype: of the computation; parameters stay float32.
    """

    width: int = 32
    depth: int = 3
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None):
        """Return eps [b, n] for x [b, n], times t [] or [b], label as in DiT."""
        require(x.ndim == 2, "VectorMLP", got=f"x of shape {x.shape}", expected="[batch, n]",
                remedy="make each sample a vector")  # fmt: skip
        check_condition(x, t, label, None, num_classes=self.num_classes)
        emb = Condition(self.width, self.num_classes, self.dtype, name="condition")(t, label)
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(x[:, None].astype(self.dtype))
        for i in range(self.depth):
            shift, scale, gate = Modulation(3, self.dtype, name=f"modulation_{i}")(emb)
            h = h + gate * MLP(2, self.dtype, name=f"mlp_{i}")(modulate(h, shift, scale))
        out = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=ZEROS, name="out")
        return out(h)[:, 0].astype(x.dtype)

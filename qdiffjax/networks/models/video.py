"""A transformer for short videos: attention within frames, then between frames.

Ho et al. 2022 ("Video Diffusion Models"), section 3; Ma et al. 2024 (Latte), variant 1.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from qdiffjax.networks.models.dit import (
    XAVIER,
    Block,
    Condition,
    Head,
    check_width,
    position_table,
    sincos_table,
)
from qdiffjax.networks.models.layers import check_condition, check_sides, depth_to_space


def repeat_rows(emb, num: int):
    """Repeat each row of emb [b, d] `num` times [b * num, d]; one row for all stays one."""
    return emb if emb.shape[0] == 1 else jnp.repeat(emb, num, axis=0)


class VideoDiT(nn.Module):
    """Predict the noise eps in a noisy video; factorized space-time attention.

    Attributes:
      patch: side of a patch in pixels; divides the frame's sides.
      width: of the tokens; a multiple of 4 and of num_heads.
      depth: pairs of a spatial and a temporal block.
      num_heads: of each attention.
      num_classes: classes of `label`, without the null class; 0 = no labels.
      dtype: of the computation; parameters stay float32.
    """

    patch: int = 2
    width: int = 96
    depth: int = 2
    num_heads: int = 3
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None):
        """Return eps [b, f, h, w, c] for x [b, f, h, w, c], times t [] or [b], label as in DiT."""
        self._check(x, t, label)
        b, f = x.shape[:2]
        emb = Condition(self.width, self.num_classes, self.dtype, name="condition")(t, label)
        h, grid = self._patchify(x)
        n = h.shape[2]
        for i in range(self.depth):
            space = Block(self.num_heads, self.dtype, name=f"space_{i}")
            h = space(h.reshape(b * f, n, -1), repeat_rows(emb, f)).reshape(b, f, n, -1)
            time = Block(self.num_heads, self.dtype, name=f"time_{i}")
            h = h.swapaxes(1, 2).reshape(b * n, f, -1)
            h = time(h, repeat_rows(emb, n)).reshape(b, n, f, -1).swapaxes(1, 2)
        head = Head(self.patch**2 * x.shape[-1], self.dtype, name="head")
        h = head(h.reshape(b * f, n, -1), repeat_rows(emb, f))
        return (
            depth_to_space(h.reshape(b * f, *grid, -1), self.patch).reshape(x.shape).astype(x.dtype)
        )

    def _patchify(self, x):
        """Return tokens [b, f, n, width] with their positions in space and time, and the grid."""
        b, f = x.shape[:2]
        patch = (self.patch, self.patch)
        h = nn.Conv(
            self.width, patch, patch, padding="VALID", dtype=self.dtype, kernel_init=XAVIER,
            name="patchify",
        )(x.reshape(b * f, *x.shape[2:]).astype(self.dtype))  # fmt: skip
        grid = h.shape[1:3]
        space = jnp.asarray(position_table(grid[0], grid[1], self.width), self.dtype)[None, None]
        time = jnp.asarray(sincos_table(f, self.width), self.dtype)[None, :, None]
        return h.reshape(b, f, -1, self.width) + space + time, grid

    def _check(self, x, t, label):
        patch = f"patch={self.patch}"
        check_sides("VideoDiT", x, self.patch, patch, leading=("batch", "frames"))
        check_width(self.width, self.num_heads)
        check_condition(x, t, label, None, num_classes=self.num_classes)

"""A UNet denoiser in plain Flax linen.

Ronneberger et al. 2015; Ho et al. 2020, appendix B; Nichol & Dhariwal 2021.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def time_features(t, num_features: int, max_period: float = 10_000.0):
    """Embed times as sines and cosines of geometrically spaced frequencies.

        f_i = max_period^(-i / (num_features/2)),   features = [cos(t f), sin(t f)]

    Always float32: a bfloat16 timestep of 750 is 752. Vaswani et al. 2017, section 3.5.

    Args:
      t: times of the training schedule [batch].
      num_features: even number of features.
      max_period: longest period, in units of t.

    Returns:
      Features [batch, num_features], float32.
    """
    half = num_features // 2
    freqs = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * freqs[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def space_to_depth(x, patch: int):
    """Fold patch x patch pixels into channels: [b, h, w, c] -> [b, h/p, w/p, p*p*c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x, patch: int):
    """Undo `space_to_depth`: [b, h, w, p*p*c] -> [b, h*p, w*p, c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * patch, w * patch, c // patch**2)


class ResidualBlock(nn.Module):
    """x + conv(silu(film(norm(conv(silu(norm(x))))))), the time entering as scale and shift."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb):
        """Map x [b, h, w, c] and time embedding emb [b or 1, e] to [b, h, w, channels]."""
        h = nn.silu(nn.GroupNorm(8, dtype=self.dtype, name="norm_1")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_1")(h)
        film = nn.Dense(2 * self.channels, dtype=self.dtype, name="time")(emb)[:, None, None, :]
        scale, shift = jnp.split(film, 2, axis=-1)
        h = nn.GroupNorm(8, dtype=self.dtype, name="norm_2")(h) * (1 + scale) + shift
        # Zero-initialised, so that the block starts as the identity (Ho et al. 2020, appendix B).
        zeros = nn.initializers.zeros
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros, name="conv_2")(
            nn.silu(h)
        )
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
        return x + h


class Attention(nn.Module):
    """Residual self-attention over all positions; Ho et al. 2020, appendix B."""

    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Map x [b, h, w, c] to [b, h, w, c]."""
        b, h, w, c = x.shape
        y = nn.GroupNorm(8, dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        q, k, v = (
            nn.Dense(c, dtype=self.dtype, name=name)(y).reshape(b, h * w, self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        # The softmax is at least float32 whatever the dtype of the rest.
        wide = jnp.float32 if jnp.finfo(logits.dtype).bits < 32 else logits.dtype
        p = jax.nn.softmax(logits.astype(wide), axis=-1).astype(logits.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", p, v).reshape(b, h * w, c)
        zeros = nn.initializers.zeros
        y = nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(y)
        return x + y.reshape(b, h, w, c)


class UNet(nn.Module):
    """Predict the noise eps in x_t; residual blocks, GroupNorm, attention, time embedding.

    Attributes:
      channels: width of each resolution level, finest first; each level halves the image.
      num_blocks: residual blocks a level on the way down (one more on the way up).
      attention: for each level, whether its blocks are followed by self-attention.
      patch: pixels folded into channels at the input (1 = none); divides the image side.
      dtype: of the computation; parameters stay float32.
    """

    channels: tuple[int, ...] = (32, 64)
    num_blocks: int = 1
    attention: tuple[bool, ...] = (False, True)
    patch: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t):
        """Return eps [batch, h, w, c] for x [batch, h, w, c] and times t [] or [batch]."""
        self._check(x)
        emb = self._embed(jnp.reshape(t, (-1,)))
        h = space_to_depth(x.astype(self.dtype), self.patch)
        width = h.shape[-1]
        h = nn.Conv(self.channels[0], (3, 3), dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        last = len(self.channels) - 1
        for i, c in enumerate(self.channels):
            for j in range(self.num_blocks):
                h = self._block(h, emb, c, self.attention[i], f"down_{i}", j)
                skips.append(h)
            if i < last:
                h = nn.Conv(c, (3, 3), (2, 2), dtype=self.dtype, name=f"down_{i}_pool")(h)
                skips.append(h)
        h = self._block(h, emb, self.channels[-1], True, "mid", 0)
        for i, c in reversed(list(enumerate(self.channels))):
            for j in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, emb, c, self.attention[i], f"up_{i}", j)
            if i > 0:
                _, height, width_, _ = skips[-1].shape  # crops what an odd size rounded up
                h = h.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width_]
                h = nn.Conv(self.channels[i - 1], (3, 3), dtype=self.dtype, name=f"up_{i}_pool")(h)
        h = nn.silu(nn.GroupNorm(8, dtype=self.dtype, name="norm_out")(h))
        zeros = nn.initializers.zeros
        h = nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=zeros, name="conv_out")(h)
        return depth_to_space(h, self.patch).astype(x.dtype)

    def _embed(self, t):
        width = 4 * self.channels[0]
        emb = time_features(t, self.channels[0]).astype(self.dtype)
        emb = nn.silu(nn.Dense(width, dtype=self.dtype, name="time_1")(emb))
        return nn.silu(nn.Dense(width, dtype=self.dtype, name="time_2")(emb))

    def _block(self, h, emb, channels, attend, level, j):
        h = ResidualBlock(channels, self.dtype, name=f"{level}_block_{j}")(h, emb)
        return Attention(dtype=self.dtype, name=f"{level}_attn_{j}")(h) if attend else h

    def _check(self, x):
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"UNet got x of shape {x.shape}, expected [batch, height, width, channels] with "
                f"height and width divisible by patch={self.patch}; pad the images or change patch."
            )

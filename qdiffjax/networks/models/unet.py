"""A UNet denoiser in plain Flax linen.

Ronneberger et al. 2015; Ho et al. 2020, appendix B; Nichol & Dhariwal 2021.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.networks.models.layers import (
    ClassEmbedding,
    GroupNorm,
    MultiHead,
    NullTokens,
    attend,
    check_condition,
    check_groups,
    check_sides,
    depth_to_space,
    space_to_depth,
    split_features,
    time_features,
    upsampled,
)


class ResidualBlock(nn.Module):
    """x + conv(silu(film(norm(conv(silu(norm(x))))))), the time entering as scale and shift."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb):
        """Map x [b, h, w, c] and time embedding emb [b or 1, e] to [b, h, w, channels]."""
        h = nn.silu(GroupNorm(8, self.dtype, name="norm_1")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_1")(h)
        film = nn.Dense(2 * self.channels, dtype=self.dtype, name="time")(emb)[:, None, None, :]
        scale, shift = split_features(film, 2)
        h = GroupNorm(8, self.dtype, name="norm_2")(h) * (1 + scale) + shift
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
        y = GroupNorm(8, self.dtype, name="norm")(x).reshape(b, h * w, c)
        q, k, v = (
            nn.Dense(c, dtype=self.dtype, name=name)(y).reshape(b, h * w, self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        y = attend(q, k, v).reshape(b, h * w, c)
        zeros = nn.initializers.zeros
        y = nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(y)
        return x + y.reshape(b, h, w, c)


class CrossAttention(nn.Module):
    """Residual attention of all positions to tokens; Rombach et al. 2022, section 3.3."""

    num_heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, tokens):
        """Map x [b, h, w, c] and tokens [b or 1, m, d] to [b, h, w, c]."""
        y = GroupNorm(8, self.dtype, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
        y = MultiHead(self.num_heads, self.dtype, name="attention")(y, tokens)
        return x + y.reshape(x.shape)


class UNet(nn.Module):
    """Predict the noise eps in x_t; residual blocks, GroupNorm, attention, time embedding.

    Attributes:
      channels: width of each resolution level, finest first, multiples of 8; each level halves
        the image.
      num_blocks: residual blocks a level on the way down (one more on the way up).
      attention: for each level, whether its blocks are followed by self-attention (and by
        cross-attention, if there are tokens); the middle always is.
      num_classes: classes of `label`, without the null class; 0 = no labels.
      token_features: width of the tokens to attend to; 0 = no cross-attention.
      patch: pixels folded into channels at the input (1 = none); divides the image side.
      dtype: of the computation; parameters stay float32.
    """

    channels: tuple[int, ...] = (32, 64)
    num_blocks: int = 1
    attention: tuple[bool, ...] = (False, True)
    patch: int = 2
    num_classes: int = 0
    token_features: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None, tokens=None):
        """Return eps [batch, h, w, c] for x [batch, h, w, c] and times t [] or [batch].

        label: integers [] or [batch]; None or `num_classes` is the null class.
        tokens: [batch or 1, m, token_features]; None is one learned token.
        """
        self._check(x, t, label, tokens)
        emb = self._embed(jnp.reshape(t, (-1,)), label)
        if self.token_features:
            tokens = NullTokens(self.token_features, name="tokens")(tokens)
        h = space_to_depth(x.astype(self.dtype), self.patch)
        width = h.shape[-1]
        h = nn.Conv(self.channels[0], (3, 3), dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        last = len(self.channels) - 1
        for i, c in enumerate(self.channels):
            for j in range(self.num_blocks):
                h = self._block(h, (emb, tokens), c, self.attention[i], f"down_{i}", j)
                skips.append(h)
            if i < last:
                h = nn.Conv(c, (3, 3), (2, 2), dtype=self.dtype, name=f"down_{i}_pool")(h)
                skips.append(h)
        h = self._block(h, (emb, tokens), self.channels[-1], True, "mid", 0)
        for i, c in reversed(list(enumerate(self.channels))):
            for j in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, (emb, tokens), c, self.attention[i], f"up_{i}", j)
            if i > 0:
                _, height, width_, _ = skips[-1].shape  # crops what an odd size rounded up
                h = upsampled(h)[:, :height, :width_]
                h = nn.Conv(self.channels[i - 1], (3, 3), dtype=self.dtype, name=f"up_{i}_pool")(h)
        h = nn.silu(GroupNorm(8, self.dtype, name="norm_out")(h))
        zeros = nn.initializers.zeros
        h = nn.Conv(width, (3, 3), dtype=self.dtype, kernel_init=zeros, name="conv_out")(h)
        return depth_to_space(h, self.patch).astype(x.dtype)

    def _embed(self, t, label):
        width = 4 * self.channels[0]
        emb = time_features(t, self.channels[0]).astype(self.dtype)
        emb = nn.silu(nn.Dense(width, dtype=self.dtype, name="time_1")(emb))
        emb = nn.Dense(width, dtype=self.dtype, name="time_2")(emb)
        if self.num_classes:
            emb = emb + ClassEmbedding(self.num_classes, width, self.dtype, name="label")(label)
        return nn.silu(emb)

    def _block(self, h, condition, channels, attention, level, j):
        emb, tokens = condition
        h = ResidualBlock(channels, self.dtype, name=f"{level}_block_{j}")(h, emb)
        if not attention:
            return h
        h = Attention(dtype=self.dtype, name=f"{level}_attn_{j}")(h)
        if tokens is None:
            return h
        return CrossAttention(dtype=self.dtype, name=f"{level}_cross_{j}")(h, tokens)

    def _check(self, x, t, label, tokens):
        check_sides("UNet", x, self.patch, f"patch={self.patch}")
        levels = len(self.channels), len(self.attention)
        require(
            levels[0] == levels[1] > 0, "UNet",
            got="{} levels of channels and {} of attention".format(*levels),
            expected="one of each a level and at least one level",
            remedy="give one number and one flag for each level",
        )  # fmt: skip
        check_groups(self.channels)
        check_condition(
            x, t, label, tokens, num_classes=self.num_classes, token_features=self.token_features
        )

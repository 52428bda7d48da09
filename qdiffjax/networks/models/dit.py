"""The diffusion transformer in plain Flax linen; Peebles & Xie 2023."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax.networks.models.layers import (
    ClassEmbedding,
    MultiHead,
    NullTokens,
    check_condition,
    check_sides,
    depth_to_space,
    split_features,
    time_features,
)

XAVIER = nn.initializers.xavier_uniform()
ZEROS = nn.initializers.zeros


def sincos_table(num_positions: int, features: int) -> np.ndarray:
    """Return the sine-cosine table of positions 0 ... n-1 [n, features] in float64.

        [sin(i w_0), ..., sin(i w_k), cos(i w_0), ..., cos(i w_k)],  w_j = 10000^(-j / (features/2))

    Vaswani et al. 2017, section 3.5.
    """
    half = features // 2
    angles = np.arange(num_positions)[:, None] * 10_000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def position_table(height: int, width: int, features: int) -> np.ndarray:
    """Return the fixed position vectors of a grid [height * width, features], float32.

    The first half of the features encodes the column, the second the row, as in the authors' code.
    """
    columns = np.tile(sincos_table(width, features // 2), (height, 1))
    rows = np.repeat(sincos_table(height, features // 2), width, axis=0)
    return np.concatenate([columns, rows], axis=1).astype(np.float32)


def modulate(x, shift, scale):
    """Return x * (1 + scale) + shift for x [b, n, d], shift and scale [b or 1, 1, d]."""
    return x * (1 + scale) + shift


class Modulation(nn.Module):
    """Map the condition [b or 1, d] to `num` vectors [b or 1, 1, d], zero at first."""

    num: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, emb):
        """Return a list of `num` arrays."""
        dense = nn.Dense(self.num * emb.shape[-1], dtype=self.dtype, kernel_init=ZEROS, name="out")
        return split_features(dense(nn.silu(emb))[:, None, :], self.num)


class MLP(nn.Module):
    """Dense, tanh-approximated GELU, Dense."""

    ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Map x [..., d] to [..., d]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=XAVIER)
        h = nn.gelu(dense(self.ratio * x.shape[-1], name="up")(x), approximate=True)
        return dense(x.shape[-1], name="down")(h)


class Block(nn.Module):
    """An adaLN-zero block; Peebles & Xie 2023, figure 3. The identity at the start.

    x += gate_1 attention(modulate(norm(x)));  x += cross(norm(x), tokens);
    x += gate_2 mlp(modulate(norm(x)))

    mlp_epsilon: of the last norm.
    """

    num_heads: int
    dtype: Any = jnp.float32
    mlp_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x, emb, tokens=None):
        """Map x [b, n, d], condition emb [b or 1, d], tokens [b or 1, m, e] to [b, n, d]."""
        norm = functools.partial(nn.LayerNorm, use_bias=False, use_scale=False, dtype=self.dtype)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = Modulation(
            6, self.dtype, name="modulation"
        )(emb)
        attention = MultiHead(self.num_heads, self.dtype, XAVIER, XAVIER, name="attention")
        x = x + gate_1 * attention(modulate(norm(1e-6, name="norm_1")(x), shift_1, scale_1))
        if tokens is not None:
            cross = MultiHead(self.num_heads, self.dtype, XAVIER, ZEROS, name="cross")
            x = x + cross(norm(1e-6, name="norm_cross")(x), tokens)
        mlp = MLP(dtype=self.dtype, name="mlp")
        h = norm(self.mlp_epsilon, name="norm_2")(x)
        return x + gate_2 * mlp(modulate(h, shift_2, scale_2))


class Condition(nn.Module):
    """Embed the time and the class into one vector [1 or b, width]."""

    width: int
    num_classes: int = 0
    dtype: Any = jnp.float32
    freq_shift: int = 0

    @nn.compact
    def __call__(self, t, label):
        """Map t [] or [b] and label None, [] or [b] to [1 or b, width]."""
        dense = functools.partial(
            nn.Dense, self.width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02)
        )
        features = time_features(jnp.reshape(t, (-1,)), 256, freq_shift=self.freq_shift)
        emb = features.astype(self.dtype)
        emb = dense(name="time_2")(nn.silu(dense(name="time_1")(emb)))
        if self.num_classes:
            emb = emb + ClassEmbedding(self.num_classes, self.width, self.dtype, name="label")(
                label
            )
        return emb


class Head(nn.Module):
    """Final adaLN and the zero-initialised projection to pixels."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb):
        """Map x [b, n, d] and emb [b or 1, d] to [b, n, features]."""
        shift, scale = Modulation(2, self.dtype, name="modulation")(emb)
        norm = nn.LayerNorm(
            epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype, name="norm"
        )
        out = nn.Dense(self.features, dtype=self.dtype, kernel_init=ZEROS, name="out")
        return out(modulate(norm(x), shift, scale))


class DiT(nn.Module):
    """Predict the noise eps in x_t with a transformer on patches.

    Attributes:
      patch: side of a patch in pixels; divides the image's sides.
      width: of the tokens; a multiple of 4 and of num_heads.
      depth: number of blocks.
      num_heads: of each attention.
      num_classes: classes of `label`, without the null class; 0 = no labels.
      token_features: width of the tokens to attend to; 0 = no cross-attention.
      learn_sigma: twice the channels, the second half for the variance (Nichol & Dhariwal 2021).
      freq_shift: of the time's frequencies, see `time_features`; mlp_epsilon: of the norm before
        each MLP. The defaults are the authors'.
      dtype: of the computation; parameters stay float32.
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    num_classes: int = 0
    token_features: int = 0
    learn_sigma: bool = False
    freq_shift: int = 0
    mlp_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None, tokens=None):
        """Return eps [b, h, w, c] (2c channels with learn_sigma) for x [b, h, w, c].

        t: times [] or [b]. label: integers [] or [b]; None or `num_classes` is the null class.
        tokens: [b or 1, m, token_features]; None is one learned token.
        """
        self._check(x, t, label, tokens)
        emb = Condition(
            self.width, self.num_classes, self.dtype, self.freq_shift, name="condition"
        )(t, label)  # fmt: skip
        if self.token_features:
            tokens = NullTokens(self.token_features, name="tokens")(tokens)
        patch, channels = (self.patch, self.patch), x.shape[-1] * (1 + self.learn_sigma)
        h = nn.Conv(
            self.width, patch, patch, padding="VALID", dtype=self.dtype, kernel_init=XAVIER,
            name="patchify",
        )(x.astype(self.dtype))  # fmt: skip
        _, rows, columns, _ = h.shape
        h = h.reshape(h.shape[0], -1, self.width)
        h = h + jnp.asarray(position_table(rows, columns, self.width), self.dtype)[None]
        for i in range(self.depth):
            block = Block(self.num_heads, self.dtype, self.mlp_epsilon, name=f"block_{i}")
            h = block(h, emb, tokens)
        h = Head(self.patch**2 * channels, self.dtype, name="head")(h, emb)
        return depth_to_space(h.reshape(h.shape[0], rows, columns, -1), self.patch).astype(x.dtype)

    def _check(self, x, t, label, tokens):
        check_sides("DiT", x, self.patch, f"patch={self.patch}")
        check_width(self.width, self.num_heads)
        check_condition(
            x, t, label, tokens, num_classes=self.num_classes, token_features=self.token_features
        )


def check_width(width: int, num_heads: int) -> None:
    """Refuse a width that position vectors or heads cannot share; raises ValueError."""
    require(
        width % 4 == 0 and width % num_heads == 0, got=f"width={width}",
        expected=f"a multiple of 4 and of num_heads={num_heads}", remedy="change one of them",
    )  # fmt: skip


# Peebles & Xie 2023, table 1, at patch 2; `dit_b_2(patch=4)` is their DiT-B/4.
dit_s_2 = functools.partial(DiT, patch=2, width=384, depth=12, num_heads=6)
dit_b_2 = functools.partial(DiT, patch=2, width=768, depth=12, num_heads=12)
dit_l_2 = functools.partial(DiT, patch=2, width=1024, depth=24, num_heads=16)
dit_xl_2 = functools.partial(DiT, patch=2, width=1152, depth=28, num_heads=16)

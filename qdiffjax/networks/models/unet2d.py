"""The UNet of DDPM as diffusers' `UNet2DModel` describes it, in plain Flax linen.

Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3. Attributes have the names of the
fields of its config.json, so that a configuration is read without a translation.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from qdiffjax._checks import check_count, check_number, concrete, require
from qdiffjax.networks.models.layers import (
    GroupNorm,
    MultiHead,
    check_condition,
    check_sides,
    split_features,
    time_features,
    upsampled,
)

# The kinds of levels: (whether blocks are followed by attention, whether a block resamples; None
# leaves that to `downsample_type` or `upsample_type`).
DOWN = {
    "DownBlock2D": (False, False), "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, True),
}  # fmt: skip
UP = {
    "UpBlock2D": (False, False), "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, True),
}  # fmt: skip
RESAMPLING = ("conv", "resnet")
TIME_SHIFTS = ("default", "scale_shift")


def averaged(x):
    """Average 2 x 2 pixels: [b, 2h, 2w, c] -> [b, h, w, c]."""
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), (2, 4))


class ResidualBlock(nn.Module):
    """(skip(x) + conv(silu(norm(conv(silu(norm(x))) + time)))) / divisor, perhaps resampled.

    Attributes:
      channels: of the result.
      groups, epsilon: of the norms.
      film: the time enters as scale and shift after the second norm, not as a sum before it.
      divisor: of the result.
      resample_fn: of x and of what is convolved first; None for none.
      dtype: of the computation.
    """

    channels: int
    groups: int
    epsilon: float
    film: bool = False
    divisor: float = 1.0
    resample_fn: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, emb):
        """Map x [b, h, w, c] and emb [b or 1, e], after its silu, to [b, h', w', channels]."""
        norm = functools.partial(GroupNorm, self.groups, self.dtype, self.epsilon)
        conv = functools.partial(nn.Conv, self.channels, (3, 3), dtype=self.dtype)
        h = nn.silu(norm(name="norm_1")(x))
        if self.resample_fn is not None:
            x, h = self.resample_fn(x), self.resample_fn(h)
        h = conv(name="conv_1")(h)
        width = (1 + self.film) * self.channels
        time = nn.Dense(width, dtype=self.dtype, name="time")(emb)[:, None, None, :]
        if self.film:
            scale, shift = split_features(time, 2)
            h = norm(name="norm_2")(h) * (1 + scale) + shift
        else:
            h = norm(name="norm_2")(h + time)
        h = conv(name="conv_2")(nn.silu(h))
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
        return (x + h) / self.divisor


class Attention(nn.Module):
    """(x + attention(norm(x))) / divisor over all positions; groups = 0 leaves the norm out."""

    num_heads: int
    groups: int
    epsilon: float
    divisor: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Map x [b, h, w, c] to [b, h, w, c]."""
        b, h, w, c = x.shape
        y = GroupNorm(self.groups, self.dtype, self.epsilon, name="norm")(x) if self.groups else x
        y = MultiHead(self.num_heads, self.dtype, name="attention")(y.reshape(b, h * w, c))
        return (x + y.reshape(x.shape)) / self.divisor


class UNet2D(nn.Module):
    """Predict the noise eps in x_t; defaults are those of diffusers' `UNet2DModel`.

    `down_0` is the finest level and `up_0` the coarsest, in the order of the block types.

    Attributes:
      block_out_channels: width of each level, finest first; each level halves the image.
      layers_per_block: residual blocks a level on the way down (one more on the way up).
      down_block_types, up_block_types: a key of DOWN, of UP, for each level on the way.
      mid_block_type: "UNetMidBlock2D", or None for no middle.
      add_attention: whether the middle has attention.
      mid_block_scale_factor: what results of the middle are divided by.
      downsample_type, upsample_type: "conv" or "resnet", of levels with attention.
      downsample_padding: 1 on every side, or 0: one row and column at the far ends.
      attention_head_dim: width of a head; None for one head.
      norm_num_groups, norm_eps: of the norms; attn_norm_num_groups: of the middle's attention,
        where None takes those and, with "scale_shift", no norm.
      resnet_time_scale_shift: "default", a sum, or "scale_shift".
      freq_shift: frequencies of the time are 10000^(-i / (half - freq_shift)).
      flip_sin_to_cos: cosines come before sines.
      time_embedding_dim: width of the time's embedding; None for four times the finest width.
      center_input_sample: the network is shown 2 x - 1.
      num_classes: rows of the table of classes, all of which are classes; 0 = no labels.
      learn_sigma: twice the channels, the second half for the variance.
      dtype: of the computation; parameters stay float32.
    """

    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + 3 * ("AttnDownBlock2D",)
    up_block_types: tuple[str, ...] = 3 * ("AttnUpBlock2D",) + ("UpBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2D"
    add_attention: bool = True
    mid_block_scale_factor: float = 1.0
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    downsample_padding: int = 1
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attn_norm_num_groups: int | None = None
    resnet_time_scale_shift: str = "default"
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    time_embedding_dim: int | None = None
    center_input_sample: bool = False
    num_classes: int = 0
    learn_sigma: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None):
        """Return eps [b, h, w, c] (2c channels with learn_sigma) for x [b, h, w, c].

        t: times [] or [b], as the network knows them. label: integers [] or [b].
        """
        self.check()
        self._check_inputs(x, t, label)
        emb = nn.silu(self._embed(jnp.reshape(t, (-1,)), label))
        channels, last = self.block_out_channels, len(self.block_out_channels) - 1
        h = (2 * x - 1 if self.center_input_sample else x).astype(self.dtype)
        h = nn.Conv(channels[0], (3, 3), dtype=self.dtype, name="conv_in")(h)
        skips = [h]
        for i, (width, kind) in enumerate(zip(channels, self.down_block_types, strict=True)):
            attends, resamples = DOWN[kind]
            for j in range(self.layers_per_block):
                h = self._block(h, emb, width, f"down_{i}", j, attends=attends)
                skips.append(h)
            if i < last:
                h = self._down(h, emb, f"down_{i}", resamples)
                skips.append(h)
        h = self._middle(h, emb)
        for i, (width, kind) in enumerate(zip(channels[::-1], self.up_block_types, strict=True)):
            attends, resamples = UP[kind]
            for j in range(self.layers_per_block + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, emb, width, f"up_{i}", j, attends=attends)
            if i < last:
                h = self._up(h, emb, f"up_{i}", resamples)
        norm = GroupNorm(self.norm_num_groups, self.dtype, self.norm_eps, name="norm_out")
        width = x.shape[-1] * (1 + self.learn_sigma)
        out = nn.Conv(width, (3, 3), dtype=self.dtype, name="conv_out")
        return out(nn.silu(norm(h))).astype(x.dtype)

    def _embed(self, t, label):
        first = self.block_out_channels[0]
        dense = functools.partial(nn.Dense, self.time_embedding_dim or 4 * first, dtype=self.dtype)
        emb = time_features(
            t, first, freq_shift=self.freq_shift, sines_first=not self.flip_sin_to_cos
        ).astype(self.dtype)
        emb = dense(name="time_2")(nn.silu(dense(name="time_1")(emb)))
        if self.num_classes:
            table = nn.Embed(self.num_classes, emb.shape[-1], dtype=self.dtype, name="label")
            emb = emb + table(jnp.reshape(jnp.asarray(label, jnp.int32), (-1,)))
        return emb

    def _residual(self, h, emb, channels, name, **options):
        return ResidualBlock(
            channels, self.norm_num_groups, self.norm_eps,
            self.resnet_time_scale_shift == "scale_shift", dtype=self.dtype, name=name, **options,
        )(h, emb)  # fmt: skip

    def _heads(self, channels: int) -> int:
        return channels // (self.attention_head_dim or channels)

    def _block(self, h, emb, channels, level, j, *, attends, divisor=1.0):
        h = self._residual(h, emb, channels, f"{level}_block_{j}", divisor=divisor)
        if not attends:
            return h
        return Attention(
            self._heads(channels), self.norm_num_groups, self.norm_eps, dtype=self.dtype,
            name=f"{level}_attn_{j}",
        )(h)  # fmt: skip

    def _middle(self, h, emb):
        if self.mid_block_type is None:
            return h
        channels, divisor = self.block_out_channels[-1], float(self.mid_block_scale_factor)
        groups = self.attn_norm_num_groups
        if groups is None:
            groups = self.norm_num_groups if self.resnet_time_scale_shift == "default" else 0
        h = self._residual(h, emb, channels, "mid_block_0", divisor=divisor)
        if self.add_attention:
            h = Attention(
                self._heads(channels), groups, self.norm_eps, divisor, self.dtype, name="mid_attn_0"
            )(h)
        return self._residual(h, emb, channels, "mid_block_1", divisor=divisor)

    def _down(self, h, emb, level, resamples):
        if self.downsample_type == "resnet" if resamples is None else resamples:
            return self._residual(h, emb, h.shape[-1], f"{level}_resample", resample_fn=averaged)
        pads = [(self.downsample_padding, 1)] * 2
        return nn.Conv(
            h.shape[-1], (3, 3), (2, 2), pads, dtype=self.dtype, name=f"{level}_pool"
        )(h)  # fmt: skip

    def _up(self, h, emb, level, resamples):
        if self.upsample_type == "resnet" if resamples is None else resamples:
            return self._residual(h, emb, h.shape[-1], f"{level}_resample", resample_fn=upsampled)
        return nn.Conv(h.shape[-1], (3, 3), dtype=self.dtype, name=f"{level}_pool")(upsampled(h))

    def _check_inputs(self, x, t, label):
        factor = 2 ** (len(self.block_out_channels) - 1)
        check_sides("UNet2D", x, factor, f"2^(levels - 1)={factor}")
        check_condition(x, t, label, None, num_classes=self.num_classes)
        if self.num_classes:
            require(label is not None, "UNet2D", got="no label",
                    expected=f"one of {self.num_classes} classes",
                    remedy="this network has no empty class; condition it")  # fmt: skip
            values = concrete(label)
            require(values is None or values.max() < self.num_classes, "UNet2D",
                    got=f"label {label}", expected=f"0 ... {self.num_classes - 1}",
                    remedy="this network has no empty class")  # fmt: skip

    def check(self) -> None:
        """Refuse attributes that describe no network, by their names.

        Raises:
          ValueError: the first that does not fit.
        """
        channels, num_levels = self.block_out_channels, len(self.block_out_channels)
        for name, known in (("down_block_types", DOWN), ("up_block_types", UP)):
            kinds = getattr(self, name)
            require(len(kinds) == num_levels > 0 and set(kinds) <= set(known), name, got=kinds,
                    expected=f"{num_levels} of {', '.join(known)}, one a level",
                    remedy="other levels are not built here")  # fmt: skip
        for name, words in (
            ("mid_block_type", ("UNetMidBlock2D", None)), ("downsample_padding", (0, 1)),
            ("downsample_type", RESAMPLING), ("upsample_type", RESAMPLING),
            ("resnet_time_scale_shift", TIME_SHIFTS),
        ):  # fmt: skip
            value = getattr(self, name)
            require(value in words, name, got=repr(value), expected=f"one of {words}",
                    remedy="others are not built here")  # fmt: skip
        for name in ("layers_per_block", "norm_num_groups"):
            check_count(name, getattr(self, name))
        for name in ("time_embedding_dim", "attn_norm_num_groups", "attention_head_dim"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_number("norm_eps", self.norm_eps, above=0)
        check_number("mid_block_scale_factor", self.mid_block_scale_factor, above=0)
        check_number("freq_shift", self.freq_shift, below=max(1, channels[0] // 2))
        for width in channels:
            factor = self.norm_num_groups
            require(width >= 1 and width % factor == 0, "block_out_channels", got=channels,
                    expected=f"multiples of norm_num_groups={factor}",
                    remedy="change one of them")  # fmt: skip
            heads = self.attention_head_dim or width
            require(width % heads == 0, "attention_head_dim", got=heads,
                    expected=f"a divisor of the widths {channels}",
                    remedy="change one of them")  # fmt: skip
        require(channels[0] % 2 == 0, "block_out_channels", got=channels,
                expected="an even width first, of sines and cosines",
                remedy="round it up")  # fmt: skip

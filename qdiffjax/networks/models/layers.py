"""What the networks share: time features, pixel folding, attention, class embedding."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._conditions import check_labels


def time_features(
    t, num_features: int, max_period: float = 10_000.0, *, freq_shift: float = 0,
    sines_first: bool = False,
):  # fmt: skip
    """Embed times as sines and cosines of geometrically spaced frequencies.

        f_i = max_period^(-i / (num_features/2 - shift)),   features = [cos(t f), sin(t f)]

    Always float32: a bfloat16 timestep of 750 is 752. Vaswani et al. 2017, section 3.5.

    Args:
      t: times of the training schedule [batch].
      num_features: even number of features.
      max_period: longest period, in units of t.
      freq_shift: the shift; with 1 the last frequency is 1 / max_period itself.
      sines_first: the other order, [sin(t f), cos(t f)].

    Returns:
      Features [batch, num_features], float32.
    """
    half = num_features // 2
    step = -math.log(max_period) / (half - freq_shift)
    freqs = jnp.exp(step * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * freqs[None, :]
    parts = [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts[::-1] if sines_first else parts, axis=-1)


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


def upsampled(x):
    """Repeat every pixel along both axes of space: [b, h, w, c] -> [b, 2h, 2w, c].

    Along a row as channels side by side: a repeated axis next to the channels costs a TPU ten times
    as much (its compiler's schedule, v5e).
    """
    b, h, w, c = x.shape
    x = jnp.concatenate([x, x], -1).reshape(b, h, 2 * w, c)
    return jnp.concatenate([x[:, :, None], x[:, :, None]], 2).reshape(b, 2 * h, 2 * w, c)


def attend(q, k, v):
    """Return softmax(q k^T / sqrt(d)) v of each head; Vaswani et al. 2017, eq. 1.

    Args:
      q: queries [b, n, heads, d].
      k, v: keys and values [b, m, heads, d].

    Returns:
      [b, n, heads, d].
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    # The softmax is at least float32 whatever the dtype of the rest.
    p = jax.nn.softmax(logits.astype(_wide(logits.dtype)), axis=-1).astype(logits.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", p, v)


def _wide(dtype):
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def split_features(x, num: int):
    """Split the last axis into `num` equal parts [..., c / num].

    As sums of one term each: where an elementwise loop reads a slice, XLA on a CPU leaves it
    unvectorized, three times slower.
    """
    parts = x.reshape(*x.shape[:-1], num, -1)
    chosen = jnp.eye(num, dtype=bool)[..., None]  # [num, num, 1]
    return [jnp.sum(jnp.where(chosen[i], parts, 0), -2) for i in range(num)]


class GroupNorm(nn.Module):
    """Normalize groups of channels of each sample; Wu & He 2018, equation 1.

        y = scale (x - mean) / sqrt(var + epsilon) + bias,   var = max(E x^2 - mean^2, 0)

    In float32 at least. The parameters are those of `flax.linen.GroupNorm`; sums go over space
    first and over a group's channels then, which a CPU does in half the time.
    """

    num_groups: int = 8
    dtype: Any = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        """Map x [b, *space, c] to [b, *space, c]."""
        b, c = x.shape[0], x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        dtype = _wide(x.dtype)
        wide = x.astype(dtype)
        scale, bias = (p.astype(dtype).reshape((1,) * (x.ndim - 1) + (c,)) for p in (scale, bias))

        def mean(values):
            grouped = jnp.mean(values, space).reshape(b, self.num_groups, -1)
            means = jnp.mean(grouped, -1, keepdims=True)
            return jnp.broadcast_to(means, grouped.shape).reshape(b, *(1 for _ in space), c)

        center = mean(wide)
        var = jnp.maximum(mean(wide * wide) - center * center, 0.0)
        gain = jax.lax.rsqrt(var + self.epsilon) * scale
        return ((wide - center) * gain + bias).astype(self.dtype)


class MultiHead(nn.Module):
    """Attention of x to itself or to a context; no norm and no residual.

    Attributes:
      num_heads: divides the width of x.
      dtype: of the computation.
      kernel_init: of the queries, keys and values.
      out_init: of the output's kernel.
    """

    num_heads: int
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    out_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x, context=None):
        """Map x [b, n, d] and context [b or 1, m, e] (default x) to [b, n, d]."""
        b, n, d = x.shape
        context = x if context is None else context.astype(x.dtype)
        context = jnp.broadcast_to(context, (b, *context.shape[1:]))

        def heads(y, name):
            y = nn.Dense(d, dtype=self.dtype, kernel_init=self.kernel_init, name=name)(y)
            return y.reshape(b, -1, self.num_heads, d // self.num_heads)

        y = attend(heads(x, "query"), heads(context, "key"), heads(context, "value"))
        out = nn.Dense(d, dtype=self.dtype, kernel_init=self.out_init, name="out")
        return out(y.reshape(b, n, d))


class ClassEmbedding(nn.Module):
    """A vector for each class and one more, at index `num_classes`, for "no class".

    The last one is what classifier-free guidance compares with; Ho & Salimans 2022.
    """

    num_classes: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, label):
        """Map label [] or [b] of integers, or None, to [1 or b, features]; out of range is NaN."""
        label = self.num_classes if label is None else label
        init = nn.initializers.normal(0.02)
        table = nn.Embed(
            self.num_classes + 1, self.features, dtype=self.dtype, embedding_init=init, name="table"
        )
        return table(jnp.reshape(jnp.asarray(label, jnp.int32), (-1,)))


class NullTokens(nn.Module):
    """The tokens to attend to: those given, or one learned token that means "no condition"."""

    features: int

    @nn.compact
    def __call__(self, tokens):
        """Return tokens [b, m, features], or the learned [1, 1, features] if there are none."""
        null = self.param("null", nn.initializers.normal(0.02), (1, 1, self.features))
        if tokens is None:
            return null
        require(
            tokens.ndim == 3 and tokens.shape[-1] == self.features,
            got=f"tokens of shape {tokens.shape}", expected=f"[batch, m, {self.features}]",
            remedy="project them to that width or set token_features",
        )  # fmt: skip
        return tokens


def check_condition(x, t, label, tokens, *, num_classes: int = 0, token_features: int = 0) -> None:
    """Refuse times and conditions that do not fit the batch x [b, ...] or the network.

    A label that is traced cannot be looked at: out of range it makes its sample NaN.

    Raises:
      ValueError: times, labels or tokens of another batch; a label without classes, that is no
        integer or out of range; tokens without cross-attention.
    """
    num = x.shape[0]
    _check_batch("times", t, num)
    if label is not None:
        require(num_classes, got="a label", expected="none: this network knows no classes",
                remedy="set num_classes")  # fmt: skip
        _check_batch("labels", label, num)
        check_labels(label, num_classes)
    if tokens is not None:
        require(
            token_features, got="tokens", expected="none: this network has no cross-attention",
            remedy="set token_features",
        )  # fmt: skip
        require(
            tokens.shape[0] in (1, num), got=f"tokens of shape {tokens.shape} for {num} samples",
            expected=f"[{num} or 1, m, {token_features}]",
            remedy="give each sample its own or all the same",
        )  # fmt: skip


def _check_batch(name, a, num):
    require(
        np.shape(a) in ((), (1,), (num,)), got=f"{name} of shape {np.shape(a)} for {num} samples",
        expected=f"[] or [{num}]", remedy="give each sample its own or all the same",
    )  # fmt: skip


def check_sides(network: str, x, factor: int, what: str, *, leading=("batch",)) -> None:
    """Refuse an x [*leading, height, width, channels] unless `factor`, called `what`, divides it.

    Raises:
      ValueError: another rank, or a side that does not fit.
    """
    axes = (*leading, "height", "width", "channels")
    require(
        x.ndim == len(axes) and not (x.shape[-3] % factor or x.shape[-2] % factor), network,
        got=f"x of shape {x.shape}",
        expected=f"[{', '.join(axes)}] with height and width divisible by {what}",
        remedy=f"pad the images or change {what.partition('=')[0]}",
    )  # fmt: skip


def check_groups(channels) -> None:
    """Refuse widths that eight groups of channels do not divide.

    Raises:
      ValueError: names the first.
    """
    for width in channels:
        require(
            width >= 1 and width % 8 == 0, got=f"{width} channels in {tuple(channels)}",
            expected="multiples of 8, the number of groups that are normalized", remedy="round up",
        )  # fmt: skip

"""A small UNet with LayerNorm over whole images, as one public MNIST model has it.

B. Pulfer's re-implementation of Ho et al. 2020 (MIT licence): 28 -> 14 -> 7 -> 3 pixels. Its first
norm is over a one-channel image, so its eps is blind to the image's mean and scale, and unclipped
sampling drifts in brightness.

The trained weights (torch names and layouts) are the file that QDIFFJAX_PULFER_NPZ names, or
shared/data/models/pulfer_ddpm_mnist.npz beside this repository.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax.networks.models import foreign
from tests.networks import trained

# The output widths of the three blocks of each stage, and its layers of the time embedding.
STAGES = {
    "b1": (10, 10, 10), "b2": (20, 20, 20), "b3": (40, 40, 40), "b_mid": (20, 20, 40),
    "b4": (40, 20, 20), "b5": (20, 10, 10), "b_out": (10, 10, 10),
}  # fmt: skip
TIMES = dict(zip(STAGES, ("te1", "te2", "te3", "te_mid", "te4", "te5", "te_out"), strict=True))
# The last block skips its norm, whose arrays the file holds all the same.
UNUSED = ("b_out.2.ln.weight", "b_out.2.ln.bias")


class Stage(nn.Module):
    """Add the time, then three blocks silu(conv(silu(conv(norm(h)))))."""

    widths: tuple[int, ...]
    skip_last_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h, emb):
        """Map h [b, h, w, c] and emb [1 or b, e] to [b, h, w, widths[-1]]."""
        time = nn.Dense(h.shape[-1], dtype=self.dtype, name="time_0")(emb)
        time = nn.Dense(h.shape[-1], dtype=self.dtype, name="time_2")(nn.silu(time))
        h = h + time[:, None, None, :]
        axes = (-3, -2, -1)
        for i, width in enumerate(self.widths):
            if not (self.skip_last_norm and i == len(self.widths) - 1):
                h = nn.LayerNorm(
                    1e-5, reduction_axes=axes, feature_axes=axes, use_fast_variance=False,
                    dtype=self.dtype, name=f"norm_{i}",
                )(h)  # fmt: skip
            for j in (1, 2):
                conv = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv_{i}_{j}")
                h = nn.silu(conv(h))
        return h


class LayerNormUNet(nn.Module):
    """Predict the noise eps in x_t for images of 28 x 28 x 1.

    Attributes:
      num_train_steps: T; the times are 1 ... T, row t - 1 of the time table.
      time_features: of the time table.
      dtype: of the computation.
    """

    num_train_steps: int = 1000
    time_features: int = 100
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t):
        """Return eps [b, 28, 28, 1] for x [b, 28, 28, 1] and times t [] or [b]."""
        require(x.shape[1:] == (28, 28, 1), "LayerNormUNet", got=f"x of shape {x.shape}",
                expected="[batch, 28, 28, 1]", remedy="pad or crop")  # fmt: skip
        table = nn.Embed(
            self.num_train_steps, self.time_features, dtype=self.dtype, name="time_embed"
        )
        emb = table(jnp.reshape(t, (-1,)).astype(jnp.int32) - 1)

        def stage(name, h):
            return Stage(STAGES[name], name == "b_out", self.dtype, name=name)(h, emb)

        out_1 = stage("b1", x.astype(self.dtype))
        out_2 = stage("b2", self._down("down1", 10, 4, 2)(out_1))
        out_3 = stage("b3", self._down("down2", 20, 4, 2)(out_2))
        h = nn.silu(self._down("down3_0", 40, 2, 1)(out_3))
        h = stage("b_mid", self._down("down3_2", 40, 4, 2)(h))
        h = self._up("up1_2", 40, 2, 1)(nn.silu(self._up("up1_0", 40, 4, 2)(h)))
        h = stage("b4", jnp.concatenate([out_3, h], -1))
        h = stage("b5", jnp.concatenate([out_2, self._up("up2", 20, 4, 2)(h)], -1))
        h = stage("b_out", jnp.concatenate([out_1, self._up("up3", 10, 4, 2)(h)], -1))
        return nn.Conv(1, (3, 3), dtype=self.dtype, name="conv_out")(h).astype(x.dtype)

    def _down(self, name, width, kernel, stride):
        pad = (stride - 1, stride - 1)  # torch: padding 1 where the stride is 2
        return nn.Conv(
            width, (kernel, kernel), (stride, stride), [pad, pad], dtype=self.dtype, name=name
        )

    def _up(self, name, width, kernel, stride):
        pad = (kernel - stride, kernel - stride)  # kernel - 1 - torch's padding
        return nn.ConvTranspose(
            width, (kernel, kernel), (stride, stride), [pad, pad], dtype=self.dtype, name=name
        )


def sources() -> dict[str, foreign.Source]:
    """Return where each parameter of `LayerNormUNet` is among the authors' arrays."""
    found = {"time_embed/embedding": foreign.Source("time_embed.weight")}
    for stage, widths in STAGES.items():
        for j in (0, 2):
            found |= foreign.linear(f"{stage}/time_{j}", f"{TIMES[stage]}.{j}")
        for i in range(len(widths)):
            for j in (1, 2):
                found |= foreign.conv(f"{stage}/conv_{i}_{j}", f"{stage}.{i}.conv{j}")
            if f"{stage}.{i}.ln.weight" not in UNUSED:
                weight, bias = (f"{stage}.{i}.ln.{name}" for name in ("weight", "bias"))
                found[f"{stage}/norm_{i}/scale"] = foreign.Source(weight, foreign.channels_last)
                found[f"{stage}/norm_{i}/bias"] = foreign.Source(bias, foreign.channels_last)
    for name in ("down1", "down2", "down3_0", "down3_2", "conv_out"):
        found |= foreign.conv(name, name.replace("3_", "3."))
    for name in ("up1_0", "up1_2", "up2", "up3"):
        found |= foreign.conv_transpose(name, name.replace("1_", "1."))
    return found


NET = LayerNormUNet()


def trained_arrays():
    return trained.trained_arrays("pulfer_ddpm_mnist.npz", "QDIFFJAX_PULFER_NPZ")


def load(arrays):
    """Arrays and the parameters that they become."""
    expected = jax.eval_shape(
        NET.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1), jnp.float32), jnp.float32(1)
    )
    return arrays, foreign.load_foreign(arrays, expected, sources(), unused=UNUSED)

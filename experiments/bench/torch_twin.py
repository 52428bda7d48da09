"""The UNet of `networks.models.unet` in torch, on the same parameters, to compare speed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


def tensors(params, device: str) -> dict[str, Any]:
    """Return Flax parameters by path in torch's layouts: [out, in] and [out, in, h, w]."""
    import torch

    def tensor(leaf):
        array = np.array(leaf)
        if array.ndim < 4:
            return torch.from_numpy(array.T.copy()).to(device)
        kernel = torch.from_numpy(array.transpose(3, 2, 0, 1).copy())
        return kernel.to(device, memory_format=torch.channels_last)

    leaves = jax.tree_util.tree_leaves_with_path(params["params"])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tensor(leaf)
            for path, leaf in leaves}  # fmt: skip


class Layers(NamedTuple):
    """The layers of the UNet as functions of a path to their parameters w; f: torch's functions."""

    w: dict[str, Any]
    f: Any

    def dense(self, name, x):
        """Map the last axis affinely."""
        return self.f.linear(x, self.w[f"{name}/kernel"], self.w[f"{name}/bias"])

    def conv(self, name, x, stride=1):
        """Convolve with the padding that JAX calls SAME."""
        kernel = self.w[f"{name}/kernel"]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel.shape[2] - size, 0)
            pads += [total // 2, total - total // 2]
        bias = self.w[f"{name}/bias"]
        if len(set(pads)) == 1:
            return self.f.conv2d(x, kernel, bias, stride, pads[0])
        return self.f.conv2d(self.f.pad(x, pads), kernel, bias, stride)

    def norm(self, name, x):
        """Normalize eight groups of channels; Flax's epsilon."""
        return self.f.group_norm(x, 8, self.w[f"{name}/scale"], self.w[f"{name}/bias"], 1e-6)

    def residual(self, name, x, emb):
        """Apply `unet.ResidualBlock`."""
        h = self.conv(f"{name}/conv_1", self.f.silu(self.norm(f"{name}/norm_1", x)))
        scale, shift = self.dense(f"{name}/time", emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm(f"{name}/norm_2", h) * (1 + scale) + shift
        h = self.conv(f"{name}/conv_2", self.f.silu(h))
        return h + (self.conv(f"{name}/skip", x) if f"{name}/skip/kernel" in self.w else x)

    def attention(self, name, x, num_heads=4):
        """Apply `unet.Attention`."""
        b, c, h, w = x.shape
        y = self.norm(f"{name}/norm", x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = (
            self.dense(f"{name}/{part}", y).reshape(b, h * w, num_heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        y = self.f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.dense(f"{name}/out", y).reshape(b, h, w, c).permute(0, 3, 1, 2)


def fold(x, patch: int):
    """Apply `layers.space_to_depth` to [b, c, h, w]."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def unfold(x, patch: int):
    """Apply `layers.depth_to_space` to [b, c, h, w]."""
    x = x.unflatten(1, (patch, patch, -1)).permute(0, 3, 4, 1, 5, 2)
    return x.flatten(4, 5).flatten(2, 3)


def unet(params, *, channels, num_blocks, attention, patch, device="cpu") -> Callable:
    """Return fn(x [b, c, h, w], t [1]) -> eps, the unconditional `UNet` of these parameters."""
    import torch

    layers = Layers(tensors(params, device), torch.nn.functional)
    half = channels[0] // 2
    steps = torch.arange(half, dtype=torch.float32, device=device)
    freqs = torch.exp(-math.log(10_000.0) / half * steps)

    def block(h, emb, attends, level, j):
        h = layers.residual(f"{level}_block_{j}", h, emb)
        return layers.attention(f"{level}_attn_{j}", h) if attends else h

    def fn(x, t):
        angles = t[:, None] * freqs
        emb = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
        emb = layers.f.silu(layers.dense("time_1", emb))
        emb = layers.f.silu(layers.dense("time_2", emb))
        h = fold(x, patch).contiguous(memory_format=torch.channels_last)
        h = layers.conv("conv_in", h)
        skips = [h]
        for i in range(len(channels)):
            for j in range(num_blocks):
                h = block(h, emb, attention[i], f"down_{i}", j)
                skips.append(h)
            if i + 1 < len(channels):
                h = layers.conv(f"down_{i}_pool", h, stride=2)
                skips.append(h)
        h = block(h, emb, True, "mid", 0)
        for i in reversed(range(len(channels))):
            for j in range(num_blocks + 1):
                h = block(torch.cat([h, skips.pop()], 1), emb, attention[i], f"up_{i}", j)
            if i > 0:
                height, width = skips[-1].shape[2:]
                h = layers.f.interpolate(h, scale_factor=2)[:, :, :height, :width]
                h = layers.conv(f"up_{i}_pool", h)
        h = layers.conv("conv_out", layers.f.silu(layers.norm("norm_out", h)))
        return unfold(h, patch)

    return fn

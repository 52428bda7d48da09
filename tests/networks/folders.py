"""Folders as diffusers writes them, written by hand, and what their network is in NumPy."""

import json
from pathlib import Path

import numpy as np

UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "sample_size": 4,
    "in_channels": 1, "out_channels": 1, "block_out_channels": [4, 8], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 2, "norm_eps": 1e-3,
    "attention_head_dim": 4, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
    "center_input_sample": False, "act_fn": "silu", "mid_block_scale_factor": 2, "dropout": 0.1,
    "time_embedding_type": "positional", "num_class_embeds": None,
}  # fmt: skip
# google/ddpm-cifar10-32, the fields that count.
CIFAR = UNET | {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256], "norm_num_groups": 32, "attention_head_dim": None,
    "norm_eps": 1e-6, "mid_block_scale_factor": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 100, "beta_start": 0.001,
    "beta_end": 0.05, "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": True,
}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def residual(name, c_in, c_out):
    skip = {} if c_in == c_out else layer(f"{name}.conv_shortcut", c_out, c_in, 1, 1)
    return skip | {
        **layer(f"{name}.norm1", c_in), **layer(f"{name}.conv1", c_out, c_in, 3, 3),
        **layer(f"{name}.time_emb_proj", c_out, 16), **layer(f"{name}.norm2", c_out),
        **layer(f"{name}.conv2", c_out, c_out, 3, 3),
    }  # fmt: skip


def attention(name, c):
    found = layer(f"{name}.group_norm", c)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        found |= layer(f"{name}.{part}", c, c)
    return found


SHAPES = {
    **layer("conv_in", 4, 1, 3, 3), **layer("time_embedding.linear_1", 16, 4),
    **layer("time_embedding.linear_2", 16, 16), **residual("down_blocks.0.resnets.0", 4, 4),
    **layer("down_blocks.0.downsamplers.0.conv", 4, 4, 3, 3),
    **residual("down_blocks.1.resnets.0", 4, 8), **attention("down_blocks.1.attentions.0", 8),
    **residual("mid_block.resnets.0", 8, 8), **attention("mid_block.attentions.0", 8),
    **residual("mid_block.resnets.1", 8, 8), **residual("up_blocks.0.resnets.0", 16, 8),
    **attention("up_blocks.0.attentions.0", 8), **residual("up_blocks.0.resnets.1", 12, 8),
    **attention("up_blocks.0.attentions.1", 8),
    **layer("up_blocks.0.upsamplers.0.conv", 8, 8, 3, 3),
    **residual("up_blocks.1.resnets.0", 12, 4), **residual("up_blocks.1.resnets.1", 8, 4),
    **layer("conv_norm_out", 4), **layer("conv_out", 1, 4, 3, 3),
}  # fmt: skip


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def safetensors(tensors) -> bytes:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, a in tensors.items():
        header[name] = {"dtype": DTYPES[a.dtype.name], "shape": list(a.shape),
                        "data_offsets": [end, end + a.nbytes]}  # fmt: skip
        end += a.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values())


def write(folder: Path, tensors=None, config=UNET, scheduler=SCHEDULER, *, parts=("", "")) -> Path:
    """Write a model and its scheduler into two parts of a folder."""
    model, noise = (folder / part for part in parts)
    for path in (model, noise):
        path.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(config))
    (noise / "scheduler_config.json").write_text(json.dumps(scheduler))
    (model / WEIGHTS).write_bytes(safetensors(arrays() if tensors is None else tensors))
    return folder


def unet(w, x, timestep):
    """The network of UNET for one image x [1, 4, 4] in float64, from the arrays by their names."""

    def linear(name, v):
        return v @ w[f"{name}.weight"].astype(float).T + w[f"{name}.bias"]

    def conv(name, h, stride=1, pads=((1, 1), (1, 1))):
        kernel = w[f"{name}.weight"].astype(float)
        if kernel.shape[2] == 1:
            return np.einsum("oc,chw->ohw", kernel[..., 0, 0], h) + w[f"{name}.bias"][:, None, None]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(h, ((0, 0), *pads)), (3, 3), (1, 2)
        )
        windows = windows[:, ::stride, ::stride]
        return np.einsum("ocmn,chwmn->ohw", kernel, windows) + w[f"{name}.bias"][:, None, None]

    def norm(name, h):
        groups = h.reshape(2, -1)
        groups = (groups - groups.mean(1)[:, None]) / np.sqrt(groups.var(1)[:, None] + 1e-3)
        weight, bias = (w[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return groups.reshape(h.shape) * weight + bias

    def silu(v):
        return v / (1 + np.exp(-v))

    def res(name, h):
        y = conv(f"{name}.conv1", silu(norm(f"{name}.norm1", h)))
        y = y + linear(f"{name}.time_emb_proj", silu(emb))[:, None, None]
        y = conv(f"{name}.conv2", silu(norm(f"{name}.norm2", y)))
        return y + (conv(f"{name}.conv_shortcut", h) if f"{name}.conv_shortcut.bias" in w else h)

    def attend(name, h):
        tokens = norm(f"{name}.group_norm", h).reshape(len(h), -1).T
        q, k, v = (linear(f"{name}.{part}", tokens) for part in ("to_q", "to_k", "to_v"))
        heads = []
        for i in (slice(0, 4), slice(4, 8)):
            p = np.exp(q[:, i] @ k[:, i].T / 2)
            heads.append(p / p.sum(1, keepdims=True) @ v[:, i])
        return h + linear(f"{name}.to_out.0", np.concatenate(heads, 1)).T.reshape(h.shape)

    angles = timestep * np.array([1.0, 1e-4])  # 10000^(-i / (2 - 1))
    emb = linear("time_embedding.linear_1", np.concatenate([np.sin(angles), np.cos(angles)]))
    emb = linear("time_embedding.linear_2", silu(emb))
    first = conv("conv_in", x)
    fine = res("down_blocks.0.resnets.0", first)
    coarse = conv("down_blocks.0.downsamplers.0.conv", fine, 2, ((0, 1), (0, 1)))
    deep = attend("down_blocks.1.attentions.0", res("down_blocks.1.resnets.0", coarse))
    h = attend("mid_block.attentions.0", res("mid_block.resnets.0", deep) / 2) / 2
    h = res("mid_block.resnets.1", h) / 2
    for i, skip in enumerate((deep, coarse)):
        h = res(f"up_blocks.0.resnets.{i}", np.concatenate([h, skip]))
        h = attend(f"up_blocks.0.attentions.{i}", h)
    h = conv("up_blocks.0.upsamplers.0.conv", np.kron(h, np.ones((1, 2, 2))))
    for i, skip in enumerate((fine, first)):
        h = res(f"up_blocks.1.resnets.{i}", np.concatenate([h, skip]))
    return conv("conv_out", silu(norm("conv_norm_out", h)))

"""Folders of diffusers, as it writes them: a model's configuration, weights and scheduler.

    <folder>/[unet/|transformer/]config.json, diffusion_pytorch_model.safetensors
    <folder>/[scheduler/|../scheduler/]scheduler_config.json

`UNet2DModel` becomes a `UNet2D` and `DiTTransformer2DModel` a `DiT`, by a declared map of names. A
field that is not known here is refused by its name before a weight is read. diffusers counts times
from 0 and this house from 1, where 0 is the data: t is shown to the network as t - 1.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qdiffjax._checks import check_count, require, suggest
from qdiffjax.networks.configs import ModelConfig, param_shapes
from qdiffjax.networks.models import foreign
from qdiffjax.networks.safetensors import read_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
PREDICTIONS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
SCHEDULES = {
    "linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid_betas",
}  # fmt: skip
SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)  # fmt: skip
_RESIDUAL = {
    "norm_1": "norm1", "conv_1": "conv1", "time": "time_emb_proj", "norm_2": "norm2",
    "conv_2": "conv2", "skip": "conv_shortcut",
}  # fmt: skip
_ATTENTION = {
    "attention/query": "to_q", "attention/key": "to_k", "attention/value": "to_v",
    "attention/out": "to_out.0",
}  # fmt: skip
UNET_WORDS = _RESIDUAL | _ATTENTION | {
    "conv_in": "conv_in", r"time_(\d)": "time_embedding.linear_{}", "label": "class_embedding",
    r"(down|up)_(\d+)_block_(\d+)": "{}_blocks.{}.resnets.{}",
    r"(down|up)_(\d+)_attn_(\d+)": "{}_blocks.{}.attentions.{}",
    r"(down|up)_(\d+)_pool": "{0}_blocks.{1}.{0}samplers.0.conv",
    r"(down|up)_(\d+)_resample": "{0}_blocks.{1}.{0}samplers.0",
    r"mid_block_(\d)": "mid_block.resnets.{}", r"mid_attn_(\d)": "mid_block.attentions.{}",
    "norm": "group_norm", "norm_out": "conv_norm_out", "conv_out": "conv_out",
}  # fmt: skip
# Attention in files of 2022, such as those of google/ddpm-cifar10-32.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_EMBEDDER = "transformer_blocks.{}.norm1.emb"
DIT_WORDS = {
    "attention/" + name: "attn1." + _ATTENTION["attention/" + name]
    for name in ("query", "key", "value", "out")
} | {
    "patchify": "pos_embed.proj", r"block_(\d+)": "transformer_blocks.{}",
    r"condition/time_(\d)": _EMBEDDER.format(0) + ".timestep_embedder.linear_{}",
    "condition/label/table": _EMBEDDER.format(0) + ".class_embedder.embedding_table",
    "modulation/out": "norm1.linear", "mlp/up": "ff.net.0.proj", "mlp/down": "ff.net.2",
    "head/modulation/out": "proj_out_1", "head/out": "proj_out_2",
}  # fmt: skip

# Fields that are read, and those that may have but one value here.
_UNET_READ = (
    "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
    "mid_block_type", "add_attention", "mid_block_scale_factor", "downsample_type",
    "upsample_type", "downsample_padding", "attention_head_dim", "norm_num_groups", "norm_eps",
    "attn_norm_num_groups", "resnet_time_scale_shift", "freq_shift", "flip_sin_to_cos",
    "time_embedding_dim", "center_input_sample",
)  # fmt: skip
_UNET_FIXED = {
    "time_embedding_type": ("positional",), "act_fn": ("silu", "swish"), "class_embed_type": (None,)
}  # fmt: skip
_DIT_FIXED = {
    "activation_fn": ("gelu-approximate",), "norm_type": ("ada_norm_zero",),
    "attention_bias": (True,), "norm_elementwise_affine": (False,),
    "upcast_attention": (False,), "cross_attention_dim": (None,), "num_vector_embeds": (None,),
    "only_cross_attention": (False,), "double_self_attention": (False,),
    "use_linear_projection": (False,), "attention_type": ("default",),
    "caption_channels": (None,), "interpolation_scale": (None, 1),
}  # fmt: skip
_SCHEDULER_FIXED = {"trained_betas": (None,), "rescale_betas_zero_snr": (False, None)}
# What the class that DiTs had before takes for granted.
_OLD_DIT: dict[str, Any] = {
    "norm_type": "layer_norm", "activation_fn": "geglu", "attention_bias": False,
    "norm_elementwise_affine": True,
}  # fmt: skip


class Description(NamedTuple):
    """A model's folder, what its parameters fit, their shapes, and the words of its map."""

    folder: Path
    config: ModelConfig
    expected: Any
    words: Mapping[str, str]


def model_folder(path) -> Path | None:
    """Return the folder of a model of diffusers: `path` itself or one in it; None for none."""
    for folder in (Path(path), Path(path) / "unet", Path(path) / "transformer"):
        try:
            if "_class_name" in json.loads((folder / "config.json").read_text()):
                return folder
        except (OSError, TypeError, ValueError):
            continue
    return None


def described(path) -> Description:
    """Read the configuration and the scheduler of a folder; no weight is read.

    Raises:
      FileNotFoundError: there is no model, no scheduler, or there are no weights.
      ValueError: a class, or a value of a field, that is not built here; names it.
    """
    folder = model_folder(path)
    require(folder, str(path), got="no model of diffusers", expected="config.json with _class_name",
            remedy="pass the folder of a pipeline or of its model",
            error=FileNotFoundError)  # fmt: skip
    assert folder is not None
    source = folder / "config.json"
    raw = json.loads(source.read_text())
    kind = raw["_class_name"]
    require(kind in MODELS, f"_class_name in {source}", got=kind,
            expected=f"one of {', '.join(MODELS)}", remedy="load it yourself and use "
            "`Denoiser(fn, params, schedule, shape)`")  # fmt: skip
    fields, words = MODELS[kind](raw, source)
    config = ModelConfig(**fields, **_schedule(folder), time_offset=-1,
                         trained={"read from": f"diffusers {kind}"})  # fmt: skip
    _weight_files(folder)
    try:
        expected = param_shapes(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    return Description(folder, config, expected, words)


def read_params(found: Description) -> Any:
    """Return the float32 parameters of a description.

    Raises:
      ValueError: a file that is damaged, an array that is missing or that nothing uses, or of
        another shape; names it.
    """
    arrays = {k: v for file in _weight_files(found.folder) for k, v in read_tensors(file).items()}
    sources = foreign.translated(found.expected, found.words)
    if found.config.network == "dit":
        arrays = _with_one_embedder(found.folder, arrays)
    elif any(name.endswith(".proj_attn.weight") for name in arrays):
        sources = {path: s._replace(name=_in_old_words(s.name)) for path, s in sources.items()}
    try:
        return foreign.load_foreign(arrays, found.expected, sources)
    except ValueError as error:
        raise ValueError(f"{found.folder}: {error}") from error


def _in_old_words(name: str) -> str:
    for new, old in OLD_ATTENTION.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _with_one_embedder(folder: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays without the copies of block 0's embedding of time and class."""
    first = _EMBEDDER.format(0)
    one = {name: a for name, a in arrays.items() if ".norm1.emb." not in name}
    for name, a in arrays.items():
        _, is_embedder, rest = name.partition(".norm1.emb.")
        original = f"{first}.{rest}"
        if not is_embedder:
            continue
        if name == original:
            one[name] = a
            continue
        require(original in arrays and np.array_equal(a, arrays[original]), f"{name} in {folder}",
                got="an embedding of its own", expected=f"a copy of {original}, as in trained DiTs",
                remedy="a DiT has one embedding for all blocks")  # fmt: skip
    return one


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: got no JSON ({error}), expected it; fetch it again.") from error
    require(isinstance(raw, dict), str(path), got=type(raw).__name__, expected="fields by name",
            remedy="fetch it again")  # fmt: skip
    return raw


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of the weights of a model: one, or as many as its index names."""
    index, variants = folder / f"{WEIGHTS}.index.json", sorted(folder.glob("*.safetensors"))
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif index.is_file():
        names = set(_json(index).get("weight_map", {}).values())
        files = [folder / name for name in sorted(names)]
    else:
        files = variants if len(variants) == 1 else []
    missing = [file.name for file in files if not file.is_file()]
    others = ", ".join(f.name for f in (*variants, *sorted(folder.glob("*.bin")))) or "none"
    require(files and not missing, str(folder), got=f"no {', '.join(missing) or WEIGHTS}",
            expected="weights as safetensors", error=FileNotFoundError,
            remedy=f"fetch them or rename the file that is meant (here: {others}; diffusers saves "
            ".bin as safetensors by save_pretrained)")  # fmt: skip
    return files


def _check_fields(raw: Mapping[str, Any], source: Path, read, fixed: Mapping[str, tuple]) -> None:
    """Refuse fields that are not known, unless they are null, and fixed ones of other values."""
    for name, value in raw.items():
        if name.startswith("_") or name in read or (value is None and name not in fixed):
            continue
        require(name in fixed, f"{name} in {source}", got=repr(value),
                expected="no such field here", remedy=suggest(name, [*read, *fixed]))  # fmt: skip
        require(value in fixed[name], f"{name} in {source}", got=repr(value),
                expected=" or ".join(map(repr, fixed[name])),
                remedy="others are not built here")  # fmt: skip


def _unet(raw: Mapping[str, Any], source: Path):
    ignored = ("dropout", "num_train_timesteps")  # of training, and of learned tables of times
    shape = ("sample_size", "in_channels", "out_channels", "num_class_embeds")
    _check_fields(raw, source, (*_UNET_READ, *shape, *ignored), _UNET_FIXED)
    read = {name: raw[name] for name in _UNET_READ if name in raw}
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}
    num_classes = raw.get("num_class_embeds") or 0
    return _fields("unet2d", raw, source, arguments, num_classes), UNET_WORDS


def _dit(raw: Mapping[str, Any], source: Path):
    raw = (_OLD_DIT if raw["_class_name"] == "Transformer2DModel" else {}) | dict(raw)
    heads, width = raw.get("num_attention_heads", 16), raw.get("attention_head_dim", 72)
    read = ("num_attention_heads", "attention_head_dim", "num_layers", "sample_size", "in_channels",
            "out_channels", "patch_size", "num_embeds_ada_norm", "norm_eps", "dropout",
            "norm_num_groups")  # fmt: skip
    _check_fields(raw, source, read, _DIT_FIXED)
    arguments = {
        "patch": raw.get("patch_size", 2), "width": heads * width, "num_heads": heads,
        "depth": raw.get("num_layers", 28), "freq_shift": 1,
        "mlp_epsilon": raw.get("norm_eps", 1e-5),
    }  # fmt: skip
    for name, value in (
        ("num_attention_heads", heads),
        ("attention_head_dim", width),
        ("patch_size", arguments["patch"]),
        ("num_layers", arguments["depth"]),
    ):
        check_count(f"{name} in {source}", value)
    num_classes = raw.get("num_embeds_ada_norm", 1000)
    check_count(f"num_embeds_ada_norm in {source}", num_classes)
    return _fields("dit", raw | {"in_channels": raw.get("in_channels", 4)}, source, arguments,
                   num_classes), DIT_WORDS  # fmt: skip


def _fields(
    network: str, raw: Mapping[str, Any], source: Path, arguments: dict, num_classes: int
) -> dict:
    """Return what a `ModelConfig` says of a network and its samples."""
    size, channels = raw.get("sample_size"), raw.get("in_channels", 3)
    sides = tuple(size) if isinstance(size, list) else (size, size)
    for side in sides:
        check_count(f"sample_size in {source}", side, remedy="write the side of the images there")
    check_count(f"in_channels in {source}", channels)
    out = raw.get("out_channels") or channels
    require(out in (channels, 2 * channels), f"out_channels in {source}", got=out,
            expected=f"{channels}, or {2 * channels} with a learned variance",
            remedy="others predict no noise of the samples")  # fmt: skip
    learned = {"learn_sigma": True} if out != channels else {}
    return {"shape": (*sides, channels), "network": network, "arguments": arguments | learned,
            "num_classes": num_classes}  # fmt: skip


def _schedule(folder: Path) -> dict[str, Any]:
    """Return what a `ModelConfig` says of the forward process, read from scheduler_config.json."""
    places = (folder, folder / "scheduler", folder.parent / "scheduler")
    files = [p / "scheduler_config.json" for p in places]
    source = next((file for file in files if file.is_file()), None)
    require(source, str(folder), got="no scheduler_config.json",
            expected="one beside config.json or in a folder scheduler", error=FileNotFoundError,
            remedy="fetch it too: it says which noise the network knows")  # fmt: skip
    assert source is not None
    raw = _json(source)
    require(raw.get("_class_name") in SCHEDULERS, f"_class_name in {source}",
            got=raw.get("_class_name"), expected=f"one of {', '.join(SCHEDULERS)}",
            remedy="others have no table of betas")  # fmt: skip
    fixed = {name: raw[name] for name in _SCHEDULER_FIXED if name in raw}
    _check_fields(fixed, source, (), _SCHEDULER_FIXED)
    words = {"beta_schedule": ("linear", SCHEDULES), "prediction_type": ("epsilon", PREDICTIONS)}
    for name, (default, known) in words.items():
        word = raw.get(name, default)
        require(word in known, f"{name} in {source}", got=repr(word),
                expected=f"one of {', '.join(known)}", remedy="others are not built "
                "here")  # fmt: skip
    schedule = SCHEDULES[raw.get("beta_schedule", "linear")]
    ends = {"beta_min": raw.get("beta_start", 1e-4), "beta_max": raw.get("beta_end", 0.02)}
    return {
        "schedule": schedule, "schedule_arguments": {} if schedule == "cosine" else ends,
        "num_train_steps": raw.get("num_train_timesteps", 1000),
        "prediction": PREDICTIONS[raw.get("prediction_type", "epsilon")],
    }  # fmt: skip


MODELS = {"UNet2DModel": _unet, "DiTTransformer2DModel": _dit, "Transformer2DModel": _dit}

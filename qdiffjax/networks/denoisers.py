"""Trained networks on disk: Orbax parameters beside a JSON file that says what they fit.

Folders of diffusers are read too, see `networks.diffusers`.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import _files
from qdiffjax._checks import require, suggest
from qdiffjax.denoiser import Codec, Denoiser
from qdiffjax.networks import diffusers
from qdiffjax.networks.configs import (
    WITHOUT_EMPTY_CLASS,
    ModelConfig,
    build,
    make_net_fn,
    make_schedule,
    param_shapes,
)

SHIPPED = Path(__file__).parent / "checkpoints"
SUMMED = ("config.json", "params")
REMEDY = f"fetch or train the checkpoint again, or delete {_files.SUMS} if the change is meant"
_OLD_UNET = ("channels", "num_blocks", "attention", "patch")
_OLD_FOLDER = re.compile(r"(.*/)?experiments/checkpoints/")  # where shipped checkpoints once were


def find_checkpoint(name) -> Path:
    """Return the folder of a checkpoint: a path, or the name of a shipped one.

    Raises:
      FileNotFoundError: neither; lists the shipped ones.
    """
    require(isinstance(name, str | os.PathLike) and str(name), "path", got=repr(name),
            expected="a folder or a name", remedy="such as 'fashion_unet'",
            error=TypeError)  # fmt: skip
    for path in (Path(name), SHIPPED / _OLD_FOLDER.sub("", str(name))):
        if (path / "config.json").is_file() or diffusers.model_folder(path):
            return path
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))
    require(False, "path", got=f"no checkpoint {str(name)!r}",
            expected=f"a folder or one of: {', '.join(shipped) or 'none'}",
            remedy=suggest(str(name), shipped), error=FileNotFoundError)  # fmt: skip
    raise AssertionError


def save(path, params, config: ModelConfig, *, dtype=jnp.float32) -> None:
    """Write `params` in `dtype` and `config` to the folder `path`, replacing what is there.

    bfloat16 halves the files; `load` returns float32 in any case. SHA256SUMS, which `load` checks,
    shows whether a file was changed since.

    Raises:
      OSError: they cannot be written; says which.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(lambda a: np.asarray(jax.device_get(a)).astype(dtype), params)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path / "params", params, force=True)
    except (ValueError, RuntimeError, OSError) as error:  # TensorStore has its own for a full disk
        raise OSError(f"cannot write {path / 'params'}: {error}") from error
    # Orbax notes where it wrote; a checkpoint that is shipped should not name its maker's folders.
    (path / "params" / "commit_success.txt").write_text("Checkpoint commit was successful")
    text = (json.dumps(dataclasses.asdict(config), indent=1) + "\n").encode()
    sums = {"config.json": hashlib.sha256(text).hexdigest(), **_files.sums(path, ("params",))}
    # The description comes last: parameters without the one they were saved with do not load.
    _files.write({path / _files.SUMS: _files.listed(sums), path / "config.json": text})


def load(path) -> Denoiser:
    """Read a denoiser that `save` wrote; a folder `autoencoder` in it decodes its samples.

    Args:
      path: a folder, also one that diffusers wrote of a UNet2DModel or a DiT, the name of a
        shipped checkpoint, or "package.module:make" for your own: a function without arguments
        that returns a `Denoiser`, or the denoiser itself.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`; lists the shipped ones.
      ImportError, TypeError: no such module or function; it returns something else.
      ValueError: a file is not the one that was saved; the parameters do not fit the network of
        config.json, or are not finite; a field of diffusers' that is not built here.

    Example:
      >>> import qdiffjax as qd
      >>> denoiser = qd.load("fashion_dit")
      >>> denoiser.shape, len(denoiser.sites())
      ((28, 28, 1), 43)
    """
    if ":" in str(path) and not Path(str(path)).exists():
        return made_by(str(path))
    is_folder = isinstance(path, str | os.PathLike) and Path(path).is_dir()
    path = Path(path) if is_folder else find_checkpoint(path)
    config, params = load_params(path)
    return make_denoiser(config, params, codec_at(path / "autoencoder"))


def made_by(reference: str) -> Denoiser:
    """Return the denoiser that "package.module:make" is or makes; raises as `load`."""
    made = imported(reference, "a function that returns a qdiffjax.Denoiser")
    if callable(made) and not isinstance(made, Denoiser):
        with _in_words(reference):
            made = made()
    require(isinstance(made, Denoiser), reference, got=f"{type(made).__name__}",
            expected="a qdiffjax.Denoiser", error=TypeError,
            remedy="return qdiffjax.Denoiser(net_fn, params, schedule, shape)")  # fmt: skip
    return made


def imported(reference: str, expected: str) -> Any:
    """Return what "package.module:name" is; `expected` says in words what it should be.

    Raises:
      ImportError: the module cannot be imported, or has no such name.
    """
    name, _, attribute = reference.partition(":")
    with _in_words(reference):
        module = importlib.import_module(name)
    require(hasattr(module, attribute), reference, got=f"no {attribute!r} in {name}",
            expected=expected, error=ImportError, remedy="write it as package.module:function"
            )  # fmt: skip
    return getattr(module, attribute)


@contextlib.contextmanager
def _in_words(reference: str):
    """Say which model failed, whatever its own code raises."""
    try:
        yield
    except Exception as error:
        raise ImportError(f"{reference} failed: {type(error).__name__}: {error}") from error


def make_denoiser(config: ModelConfig, params, codec: Codec | None = None) -> Denoiser:
    """Return the denoiser that `config` describes with these parameters.

    A network that needs a class is given all in turn.
    """
    needs_class = config.num_classes and config.network in WITHOUT_EMPTY_CLASS
    cond = np.arange(config.num_classes, dtype=np.int32) if needs_class else None
    return Denoiser(make_net_fn(config), params, make_schedule(config), config.shape,
                    config.prediction, cond, config=config, codec=codec)  # fmt: skip


def codec_at(path: Path) -> Codec | None:
    """Read the autoencoder in a folder, None if there is none."""
    return load_codec(path) if path.is_dir() else None


def make_codec(params, config: ModelConfig) -> Codec:
    """Return the encoder to the latents' means and the decoder, both scaled.

        encode(x) = latent_scale * mean(x),   decode(z) = decoder(z / latent_scale)

    Rombach et al. 2022, appendix G.
    """
    network, scale = build(config), np.float32(config.latent_scale)
    return Codec(
        lambda x: scale * network.apply(params, x, method="encode")[0],
        lambda z: network.apply(params, z / scale, method="decode"),
        config,
    )


def load_codec(path) -> Codec:
    """Read an autoencoder that `save` wrote; raises as `load`."""
    config, params = load_params(path)
    require(config.network == "autoencoder", path, got=config.network, expected="an autoencoder",
            remedy="use `load`")  # fmt: skip
    return make_codec(params, config)


def load_params(path) -> tuple[ModelConfig, Any]:
    """Read the description and the float32 parameters of any checkpoint; raises as `load`."""
    path = Path(path).absolute()
    if diffusers.model_folder(path):
        found = diffusers.described(path)
        params = diffusers.read_params(found)
        _check_fit(found.folder, params, found.expected)
        return found.config, params
    config = load_config(path)
    try:
        expected = param_shapes(config)
    except TypeError as error:
        raise _not_a_description(path, error) from error
    params = _restore(path, expected)
    _check_fit(path, params, expected)
    if not (path / _files.SUMS).is_file():
        _files.say(f"{path} has no {_files.SUMS}: damage to it would not be seen")
    return config, params


def load_config(path) -> ModelConfig:
    """Read the config.json of a checkpoint; its first layout, and diffusers', too."""
    path = Path(path)
    if diffusers.model_folder(path):
        return diffusers.described(path).config
    require(
        (path / "config.json").is_file() and (path / "params").is_dir(), path,
        got="no checkpoint" + _contents(path), error=FileNotFoundError,
        expected="config.json and a folder params, as `networks.save` writes, or diffusers' "
        "config.json with _class_name and .safetensors, there or in unet or transformer",
        remedy="train one with `python -m experiments.train`, save_pretrained one of diffusers, "
        "or pass 'package.module:make' for your own",
    )  # fmt: skip
    _files.check_sums(path, SUMMED, REMEDY)
    try:
        raw = dict(json.loads((path / "config.json").read_text()))
        old = {name: raw.pop(name) for name in _OLD_UNET if name in raw}
        raw = ({"arguments": old} if old else {}) | raw
        raw["arguments"] = _tuples(raw.get("arguments", {}))
        return ModelConfig(**_tuples(raw))
    except (AttributeError, TypeError, ValueError) as error:
        raise _not_a_description(path, error) from error


def _contents(folder: Path) -> str:
    """Say what a folder holds in place of a checkpoint; nothing if it is none."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f" among {', '.join(names[:4])}{more}" if names else ""


def _tuples(fields: dict) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _not_a_description(path, error) -> ValueError:
    return ValueError(f"{Path(path) / 'config.json'} is not a model's description: {error}")


def _restore(path, expected):
    import orbax.checkpoint as ocp

    # Restored as numpy under this machine's own layout: the saver's devices need not exist here.
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), expected
            )
            return checkpointer.restore(path / "params", target)
        except Exception as error:  # Orbax, TensorStore and zstd have many
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"The parameters in {path} do not fit the network of its config.json: {text}"
            ) from error


def _check_fit(path, params, expected):
    for (key_path, want), got in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=True
    ):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        name = f"parameter {name} in {path}"
        require(got.shape == want.shape, name, got=f"shape {got.shape}",
                expected=f"{want.shape} as of its config.json",
                remedy="the two belong to different networks")  # fmt: skip
        require(np.isfinite(np.asarray(got)).all(), name, got="NaN or infinite values",
                expected="finite numbers", remedy="retrain")  # fmt: skip

"""Trained denoisers on disk: Orbax parameters beside a JSON file that says what they fit."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import EpsFn
from qdiffjax.diffusion import schedules
from qdiffjax.models.unet import UNet


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint's parameters fit: a UNet, its images, and the schedule it learned.

    Attributes:
      shape: of one image, (height, width, channels).
      channels, num_blocks, attention, patch: of the UNet.
      num_train_steps: T of the linear schedule.
      trained: how it was trained, for people; free text by name.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64)
    num_blocks: int = 1
    attention: tuple[bool, ...] = (False, True)
    patch: int = 2
    num_train_steps: int = 1000
    trained: dict[str, Any] = dataclasses.field(default_factory=dict)


class Denoiser(NamedTuple):
    """A trained network: eps_fn(params, x [batch, *shape], t []) -> eps [batch, *shape]."""

    eps_fn: EpsFn
    params: Any
    schedule: schedules.DiscreteSchedule
    config: ModelConfig


def build(config: ModelConfig) -> UNet:
    """Return the network that `config` describes, without parameters."""
    return UNet(
        channels=tuple(config.channels),
        num_blocks=config.num_blocks,
        attention=tuple(config.attention),
        patch=config.patch,
    )


def init_params(config: ModelConfig, key):
    """Draw fresh parameters of the network that `config` describes."""
    x = jnp.zeros((1, *config.shape), jnp.float32)
    return build(config).init(key, x, jnp.zeros((), jnp.float32))


def save(path, params, config: ModelConfig) -> None:
    """Write `params` (float32) and `config` to the folder `path`, replacing what is there."""
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "params", jax.device_get(params), force=True)
    (path / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def load(path) -> Denoiser:
    """Read a checkpoint that `save` wrote.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`; says what was looked for.
      ValueError: the parameters do not fit the network of config.json, or are not finite.
    """
    path = Path(path).absolute()
    config = _load_config(path)
    expected = jax.eval_shape(lambda k: init_params(config, k), jax.random.key(0))
    params = _load_params(path, expected)
    _check_fit(path, params, expected)
    schedule = schedules.linear(config.num_train_steps)
    return Denoiser(build(config).apply, params, schedule, config)


def _load_config(path) -> ModelConfig:
    if not (path / "config.json").is_file() or not (path / "params").is_dir():
        raise FileNotFoundError(
            f"No checkpoint in {path}: expected config.json and a folder params; "
            "train one with `python -m experiments.train`."
        )
    try:
        raw = json.loads((path / "config.json").read_text())
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return ModelConfig(**fields)
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path / 'config.json'} is not a model's description: {error}") from error


def _load_params(path, expected):
    import orbax.checkpoint as ocp

    # Restored as numpy under this machine's own layout: the saver's devices need not exist here.
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), expected
            )
            return checkpointer.restore(path / "params", target)
        except (ValueError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"The parameters in {path} do not fit the network of its config.json: {text}"
            ) from error


def _check_fit(path, params, expected):
    for (key_path, want), got in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=True
    ):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if got.shape != want.shape:
            raise ValueError(
                f"Parameter {name} in {path} has shape {got.shape}, its config.json expects "
                f"{want.shape}; the two belong to different networks."
            )
        if not np.isfinite(np.asarray(got)).all():
            raise ValueError(f"Parameter {name} in {path} holds NaN or infinite values; retrain.")

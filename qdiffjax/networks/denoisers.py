"""Trained networks on disk: Orbax parameters beside a JSON file that says what they fit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import EpsFn
from qdiffjax.diffusion import parameterizations, processes, schedules
from qdiffjax.networks.models.autoencoder import Autoencoder
from qdiffjax.networks.models.dit import DiT
from qdiffjax.networks.models.layers import check_labels
from qdiffjax.networks.models.unet import UNet
from qdiffjax.networks.models.video import VideoDiT

# The words of config.json.
NETWORKS: dict[str, Callable[..., Any]] = {
    "unet": UNet, "dit": DiT, "video": VideoDiT, "autoencoder": Autoencoder,
}  # fmt: skip
SCHEDULES: dict[str, Callable[[int], Any]] = {
    "linear": schedules.linear, "cosine": schedules.cosine,
    "flow": lambda num_train_steps: processes.Flow(),
}  # fmt: skip
PREDICTIONS: dict[str, parameterizations.PredictionFn] = {
    "eps": parameterizations.eps_prediction, "x0": parameterizations.x0_prediction,
    "v": parameterizations.v_prediction, "flow": parameterizations.flow_prediction,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint's parameters fit: a network, its data, and what it has learned.

    Attributes:
      shape: of one sample, (height, width, channels), of a video (frames, ...).
      network: a key of NETWORKS.
      arguments: of the network, by name.
      prediction: what it outputs, a key of PREDICTIONS.
      schedule: a key of SCHEDULES.
      num_train_steps: T of the schedule; a process in unit time is shown to the network as t * T.
      num_classes: labels are 0 ... num_classes - 1, and num_classes is "no class"; 0 = no labels.
      latent_scale: of an autoencoder: latents times this have unit variance.
      trained: how it was trained, for people; free text by name.

    Raises:
      ValueError: an unknown network, prediction or schedule; a shape of another rank, or a number
        that means nothing.
    """

    shape: tuple[int, ...]
    network: str = "unet"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    prediction: str = "eps"
    schedule: str = "linear"
    num_train_steps: int = 1000
    num_classes: int = 0
    latent_scale: float = 1.0
    trained: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_word("network", self.network, NETWORKS)
        _check_word("prediction", self.prediction, PREDICTIONS)
        _check_word("schedule", self.schedule, SCHEDULES)
        rank = 4 if self.network == "video" else 3
        if len(self.shape) != rank or min(self.shape) < 1:
            raise ValueError(
                f"got shape {self.shape} for {self.network}, expected {rank} positive numbers: "
                f"({'frames, ' if rank == 4 else ''}height, width, channels)."
            )
        if self.num_classes < 0 or self.num_train_steps < 1 or not self.latent_scale > 0:
            raise ValueError(
                f"got num_classes={self.num_classes}, num_train_steps={self.num_train_steps}, "
                f"latent_scale={self.latent_scale}, expected at least 0, at least 1, and positive."
            )


def _check_word(name, got, table):
    if got not in table:
        raise ValueError(f"got {name} {got!r}, expected one of {sorted(table)}.")


def build(config: ModelConfig, *, dtype=jnp.float32):
    """Return the network that `config` describes, without parameters, computing in `dtype`."""
    classes = {"num_classes": config.num_classes} if config.num_classes else {}
    return NETWORKS[config.network](**config.arguments, **classes, dtype=dtype)


def make_schedule(config: ModelConfig):
    """Return the noise schedule or process that `config` names."""
    return SCHEDULES[config.schedule](config.num_train_steps)


def make_net_fn(config: ModelConfig, *, dtype=jnp.float32) -> EpsFn:
    """Return net_fn(params, x, t, label=None) -> the network's prediction, at the schedule's t.

    Raises:
      ValueError: an autoencoder, which predicts nothing.
    """
    if config.network == "autoencoder":
        raise ValueError("got an autoencoder, expected a denoiser; use `load_codec`, `make_codec`.")
    apply, channels = build(config, dtype=dtype).apply, config.shape[-1]
    in_unit_time = isinstance(make_schedule(config), processes.Process)
    if not in_unit_time and not config.arguments.get("learn_sigma"):
        return apply

    def net_fn(params, x, t, *condition):
        t = t * jnp.asarray(config.num_train_steps, t.dtype) if in_unit_time else t
        return apply(params, x, t, *condition)[..., :channels]  # what learn_sigma adds is dropped

    return net_fn


def make_eps_fn(config: ModelConfig) -> EpsFn:
    """Return eps_fn(params, x, t, label=None) -> eps, whatever the network predicts."""
    net_fn = make_net_fn(config)
    if config.prediction == "eps":
        return net_fn
    prediction = PREDICTIONS[config.prediction]
    return parameterizations.as_eps(net_fn, make_schedule(config), prediction)


def init_params(config: ModelConfig, key):
    """Draw fresh parameters of the network that `config` describes."""
    x = jnp.zeros((1, *config.shape), jnp.float32)
    inputs = (x,) if config.network == "autoencoder" else (x, jnp.zeros((), jnp.float32))
    return build(config).init(key, *inputs)


__all__ = [
    "Codec", "Denoiser", "ModelConfig", "build", "init_params", "load", "load_codec",
    "load_config", "load_params", "make_codec", "save",
]  # fmt: skip
SHIPPED = Path(__file__).parent / "checkpoints"
_OLD_UNET = ("channels", "num_blocks", "attention", "patch")


class Codec(NamedTuple):
    """A trained autoencoder; its latents have unit variance on its training data."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    config: ModelConfig


class Denoiser(NamedTuple):
    """A trained network that samplers can call, whatever it predicts.

    eps_fn(params, x [batch, *shape], t [], label=None) -> eps [batch, *shape]; a label is [] or
    [batch] integers, and None or `config.num_classes` is "no class". net_fn has the same
    arguments and returns the network's own prediction. codec: what decodes samples into images;
    None if they are images.
    """

    eps_fn: EpsFn
    params: Any
    schedule: Any
    config: ModelConfig
    net_fn: EpsFn | None = None
    codec: Codec | None = None

    def conditioned(self, label) -> "Denoiser":
        """Return the denoiser of one class: eps_fn(params, x, t) with `label` [] or [batch] bound.

        Raises:
          ValueError: the network has no such class.
        """
        num = self.config.num_classes
        if not num:
            raise ValueError(f"got label {label}, but this network knows no classes; use eps_fn.")
        check_labels(label, num)
        label = jnp.asarray(label, jnp.int32)
        return self._replace(
            eps_fn=_with_label(self.eps_fn, label), net_fn=_with_label(self.net_fn, label)
        )


def _with_label(fn, label):
    return fn and (lambda params, x, t: fn(params, x, t, label))


def save(path, params, config: ModelConfig, *, dtype=jnp.float32) -> None:
    """Write `params` in `dtype` and `config` to the folder `path`, replacing what is there.

    bfloat16 halves the files; `load` returns float32 in any case.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    path.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(lambda a: np.asarray(jax.device_get(a)).astype(dtype), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "params", params, force=True)
    # Orbax notes where it wrote; a checkpoint that is shipped should not name its maker's folders.
    (path / "params" / "commit_success.txt").write_text("Checkpoint commit was successful")
    (path / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def load(path) -> Denoiser:
    """Read a denoiser that `save` wrote; a folder `autoencoder` in it decodes its samples.

    Raises:
      FileNotFoundError: there is no checkpoint at `path`; says what was looked for.
      ValueError: the parameters do not fit the network of config.json, or are not finite.
    """
    config, params = load_params(path)
    codec = Path(path) / "autoencoder"
    return Denoiser(
        make_eps_fn(config), params, make_schedule(config), config, make_net_fn(config),
        load_codec(codec) if codec.is_dir() else None,
    )  # fmt: skip


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
    if config.network != "autoencoder":
        raise ValueError(f"{path} holds a {config.network}, expected an autoencoder; use `load`.")
    return make_codec(params, config)


def load_params(path) -> tuple[ModelConfig, Any]:
    """Read the description and the float32 parameters of any checkpoint; raises as `load`."""
    path = Path(path).absolute()
    config = load_config(path)
    try:
        expected = jax.eval_shape(lambda k: init_params(config, k), jax.random.key(0))
    except TypeError as error:
        raise _not_a_description(path, error) from error
    params = _restore(path, expected)
    _check_fit(path, params, expected)
    return config, params


def load_config(path) -> ModelConfig:
    """Read the config.json of a checkpoint; its first layout, which knew only UNets, too."""
    path = Path(path)
    if not (path / "config.json").is_file() or not (path / "params").is_dir():
        raise FileNotFoundError(
            f"No checkpoint in {path}: expected config.json and a folder params; "
            "train one with `python -m experiments.train`."
        )
    try:
        raw = dict(json.loads((path / "config.json").read_text()))
        old = {name: raw.pop(name) for name in _OLD_UNET if name in raw}
        raw = ({"arguments": old} if old else {}) | raw
        raw["arguments"] = _tuples(raw.get("arguments", {}))
        return ModelConfig(**_tuples(raw))
    except (AttributeError, TypeError, ValueError) as error:
        raise _not_a_description(path, error) from error


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


def find_checkpoint(name: str) -> Path:
    """Folder of a checkpoint: a path, or the name of a shipped one.

    Raises:
      FileNotFoundError: neither; lists the shipped ones.
    """
    for path in (Path(name), SHIPPED / name):
        if (path / "config.json").is_file():
            return path
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))) or "none"
    raise FileNotFoundError(f"no checkpoint {name!r}: expected a folder or one of: {shipped}.")

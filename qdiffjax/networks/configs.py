"""What a checkpoint's parameters fit: a network, its data, and what it has learned."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, check_number, require, suggest
from qdiffjax._typing import EpsFn
from qdiffjax.denoiser import PREDICTIONS
from qdiffjax.diffusion import processes, schedules
from qdiffjax.networks import models

# The words of config.json, and the names in `models`, where a class loads when it is built.
NETWORKS: dict[str, str] = {
    "unet": "UNet", "dit": "DiT", "video": "VideoDiT", "autoencoder": "Autoencoder",
    "classifier": "Classifier", "unet2d": "UNet2D", "mlp": "VectorMLP",
}  # fmt: skip
AXES_OF_IMAGES = ("height", "width", "channels")
AXES = {"video": ("frames", *AXES_OF_IMAGES), "mlp": ("n",)}  # of a sample, where it is no image
OF_IMAGES = ("autoencoder", "classifier")  # networks that know no time
WITHOUT_EMPTY_CLASS = ("unet2d",)  # networks that know classes, and need one of them
SCHEDULES: dict[str, Callable[..., Any]] = {
    "linear": schedules.linear, "cosine": schedules.cosine,
    "scaled_linear": schedules.scaled_linear, "sigmoid_betas": schedules.sigmoid_betas,
    "flow": lambda num_train_steps: processes.Flow(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint's parameters fit: a network, its data, and what it has learned.

    Attributes:
      shape: of one sample, (height, width, channels), of a video (frames, ...), of a vector (n,).
      network: a key of NETWORKS.
      arguments: of the network, by name.
      prediction: what it outputs, a key of `denoiser.PREDICTIONS`.
      schedule: a key of SCHEDULES.
      schedule_arguments: of the schedule beside T, by name, such as beta_max.
      num_train_steps: T of the schedule; a process in unit time is shown to the network as t * T.
      time_offset: added to that; -1 where the network was trained on times from 0.
      num_classes: labels are 0 ... num_classes - 1, and num_classes is "no class" (of networks that
        have one); 0 = no labels.
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
    schedule_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_train_steps: int = 1000
    time_offset: float = 0
    num_classes: int = 0
    latent_scale: float = 1.0
    trained: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, words in (
            ("network", NETWORKS), ("prediction", PREDICTIONS), ("schedule", SCHEDULES)
        ):  # fmt: skip
            word = getattr(self, name)
            require(word in words, name, got=repr(word), expected=f"one of {sorted(words)}",
                    remedy=suggest(str(word), sorted(words)))  # fmt: skip
        axes = AXES.get(self.network, AXES_OF_IMAGES)
        require(
            len(self.shape) == len(axes), f"shape of {self.network}", got=self.shape,
            expected=f"{len(axes)} positive numbers: ({', '.join(axes)})",
            remedy="leave the batch out",
        )  # fmt: skip
        for size in self.shape:
            check_count(f"shape of {self.network}", size)
        check_count("num_classes", self.num_classes, least=0)
        check_count("num_train_steps", self.num_train_steps)
        check_number("latent_scale", self.latent_scale, above=0)
        check_number("time_offset", self.time_offset)


def build(config: ModelConfig, *, dtype=jnp.float32):
    """Return the network that `config` describes, without parameters, computing in `dtype`."""
    classes = {"num_classes": config.num_classes} if config.num_classes else {}
    return getattr(models, NETWORKS[config.network])(**config.arguments, **classes, dtype=dtype)


def make_schedule(config: ModelConfig):
    """Return the noise schedule or process that `config` names."""
    return SCHEDULES[config.schedule](config.num_train_steps, **config.schedule_arguments)


def make_net_fn(config: ModelConfig, *, dtype=jnp.float32) -> EpsFn:
    """Return net_fn(params, x, t, label=None) -> the network's prediction, at the schedule's t.

    Raises:
      ValueError: an autoencoder or a classifier, which predict no noise.
    """
    require(config.network not in OF_IMAGES, got=f"an {config.network}".replace("an c", "a c"),
            expected="a denoiser",
            remedy="use `load_codec`, `make_codec` or `load_classifier`")  # fmt: skip
    apply, channels = build(config, dtype=dtype).apply, config.shape[-1]
    in_unit_time = isinstance(make_schedule(config), processes.Process)
    if not (in_unit_time or config.time_offset or config.arguments.get("learn_sigma")):
        return apply

    def net_fn(params, x, t, *condition):
        t = t * jnp.asarray(config.num_train_steps, t.dtype) if in_unit_time else t
        t = t + jnp.asarray(config.time_offset, t.dtype) if config.time_offset else t
        return apply(params, x, t, *condition)[..., :channels]  # what learn_sigma adds is dropped

    return net_fn


def init_params(config: ModelConfig, key):
    """Draw fresh parameters of the network that `config` describes."""
    x = jnp.zeros((1, *config.shape), jnp.float32)
    inputs: tuple = (x,) if config.network in OF_IMAGES else (x, jnp.zeros((), jnp.float32))
    if config.num_classes and config.network in WITHOUT_EMPTY_CLASS:
        inputs += (jnp.zeros((), jnp.int32),)
    return build(config).init(key, *inputs)


def param_shapes(config: ModelConfig):
    """Return the shapes of the parameters of the network that `config` describes."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))

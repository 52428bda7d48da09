"""A denoiser: the function that samplers call, with its parameters and its schedule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import EpsFn


class Codec(NamedTuple):
    """A trained autoencoder; its latents have unit variance on its training data."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    config: Any


class Denoiser(NamedTuple):
    """A trained network that samplers can call, whatever it predicts.

    eps_fn(params, x [batch, *shape], t [], label=None) -> eps [batch, *shape]; a label is [] or
    [batch] integers, and None or `config.num_classes` is "no class". net_fn has the same
    arguments and returns the network's own prediction. config: a `networks.ModelConfig`. codec:
    what decodes samples into images; None if they are images.
    """

    eps_fn: EpsFn
    params: Any
    schedule: Any
    config: Any
    net_fn: EpsFn | None = None
    codec: Codec | None = None

    def conditioned(self, label) -> "Denoiser":
        """Return the denoiser of one class: eps_fn(params, x, t) with `label` [] or [batch] bound.

        Raises:
          ValueError: the network has no such class.
        """
        num = self.config.num_classes
        require(num, got=f"label {label}", expected="none; this network knows no classes",
                remedy="use eps_fn")  # fmt: skip
        check_labels(label, num)
        label = jnp.asarray(label, jnp.int32)
        return self._replace(
            eps_fn=_with_label(self.eps_fn, label), net_fn=_with_label(self.net_fn, label)
        )


def _with_label(fn, label):
    return fn and (lambda params, x, t: fn(params, x, t, label))


def check_labels(label, num_classes: int) -> None:
    """Refuse labels that are no integers or, if they can be looked at, out of range.

    Raises:
      ValueError: says what was got.
    """
    is_traced = isinstance(label, jax.core.Tracer)
    values = label if is_traced else np.asarray(label)  # constant, even where the rest is traced
    require(jnp.issubdtype(values.dtype, jnp.integer), got=f"labels of type {values.dtype}",
            expected="integers", remedy="round them first")  # fmt: skip
    if not is_traced:
        low, high = values.min(), values.max()
        require(
            low >= 0 and high <= num_classes, got=f"labels from {low} to {high}",
            expected=f"0 ... {num_classes - 1}, or {num_classes} for no class",
            remedy="count classes from 0",
        )  # fmt: skip

"""Networks to cost and to time: checkpoints, and published sizes that are known by their shapes."""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.networks import denoisers
from qdiffjax.networks.models import dit

LATENT = (32, 32, 4)  # of a 256 x 256 image
NUM_CLASSES = 1000
SIZES = {"dit_s_2": dit.dit_s_2, "dit_b_2": dit.dit_b_2, "dit_l_2": dit.dit_l_2,
         "dit_xl_2": dit.dit_xl_2}  # fmt: skip


def titles(names: Iterable[str]) -> dict[str, str]:
    """Return {title: name} of checkpoints: the last folder, the whole path where two share it."""
    names = tuple(names)
    last = [Path(name).name for name in names]
    return {short if last.count(short) == 1 else name: name
            for short, name in zip(last, names, strict=True)}  # fmt: skip


class Network(NamedTuple):
    """A denoiser and shapes of its parameters and of one sample; nothing of it need exist."""

    eps_fn: Any
    params: Any
    shape: tuple[int, ...]

    def arguments(self, batch: int):
        """Return the shapes of (params, x, t)."""
        x = jax.ShapeDtypeStruct((batch, *self.shape), jnp.float32)
        return self.params, x, jax.ShapeDtypeStruct((), jnp.float32)


def load(name: str, dtype=jnp.float32) -> Network:
    """Load a checkpoint, or one of SIZES by its shapes alone, in `dtype`.

    Raises:
      FileNotFoundError: neither.
    """
    if name not in SIZES:
        denoiser = denoisers.load(name)
        return Network(denoiser.eps_fn, denoiser.params, denoiser.shape)
    network = published(name, dtype)

    def fn(params, x, t):
        eps: Any = network.eps_fn(params, x, t)
        return eps[..., : LATENT[-1]]

    return network._replace(eps_fn=fn)


def published(name: str, dtype) -> Network:
    """Return one of SIZES in `dtype` by its shapes, with all its outputs: eps and its variance."""
    net = SIZES[name](num_classes=NUM_CLASSES, learn_sigma=True, dtype=dtype)
    return by_shapes(net, LATENT, dtype)


def by_shapes(net, shape: tuple[int, ...], dtype) -> Network:
    """Return a linen network for samples of this shape, with parameters in `dtype`."""
    arrays = jnp.zeros((1, *shape), jnp.float32), jnp.zeros((), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), *arrays)
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)
    return Network(net.apply, params, shape)


def random_params(network: Network):
    """Return random parameters of these shapes that keep the size of what they multiply."""
    leaves, tree = jax.tree.flatten(network.params)
    return jax.tree.unflatten(tree, [_drawn(i, s.shape, s.dtype) for i, s in enumerate(leaves)])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(seed: int, shape, dtype):
    size = 0.02 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[:-1]))
    return (size * jax.random.normal(jax.random.key(seed), shape, jnp.float32)).astype(dtype)

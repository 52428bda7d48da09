"""Networks to cost and to time: checkpoints, and published sizes that are known by their shapes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.networks import denoisers
from qdiffjax.networks.models import dit

LATENT = (32, 32, 4)  # of a 256 x 256 image
NUM_CLASSES = 1000
SIZES = {"dit_s_2": dit.dit_s_2, "dit_b_2": dit.dit_b_2, "dit_l_2": dit.dit_l_2,
         "dit_xl_2": dit.dit_xl_2}  # fmt: skip


class Network(NamedTuple):
    """A denoiser and shapes of its parameters and of one sample; nothing of it need exist."""

    eps_fn: Any
    params: Any
    shape: tuple[int, ...]

    def arguments(self, batch: int):
        """Return the shapes of (params, x, t)."""
        x = jax.ShapeDtypeStruct((batch, *self.shape), jnp.float32)
        return self.params, x, jax.ShapeDtypeStruct((), jnp.float32)


def load(name: str) -> Network:
    """Load a checkpoint, or one of SIZES by its shapes alone.

    Raises:
      FileNotFoundError: neither.
    """
    if name not in SIZES:
        denoiser = denoisers.load(denoisers.find_checkpoint(name))
        return Network(denoiser.eps_fn, denoiser.params, denoiser.config.shape)
    net = SIZES[name](num_classes=NUM_CLASSES, learn_sigma=True)

    def fn(params, x, t):
        eps: Any = net.apply(params, x, t)
        return eps[..., : LATENT[-1]]

    arrays = jnp.zeros((1, *LATENT), jnp.float32), jnp.zeros((), jnp.float32)
    return Network(fn, jax.eval_shape(net.init, jax.random.key(0), *arrays), LATENT)

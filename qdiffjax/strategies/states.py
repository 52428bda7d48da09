"""The calls of a sampler at which cures look."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion, precision
from qdiffjax._checks import check_number, require
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import Steps
from qdiffjax.precision import Quantized


class States(NamedTuple):
    """Network calls of full-precision runs, at which cures look.

    x: what the network sees [calls, batch, *shape]; t: its times [calls]; call: their numbers among
    the sampler's calls, int32 [calls].
    """

    x: Any
    t: Any
    call: Any

    @property
    def num(self) -> int:
        """Number of network evaluations of one pass: calls times samples."""
        return self.x.shape[0] * self.x.shape[1]


def full_inputs(denoiser: Denoiser, steps: Steps, x_T, key):
    """Return what the network sees at every call of a full-precision run [N, batch, *shape]."""
    call = precision.full_call(Quantized(denoiser, {}))

    @jax.jit
    def seen(x_T):
        states = diffusion.sample(call, x_T, steps, key=key).states
        return jax.vmap(lambda coeffs, x: coeffs.read(x))(steps.coeffs, states[:-1])

    return seen(x_T)


def normal_chances(steps: Steps, mean: float = 0.4, std: float = 0.2):
    """Return the chances of a sampler's calls by a normal law of the time [N]; PTQ4DM, section 3.3.

    mean, std: in shares of the noisiest call's time.
    """
    share = np.asarray(steps.t, np.float64) / float(np.max(np.asarray(steps.t)))
    check_number("mean", mean)
    check_number("std", std, above=0)
    weight = np.exp(-0.5 * ((share - mean) / std) ** 2)
    return weight / weight.sum()


def chosen_calls(most: int, num: int, chances, key) -> np.ndarray:
    """Return `num` of `most` calls, evenly spread or, with chances [most], drawn; in order.

    Raises:
      ValueError: chances that are no law of the calls.
    """
    if chances is None:
        return np.unique(np.round(np.linspace(0, most - 1, num)).astype(np.int32))
    chances = np.asarray(chances, np.float64)
    is_law = chances.shape == (most,) and (chances >= 0).all() and chances.sum() > 0
    require(is_law, "chances", got=f"shape {chances.shape}",
            expected=f"{most} numbers of at least 0, not all 0",
            remedy="normal_chances(steps)")  # fmt: skip
    drawn = jax.random.choice(key, most, (num,), p=jnp.asarray(chances / chances.sum()))
    return np.sort(np.asarray(drawn))

"""Noise on which picks run, all by one compiled program."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_key, check_type, require
from qdiffjax._typing import Array, Key
from qdiffjax.compiling import compiled
from qdiffjax.denoiser import Draw
from qdiffjax.precision import final_samples
from qdiffjax.strategies.choices import Choices


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Trial:
    """Noise on which recipes run.

    Attributes:
      choices: of the recipes.
      draw: initial noise [samples, *shape] and conditions.
      key: of the sampler's own noise, None without.
      batch_size: samples of a run.
    """

    choices: Choices
    draw: Draw
    key: Key | None
    batch_size: int

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return self.draw.x_T.shape[0]

    def final(self, pick, *, activations: bool = True) -> Array:
        """Return the final samples under a pick, see `Choices.quantized` [samples, *shape]."""
        q = self.choices.quantized(pick, activations=activations)
        parts = []
        for _, (x_T, cond), key in batches(self.draw, self.key, self.batch_size):
            with jax.default_matmul_precision("highest"):
                parts.append(_program()(q.given(cond), x_T, self.choices.steps, key))
        return jnp.concatenate(parts)

    @functools.cached_property
    def full(self) -> Array:
        """The final samples in full precision, by the same program."""
        x_0 = self.final([None] * len(self.choices.sites))
        require(bool(jnp.isfinite(x_0).all()), "full precision", got="samples with NaN or infinity",
                expected="finite ones", remedy="check the parameters and the sampler")  # fmt: skip
        return x_0

    def errors(self, pick) -> np.ndarray:
        """Return the RMSE of every final sample under a pick [samples]."""
        apart = np.asarray(self.final(pick) - self.full, np.float64)
        return np.sqrt(np.mean(apart.reshape(len(apart), -1) ** 2, 1))

    def rmse(self, pick) -> float:
        """Return the RMSE of all final samples under a pick."""
        return float(np.sqrt(np.mean(self.errors(pick) ** 2)))


def batches(draw: Draw, key: Key | None, size: int) -> Iterator[tuple[slice, Draw, Key | None]]:
    """Yield samples a batch at a time: which they are, and where and by which noise they run.

    Args:
      draw: initial noise [num, *shape] and conditions.
      key: of the sampler's own noise, None without; each batch has its own, of its first sample.
      size: of a batch; the last may be smaller.
    """
    for start in range(0, len(draw.x_T), size):
        part = slice(start, start + size)
        own = None if key is None else jax.random.fold_in(key, start)
        yield part, jax.tree.map(lambda a: a[part], draw), own  # noqa: B023


def trial(choices: Choices, key: Key, num_samples: int, batch_size: int | None = None) -> Trial:
    """Draw noise and conditions; the same key is the same noise.

    Args:
      choices: of the recipes that will run on it.
      key: of everything random.
      num_samples: how many.
      batch_size: samples of a run, which all trials had better share, as one compiled program
        serves them; None for all.
    """
    check_type("choices", choices, Choices, remedy="offer(calibration, steps, choices)")
    check_key("key", key)
    check_count("num_samples", num_samples)
    steps = choices.steps
    key_start, key_noise = jax.random.split(key)
    draw = choices.calibration.denoiser.draw(key_start, num_samples, steps.t[0])
    return Trial(choices, draw, steps.noise_key(key_noise), batch_size or num_samples)


@functools.cache
def _program():
    return compiled(final_samples)

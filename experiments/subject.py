"""What an experiment studies: a trained denoiser, its sites, and its quantized versions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import store
from qdiffjax import checkpoints, diffusion, program
from qdiffjax.precision import ptq

SHIPPED = Path(__file__).parent / "checkpoints"
SAMPLERS: dict[str, Callable[..., diffusion.Steps]] = {
    "ddim": diffusion.ddim,
    "ddpm": diffusion.ddpm,
    "ddpm-large": lambda schedule, num_steps: diffusion.ddpm(
        schedule, num_steps, variance_fn=diffusion.forward_variance
    ),
}
NUM_CALIBRATION = 32


@dataclasses.dataclass(frozen=True)
class Subject:
    """A denoiser with everything that is measured once, whatever the width.

    weights: weight operands by site; ranges: of the activations at every step of a calibration
    run; globs: which sites are quantized.
    """

    denoiser: checkpoints.Denoiser
    sites: tuple[program.Site, ...]
    weights: dict[str, Any]
    ranges: ptq.Ranges
    globs: tuple[str, ...]

    def quantized(self, weight_bits: int, activation_bits: int) -> program.Quantized:
        """The denoiser at these widths: weights per channel, activations per tensor, static."""
        recipe = program.uniform(
            self.sites, weight_bits=weight_bits, activation_bits=activation_bits, globs=self.globs
        )
        weights = program.prepare(self.weights, self.sites, recipe)
        eps_fn, params = self.denoiser.eps_fn, self.denoiser.params
        return ptq.quantize_denoiser(eps_fn, params, self.sites, recipe, weights, self.ranges)

    def mark(self) -> str:
        """Fingerprint of the parameters."""
        return store.fingerprint(*(np.asarray(a) for a in jax.tree.leaves(self.denoiser.params)))


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


def compiled(fn: Callable):
    """`jax.jit`, on CPU with LLVM at level 1.

    Measured on the adjoints of the shipped network, two cores: a quarter less compilation, and
    half the run time of the default level.
    """
    is_cpu = jax.default_backend() == "cpu"
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 1} if is_cpu else None)


def noise(denoiser: checkpoints.Denoiser, num: int, seed: int) -> jax.Array:
    """Initial noise [num, *shape]; sample i is the same for every num."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(num))
    return jax.vmap(lambda k: jax.random.normal(k, denoiser.config.shape, jnp.float32))(keys)


def prepare(checkpoint: str, steps_of, globs, seed: int) -> Subject:
    """Load a checkpoint and measure what every width needs.

    Args:
      checkpoint: see `find_checkpoint`.
      steps_of: schedule -> steps, the sampler to calibrate on.
      globs: sites to quantize, see `program.match`.
      seed: of the calibration noise; differs from the noise that is analysed.

    Raises:
      FileNotFoundError, ValueError: no or no fitting checkpoint, a glob that matches nothing.
    """
    denoiser = checkpoints.load(find_checkpoint(checkpoint))
    eps_fn, params = denoiser.eps_fn, denoiser.params
    x = jnp.zeros((1, *denoiser.config.shape), jnp.float32)
    t = jnp.zeros((), jnp.float32)
    sites = program.sites(eps_fn, params, x, t)
    program.match(sites, globs)
    weights = program.weight_operands(eps_fn, params, x, t)
    x_T = noise(denoiser, NUM_CALIBRATION, seed + 1_000_003)
    steps = steps_of(denoiser.schedule)
    observe = jax.jit(lambda p, x, key: ptq.observe_ranges(eps_fn, p, x, steps, key=key))
    ranges = observe(params, x_T, jax.random.key(seed + 1_000_004))
    return Subject(denoiser, sites, weights, ranges, tuple(globs))

"""A tiny checkpoint that does something: its zero-initialised kernels are made random."""

import functools

import jax
import jax.numpy as jnp

from experiments.harness import networks
from qdiffjax.networks import denoisers
from qdiffjax.networks.models.dit import DiT

CONFIG = denoisers.ModelConfig(
    shape=(8, 8, 1), network="unet", num_train_steps=50,
    arguments={"channels": (8,), "num_blocks": 1, "attention": (False,), "patch": 1},
)  # fmt: skip


def params(config=CONFIG):
    """Initial parameters plus small random numbers."""
    leaves, tree = jax.tree.flatten(denoisers.init_params(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + jnp.asarray(0.1, leaf.dtype) * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def save(path, config=CONFIG, values=None):
    """Write a checkpoint and return its folder."""
    denoisers.save(path, params(config) if values is None else values, config)
    return path


def instead_of_dit_xl(monkeypatch):
    """Make "tiny", a small DiT on small latents, the only network known by its shapes."""
    small = functools.partial(DiT, patch=2, width=32, depth=1, num_heads=2)
    monkeypatch.setattr(networks, "SIZES", {"tiny": small})
    monkeypatch.setattr(networks, "NUM_CLASSES", 10)
    monkeypatch.setattr(networks, "LATENT", (8, 8, 4))

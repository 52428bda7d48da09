"""What the tests of the networks share."""

import jax
import jax.numpy as jnp
import numpy as np


def quick_jit(fn, **kwargs):
    """Compile in a hurry: these are tests of definitions, not of speed."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0}, **kwargs)


def random_params(net, *inputs, seed=0, scale=0.3, **kwargs):
    """Parameters of `net` drawn at random, so that nothing is zero."""
    shapes = jax.eval_shape(lambda key: net.init(key, *inputs, **kwargs), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def with_zeros(params, *names):
    """The same parameters with every array below one of these modules set to zero."""

    def zero(path, leaf):
        keys = {entry.key for entry in path}
        return jnp.zeros_like(leaf) if keys & set(names) else leaf

    return jax.tree_util.tree_map_with_path(zero, params)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def count(shapes) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

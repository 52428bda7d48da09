"""Modules that carry their parameters, as a pure function and its parameters.

The rest of the house takes any fn(params, x, t); Flax linen's `apply` is one already.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def from_nnx(module) -> tuple[Callable[..., Any], Any]:
    """Return (fn, params) of a Flax nnx module: fn(params, *args, **kwargs) = module(...).

    Whatever is no `nnx.Param` (statistics, random state) is frozen as it is now, and what a call
    would change in it is lost; call `module.eval()` before, for a network without dropout. The
    module may be abstract (of `nnx.eval_shape`); params are shapes then.
    """
    from flax import nnx

    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, rest = parts

    def fn(params, *args, **kwargs):
        # Fresh variables each time: those of `rest` belong to no trace and may not be written.
        return nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))(*args, **kwargs)

    return fn, params


def from_equinox(module) -> tuple[Callable[..., Any], Any]:
    """Return (fn, params) of an Equinox module of one sample, made a function of batches.

        fn(params, x, *condition)[i] = module(x[i], *condition[i])

    A condition without an axis, such as a time [], is that of every sample. Parameters are the
    floating-point arrays; other leaves stay in the function. For a network without dropout pass
    `equinox.nn.inference_mode(module)`.

    Raises:
      ImportError: Equinox is not installed.
    """
    import equinox as eqx

    params, rest = eqx.partition(module, eqx.is_inexact_array)

    def fn(params, x, *condition):
        axes = (0, *(0 if jnp.ndim(c) else None for c in condition))
        return jax.vmap(eqx.combine(params, rest), axes)(x, *condition)

    return fn, params

"""Modules that carry their parameters, as a pure function and its parameters.

Each returns (fn, params) for `Denoiser(*from_...(module), schedule, shape)`, where fn takes
(params, x, t, *conditions) of a batch. All floating-point arrays of a module are in `params`,
trained or not, since what is not is no weight to anything that lists, quantizes or counts. Arrays
that a module does not hold as its own, such as those of a layer inside a lambda, cannot be
reached: they are constants.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_type, require

Adapted = tuple[Callable[..., Any], Any]


def from_linen(module, variables=None, **apply_kwargs) -> Adapted:
    """Return (fn, params) of a Flax linen module with its variables, or of a `TrainState`.

        fn(params, x, t, *cond) = module.apply(params, x, t, *cond, **apply_kwargs)

    Args:
      module: a linen module, or a TrainState: its `apply_fn` and `params` (and `batch_stats`).
      variables: collections, {"params": ..., ...}, all of which are the network's parameters; a
        tree without that key is taken as the collection "params". Beside a TrainState they
        replace its own, such as {"params": averaged}.
      apply_kwargs: what every call is given, such as train=False, deterministic=True, method.

    Raises:
      ValueError: a module without variables; when called, a network that draws random numbers or
        changes its variables.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, qdiffjax as qd
      >>> class Network(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, t):
      ...         return nn.Dense(2, name="out")(x)
      >>> variables = Network().init(jax.random.key(0), jnp.ones((1, 2)), 0.0)
      >>> fn, params = qd.from_linen(Network(), variables)
      >>> [site.name for site in qd.Denoiser(fn, params, qd.linear(), (2,)).sites()]
      ['input', 'out/kernel', 'output']
    """
    import flax

    if hasattr(module, "apply_fn"):
        apply, collections = module.apply_fn, _collections(module.params)
        if getattr(module, "batch_stats", None):
            collections["batch_stats"] = module.batch_stats
        collections |= {} if variables is None else _collections(variables)
    else:
        require(hasattr(module, "apply"), "module", got=f"a {type(module).__name__}",
                expected="a Flax linen module", remedy="any function is a Denoiser as it is",
                error=TypeError)  # fmt: skip
        require(variables is not None, "from_linen", got="a module without variables",
                expected="those that its `init` or a checkpoint gives",
                remedy="from_linen(module, variables) or from_linen(train_state)")  # fmt: skip
        apply, collections = module.apply, _collections(variables)

    def fn(params, x, *condition, **named):
        try:
            return apply(params, x, *condition, **named, **apply_kwargs)
        except (flax.errors.InvalidRngError, flax.errors.ModifyScopeVariableError) as error:
            raise ValueError(
                f"network: got {str(error).splitlines()[0]}, expected a function of its arguments "
                "alone; switch dropout and running statistics off, by whichever argument the "
                "module has: from_linen(..., deterministic=True), (..., train=False)."
            ) from error

    return fn, collections


def _collections(variables) -> dict[str, Any]:
    return dict(variables) if "params" in variables else {"params": variables}


def from_nnx(module) -> Adapted:
    """Return (fn, params) of a Flax nnx module: fn(params, *args, **kwargs) = module(...).

    Parameters are the variables that hold floating-point arrays, `nnx.Param` or not. The others
    (counts, random state) are frozen as they are now, and what a call would change in any of them
    is lost; call `module.eval()` before, for a network without dropout. The module may be abstract
    (of `nnx.eval_shape`); params are shapes then.

    Example:
      >>> import jax, qdiffjax as qd
      >>> from flax import nnx
      >>> class Network(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.out = nnx.Linear(2, 2, rngs=rngs)
      ...     def __call__(self, x, t):
      ...         return self.out(x)
      >>> fn, params = qd.from_nnx(Network(nnx.Rngs(0)))
      >>> [site.name for site in qd.Denoiser(fn, params, qd.linear(), (2,)).sites()]
      ['input', 'out/kernel', 'output']
    """
    from flax import nnx

    check_type("module", module, nnx.Module, remedy="any function is a Denoiser as it is")

    def is_float(path, variable):
        return isinstance(variable, nnx.Param) or _is_float(jax.tree.leaves(variable))

    parts: Any = nnx.split(module, is_float, ...)
    graph, params, rest = parts

    def fn(params, *args, **kwargs):
        # Fresh variables each time: those of `rest` belong to no trace and may not be written.
        return nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))(*args, **kwargs)

    return fn, params


def _is_float(leaves) -> bool:
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)


def from_equinox(module, call: Callable[..., Any] | None = None) -> Adapted:
    """Return (fn, params) of an Equinox module of one sample, made a function of batches.

        fn(params, x, *condition)[i] = module(x[i], *condition[i])

    A condition without an axis, such as a time [], is that of every sample. Parameters are the
    floating-point arrays, NumPy's too; other leaves stay in the function. For a network without
    dropout pass `equinox.nn.inference_mode(module)`.

    Args:
      module: of one sample.
      call: (module, x, *condition) -> prediction of one sample, for a module of another order of
        arguments: lambda module, x, t: module(t, x).

    Raises:
      ImportError: Equinox is not installed.

    Example:
      >>> import equinox as eqx, jax, qdiffjax as qd
      >>> module = eqx.nn.MLP(2, 2, 8, 1, key=jax.random.key(0))
      >>> fn, params = qd.from_equinox(module, lambda module, x, t: module(x))
      >>> denoiser = qd.Denoiser(fn, params, qd.linear(), (2,))
      >>> [site.name for site in denoiser.sites()]
      ['input', 'layers/0/weight', 'layers/1/weight', 'output']
    """
    import equinox as eqx

    check_type("module", module, eqx.Module, remedy="any function is a Denoiser as it is")
    params, rest = eqx.partition(
        module,
        lambda leaf: (
            (isinstance(leaf, np.ndarray) and _is_float([leaf])) or eqx.is_inexact_array(leaf)
        ),
    )
    apply = (lambda module, *args, **named: module(*args, **named)) if call is None else call

    def fn(params, x, *condition, **named):
        combined, rows = eqx.combine(params, rest), (condition, named)
        axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, rows)
        return jax.vmap(lambda x, row: apply(combined, x, *row[0], **row[1]), (0, axes))(x, rows)

    return fn, params

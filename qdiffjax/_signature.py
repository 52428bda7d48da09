"""A network of any signature, called in one way: (params, x, t, cond) -> one array like x."""

from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax._typing import EpsFn


def uniform_call(net_fn, output=None, shape=None) -> EpsFn:
    """Return net_fn as (params, x [batch, *shape], t [] or [batch], cond=None) -> [batch, *shape].

    Args:
      net_fn: (params, x, t, *conditions, **conditions) -> anything. What does not take t [] is
        given t [batch].
      output: the part of its result that counts: an index or key, or a function of the result.
      shape: of a sample, where it is known; results are then checked.
    """
    call = _at_any_time(net_fn)

    def network(params, x, t, cond=None):
        result = call(params, x, t, cond)
        out = _select(result, output)
        _check(out, result, x, shape)
        return out

    return network


def _at_any_time(net_fn):
    takes_each: dict[Any, bool] = {}  # by what a network can tell calls apart; filled once

    def call(params, x, t, cond):
        args, named = _arguments(cond)
        if jnp.ndim(t):
            return net_fn(params, x, t, *args, **named)
        each, key = jnp.broadcast_to(t, x.shape[:1]), (x.shape, jax.tree.structure(cond))
        if key not in takes_each:
            takes_each[key] = _takes_each(lambda t: net_fn(params, x, t, *args, **named), t, each)
        return net_fn(params, x, each if takes_each[key] else t, *args, **named)

    return call


def _arguments(cond) -> tuple[tuple, dict[str, Any]]:
    if isinstance(cond, dict):
        return (), cond
    return (() if cond is None else cond if isinstance(cond, tuple) else (cond,)), {}


def _takes_each(fn, t, each) -> bool:
    """Say whether fn fails at t [] but not at t [batch]; if at both, raise what it raised at t [].

    Tried apart: what a call has done before it fails would stay in the trace, as sites that
    nothing reads.
    """
    error = _error_of(fn, t)
    if error is None:
        return False
    other = _error_of(fn, each)
    if other is None:
        return True
    if str(other) != str(error):
        error.add_note(
            f"That was with one time []. With one for each sample {list(each.shape)} the network "
            f"fails too: {type(other).__name__}: {other}"
        )
    raise error


def _error_of(fn, t) -> Exception | None:
    try:
        jax.eval_shape(lambda: fn(t))
    except Exception as error:
        return error
    return None


def _select(result, output):
    if callable(output):
        return output(result)
    if output is None:
        return result
    try:
        return result[output]
    except (KeyError, IndexError, TypeError):
        require(False, "output", got=f"{output!r} of {_described(result)}",
                expected="an index or key of the network's result",
                remedy="name a part that the result has, or pass a function of it")  # fmt: skip


def _check(out, result, x, shape) -> None:
    """Refuse a prediction that is no array or, where shapes are known, not of the shape of x."""
    require(hasattr(out, "shape"), "network", got=_described(out),
            expected="one array, its prediction",
            remedy=f"say which: Denoiser(..., output={_place(result, x.shape)})")  # fmt: skip
    require(
        shape is None or out.shape == x.shape, "network",
        got=f"{_described(out)} for x {list(x.shape)}", expected="a prediction of the shape of x",
        remedy=_remedy_of_shape(out.shape, x.shape),
    )  # fmt: skip


def _place(result, shape) -> str:
    """Say where in a result there is an array of a shape, as `output=` takes it."""
    if not isinstance(result, (tuple, list, dict)):
        return "lambda out: out.field"
    items = result.items() if isinstance(result, dict) else enumerate(result)
    keys = [repr(key) for key, part in items if getattr(part, "shape", None) == shape]
    return next(iter(keys), "an index, a key or a function")


def _remedy_of_shape(got, shape) -> str:
    wrong = [a for a, n in enumerate(shape) if len(got) == len(shape) and got[a] != n]
    if wrong == [0]:
        return "what belongs to a sample goes into Denoiser(..., cond=), not into a closure"
    axis = wrong[0] if len(wrong) == 1 else len(shape) - 1
    n = shape[axis] if len(wrong) == 1 else "channels"
    before = "..." if axis == len(shape) - 1 else ", ".join(":" * axis)
    part = f"leave out the rest with Denoiser(..., output=lambda out: out[{before}, :{n}])"
    doubled = len(wrong) == 1 and got[axis] == 2 * n
    return f"a learned variance is no prediction, {part}" if doubled else part


def _described(result) -> str:
    if isinstance(result, dict):
        return f"a dict of {sorted(map(str, result))}"
    if isinstance(result, (tuple, list)):
        return f"a {type(result).__name__} of {len(result)}"
    return f"an array {list(result.shape)}" if hasattr(result, "shape") else type(result).__name__

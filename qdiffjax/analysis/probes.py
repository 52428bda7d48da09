"""Random probes v with E v v^T = I, and what one adjoint pass along a run gives for each.

Expectations over v turn sums over all directions of the final sample into averages over a few
(Hutchinson 1990): tr(A) = E v^T A v, |A|_F^2 = E |A^T v|^2, <a, b> = E <v, a> <v, b>.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, CallFn, Key
from qdiffjax.analysis.trajectories import step_map, times
from qdiffjax.diffusion import Steps, current
from qdiffjax.program import canonical_convolutions


class Probed(NamedTuple):
    """Mean over probes and its standard error, two pytrees of one structure."""

    value: Any
    standard_error: Any


def signs(key: Key, num: int, like) -> Array:
    """Return random signs [num, *like.shape], of least variance among independent entries."""
    return jax.random.rademacher(key, (num, *jnp.shape(like))).astype(like.dtype)


def axes(like) -> Array:
    """Return the n axes of a sample times sqrt(n) [n, *like.shape]; like [batch, *shape].

    Means over these probes are exact, for small n.
    """
    n = like[0].size
    basis = jnp.sqrt(jnp.asarray(n, like.dtype)) * jnp.eye(n, dtype=like.dtype)
    return jnp.broadcast_to(basis.reshape(n, 1, *like.shape[1:]), (n, *like.shape))


def probed(fn: Callable[[Array], Any], probes) -> Probed:
    """Return the mean of fn(probe) over probes [num, ...], one after another, and its error.

    The standard error assumes random probes; for `axes`, whose mean is exact, it means nothing.

    Raises:
      ValueError: fewer than two probes.
    """
    num = probes.shape[0]
    if num < 2:
        raise ValueError(f"got {num} probe(s), expected at least 2 for an error bar; draw more")
    values = jax.lax.map(fn, probes)
    mean = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
    return Probed(mean, jax.tree.map(lambda v: jnp.std(v, axis=0, ddof=1) / num**0.5, values))


def adjoints(call: CallFn, xs, steps: Steps, v) -> Array:
    """Return l_i = J_{i->N}^T v of every state for v [batch, *shape] of x_0 [N+1, batch, *state].

        l_i = J_i^T l_{i+1},   l_N = v in slot 0

    One VJP a step in a reverse scan.
    """
    _, place = jax.vjp(lambda state: current(state, steps.coeffs), xs[-1])
    (last,) = place(v)

    def body(l, slices):
        x, t, coeffs = slices
        (l,) = jax.vjp(step_map(call, t, coeffs), x)[1](l)
        return l, l

    table = (xs[:-1], times(steps, xs), steps.coeffs)
    sweep = canonical_convolutions(lambda l, rows: jax.lax.scan(body, l, rows, reverse=True))
    _, ls = sweep(last, table)
    return jnp.concatenate([ls, last[None]])

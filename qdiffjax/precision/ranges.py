"""Ranges of activations along a full-precision sampling run."""

from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import diffusion
from qdiffjax._conditions import as_arguments
from qdiffjax._typing import EpsFn
from qdiffjax.sites import rules, transform

Ranges = dict[str, tuple[Any, ...]]


def range_of(x):
    """(min, max) of an activation, two scalars."""
    return jnp.min(x), jnp.max(x)


def observe_ranges(
    eps_fn: EpsFn, params, steps: diffusion.Steps, x_T, *, key=None, cond=None
) -> Ranges:
    """Return the range of every activation operand at every step of a full-precision run.

    Args:
      eps_fn: eps_fn(params, x [batch, *shape], t [], cond) -> eps, without cond if that is None.
      params: its parameters.
      steps: the sampler, leaves [N].
      x_T: initial noise [batch, *shape].
      key: noise of a stochastic sampler.
      cond: conditions of the samples, leaves [batch, ...].

    Returns:
      (low, high) of each activation operand by site, leaves [N].
    """
    g, rest = transform(eps_fn, rules.observe(range_of)), as_arguments(cond)
    return diffusion.sample(
        lambda x, t, _, state: (*g(params, x, t, *rest), state),
        x_T,
        steps,
        key=key,
        keep_trajectory=False,
    ).outputs


def over_steps(ranges: Ranges) -> Ranges:
    """One static range per operand: the widest over all steps."""
    return jax.tree.map(
        lambda r: (jnp.min(r[0]), jnp.max(r[1])), ranges, is_leaf=_is_range
    )  # fmt: skip


def over_ranges(pair: tuple[Any, Any], num: int) -> tuple[Any, Any]:
    """Return (low [N], high [N]), the widest over each of `num` equal ranges of the N steps.

    Range k has the steps i with floor(i num / N) = k.
    """
    low, high = pair
    place = jnp.arange(len(low)) * num // len(low)
    least = jax.ops.segment_min(low, place, num, indices_are_sorted=True)
    most = jax.ops.segment_max(high, place, num, indices_are_sorted=True)
    return least[place], most[place]


def _is_range(node) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and not isinstance(node[0], tuple)

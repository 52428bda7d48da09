"""Exact log-likelihood by the probability-flow ODE; Song et al. 2021, section 4.3 and appendix D.2.

log p_0(x_0) = log p_T(x_T) + int_0^T div v(x_t, t) dt,   v = f x + g^2 eps / (2 sigma)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import POSITIVE, check_count, check_numbers, checked, require
from qdiffjax._typing import Array, EpsFn, PyTree, float_dtype
from qdiffjax.diffusion.ode import Field, Solver, pf_ode, rk4
from qdiffjax.diffusion.processes import Process


class LogLikelihood(NamedTuple):
    """log_prob [batch], nats, of x at times[0]; x_T [batch, *shape], its code at times[-1]."""

    log_prob: Array
    x_T: Array


def log_likelihood(
    eps_fn: EpsFn,
    params: PyTree,
    process: Process,
    x_0,
    times,
    *,
    probes=None,
    prior_fn: Callable[[Array], Array] | None = None,
    solver: Solver = rk4,
) -> LogLikelihood:
    """Return the log density that the network's PF-ODE gives to x_0 [batch, *shape].

    It is the law at times[0], data with the noise of that level. The trace is exact, one JVP per
    element of a sample, or Hutchinson's estimate with the given probes, one JVP each; unbiased for
    probes of unit covariance, the same ones along the whole path.

    Args:
      eps_fn: (params, x, t) -> eps; samples of a batch must not interact.
      params: its parameters.
      process: the forward process.
      x_0: data [batch, *shape].
      times: ascending [M+1], positive, alpha > 0; an adaptive solver uses the ends.
      probes: None, or Rademacher or normal [num_probes, batch, *shape].
      prior_fn: log p_T, x [batch, *shape] -> [batch]; None is N(0, sigma^2 I) at times[-1].
      solver: `rk4` or `diffrax_solver(...)`.

    Raises:
      ValueError: if probes do not have the shape of x_0 after their first axis.
    """
    check_numbers("x_0", x_0, least_rank=1)
    check_numbers("times", times, least_size=2, least_rank=1)
    x_0 = jnp.asarray(x_0).astype(float_dtype(x_0))
    require(
        probes is None or jnp.shape(probes)[1:] == x_0.shape,
        got=f"probes of shape {np.shape(probes)}",
        expected=f"[num, *{x_0.shape}]",
        remedy="draw them with jax.random.rademacher",
    )
    times = jnp.asarray(times).astype(x_0.dtype)
    field = _with_divergence(pf_ode(eps_fn, params, process), probes)
    x_T, change = solver(field, (x_0, jnp.zeros(x_0.shape[0], x_0.dtype)), times)
    sigma = process(times[-1]).sigma
    prior = _normal(x_T, sigma) if prior_fn is None else prior_fn(x_T)
    return LogLikelihood(prior + change, x_T)


@checked(num_dims=check_count, bin_width=POSITIVE)
def bits_per_dim(log_prob, num_dims: int, bin_width: float = 1.0) -> Array:
    """Return -(log_prob + num_dims log bin_width) / (num_dims log 2), any shape.

    With bin_width = 2 / 256 for 8-bit images scaled to [-1, 1] and dequantized uniformly it bounds
    the code length of the pixels: log_prob's own value plus 7.
    """
    return -jnp.asarray(log_prob) / (num_dims * math.log(2)) - math.log2(bin_width)


def _normal(x, std) -> Array:
    """Return log N(x; 0, std^2 I) of each sample [batch]."""
    flat = x.reshape(x.shape[0], -1)
    constant = flat.shape[1] * (math.log(2 * math.pi) / 2 + jnp.log(std))
    return -jnp.sum((flat / std) ** 2, axis=1) / 2 - constant


def _with_divergence(field: Field, probes) -> Field:
    """Return the field of (x, integral of div) [batch, *shape], [batch]."""

    def both(t, y):
        x, _ = y
        directions, weight = _directions(x, probes)
        velocity, push = jax.linearize(lambda v: field(t, v), x)
        axes = tuple(range(2, x.ndim + 1))
        quadratic = jnp.sum(directions * jax.lax.map(push, directions), axis=axes)
        return velocity, weight * jnp.sum(quadratic, axis=0)

    return both


def _directions(x, probes) -> tuple[Array, float]:
    """Return directions [num, batch, *shape] and the weight of their sum v^T J v."""
    if probes is not None:
        return jnp.asarray(probes).astype(x.dtype), 1 / jnp.shape(probes)[0]
    size = math.prod(x.shape[1:])
    unit = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    return jnp.broadcast_to(unit, (size, *x.shape)), 1.0

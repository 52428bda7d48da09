"""Random local errors: the covariance and the mean of what they become.

Stochastic rounding makes the network's errors of different steps uncorrelated, with mean zero to
first order (martingale differences). With R_i the covariance of the local error of step i,

    S_{i+1} = J_i S_i J_i^T + R_i                                  covariance of the state's error
    m_{i+1} = J_i m_i + D^2 F_i[S_i] / 2 + E e_i                    its mean, to second order

Both sums are taken without any matrix: by adjoint probes and by random trajectories of the error.
The roundings at the sites of a network are in `site_variances`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import CallFn, Key
from qdiffjax.analysis.errors.propagation import propagate_second_order
from qdiffjax.analysis.errors.runs import (
    Probed,
    adjoints,
    at,
    current,
    probed,
    wide,
    zeros,
)
from qdiffjax.diffusion import Point, Steps, as_point


class Variance(NamedTuple):
    """Of the final sample, E|error|^2: contributions of the steps [N, batch], their sum [batch]."""

    by_step: Probed
    total: Probed


def final_variance(call: CallFn, xs, steps: Steps, eps_variances, probes) -> Variance:
    """Return tr S_N of the final sample for network errors of given variances, by adjoint probes.

        tr S_N = sum_i E_v sum_j r_ij (c_eps,i^T l_{i+1})_j^2,   l_i = J_i^T l_{i+1},   l_N = v

    Predicted to first order, for elementwise uncorrelated errors of the network that are
    uncorrelated between steps. One adjoint pass a probe.

    Args:
      call: full-precision denoiser.
      xs: states of the full-precision run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      eps_variances: r, of every element of the prediction [N, batch, *shape].
      probes: v [num, batch, *shape], see `runs.signs`.
    """
    xs = wide(xs)
    like = current(at(xs, 0), steps)
    eps_variances = jnp.asarray(eps_variances).astype(like.dtype)

    def committed(coeffs, l):  # c_eps^T l, what l says of a change of the prediction
        return jax.linear_transpose(coeffs.commit, like)(as_point(l).x)[0]

    def cells(v):
        ls = at(adjoints(call, xs, steps, v), slice(1, None))
        weights = jax.vmap(committed)(steps.coeffs, ls) ** 2
        by_step = jnp.sum(weights * eps_variances, axis=tuple(range(2, weights.ndim)))
        return by_step, jnp.sum(by_step, axis=0)

    (by_step, total), (by_step_error, total_error) = probed(cells, probes)
    return Variance(Probed(by_step, by_step_error), Probed(total, total_error))


def mean_bias(
    call: CallFn, xs, steps: Steps, eps_variances, *, key: Key, num: int, eps_means=None
) -> Probed:
    """Return the mean error m_N to second order in random network errors [batch, *state].

        m_{i+1} = J_i m_i + D^2 F_i[S_i] / 2 + E e_i,   D^2 F[S] = E D^2 F[w, w],  w ~ (0, S)

    Predicted. Each of `num` random trajectories draws w_{i+1} = J_i w_i + c_eps,i r_i^(1/2) (random
    signs), whose covariance is S_i exactly, and adds up its curvature; their mean is unbiased.
    Zero-mean rounding thus leaves a bias of second order, coherent from step to step, under which
    averaging over many steps cannot go.

    Args:
      call: full-precision denoiser, twice differentiable.
      xs: states of the full-precision run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      eps_variances: r, of every element of the prediction [N, batch, *shape].
      key: of the signs.
      num: number of trajectories, at least 2.
      eps_means: mean of the network's error [N, batch, *shape], of second order; None is zero.
    """
    xs = wide(xs)
    x, state = as_point(at(xs, slice(-1)))
    scales = jnp.sqrt(jnp.asarray(eps_variances).astype(x.dtype))
    means = jnp.zeros_like(scales) if eps_means is None else jnp.asarray(eps_means)

    def committed(eps_errors):
        e = jax.vmap(lambda d, coeffs: coeffs.commit(d))(eps_errors, steps.coeffs)
        return Point(e, zeros(state)).bare()

    def one(key) -> Any:
        signs = jax.random.rademacher(key, scales.shape).astype(x.dtype)
        e, e_mean = committed(signs * scales), committed(means.astype(x.dtype))
        return at(propagate_second_order(call, xs, steps, e, e_mean).second, -1)

    return probed(one, jax.random.split(key, num))

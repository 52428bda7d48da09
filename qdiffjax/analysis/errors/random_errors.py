"""Random local errors: the covariance and the mean of what they become.

Stochastic rounding makes the network's errors of different steps uncorrelated, with mean zero to
first order (martingale differences). With R_i the covariance of the local error of step i,

    S_{i+1} = J_i S_i J_i^T + R_i                                  covariance of the state's error
    m_{i+1} = J_i m_i + D^2 F_i[S_i] / 2 + E e_i                    its mean, to second order

Both sums are taken without any matrix: by adjoint probes and by random trajectories of the error.
The roundings at the sites of a network come last.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax._typing import Array, CallFn, Key, PyTree, float_dtype
from qdiffjax.analysis.errors.ledger import Ledger, full_run, per_sample, zeros_of
from qdiffjax.analysis.errors.propagation import propagate_second_order
from qdiffjax.analysis.errors.runs import (
    Probed,
    adjoints,
    at,
    covector,
    current,
    probed,
    step_map,
    step_with_outputs,
    wide,
    zeros,
)
from qdiffjax.diffusion import Point, Steps, as_point
from qdiffjax.precision.quantized import Quantized, merge, ruled_call
from qdiffjax.quant import ActivationGrid
from qdiffjax.sites import rules


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


def average_variance(x, grid: ActivationGrid, *, axes: tuple[int, ...] = ()) -> Array:
    """Return the variance of rounding each element of an activation operand x [*shape].

        stochastic (grid has a key):   s^2 / 6,      nearest:   s^2 / 12

    averaged over a uniform fractional part, with s the distance of the neighbours on the grid: zero
    on the grid itself and outside the range, where the error is no rounding. What
    earlier roundings move by a step or more has any fractional part on the quantized run, however
    small the step, whatever the full-precision run's is. `axes` share a dynamic grid.
    """
    down, up = (precision.round_activation(x, grid, fn, axes=axes) for fn in (jnp.floor, jnp.ceil))
    return (up - down) ** 2 / (12 if grid.key is None else 6)


def activation_variances(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    probes: Array,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
) -> Ledger:
    """Predict what the rounding of activations adds to E|x_0 error|^2, by (site, step).

        c_{i,l} = E_v sum_j (d<v, x_0> / dh_ilj)^2 r_ilj

    All roundings are taken as uncorrelated: true for stochastic rounding up to second order, a
    model for nearest rounding (compare with `coherence`). The entries add up to the prediction.
    Costs 2 sampling runs and an adjoint pass a probe.

    Args:
      q: the denoiser and its quantization.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      probes: v [num, batch, *shape], see `runs.signs`.
      key: noise of a stochastic sampler.
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Returns:
      A ledger of nonnegative contributions {site: [batch, N]}, without change or x_hat_0.
    """

    def one(q, x_T, z, vs):
        tapped = ruled_call(q, _tap)

        def backward(ls, slices):
            (t, coeffs, z, inputs), x = slices
            grids = merge(q.site_inputs, inputs)

            def f(x, taps):
                pairs = {name: (taps[name], grids[name].activations) for name in grids}
                return step_with_outputs(tapped, t, coeffs, z, pairs)(x)

            zeros = zeros_of(jax.eval_shape(lambda: f(x, dict.fromkeys(grids, ()))[1]))
            _, vjp, variances = jax.vjp(f, x, zeros, has_aux=True)
            before, bars = jax.lax.map(vjp, ls)
            return before, {name: _total(bars[name], variances[name]) for name in grids}

        table = (steps.times(x_T), steps.coeffs, z, q.calls(steps, per_call))
        x, xs = full_run(q, x_T, table, steps)
        ls = jax.vmap(lambda v: covector(v, x, steps))(vs[0][:, None])
        _, cells = jax.lax.scan(backward, ls, (table, xs), reverse=True)
        return cells, None, current(x, steps)[0], None

    return Ledger(*per_sample(one, q, x_T, steps, key, jnp.moveaxis(probes, 1, 0)))


def weight_variances(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    variances: dict[str, Any],
    probes: Array,
    *,
    key: Key | None = None,
) -> dict[str, Array]:
    """Predict what the rounding of weights adds to E|x_0 error|^2 {site: [batch]}.

        c_l = E_v sum_j (A_l^T v)_j^2 r_lj,   A_l = d x_0 / d theta_l through the whole sampler

    which is |A_l|_F^2 s_l^2 / 12 for one scale s_l. The weight's error is the same at every step:
    the gradient is summed over steps before it is squared. Errors of different elements are taken
    as uncorrelated; a weight used at several sites is counted as several. Samples are done one
    after another. Costs one sampling run and an adjoint pass a probe.

    Args:
      q: the denoiser.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      variances: {site: r}, broadcastable to the site's weight operand: scale^2 / 12, or the
        squared rounding errors of weights already rounded.
      probes: v [num, batch, *shape].
      key: noise of a stochastic sampler.
    """

    def one(q, x_T, z, vs):
        tapped = ruled_call(q, _tap_weight)
        table = (steps.times(x_T), steps.coeffs, z, None)
        x, xs = full_run(q, x_T, table, steps)

        def backward(carry, slices):
            (t, coeffs, z, _), x = slices
            l, sums = carry
            f = lambda x, taps: step_map(tapped, t, coeffs, z, taps)(x)  # noqa: E731
            l, bars = jax.vjp(f, x, jax.tree.map(jnp.zeros_like, sums))[1](l)
            return (l, jax.tree.map(jnp.add, sums, bars)), None

        def squares(v):
            carry = covector(v[None], x, steps), nothing
            (_, sums), _ = jax.lax.scan(backward, carry, (table, xs), reverse=True)
            return {n: jnp.sum(sums[n] ** 2 * variances[n]) for n in sums}

        return jax.tree.map(lambda a: jnp.mean(a, 0), jax.lax.map(squares, vs[0]))

    weights = ruled_call(q.at(slice(1)), rules.collect_weights)
    shapes = jax.eval_shape(lambda: weights(x_T[:1], steps.times(x_T)[0])[1])
    nothing = zeros_of({name: shapes[name] for name in variances})
    return per_sample(one, q, x_T, steps, key, jnp.moveaxis(probes, 1, 0), is_map=True)


def _tap(site, op, operands, inputs):
    """Add taps to the activation operands and return the variances of their rounding: a rule.

    `inputs` is a pair of tuples, taps and grids of the operands; either may be empty.
    """
    if inputs is None:
        return op(*operands), None
    taps, grids = inputs
    values = list(operands)
    for index, tap in zip(site.activations, taps, strict=False):
        values[index] = values[index] + tap
    variances = (
        jnp.zeros_like(operands[index]) if grid is None
        else average_variance(operands[index], grid, axes=precision.token_axes(site, index))
        for index, grid in itertools.zip_longest(site.activations, grids)
    )  # fmt: skip
    return op(*values), tuple(variances)


def _tap_weight(site, op, operands, inputs):
    """Add `inputs` to the weight operand: a rule."""
    if inputs is None:
        return op(*operands), None
    values = list(operands)
    values[site.weight] = values[site.weight] + inputs
    return op(*values), None


def _total(bars, variances) -> Array:
    """Return sum_j mean_v bar_j^2 r_j over the operands of one site, at least in float32."""
    cells = [
        jnp.sum(_wide(jnp.mean(_wide(bar) ** 2, axis=0)) * _wide(r))
        for bar, r in zip(bars, variances, strict=True)
    ]
    return jnp.sum(jnp.stack(cells)) if cells else jnp.zeros((), jnp.float32)


def _wide(x) -> Array:
    return x.astype(float_dtype(x))

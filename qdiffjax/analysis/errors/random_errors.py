"""Random local errors: the covariance and the mean of what they become.

Stochastic rounding makes the network's errors of different steps uncorrelated, with mean zero to
first order (martingale differences). With R_i the covariance of the local error of step i,

    S_{i+1} = J_i S_i J_i^T + R_i                                  covariance of the state's error
    m_{i+1} = J_i m_i + D^2 F_i[S_i] / 2 + E e_i                    its mean, to second order

Both sums are taken without any matrix: by adjoint probes and by random trajectories of the error.
Roundings at the sites of a network are in rounding_variance.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax._typing import Array, CallFn, Key, PyTree, float_dtype
from qdiffjax.analysis.errors.ledger import Ledger
from qdiffjax.analysis.errors.propagation import propagate_second_order
from qdiffjax.analysis.errors.runs import Probed, adjoints, noises, probed, times
from qdiffjax.compiling import canonical_convolutions
from qdiffjax.diffusion import Steps, commit, current, read, start, step
from qdiffjax.precision.quantized import Quantized, merge
from qdiffjax.quant import ActivationGrid
from qdiffjax.sites import rules
from qdiffjax.sites.transforming import transform


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
      probes: v [num, batch, *shape], see `probes.signs`.
    """
    xs = jnp.asarray(xs).astype(float_dtype(xs))
    eps_variances = jnp.asarray(eps_variances).astype(xs.dtype)
    like = current(xs[0], steps.coeffs)

    def committed(coeffs, l):  # c_eps^T l, what l says of a change of the prediction
        (back,) = jax.linear_transpose(lambda d: commit(d, coeffs), like)(l)
        return back

    def cells(v):
        ls = adjoints(call, xs, steps, v)[1:]
        weights = jax.vmap(committed)(steps.coeffs, ls) ** 2
        found = jnp.sum(weights * eps_variances, axis=tuple(range(2, weights.ndim)))
        return found, jnp.sum(found, axis=0)

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
    xs = jnp.asarray(xs).astype(float_dtype(xs))
    scales = jnp.sqrt(jnp.asarray(eps_variances).astype(xs.dtype))
    means = jnp.zeros_like(scales) if eps_means is None else jnp.asarray(eps_means)
    committed = jax.vmap(commit)

    def one(key) -> Array:
        signs = jax.random.rademacher(key, scales.shape).astype(xs.dtype)
        e, e_mean = (committed(a, steps.coeffs) for a in (signs * scales, means.astype(xs.dtype)))
        return propagate_second_order(call, xs, steps, e, e_mean).second[-1]

    return probed(one, jax.random.split(key, num))


def covariance(jacobians, local_covariances) -> Array:
    """Return S_i by dense algebra, for small n: S_{i+1} = J_i S_i J_i^T + R_i, S_0 = 0.

    Args:
      jacobians: J_i [N, batch, n, n], or [N, 1, n, n] if they do not depend on the sample.
      local_covariances: R_i [N, batch, n, n].

    Returns:
      Covariances [N+1, batch, n, n].
    """

    def body(s, slices):
        j, r = slices
        s = jnp.einsum("bij,bjk,blk->bil", jnp.broadcast_to(j, s.shape), s,
                       jnp.broadcast_to(j, s.shape), precision="highest") + r  # fmt: skip
        return s, s

    zero = jnp.zeros_like(local_covariances[0])
    _, found = jax.lax.scan(body, zero, (jacobians, local_covariances))
    return jnp.concatenate([zero[None], found])


def conditional_variance(x, how: ActivationGrid) -> Array:
    """Return the variance of rounding each element of an activation operand x [*shape], given x.

        stochastic (how has a key):   (up - x) (x - down) = s^2 f (1 - f),   exact
        nearest:                      (up - down)^2 / 12 = s^2 / 12,          a model

    with down and up the neighbours on the grid. Zero on the grid itself, where nothing is lost,
    and outside the range, where the error is no rounding.
    """
    down, up = _neighbours(x, how)
    if how.key is None:
        return (up - down) ** 2 / 12
    return jnp.maximum((up - x) * (x - down), 0)


def average_variance(x, how: ActivationGrid) -> Array:
    """Return `conditional_variance` averaged over a uniform fractional part [*shape].

        stochastic:   s^2 / 6,      nearest:   s^2 / 12

    What earlier roundings move by a step or more has any fractional part on the quantized run,
    however small the step, whatever the full-precision run's is.
    """
    down, up = _neighbours(x, how)
    return (up - down) ** 2 / (12 if how.key is None else 6)


def activation_variances(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    probes: Array,
    *,
    variance_fn: Callable[[Array, ActivationGrid], Array] = average_variance,
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
      probes: v [num, batch, *shape], see `probes.signs`.
      variance_fn: r of the elements of an operand at the full-precision run.
      key: noise of a stochastic sampler.
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Returns:
      A ledger of nonnegative contributions {site: [batch, N]}, without change or x_hat_0.
    """
    tapped = transform(q.eps_fn, _tap)

    def one(x_T, z, vs):
        def backward(ls, slices):
            (t, coeffs, z, inputs), x = slices
            hows = merge(q.site_inputs, inputs)

            def f(x, taps):
                eps, seen = tapped(q.params, read(x, coeffs), t, site_inputs=taps)
                return step(x, eps, coeffs, z), seen

            zeros = _like(jax.eval_shape(lambda: f(x, dict.fromkeys(hows, ()))[1]))
            _, vjp, seen = jax.vjp(f, x, zeros, has_aux=True)
            before, bars = jax.lax.map(vjp, ls)
            cells = {
                name: _total(bars[name], seen[name], hows[name].activations, variance_fn)
                for name in hows
            }
            return before, cells

        table = (times(steps, x_T), steps.coeffs, z, per_call)
        x, xs = _forward(q, x_T, steps, table)
        ls = jax.vmap(lambda v: _place(v, x, steps))(vs)
        _, cells = jax.lax.scan(backward, ls, (table, xs), reverse=True)
        return cells, None, current(x, steps.coeffs)[0], None

    zs = noises(key, steps, x_T)
    over = (0, None if zs is None else 1, 1)

    def each(x, z, v):
        return one(x[None], None if z is None else z[:, None], v[:, None])

    return Ledger(*canonical_convolutions(jax.vmap(each, over))(x_T, zs, probes))


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
    tapped = transform(q.eps_fn, _tap_weight)

    def one(arguments):
        x_T, z, vs = arguments
        table = (times(steps, x_T), steps.coeffs, z, None)
        x, xs = _forward(q, x_T, steps, table)

        def backward(carry, slices):
            (t, coeffs, z, _), x = slices
            l, sums = carry

            def f(x, taps):
                eps, _ = tapped(q.params, read(x, coeffs), t, site_inputs=taps)
                return step(x, eps, coeffs, z)

            l, bars = jax.vjp(f, x, jax.tree.map(jnp.zeros_like, sums))[1](l)
            return (l, jax.tree.map(jnp.add, sums, bars)), None

        def squares(v):
            carry = _place(v, x, steps), zeros
            (_, sums), _ = jax.lax.scan(backward, carry, (table, xs), reverse=True)
            return {n: jnp.sum(sums[n] ** 2 * variances[n]) for n in sums}

        return jax.tree.map(lambda a: jnp.mean(a, 0), jax.lax.map(squares, vs))

    collect = transform(q.eps_fn, rules.collect_weights)
    shapes = jax.eval_shape(lambda: collect(q.params, x_T[:1], times(steps, x_T)[0])[1])
    zeros = _like({name: shapes[name] for name in variances})
    zs = noises(key, steps, x_T)
    zs = None if zs is None else jnp.moveaxis(zs, 1, 0)[:, :, None]
    sweep = canonical_convolutions(lambda *table: jax.lax.map(one, table))
    return sweep(x_T[:, None], zs, jnp.moveaxis(probes, 1, 0)[:, :, None])


def _tap(site, op, operands, inputs):
    """Rule that adds `inputs`, a tuple, to the activation operands and returns these."""
    if inputs is None:
        return op(*operands), None
    values = list(operands)
    for index, tap in zip(site.activations, inputs, strict=False):
        values[index] = values[index] + tap
    return op(*values), tuple(operands[i] for i in site.activations)


def _tap_weight(site, op, operands, inputs):
    """Rule that adds `inputs` to the weight operand."""
    if inputs is None:
        return op(*operands), None
    values = list(operands)
    values[site.weight] = values[site.weight] + inputs
    return op(*values), None


def _forward(q: Quantized, x_T, steps: Steps, table) -> tuple[Array, Array]:
    """Return the last state and the states left [N, ...] of the full-precision run."""

    def body(x, slices):
        t, coeffs, z, _ = slices
        return step(x, q.eps_fn(q.params, read(x, coeffs), t), coeffs, z), x

    return jax.lax.scan(body, start(x_T, steps), table)


def _place(v, state, steps: Steps) -> Array:
    """Return v [*shape] of the final sample as a covector of the state."""
    return jax.vjp(lambda state: current(state, steps.coeffs), state)[1](v)[0]


def _like(shapes) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _total(bars, operands, hows, variance_fn) -> Array:
    """Return sum_j mean_v bar_j^2 r_j over the operands of one site, at least in float32."""
    cells = [
        jnp.sum(_wide(jnp.mean(_wide(bar) ** 2, axis=0)) * _wide(variance_fn(operand, how)))
        for bar, operand, how in zip(bars, operands, hows, strict=False)
        if how is not None
    ]
    return jnp.sum(jnp.stack(cells)) if cells else jnp.zeros((), jnp.float32)


def _wide(x) -> Array:
    return x.astype(float_dtype(x))


def _neighbours(x, how: ActivationGrid) -> tuple[Array, Array]:
    """Return the grid's neighbours of x below and above [*shape]; one number if x is on it."""
    return tuple(precision.round_activation(x, how, fn) for fn in (jnp.floor, jnp.ceil))

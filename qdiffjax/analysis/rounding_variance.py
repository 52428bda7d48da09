"""E|error|^2 of the final sample that the roundings of a network's sites are expected to cause.

Elementwise independent roundings of activations are squared first and then summed; the error of a
weight is the same at every step and position, so it is summed first and then squared:

    activations   sum_{i,l,j} E_v (d<v, x_0> / dh_ilj)^2 r_ilj         r: of each rounding
    weights       sum_{l,j} E_v (sum_i d<v, x_0> / dtheta_lj)^2 r_lj

with h the operand that is rounded, at the full-precision run. Predicted, first order. Samples are
analysed one at a time; the network must not mix the samples of a batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, Key, PyTree
from qdiffjax.analysis.ledger import Ledger
from qdiffjax.analysis.trajectories import noises, times
from qdiffjax.diffusion import Steps, current, float_dtype, read, start, step
from qdiffjax.program import canonical_convolutions, rules
from qdiffjax.program.quantized import Quantized, merge
from qdiffjax.program.transform import transform


def conditional_variance(x, how: rules.ActivationQuant) -> Array:
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


def average_variance(x, how: rules.ActivationQuant) -> Array:
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
    variance_fn: Callable[[Array, rules.ActivationQuant], Array] = average_variance,
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


def _neighbours(x, how: rules.ActivationQuant) -> tuple[Array, Array]:
    """Return the grid's neighbours of x below and above [*shape]; one number if x is on it."""
    return tuple(rules.round_activation(x, how, fn) for fn in (jnp.floor, jnp.ceil))

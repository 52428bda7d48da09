"""Roundings at the sites of a network: what each adds to the variance of the final sample."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax._checks import require
from qdiffjax._typing import Array, Key, PyTree, float_dtype
from qdiffjax.analysis.errors.ledger import Ledger, full_run, per_sample, zeros_of
from qdiffjax.analysis.errors.runs import (
    covector,
    current,
    difference,
    step_map,
    step_with_outputs,
)
from qdiffjax.diffusion import Steps
from qdiffjax.precision.quantized import Quantized, merge, ruled_call
from qdiffjax.quant import ActivationGrid
from qdiffjax.sites import rules


def average_variance(
    x, grid: ActivationGrid, *, axes: tuple[int, ...] = (), group_axis: int | None = None
) -> Array:
    """Return the variance of rounding each element of an activation operand x [*shape].

        stochastic (grid has a key):   s^2 / 6,      nearest:   s^2 / 12

    averaged over a uniform fractional part, with s the distance of the neighbours on the grid: zero
    on the grid itself and outside the range, where the error is no rounding. What
    earlier roundings move by a step or more has any fractional part on the quantized run, however
    small the step, whatever the full-precision run's is. `axes` share a dynamic grid, groups lie
    along `group_axis`.
    """
    down, up = (
        precision.round_activation(x, grid, fn, axes=axes, group_axis=group_axis)
        for fn in (jnp.floor, jnp.ceil)
    )
    return (up - down) ** 2 / (12 if grid.key is None else 6)


def activation_variances(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    probes: Array,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
    feedback: bool = False,
) -> Ledger:
    """Predict what the rounding of activations adds to E|x_0 error|^2, by (site, step).

        c_{i,l} = E_v sum_j G_ilj^2 r_ilj,   G_ilj = d<v, x_0> / dh_ilj
        feedback:      E_v sum_j (G_{i+1,lj} - G_ilj)^2 r_ilj,   G_N = 0

    All roundings are taken as uncorrelated: true for stochastic rounding up to second order, a
    model for nearest rounding (compare with `coherence`). With error feedback it is the residuals
    that are, and what call i loses the next call makes up for; where it pays says
    `feedback_criterion`. The entries add up to the prediction. Costs 2 sampling runs and an adjoint
    pass a probe.

    Args:
      q: the denoiser and its quantization.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      probes: v [num, batch, *shape], see `runs.signs`.
      key: noise of a stochastic sampler.
      per_call: inputs of the quantized denoiser, leaves [N, ...].
      feedback: whether what a call loses is handed to the next, see
        `quant.ActivationGrid.round_with_residual`.

    Returns:
      A ledger of nonnegative contributions {site: [batch, N]}, without change or x_hat_0.
    """
    (found,) = variances_of_ways(q, x_T, steps, probes, (feedback,), key=key, per_call=per_call)
    return found


def variances_of_ways(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    probes: Array,
    feedbacks: tuple[bool, ...],
    *,
    key: Key | None = None,
    per_call: PyTree = None,
) -> tuple[Ledger, ...]:
    """Return `activation_variances` without and with feedback, as asked, from the same passes."""

    def one(q, x_T, z, vs):
        tapped = ruled_call(q, _tap)

        def backward(carry, slices):
            ls, after = carry
            (t, coeffs, z, inputs), x = slices
            grids = merge(q.site_inputs, inputs)

            def f(x, taps):
                pairs = {name: (taps[name], grids[name]) for name in grids}
                return step_with_outputs(tapped, t, coeffs, z, pairs)(x)

            zeros = zeros_of(jax.eval_shape(lambda: f(x, dict.fromkeys(grids, ()))[1]))
            _, vjp, variances = jax.vjp(f, x, zeros, has_aux=True)
            before, bars = jax.lax.map(vjp, ls)
            cells = tuple(
                {name: _total(gains[name], variances[name]) for name in grids}
                for feedback in feedbacks
                for gains in (difference(after, bars) if feedback else bars,)
            )
            return (before, bars if any(feedbacks) else after), cells

        table = (steps.times(x_T), steps.coeffs, z, q.calls(steps, per_call))
        x, xs = full_run(q, x_T, table, steps)
        ls = jax.vmap(lambda v: covector(v, x, steps))(vs[0][:, None])
        none = None
        if any(feedbacks):  # no gain after the last call
            shapes = jax.eval_shape(lambda: tapped(x_T, table[0][0], _no_taps(q, table[3]))[1])
            none = zeros_of(jax.tree.map(
                lambda s: jax.ShapeDtypeStruct((len(ls), *s.shape), s.dtype), shapes
            ))  # fmt: skip
        _, cells = jax.lax.scan(backward, (ls, none), (table, xs), reverse=True)
        return cells, current(x, steps)[0]

    cells, x_0 = per_sample(one, q, x_T, steps, key, jnp.moveaxis(probes, 1, 0))
    return tuple(Ledger(each, None, x_0, None) for each in cells)


def _no_taps(q: Quantized, per_call) -> dict[str, Any]:
    first = merge(q.site_inputs, jax.tree.map(lambda a: jnp.asarray(a)[0], per_call))
    return {name: ((), inputs) for name, inputs in first.items()}


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
    nothing = nothing_at(q, x_T, steps, variances)

    def one(q, x_T, z, vs):
        sweep = weight_gradients(q, x_T, steps, z, nothing)

        def squares(v):
            sums, _ = sweep(v, lambda sums, bars: (jax.tree.map(jnp.add, sums, bars), None))
            return {n: jnp.sum(sums[n] ** 2 * variances[n]) for n in sums}

        return jax.tree.map(lambda a: jnp.mean(a, 0), jax.lax.map(squares, vs[0]))

    return per_sample(one, q, x_T, steps, key, jnp.moveaxis(probes, 1, 0), is_map=True)


def nothing_at(q: Quantized, x_T, steps: Steps, names) -> dict[str, Array]:
    """Return zeros like the weight operands of some sites."""
    weights = ruled_call(q.at(slice(1)), rules.collect_weights)
    shapes = jax.eval_shape(lambda: weights(x_T[:1], steps.times(x_T)[0])[1])
    return zeros_of({name: shapes[name] for name in names})


def weight_gradients(q: Quantized, x_T, steps: Steps, z, nothing):
    """Return (v, fold) -> (folded, outs): gradients of <v, x_0> in the weights, call by call.

    fold(folded, gradients of one call) -> (folded, out), from zeros, the last call first; outs have
    a leading axis of calls [N].
    """
    tapped = ruled_call(q, tap_weight)
    table = (steps.times(x_T), steps.coeffs, z, None)
    x, xs = full_run(q, x_T, table, steps)

    def sweep(v, fold):
        def backward(carry, slices):
            (t, coeffs, z, _), x = slices
            l, folded = carry
            f = lambda x, taps: step_map(tapped, t, coeffs, z, taps)(x)  # noqa: E731
            l, bars = jax.vjp(f, x, nothing)[1](l)
            folded, out = fold(folded, bars)
            return (l, folded), out

        first = covector(v[None], x, steps), nothing
        (_, folded), outs = jax.lax.scan(backward, first, (table, xs), reverse=True)
        return folded, outs

    return sweep


def _tap(site, op, operands, inputs):
    """Add taps to the activation operands and return the variances of their rounding: a rule.

    `inputs` are the taps of the operands, which may be (), and a `SiteQuant`.
    """
    if inputs is None:
        return op(*operands), None
    taps, rounding = inputs
    rounding.check_plain(site)
    values = list(operands)
    for index, tap in zip(site.activations, taps, strict=False):
        values[index] = values[index] + tap

    def variance(index, grid, x):
        require(not getattr(grid, "difference", False), site.name, got="rounded differences",
                expected="roundings whose size the operand alone decides",
                remedy="measure them by a run")  # fmt: skip
        require(getattr(grid, "carry", None) is None, site.name, got="weighed residuals",
                expected="residuals that are handed on as they are",
                remedy="measure them by a run")  # fmt: skip
        return jnp.zeros_like(x) if grid is None else average_variance(
            x, grid, axes=precision.token_axes(site, index),
            group_axis=precision.group_axis(site, index),
        )  # fmt: skip

    variances = (
        precision.at_call(functools.partial(variance, index), grid, rounding.call, operands[index])
        for index, grid in itertools.zip_longest(site.activations, rounding.activations)
    )
    return op(*values), tuple(variances)


def tap_weight(site, op, operands, inputs):
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

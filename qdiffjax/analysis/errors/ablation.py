"""What quantizing one (site, step) alone would do: forecast for all cells, or rerun for one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_callable, check_count, check_names, concrete, require
from qdiffjax._typing import Array, Key, PyTree
from qdiffjax.analysis.errors.ledger import Ledger, contract, full_run, per_sample, zeros_of
from qdiffjax.analysis.errors.propagation import run_suffix
from qdiffjax.analysis.errors.runs import (
    at,
    current,
    difference,
    step_map,
    step_with_outputs,
)
from qdiffjax.diffusion import Steps, as_point
from qdiffjax.diffusion.loop import check_state
from qdiffjax.precision.quantized import Quantized, full_call, gated_call, merge, ruled_call
from qdiffjax.sites import rules


def forecast(
    q: Quantized,
    x_T: Array,
    steps: Steps,
    functional: Callable[[Array], Array],
    *,
    num_exact: int = 0,
    key: Key | None = None,
    per_call: PyTree = None,
) -> Ledger:
    """Forecast the effect of quantizing each (site, step) alone, by one adjoint sweep.

        c_{i,l} = < d phi(x_0) / d tap_{i,l}, r_{i,l} >,    r_{i,l} = Q-op_l(h) - op_l(h)

    with h and the derivative at the full-precision run: first order in one cell's error. The
    num_exact cells of each step that this makes largest are then recomputed as

        c_{i,l} = < d phi(x_0) / d x_{i+1}, F_i(x_i; tap r_{i,l}) - F_i(x_i) >,

    exact within the network and first order only in what the later steps do.

    Costs about 6 + num_exact sampling runs. A functional whose gradient vanishes at the
    full-precision sample gives zeros.

    Args:
      q: the denoiser and its quantization; sites without inputs commit no error.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      functional: phi(x) -> scalar, of one final sample.
      num_exact: cells of each step and sample that get one network call each.
      key: noise of a stochastic sampler.
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Raises:
      ValueError: num_exact outside 0..number of sites.
    """
    check_state("x_T", x_T)
    check_callable("functional", functional, "x -> a number")
    check_count("num_exact", num_exact, least=0, most=len(q.site_inputs),
                remedy="no more than the sites that are quantized")  # fmt: skip
    require(q.site_inputs, "q", got="no quantized sites", expected="some",
            remedy="quantize(calibration, recipe)")  # fmt: skip

    def both(site, op, operands, inputs):
        if inputs is None:
            return op(*operands), None
        tap, quantizing = inputs
        error = q.rule(site, op, operands, quantizing)[0] - op(*operands)
        return op(*operands) + tap, jax.lax.stop_gradient(error)

    def one(q, x_T, z):
        tapped, perturbed = ruled_call(q, both), ruled_call(q, rules.perturb)
        record = ruled_call(q, rules.local_errors(q.rule, follow_rule=False))

        def backward(adjoint, slices):
            (t, coeffs, z, inputs), x = slices
            merged = merge(q.site_inputs, inputs)

            def f(x, taps):
                both_inputs = {name: (taps[name], merged[name]) for name in taps}
                return step_with_outputs(tapped, t, coeffs, z, both_inputs)(x)

            def effect_of(l):  # of the l-th site alone, on the adjoint's side of the step
                taps = {name: jnp.where(l == i, r[name], 0) for i, name in enumerate(r)}
                moved = step_map(perturbed, t, coeffs, z, taps)(x)
                return contract(difference(moved, x_next), adjoint, x_T.dtype)

            plain = step_with_outputs(record, t, coeffs, z, merged)
            zeros = zeros_of(jax.eval_shape(lambda: plain(x)[1]))
            x_next, vjp, r = jax.vjp(f, x, zeros, has_aux=True)
            before, taps_bar = vjp(adjoint)
            cells = jnp.stack([contract(r[n], bar, x_T.dtype) for n, bar in taps_bar.items()])
            if num_exact:
                _, largest = jax.lax.top_k(jnp.abs(cells), num_exact)
                cells = cells.at[largest].set(jax.lax.map(effect_of, largest))
            return before, dict(zip(taps_bar, cells, strict=True))

        table = (steps.times(x_T), steps.coeffs, z, q.calls(steps, per_call))
        x, xs = full_run(q, x_T, table, steps)
        adjoint = jax.grad(lambda x: functional(current(x, steps)[0]))(x)
        _, cells = jax.lax.scan(backward, adjoint, (table, xs), reverse=True)
        return cells, None, current(x, steps)[0], None

    return Ledger(*per_sample(one, q, x_T, steps, key))


def rerun(q: Quantized, xs, steps: Steps, first: Array | int, on: dict[str, Array]) -> Array:
    """Return the final samples of the full-precision run with one step's sites quantized.

    x_0 [batch, *shape]. Costs the steps from `first` on; for a sampler without noise.

    Args:
      q: the denoiser and its quantization.
      xs: states of the full-precision run [N + 1, batch, *shape].
      steps: the sampler, leaves [N].
      first: the step whose network call is quantized; may be traced.
      on: {site: whether it is quantized}; may be traced, so that all cells share a compilation.
    """
    check_names("on", on, q.site_inputs)
    if concrete(first) is not None:
        check_count("first", first, least=0, most=steps.t.shape[0] - 1)
    x, t, coeffs = at((xs, steps.times(as_point(xs).x), steps.coeffs), first)
    x = step_map(gated_call(q), t, coeffs, None, on)(x)
    return current(run_suffix(full_call(q), x, first + 1, steps), steps)

"""What rounding explains, and what an implementation does: final errors, and local ones by cell.

Both along the full-precision run, whose states no fault has moved: what a site does to operands
that full precision has is its own doing, and not that of the sites before it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, CallFn, Key, PyTree
from qdiffjax.analysis.errors.prediction import predict_errors, root_mean_square
from qdiffjax.analysis.errors.runs import at, current
from qdiffjax.diffusion import Steps, sample
from qdiffjax.precision.quantized import Quantized, full_call, quantized_call, recording_call


class Evidence(NamedTuple):
    """Errors of final samples and the local errors along the full-precision run.

    errors: RMSE of each final sample to that of full precision [batch]; steps: mean square of what
    each step commits, in units of x [N]; sites: mean square of the local error of every site at the
    operands of full precision, in units of its result {site: [N]}, empty of what has no sites.
    """

    errors: Array
    steps: Array
    sites: dict[str, Array]


def forecast_evidence(q: Quantized, xs, steps: Steps) -> Evidence:
    """Return what the rounding of a recipe explains, from the full-precision run alone.

    Final errors are those of `predict_errors`; q is never run. Costs about twelve sampling runs.

    Args:
      q: the denoiser under the recipe that is claimed.
      xs: full-precision states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
    """
    errors = root_mean_square(current(at(predict_errors(q, xs, steps), -1), steps))
    own = _of_steps(q, quantized_call(q), xs, steps, steps, *_carried(q, xs, steps))
    return Evidence(errors, own, site_squares(q, xs, steps))


def measured_evidence(
    q: Quantized, suspect: Any, xs, steps: Steps, own_steps: Steps, key: Key | None = None
) -> Evidence:
    """Return what an implementation of a quantized denoiser does on the noise of a full run.

    Args:
      q: the denoiser whose full precision is compared with.
      suspect: a `Quantized`, or any (x, t[, cond]) -> eps, which shows no sites.
      xs: full-precision states [N+1, batch, *shape] of `steps`.
      steps: the sampler, leaves [N].
      own_steps: the sampler as the suspect runs it; sites are looked at with the times of `steps`.
      key: of the sampler's noise.
    """
    call, per_call, state = suspect_call(q, suspect, xs, own_steps)
    x_T, x_0 = (current(at(xs, end), steps) for end in (0, -1))
    x_hat_0 = sample(call, x_T, own_steps, key=key, per_call=per_call, state=state,
                     keep_trajectory=False).x_0  # fmt: skip
    sites = site_squares(suspect, xs, steps) if isinstance(suspect, Quantized) else {}
    return Evidence(root_mean_square(x_hat_0 - x_0),
                    _of_steps(q, call, xs, steps, own_steps, per_call, state), sites)  # fmt: skip


def suspect_call(q: Quantized, suspect: Any, xs, steps: Steps) -> tuple[CallFn, PyTree, PyTree]:
    """Return call_fn(x, t, inputs, state) of a suspect, its `per_call` and its first state."""
    if isinstance(suspect, Quantized):
        return quantized_call(suspect), *_carried(suspect, xs, steps)
    cond = () if q.cond is None else (q.cond,)
    return (lambda x, t, inputs=None, state=(): (suspect(x, t, *cond), None, state)), None, ()


def _carried(q: Quantized, xs, steps: Steps) -> tuple[PyTree, PyTree]:
    return q.calls(steps), q.start(steps.coeffs.current(xs[0]))


def site_squares(q: Quantized, xs, steps: Steps) -> dict[str, Array]:
    """Return the mean square of each site's local error at operands of full precision {site: [N]}.

        r_il = Q-op_l(h) - op_l(h),   h: operands of site l in the full-precision network at x_i

    Args:
      q: the denoiser and its quantization.
      xs: full-precision states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
    """
    call = recording_call(q, follow_rule=False)
    per_call, state = _carried(q, xs, steps)

    def body(state, slices):
        x, t, coeffs, inputs = slices
        _, errors, state = call(coeffs.read(x), t, inputs, state)
        return state, {name: _mean_square(error) for name, error in errors.items()
                       if error is not None}  # fmt: skip

    return jax.lax.scan(body, state, (xs[:-1], steps.times(xs), steps.coeffs, per_call))[1]


def _of_steps(q: Quantized, call: CallFn, xs, steps: Steps, own: Steps, per_call, state) -> Array:
    """Return the mean square of what each step of `call` commits at full-precision states [N].

        e_i = F_hat_i(x_i) - F_i(x_i)

    with the times and coefficients of `own` in F_hat, and without the sampler's noise.
    """
    full = full_call(q)

    def body(state, slices):
        x, t, coeffs, own_t, own_coeffs, inputs = slices
        eps_hat, _, state = call(own_coeffs.read(x), own_t, inputs, state)
        eps = full(coeffs.read(x), t)[0]
        none = jnp.zeros_like(eps)  # equal coefficients then cancel to the last bit
        kept = own_coeffs.advance(x, none) - coeffs.advance(x, none)
        return state, _mean_square(kept + own_coeffs.commit(eps_hat) - coeffs.commit(eps))

    table = (xs[:-1], steps.times(xs), steps.coeffs, own.times(xs), own.coeffs, per_call)
    return jax.lax.scan(body, state, table)[1]


def _mean_square(values) -> Array:
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(values)]
    return jnp.mean(jnp.square(jnp.concatenate(leaves)).astype(jnp.float32))

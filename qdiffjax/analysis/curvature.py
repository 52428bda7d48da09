"""The second order of error propagation: what first order will miss, known beforehand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, CallFn
from qdiffjax.analysis.trajectories import norms, step_map, times
from qdiffjax.diffusion import Steps, current


class SecondOrder(NamedTuple):
    """First- and second-order parts of the error along a run, both [N+1, batch, *shape]."""

    first: Array
    second: Array


def propagate_second_order(
    call: CallFn, xs, steps: Steps, local_errors, second_local_errors=None
) -> SecondOrder:
    """Return the accumulated error to second order: error = first + second + O(|e|^3).

        v_{i+1} = J_i v_i + e_i
        q_{i+1} = J_i q_i + D^2 F_i(x_i)[v_i, v_i] / 2 + e'_i

    The remainder of first order is F_i(x_i + d) - F_i(x_i) - J_i d = D^2 F_i[d, d] / 2 + O(|d|^3)
    with d = v + O(|e|^2); q is its propagated sum. One JVP of a JVP a step gives both lines, as
    the derivative of J(x) v in direction (v, 2 q) is D^2 F[v, v] + 2 J q.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs), twice differentiable.
      xs: states of the full-precision run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i [N, batch, *shape], a priori or a posteriori.
      second_local_errors: e'_i, local errors already of second order, such as means; or None.
    """
    if second_local_errors is None:
        second_local_errors = jnp.zeros_like(local_errors)

    def body(carry, slices):
        x, t, coeffs, e, e_second = slices
        f = step_map(call, t, coeffs)
        v, q = carry
        jv, twice = jax.jvp(lambda x, v: jax.jvp(f, (x,), (v,))[1], (x, v), (v, 2 * q))
        carry = jv + e, twice / 2 + e_second
        return carry, carry

    zero = jnp.zeros_like(xs[0])
    table = (xs[:-1], times(steps, xs), steps.coeffs, local_errors, second_local_errors)
    _, (vs, qs) = jax.lax.scan(body, (zero, zero), table)
    return SecondOrder(*(jnp.concatenate([zero[None], a]) for a in (vs, qs)))


def predicted_failure(found: SecondOrder, steps: Steps) -> Array:
    """Return the predicted relative error of first order at the final sample [batch].

        |q_N| / |v_N|

    Predicted, from the full-precision run and a-priori local errors alone: no quantized sampler
    runs. First order is expected to fail where it exceeds the tolerance, such as 0.25. It knows
    curvature only: neither the change of local errors along the quantized run (a priori the
    direction of activation errors is unknown, not their size), nor third order, nor a flip to
    another mode beyond the curvature that announces it.
    """
    first, second = (norms(current(a[-1], steps.coeffs)[None])[0] for a in found)
    return second / first

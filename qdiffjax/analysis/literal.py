"""The survey's formulas of error accumulation, taken literally, to be compared with the truth.

Both differ from the first-order error sum_i J_{N-1} ... J_{i+1} e_i (`propagation.propagate`),
which is exact for affine denoisers. None of them predicts anything.
"""

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, CallFn
from qdiffjax.analysis.trajectories import step_map, times
from qdiffjax.diffusion import Steps


def eq_9(local_errors) -> Array:
    """Return the survey's eq. 9, E = sum_t J_t e_t, as a sum of local errors [batch, *state].

    J_t is "the Jacobian of the denoising function with respect to the quantized components at
    step t", so J_t e_t is what a step commits in units of x: `trajectories.local_errors`, here
    [N, batch, *state]. Nothing carries it to the end of the sampler; the true sum has the
    Jacobian of the remaining steps before each term. Right only if these are the identity.
    """
    return jnp.sum(local_errors, axis=0)


def eq_16(call: CallFn, xs, steps: Steps, local_errors) -> Array:
    """Return the survey's eq. 16, E = sum_t prod_{k=t}^T J_k e_t [batch, *state].

    With x_{t-1} = f(x_t) + e_t sampling runs from T to 1, so the product over k = t ... T is over
    the steps already done and over step t itself, after which e_t was added: J_t J_{t+1} ... J_T
    in the order printed, the derivative of x_{t-1} by x_T. The error passes J_1 ... J_{t-1}
    instead. Taken along the full-precision run, as f_theta_hat and e_t would count the
    quantization twice. Costs N JVPs a step.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      local_errors: e_i [N, batch, *state].
    """

    def body(vs, slices):
        x, t, coeffs, index = slices
        vs = jax.vmap(jax.linearize(step_map(call, t, coeffs), x)[1])(vs)
        return vs, vs[index]  # e_i has passed steps 0 ... i

    index = jnp.arange(steps.t.shape[0])
    table = (xs[:-1], times(steps, xs), steps.coeffs, index)
    _, passed = jax.lax.scan(body, jnp.asarray(local_errors), table)
    return jnp.sum(passed, axis=0)

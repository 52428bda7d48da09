"""The final error, predicted from the full-precision run alone."""

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, PyTree
from qdiffjax.diffusion import Steps, commit, read, step
from qdiffjax.program.quantized import Quantized, full_call, quantized_call


def predict_errors(q: Quantized, xs: Array, steps: Steps, *, per_call: PyTree = None) -> Array:
    """First-order accumulated error from a-priori local errors: the quantized sampler never runs.

        v_{i+1} = J_i v_i + e_i,   e_i = F_hat_i(x_i) - F_i(x_i),   at the full-precision x_i

    Weight error is coherent: the quantized run commits nearly the same e_i, so magnitude and
    direction are predicted. Activation rounding decorrelates between the two runs: its direction
    is not predictable, but e_i has the same law along either path (its correlation between
    neighbouring steps included), so the root mean square over samples is.

    Args:
      q: the denoiser and its quantization.
      xs: full-precision states [N+1, batch, *shape] (`Trajectory.states`).
      steps: the sampler, leaves [N].
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Returns:
      Predicted errors [N+1, batch, *shape].
    """
    full, quantized = full_call(q), quantized_call(q)

    def body(v, slices):
        x, t, c, inputs = slices

        def f(x):
            eps, _ = full(read(x, c), t, None)
            return step(x, eps, c), eps

        _, jv, eps = jax.jvp(f, (x,), (v,), has_aux=True)
        e = commit(quantized(read(x, c), t, inputs)[0] - eps, c)
        return jv + e, jv + e

    v_0 = jnp.zeros_like(xs[0])
    _, vs = jax.lax.scan(body, v_0, (xs[:-1], steps.t, steps.coeffs, per_call))
    return jnp.concatenate([v_0[None], vs])


def root_mean_square(errors: Array) -> Array:
    """RMS over everything but the first axis: [N+1, batch, *shape] -> [N+1]."""
    return jnp.sqrt(jnp.mean(errors**2, axis=tuple(range(1, errors.ndim))))

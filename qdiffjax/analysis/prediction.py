"""The final error, predicted from the full-precision run alone."""

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, PyTree
from qdiffjax.diffusion import Steps, commit, read, step
from qdiffjax.program.quantized import Quantized, full_call, quantized_call


def predict_errors(q: Quantized, xs: Array, steps: Steps, *, per_call: PyTree = None) -> Array:
    """Accumulated error that a-priori local errors cause: the quantized sampler never runs.

        d_{i+1} = F_i(x_i + d_i) - F_i(x_i) + e_i,   e_i = F_hat_i(x_i) - F_i(x_i)

    with local errors e_i at the full-precision x_i, frozen there, and the full-precision sampler
    run beside itself with them added. How errors travel is exact, however large they are: it
    saturates where first order (`predict_first_order`, at the same cost) grows without end. What
    is assumed is that the quantized run commits the same local errors, or errors of the same law.
    Weight error is coherent: it nearly does, so magnitude and direction are predicted. Activation
    rounding decorrelates between the two runs: its direction is not predictable, but e_i has the
    same law along either path (its correlation between neighbouring steps included), so the root
    mean square over samples is. Exact if local errors do not depend on the state.

    Args:
      q: the denoiser and its quantization.
      xs: full-precision states [N+1, batch, *shape] (`Trajectory.states`).
      steps: the sampler, leaves [N].
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Returns:
      Predicted errors [N+1, batch, *shape].
    """

    def move(f, x, d):
        here, eps = f(x)
        return f(x + d)[0] - here, eps

    return _predict(q, xs, steps, per_call, move)


def predict_first_order(
    q: Quantized, xs: Array, steps: Steps, *, per_call: PyTree = None
) -> Array:
    """Accumulated error of a-priori local errors to first order; otherwise as `predict_errors`.

        v_{i+1} = J_i v_i + e_i,   e_i = F_hat_i(x_i) - F_i(x_i),   J_i = DF_i(x_i)

    It is linear in the local errors, so that it splits into those of sites and steps.
    """

    def move(f, x, v):
        _, jv, eps = jax.jvp(f, (x,), (v,), has_aux=True)
        return jv, eps

    return _predict(q, xs, steps, per_call, move)


def _predict(q, xs, steps, per_call, move):
    """Run d <- moved d + e_i; move(f, x, d) -> (d after the step, eps at x), f(x) -> (x_s, eps)."""
    full, quantized = full_call(q), quantized_call(q)

    def body(d, slices):
        x, t, c, inputs = slices

        def f(x):
            eps, _ = full(read(x, c), t, None)
            return step(x, eps, c), eps

        moved, eps = move(f, x, d)
        d = moved + commit(quantized(read(x, c), t, inputs)[0] - eps, c)
        return d, d

    d_0 = jnp.zeros_like(xs[0])
    _, ds = jax.lax.scan(body, d_0, (xs[:-1], steps.t, steps.coeffs, per_call))
    return jnp.concatenate([d_0[None], ds])


def root_mean_square(errors: Array) -> Array:
    """RMS over everything but the first axis: [N+1, batch, *shape] -> [N+1]."""
    return jnp.sqrt(jnp.mean(errors**2, axis=tuple(range(1, errors.ndim))))

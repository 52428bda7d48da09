"""The final error, predicted from the full-precision run alone."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, PyTree
from qdiffjax.diffusion import Steps, commit, read, step
from qdiffjax.precision.quantized import Quantized, full_call, quantized_call

EDGES = ("input", "output")


def predict_errors(
    q: Quantized,
    xs: Array,
    steps: Steps,
    *,
    followed: Sequence[str] = EDGES,
    per_call: PyTree = None,
) -> Array:
    """Accumulated error, from the full-precision run alone: the quantized sampler never runs.

        d_{i+1} = G_i(x_i + d_i) - F_i(x_i) + e_i,   e_i = F_hat_i(y_i) - G_i(y_i),
        y_i = x_i + d_i of another sample of the batch

    F is a step in full precision, F_hat in low precision, G with the sites `followed` alone in low
    precision. How errors travel is exact, however large they are: it saturates where first order
    (`predict_first_order`) grows without end. What is assumed is that all other local errors e_i
    are those of a run as far from the full-precision one, but do not know its own error:

    * Where activations are rounded, a local error depends on the phase of its input. At x_i itself
      phases are those of the full-precision run, whose local errors can be far more alike from
      step to step than those of a run that has left it; y_i is as far off as the quantized run.
      A batch of one has no other sample, and takes y_i = x_i.
    * Rounding at the edges answers the error itself: a deviation of x_t below half a step leaves
      Q(x_t) unchanged, so the network does not counteract it and it grows with the sampler's open
      loop, alpha_s / alpha_t a step, until it reaches the step. A local error that is frozen
      misses that (at 8 bits by a factor of 5 where the input alone is rounded, DDIM-50), so the
      edges are followed: two elementwise roundings of the state.

    Magnitudes are predicted, not directions, where activations are rounded; weight errors nearly
    repeat themselves, so theirs are too. Exact if e_i does not depend on the state.

    Args:
      q: the denoiser and its quantization.
      xs: full-precision states [N+1, batch, *shape] (`Trajectory.states`).
      steps: the sampler, leaves [N].
      followed: sites whose rounding answers the error; those of them that `q` quantizes count.
      per_call: inputs of the quantized denoiser, leaves [N, ...], by site.

    Returns:
      Predicted errors [N+1, batch, *shape].
    """
    names = set(followed) & set(q.site_inputs)
    part = dataclasses.replace(q, site_inputs={n: q.site_inputs[n] for n in names})
    full, quantized, partly = full_call(q), quantized_call(q), quantized_call(part)

    def body(d, slices):
        x, t, c, inputs = slices
        own = {n: v for n, v in (inputs or {}).items() if n in names}

        def partly_eps(x):
            return partly(read(x, c), t, own)[0]

        y = x if len(x) == 1 else x + jnp.roll(d, 1, axis=0)
        e = commit(quantized(read(y, c), t, inputs)[0] - partly_eps(y), c)
        moved = step(x + d, partly_eps(x + d), c) - step(x, full(read(x, c), t, None)[0], c)
        return moved + e, moved + e

    return _scan(body, xs, steps, per_call)


def predict_first_order(q: Quantized, xs: Array, steps: Steps, *, per_call: PyTree = None) -> Array:
    """Accumulated error of a-priori local errors to first order.

        v_{i+1} = J_i v_i + e_i,   e_i = F_hat_i(x_i) - F_i(x_i),   J_i = DF_i(x_i)

    with local errors frozen at the full-precision states. It is linear in them, so that it splits
    into those of sites and steps. Arguments and result as for `predict_errors`.
    """
    full, quantized = full_call(q), quantized_call(q)

    def body(v, slices):
        x, t, c, inputs = slices

        def f(x):
            eps, _ = full(read(x, c), t, None)
            return step(x, eps, c), eps

        _, jv, eps = jax.jvp(f, (x,), (v,), has_aux=True)
        v = jv + commit(quantized(read(x, c), t, inputs)[0] - eps, c)
        return v, v

    return _scan(body, xs, steps, per_call)


def _scan(body, xs, steps, per_call):
    """Errors [N+1, ...] from their recursion body(d, (x, t, c, inputs)) -> (d, d), from zero."""
    d_0 = jnp.zeros_like(xs[0])
    _, ds = jax.lax.scan(body, d_0, (xs[:-1], steps.t, steps.coeffs, per_call))
    return jnp.concatenate([d_0[None], ds])


def root_mean_square(errors: Array) -> Array:
    """RMS over everything but the first axis: of a step [N+1, batch, *shape] -> [N+1], or of a
    sample [batch, *shape] -> [batch].
    """  # fmt: skip
    return jnp.sqrt(jnp.mean(errors**2, axis=tuple(range(1, errors.ndim))))

"""The final error, predicted from the full-precision run alone."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_names, require
from qdiffjax._typing import Array, CallFn, PyTree
from qdiffjax.analysis.errors.runs import (
    Path,
    add,
    along,
    at,
    check_points,
    difference,
    local_error,
    step_map,
    zeros,
)
from qdiffjax.diffusion import Point, Steps, as_point
from qdiffjax.precision.quantized import Quantized, full_call, quantized_call

EDGES = ("input", "output")


def predict_errors(
    q: Quantized,
    xs,
    steps: Steps,
    *,
    followed: Sequence[str] = EDGES,
    per_call: PyTree = None,
) -> Any:
    """Return the accumulated error without running the quantized sampler.

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

    Residuals of error feedback are carried along, those of the run that is predicted.

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
    _check_followed(followed, q)
    names = set(followed) & set(q.site_inputs)
    part = dataclasses.replace(q, site_inputs={n: q.site_inputs[n] for n in names})
    full, quantized, partly = full_call(q), quantized_call(q), quantized_call(part)

    def move(d, f, x, t, coeffs, inputs):
        own = {n: v for n, v in (inputs or {}).items() if n in names}
        g = step_map(partly, t, coeffs, None, own)
        is_alone = jax.tree.leaves(x)[0].shape[0] == 1
        point, ahead = as_point(x), as_point(d)
        others = point.x if is_alone else point.x + jnp.roll(ahead.x, 1, axis=0)
        y = Point(others, add(point.state, ahead.state)).bare()
        e = local_error(partly, quantized, y, t, coeffs, inputs, own)
        return add(difference(g(add(x, d)), f(x)), e)

    return _predict(move, q, full, xs, steps, q.calls(steps, per_call))


def _check_followed(followed: Sequence[str], q: Quantized) -> None:
    """Refuse names that are no sites; those of sites that q leaves plain are passed by."""
    require(not isinstance(followed, str), "followed", got=repr(followed), expected="names",
            remedy=f"({followed!r},) for one", error=TypeError)  # fmt: skip
    others = [name for name in followed if name not in (*q.site_inputs, *EDGES)]
    if others:
        known = [*q.site_inputs, *EDGES]
        check_names("followed", others,
                    known if q.denoiser.shape is None else [s.name for s in q.denoiser.sites()]
                    )  # fmt: skip


def predict_first_order(q: Quantized, xs, steps: Steps, *, per_call: PyTree = None) -> Any:
    """Return the accumulated error of a-priori local errors to first order.

        v_{i+1} = J_i v_i + e_i,   e_i = F_hat_i(x_i) - F_i(x_i),   J_i = DF_i(x_i)

    with local errors frozen at the full-precision states. It is linear in them, so that it splits
    into those of sites and steps. Arguments and result as for `predict_errors`.
    """
    full, quantized = full_call(q), quantized_call(q)

    def push(v, f, x, t, coeffs, inputs):
        point = as_point(x)
        y = Point(point.x, add(point.state, as_point(v).state)).bare()
        e = local_error(full, quantized, y, t, coeffs, inputs)
        return add(jax.jvp(f, (x,), (v,))[1], e)

    return _predict(push, q, full, xs, steps, q.calls(steps, per_call))


def _predict(fn: Callable, q: Quantized, full: CallFn, xs, steps: Steps, per_call: PyTree) -> Any:
    """Return the errors [N+1, ...] of the recursion fn(d, F, x, t, coeffs, inputs) from zero."""
    check_points("xs", xs, steps)
    times = steps.times(as_point(xs).x)
    if not isinstance(xs, Point) and (state := q.start(steps.coeffs.current(xs[0]))):
        many = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(xs), *a.shape)), state)
        points = along(fn, Path(full, Point(xs, many), steps), Point(jnp.zeros_like(xs[0]), state),
                       times, steps.coeffs, per_call)  # fmt: skip
        return points.x
    run = Path(full, xs, steps)
    return along(fn, run, zeros(at(xs, 0)), times, steps.coeffs, per_call)


def root_mean_square(errors: Array) -> Array:
    """Return the RMS over all axes but the first: of a step [N+1, batch, *shape] -> [N+1], or of a
    sample [batch, *shape] -> [batch].
    """
    return jnp.sqrt(jnp.mean(errors**2, axis=tuple(range(1, errors.ndim))))

"""Two runs of one sampler on the same noise, the error each step commits, and the loop over steps.

A run is at a point before every network call: the sampler's state x, or the pair (x, state) where
calls carry a state to the next one (`diffusion.Point`). A step is a map of points, and an error a
difference of points, so the leaves of a state that is analysed are float arrays [batch, ...].
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from qdiffjax._checks import check_count, check_key, check_numbers, checked, require
from qdiffjax._typing import Array, CallFn, Key, PyTree, float_dtype
from qdiffjax.compiling import canonical_convolutions
from qdiffjax.diffusion import (
    Point,
    SlotCoeffs,
    StepCoeffs,
    Steps,
    as_point,
    sample,
    stack,
    step_noise,
)


class Coupled(NamedTuple):
    """A full-precision and a quantized run on common random numbers.

    xs, xs_hat: points [N+1, batch, *shape], noisiest first; local_errors [N, batch, *shape], a
    posteriori: committed at the quantized run's points. With a sampler that has memory a state
    is [batch, K, *shape], here and in everything that reads states.
    """

    xs: Any
    xs_hat: Any
    local_errors: Any

    @property
    def errors(self) -> Any:
        """Accumulated error x_hat - x [N+1, batch, *shape]; the first is zero."""
        return difference(self.xs_hat, self.xs)


def inner(left, right) -> Array:
    """Return the inner product of each sample: leaves [lead, batch, *shape] -> [lead, batch]."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b, axis=tuple(range(2, a.ndim))), left, right)
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def norms(values) -> Array:
    """Return the Euclidean norm of each sample: leaves [lead, batch, *shape] -> [lead, batch]."""
    return jnp.sqrt(inner(values, values))


def difference(points_hat, points) -> Any:
    """Return points_hat - points."""
    return jax.tree.map(jnp.subtract, points_hat, points)


def add(points, errors) -> Any:
    """Return points + errors."""
    return jax.tree.map(jnp.add, points, errors)


def zeros(like) -> Any:
    """Return the error zero of a point."""
    return jax.tree.map(jnp.zeros_like, like)


def at(points, index) -> Any:
    """Return the points [N+1, ...] at an index or a slice of their first axis."""
    return jax.tree.map(lambda leaf: leaf[index], points)


def check_points(what: str, points, steps: Steps) -> None:
    """Refuse what are no states of a run, of the N that steps leave or with the last one.

    Raises:
      TypeError: no arrays of real numbers.
      ValueError: another number of states.
    """
    leaves, num = jax.tree.leaves(points), steps.t.shape[0]
    require(leaves, what, got="none", expected=f"states [{num + 1}, batch, *shape]",
            remedy="Trajectory.states or Run.xs", error=TypeError)  # fmt: skip
    for leaf in leaves:
        check_numbers(what, leaf, least_rank=1, finite=False)
        require(leaf.shape[0] in (num, num + 1), what, got=f"{leaf.shape[0]} states",
                expected=f"{num + 1} for {num} steps",
                remedy="take the run of these steps")  # fmt: skip


def wide(points) -> Any:
    """Return points in the dtype to compute in: float64 stays, other floats float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(float_dtype(leaf)), points)


def noises(key: Key | None, steps: Steps, like: Array) -> Array | None:
    """Return the noise of every step [N, *like.shape] as `sample` draws it, or None without a key.

    Raises:
      ValueError: no key for steps that add noise; traced coefficients are not checked.
    """
    if key is None:
        noise = steps.coeffs.noise
        silent = isinstance(noise, jax.core.Tracer) or not np.any(np.asarray(noise) != 0)
        require(silent, "key", got="None for steps with noise",
                expected="the key of the runs to be analysed",
                remedy="pass key= or use deterministic steps such as ddim(eta=0)")  # fmt: skip
        return None
    return jax.vmap(lambda i: step_noise(key, i, like))(jnp.arange(steps.t.shape[0]))


def step_map(call: CallFn, t, coeffs: StepCoeffs | SlotCoeffs, z=None, inputs: PyTree = None):
    """Return the sampler's step as a map of its points alone.

    F(x, state) = (c.x x + c.eps eps + c.noise z, state'),   eps, state' = call(x, t, state)
    """
    move = step_with_outputs(call, t, coeffs, z, inputs)
    return lambda point: move(point)[0]


def step_with_outputs(call: CallFn, t, coeffs, z=None, inputs: PyTree = None):
    """Return `step_map` with the outputs of the call beside the next point."""

    def move(point):
        x, state = as_point(point)
        eps, outputs, state = call(coeffs.read(x), t, inputs, state)
        return Point(coeffs.advance(x, eps, z), state).bare(), outputs

    return move


def current(point, steps: Steps) -> Array:
    """Return x_t [batch, *shape] of a point."""
    return steps.coeffs.current(as_point(point).x)


def covector(v, point, steps: Steps) -> Any:
    """Return v [batch, *shape] of the sample as a covector of the point: v in slot 0."""
    return jax.vjp(lambda point: current(point, steps), point)[1](v)[0]


def vectorized(fn: Callable, point) -> tuple[Callable, Any]:
    """Return a map of points and its point as a map of one array [batch, n], and that array.

    A bare point is such an array already, of its own shape, and so may be the map's value.
    """
    if not isinstance(point, Point):
        return fn, point
    unravel = jax.vmap(ravel_pytree(at(point, 0))[1])

    def ravel(value):
        is_point = isinstance(value, Point)
        return jax.vmap(lambda one: ravel_pytree(one)[0])(value) if is_point else value

    return (lambda v: ravel(fn(unravel(v)))), ravel(point)


class Path(NamedTuple):
    """The steps of one denoiser at given points.

    call: (x, t, inputs, state) -> (eps, outputs, state); xs: points [N+1, batch, *shape], noisiest
    first, the last of which no step leaves; steps: the sampler, leaves [N]; noise [N, ...] or None,
    which a derivative does not need; per_call: inputs of the calls, leaves [N, ...].
    """

    call: CallFn
    xs: Any
    steps: Steps
    noise: Array | None = None
    per_call: PyTree = None


def accumulate(fn: Callable, first, *slices, reverse: bool = False) -> Any:
    """Return all carries, leaves [N+1, ...], of v_{i+1} = fn(v_i, *slices_i) from v_0 = first.

    In reverse v_i = fn(v_{i+1}, *slices_i) from v_N = first.
    """

    def body(carry, row):
        carry = fn(carry, *row)
        return carry, carry

    return stack(first, jax.lax.scan(body, first, slices, reverse=reverse)[1], reverse=reverse)


def along(fn: Callable, run: Path, first, *slices, reverse: bool = False) -> Any:
    """Carry something along a run, step by step: the one loop of errors.

        v_{i+1} = fn(v_i, F_i, x_i, *slices_i),   v_0 = first;      in reverse from v_N = first down

    with F_i the map of step i (`step_map`) and x_i the point that it leaves.

    Args:
      fn: (carry, step_map, x_i, *slices_i) -> carry.
      run: points [N+1] and the steps that leave them.
      first: carry at the start, at the end in reverse.
      slices: pytrees with leaves [N, ...].

    Returns:
      All carries, leaves [N+1, ...].
    """

    def move(carry, x, t, coeffs, z, inputs, *rest):
        return fn(carry, step_map(run.call, t, coeffs, z, inputs), x, *rest)

    check_points("xs", run.xs, run.steps)
    times = run.steps.times(as_point(run.xs).x)
    table = (at(run.xs, slice(-1)), times, run.steps.coeffs, run.noise, run.per_call, *slices)
    return accumulate(move, first, *table, reverse=reverse)


def local_errors(
    full: CallFn, quantized: CallFn, xs, steps: Steps, *, per_call: PyTree = None
) -> Any:
    """Return what each step of the quantized sampler commits when started at given points.

        e_i = F_hat_i(x_i) - F_i(x_i) = c_eps,i (eps_hat(x_i, t_i) - eps(x_i, t_i))

    At the quantized run's states it is the a-posteriori error, which makes the propagation
    identities exact; at the full-precision run's it is the a-priori error, which predicts.
    Survey, eqs. 9 and 16, leave open which.

    Args:
      full, quantized: the two denoisers, (x, t, inputs, state) -> (eps, outputs, state).
      xs: points [N+1, batch, *shape]; the last is not used.
      steps: the sampler, leaves [N].
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Returns:
      Local errors in units of x [N, batch, *shape].
    """

    def one(slices):
        return local_error(full, quantized, *slices)

    times = steps.times(as_point(xs).x)
    return jax.lax.map(one, (at(xs, slice(-1)), times, steps.coeffs, per_call))


def local_error(full: CallFn, quantized: CallFn, point, t, coeffs, inputs=None, full_inputs=None):
    """Return what one step of the quantized sampler commits at a point; see `local_errors`."""
    x, state = as_point(point)
    seen = coeffs.read(x)
    eps_hat, _, state_hat = quantized(seen, t, inputs, state)
    eps, _, state = full(seen, t, full_inputs, state)
    return Point(coeffs.commit(eps_hat - eps), difference(state_hat, state)).bare()


def couple(
    full: CallFn,
    quantized: CallFn,
    x_T: Array,
    steps: Steps,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
    state: PyTree = (),
) -> Coupled:
    """Run both denoisers from x_T [batch, *shape] on the same noise; costs 4 sampling runs.

    Both start from one call state; a denoiser that has no use for it hands it on as it is.
    """
    xs = sample(full, x_T, steps, key=key, state=state).states
    xs_hat = sample(quantized, x_T, steps, key=key, per_call=per_call, state=state).states
    e = local_errors(full, quantized, xs_hat, steps, per_call=per_call)
    return Coupled(xs, xs_hat, e)


class Probed(NamedTuple):
    """Mean over probes and its standard error, two pytrees of one structure."""

    value: Any
    standard_error: Any


@checked(key=check_key, num=check_count)
def signs(key: Key, num: int, like) -> Array:
    """Return random signs [num, *like.shape], of least variance among independent entries."""
    return jax.random.rademacher(key, (num, *jnp.shape(like))).astype(like.dtype)


def probed(fn: Callable[[Array], Any], probes) -> Probed:
    """Return the mean of fn(probe) over probes [num, ...], one after another, and its error.

    The standard error assumes random probes.

    Raises:
      ValueError: fewer than two probes.
    """
    num = probes.shape[0]
    require(num >= 2, "probes", got=num, expected="at least 2 for an error bar",
            remedy="draw more")  # fmt: skip
    values = jax.lax.map(fn, probes)
    mean = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
    return Probed(mean, jax.tree.map(lambda v: jnp.std(v, axis=0, ddof=1) / num**0.5, values))


def adjoints(call: CallFn, xs, steps: Steps, v) -> Any:
    """Return l_i = J_{i->N}^T v of every state for v [batch, *shape] of x_0 [N+1, batch, *state].

        l_i = J_i^T l_{i+1},   l_N = v in slot 0

    One VJP a step in a reverse scan.
    """
    pull = lambda l, f, x: jax.vjp(f, x)[1](l)[0]  # noqa: E731
    sweep = lambda l: along(pull, Path(call, xs, steps), l, reverse=True)  # noqa: E731
    return canonical_convolutions(sweep)(covector(v, at(xs, -1), steps))

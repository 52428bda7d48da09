"""Spectra of step maps and of the sampler: where errors are damped or amplified, sample by sample.

J_i is the Jacobian of step i at given points, J_{i->N} = d x_0 / d point_i that of the rest of the
sampler. Nothing is materialized: products with J are JVPs of one step after another inside a
`lax.scan`, products with its transpose VJPs in the reverse order, each step linearized anew, so
memory does not grow with the number of steps beyond the states. Samples of a batch must not
interact; every result is per sample, for quantiles. The norms that bounds multiply are in steps.py;
rates of growth (log stretches, logarithmic norms) come last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp

from qdiffjax._checks import check_count, check_key, checked, concrete
from qdiffjax._typing import Array, CallFn, Key, float_dtype
from qdiffjax.analysis.errors.runs import (
    Path,
    Probed,
    adjoints,
    along,
    at,
    current,
    inner,
    probed,
    step_map,
    vectorized,
    wide,
)
from qdiffjax.analysis.gains.steps import LinearMap, symmetric_extremes
from qdiffjax.compiling import canonical_convolutions, sweep
from qdiffjax.diffusion import Steps, as_point
from qdiffjax.diffusion.ode import Field


class Singular(NamedTuple):
    """Largest singular values, descending [k], with left [k, *out] and right vectors [k, *shape].

    Leading axes: those of what they are taken of, such as [N, batch, k]. Values come from below;
    the largest converge first, the smallest of k are only as good as the Krylov space.
    """

    values: Array
    left: Array
    right: Array


def singular_values(linear_map: LinearMap, v0, num: int) -> Singular:
    """Return `num` singular values of one linear map v [*shape] -> [*out], from the top.

    Golub-Kahan-Lanczos bidiagonalization (Golub & Kahan 1965) by matfree, fully reorthogonalized,
    in JAX's default float. Exact once num reaches the number of distinct singular values that v0
    excites; values that an exhausted Krylov space lacks are zero. num products with the map and
    its transpose.

    Args:
      linear_map: v -> A v; a map that is linear for JAX, as `jax.linearize` returns.
      v0: start [*shape], not zero.
      num: size of the Krylov space.

    Raises:
      ValueError: num below 1 or above the size of v or A v.
    """
    image = jax.eval_shape(linear_map, v0)
    wide = jnp.result_type(float)
    most = min(v0.size, image.size)
    check_count("num", num, most=most,
                remedy=f"a map from {v0.shape} to {image.shape} has no more")  # fmt: skip

    def flat(v):
        return linear_map(v.reshape(v0.shape).astype(v0.dtype)).ravel().astype(wide)

    bidiagonalize = decomp.bidiag(num, materialize=False)
    (left, right), (alphas, betas), *_ = bidiagonalize(flat, v0.ravel().astype(wide))
    alphas, betas, rows, columns = _cut(alphas, betas, jnp.finfo(v0.dtype).eps)
    u, values, vt = jnp.linalg.svd(jnp.diag(alphas) + jnp.diag(betas, 1))
    left = _combine(u.T, jnp.where(rows[:, None], left, 0))
    right = _combine(vt, jnp.where(columns[:, None], right, 0))
    shapes = ((num, *image.shape), (num, *v0.shape))
    return Singular(values, *(a.reshape(s) for a, s in zip((left, right), shapes, strict=True)))


def _of_one(fn: Callable) -> Callable:
    """Return fn of one sample [*shape] instead of a batch."""
    return lambda x: fn(x[None])[0]


def _cut(alphas, betas, eps):
    """Zero what follows the exhaustion of a Krylov space, where matfree normalizes round-off.

    alphas [k] and betas [k-1] are the diagonals; row i ends where alphas[i] is round-off, column
    i + 1 where betas[i] is. Returns them with the masks of rows and columns that remain.
    """
    ones = jnp.ones((1,), bool)
    offsets = jnp.concatenate([jnp.zeros_like(alphas[:1]), betas])
    size = jax.lax.cummax(jnp.nan_to_num(jnp.maximum(jnp.abs(alphas), jnp.abs(offsets))))
    floor = 100 * jnp.asarray(eps, size.dtype) * size
    reached = jnp.concatenate([ones, jnp.abs(betas) > floor[1:]])
    columns = jnp.cumprod(reached & jnp.concatenate([ones, alphas[:-1] > floor[:-1]])) > 0
    rows = columns & (alphas > floor)
    return jnp.where(rows, alphas, 0), jnp.where(columns[1:], betas, 0), rows, columns


def _combine(weights, vectors) -> Array:
    return jnp.matmul(weights, vectors, precision="highest")


@checked(key=check_key)
def step_spectra(call: CallFn, xs, steps: Steps, *, num: int, key: Key) -> Singular:
    """Return the largest singular values of every step's Jacobian J_i [N, batch, num].

    Args:
      call: full-precision denoiser (x, t, inputs, state) -> (eps, outputs, state).
      xs: states [N+1, batch, *shape]; step i leaves xs[i].
      steps: the sampler, leaves [N].
      num: of singular values, see `singular_values`.
      key: of the random starts.
    """

    def one(linear_map, v0):
        return singular_values(linear_map, v0, num)

    def draw(index, like):
        return jax.random.normal(jax.random.fold_in(key, index), like.shape, like.dtype)

    return _by_step(one, draw, call, wide(xs), steps)


@checked(key=check_key)
def probed_log_volumes(call: CallFn, xs, steps: Steps, *, num: int, key: Key) -> Array:
    """Estimate log|det J_i| of every step, the log of the volume it leaves [N, batch].

        log|det J| = E v^T log((J^T J)^(1/2)) v ~ n sum_k <r_k, v / |v|>^2 log s_k,   E v v^T = I

    Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) with one probe of random signs a step
    and sample: s_k and r_k are the singular values and right vectors of the Krylov space from v.
    Gauss quadrature of a logarithm errs upwards, so too small a `num` hides contraction, never
    invents it. Divide by n for the mean of the log singular values. For samplers whose state is the
    sample.

    Args:
      call: full-precision denoiser.
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      num: nodes of the quadrature; exact in v from the number of distinct singular values on.
      key: of the probes.
    """

    def one(linear_map, v):
        values, _, right = singular_values(linear_map, v, num)
        weights = jnp.square(jnp.tensordot(right, v.astype(right.dtype), v.ndim))
        return jnp.sum(weights * jnp.log(jnp.where(weights > 0, values, 1)))

    def draw(index, like):
        return jax.random.rademacher(jax.random.fold_in(key, index), like.shape).astype(like.dtype)

    return _by_step(one, draw, call, wide(xs), steps)


def _by_step(fn: Callable, draw: Callable, call: CallFn, xs, steps: Steps) -> Any:
    """Return fn(v -> J_i v of one sample, its v0) of every step and sample, leaves [N, batch, ...].

    draw(i, like [batch, ...]) gives the v0 of step i.
    """

    def body(x, t, coeffs, index):
        def one(x, v0):
            f, v = vectorized(step_map(call, t, coeffs), at(x, None))
            return fn(jax.linearize(_of_one(f), v[0])[1], v0)

        return jax.vmap(one)(x, draw(index, vectorized(lambda x: x, x)[1]))

    num_steps, times = steps.t.shape[0], steps.times(as_point(xs).x)
    return sweep(body, at(xs, slice(-1)), times, steps.coeffs, jnp.arange(num_steps))


@checked(key=check_key, num=check_count)
def sampler_spectrum(call: CallFn, xs, steps: Steps, *, num: int, key: Key, first=0) -> Singular:
    """Return the largest singular values of J_{first->N} = d x_0 / d state_first [batch, num].

    Arguments as `step_spectra`; `first` may be traced: earlier steps are replaced by identities.
    Costs about 2.5 + 3 sampling runs for each of the num products.
    """
    if concrete(first) is not None:
        check_count("first", first, least=0, most=steps.t.shape[0] - 1)
    xs = wide(xs)
    times, used = steps.times(as_point(xs).x), jnp.arange(steps.t.shape[0]) >= first

    def one(points, u):
        table = (points, times, steps.coeffs, used)

        @jax.checkpoint  # the transpose linearizes each step again instead of storing all of them
        def body(v, slices):
            x, t, coeffs, used = slices
            f = lambda x: at(step_map(call, t, coeffs)(at(x, None)), 0)  # noqa: E731
            moved = jax.jvp(f, (x,), (v,))[1]
            return jax.tree.map(lambda a, b: jnp.where(used, a, b), moved, v), None

        def linear_map(v):
            return current(at(jax.lax.scan(body, v, table)[0], None), steps)[0]

        # From the range of the transpose, so that no product is spent on slots that do not matter.
        (v0,) = jax.vjp(linear_map, at(points, 0))[1](u)
        f, v0 = vectorized(lambda v: linear_map(at(v, 0))[None], at(v0, None))
        return singular_values(_of_one(f), v0[0], num)

    u = current(at(xs, -1), steps)
    u = jax.random.normal(key, u.shape, u.dtype)
    return canonical_convolutions(jax.vmap(one, (1, 0)))(at(xs, slice(-1)), u)


def squared_frobenius(call: CallFn, xs, steps: Steps, probes) -> Probed:
    """Estimate |J_{i->N}|_F^2 for every i from one adjoint pass a probe [N+1, batch].

        |J_{i->N}|_F^2 = E |l_i|^2,   l_N = v,   l_i = J_i^T l_{i+1},   E v v^T = I

    (Hutchinson 1990). The mean square gain of a random perturbation of state i is this over its
    size n; J_{N->N} gives n, exactly with random signs.

    Args:
      call: full-precision denoiser.
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      probes: v [num, batch, *shape], see `runs.signs`.
    """
    xs = wide(xs)

    def squares(v):
        ls = adjoints(call, xs, steps, v)
        return inner(ls, ls)

    return probed(squares, probes)


@checked(key=check_key, num=check_count, every=check_count)
def stretches(call: CallFn, xs, steps: Steps, *, num: int, key: Key, every: int = 1) -> Array:
    """Return the cumulative log stretch of `num` directions along a run [N+1, batch, num].

        V_{i+1} R_{i+1} = J_i V_i,   log stretch_{i+1} = log stretch_i + log |diag R_{i+1}|

    The QR method (Benettin et al. 1980; Dieci & Van Vleck 1995). The last row over N, or over the
    time elapsed, are the finite-time Lyapunov exponents, in descending order once the frame has
    aligned; partial sums of the first k are the growth of k-volumes. With num the size of the
    state the rows sum to sum_i log|det J_i| exactly. -inf where a step maps onto fewer
    dimensions. Between orthonormalizations rows repeat the last known.

    Args:
      call: full-precision denoiser.
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      num: of directions, at most the size of one state.
      key: of the random first frame.
      every: steps between two orthonormalizations; more than 1 loses digits, not exactness.
    """
    xs = wide(xs)
    counted = jnp.arange(1, steps.t.shape[0] + 1)
    due = (counted % every == 0) | (counted == steps.t.shape[0])
    like = vectorized(lambda x: x, at(xs, 0))[1]
    shape = (like.shape[0], num, *like.shape[1:])
    frame = _orthonormal(jax.random.normal(key, shape, like.dtype))[0]

    def push(carry, f, x, due):
        frame, total = carry
        frame = jax.vmap(jax.linearize(*vectorized(f, x))[1], 1, 1)(frame)
        new, stretch = _orthonormal(frame)
        return jnp.where(due, new, frame), jnp.where(due, total + jnp.log(stretch), total)

    zero = jnp.zeros(shape[:2], like.dtype)
    return along(push, Path(call, xs, steps), (frame, zero), due)[1]


def _orthonormal(frame) -> tuple[Array, Array]:
    """Return the frame [batch, num, *shape] orthonormalized, and |diag R| [batch, num]."""
    flat = jnp.swapaxes(frame.reshape(*frame.shape[:2], -1), 1, 2)
    q, r = jnp.linalg.qr(flat)
    return jnp.swapaxes(q, 1, 2).reshape(frame.shape), jnp.abs(jnp.diagonal(r, axis1=1, axis2=2))


class LogNorms(NamedTuple):
    """Extreme eigenvalues of the symmetric part of a field's Jacobian, both [M, batch].

    Forwards in time neighbours separate at a relative rate of at most `largest`; backwards, as
    sampling goes, of at most -`smallest`.
    """

    smallest: Array
    largest: Array


def log_norms(field: Field, ts, xs, *, key: Key, num_iterations: int = 16) -> LogNorms:
    """Estimate mu = lambda_max((A + A^T) / 2), A = d field / dx, along a trajectory, by Lanczos.

    The logarithmic norm of the 2-norm and the smallest one-sided Lipschitz constant at a point
    (Dahlquist 1958). Estimates from inside, exact for num_iterations as large as the number of
    distinct eigenvalues.

    Args:
      field: (t, x [batch, *shape]) -> dx/dt, as `diffusion.pf_ode` returns.
      ts: times [M].
      xs: states [M, batch, *shape].
      key: of the random starts.
      num_iterations: size of the Krylov space.
    """
    xs = jnp.asarray(xs).astype(float_dtype(xs))

    def one(t, x, index):
        start = jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        jacobian = jax.linearize(lambda x: field(t, x), x)[1]
        return LogNorms(*symmetric_extremes(jacobian, start, num_iterations))

    return sweep(one, jnp.asarray(ts).astype(xs.dtype), xs, jnp.arange(xs.shape[0]))

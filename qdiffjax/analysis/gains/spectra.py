"""Spectra of step maps and of the sampler: where errors are damped or amplified, sample by sample.

J_i is the Jacobian of step i at given states, J_{i->N} = d x_0 / d state_i that of the rest of the
sampler. Nothing is materialized: products with J are JVPs of one step after another inside a
`lax.scan`, products with its transpose VJPs in the reverse order, each step linearized anew, so
memory does not grow with the number of steps beyond the states. Samples of a batch must not
interact; every result is per sample, for quantiles. The norms that bounds multiply are in gains.py,
rates of growth in lyapunov.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp

from qdiffjax._typing import Array, CallFn, Key, float_dtype
from qdiffjax.analysis.errors.runs import Probed, adjoints, probed, step_map, times
from qdiffjax.analysis.gains.steps import LinearMap, symmetric_extremes
from qdiffjax.compiling import canonical_convolutions
from qdiffjax.diffusion import Steps, current
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
    if not 1 <= num <= min(v0.size, image.size):
        raise ValueError(
            f"got num = {num} singular values of a map from {v0.shape} to {image.shape}, "
            f"expected 1 to {min(v0.size, image.size)}; ask for fewer"
        )

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


def step_spectra(call: CallFn, xs, steps: Steps, *, num: int, key: Key) -> Singular:
    """Return the largest singular values of every step's Jacobian J_i [N, batch, num].

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states [N+1, batch, *shape]; step i leaves xs[i].
      steps: the sampler, leaves [N].
      num: of singular values, see `singular_values`.
      key: of the random starts.
    """
    xs = jnp.asarray(xs).astype(float_dtype(xs))

    def one(x, t, coeffs, v0):
        return singular_values(jax.linearize(_of_one(step_map(call, t, coeffs)), x)[1], v0, num)

    def body(slices):
        x, t, coeffs, index = slices
        v0 = jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        return jax.vmap(one, (0, None, None, 0))(x, t, coeffs, v0)

    index = jnp.arange(steps.t.shape[0])
    sweep = canonical_convolutions(lambda *table: jax.lax.map(body, table))
    return sweep(xs[:-1], times(steps, xs), steps.coeffs, index)


def sampler_spectrum(call: CallFn, xs, steps: Steps, *, num: int, key: Key, first=0) -> Singular:
    """Return the largest singular values of J_{first->N} = d x_0 / d state_first [batch, num].

    Arguments as `step_spectra`; `first` may be traced: earlier steps are replaced by identities.
    Costs about 2.5 + 3 sampling runs for each of the num products.
    """
    xs = jnp.asarray(xs).astype(float_dtype(xs))
    used = jnp.arange(steps.t.shape[0]) >= first

    def one(states, u):
        table = (states, times(steps, xs), steps.coeffs, used)

        @jax.checkpoint  # the transpose linearizes each step again instead of storing all of them
        def body(v, slices):
            x, t, coeffs, used = slices
            moved = jax.jvp(_of_one(step_map(call, t, coeffs)), (x,), (v,))[1]
            return jnp.where(used, moved, v), None

        def linear_map(v):
            return current(jax.lax.scan(body, v, table)[0][None], steps.coeffs)[0]

        # From the range of the transpose, so that no product is spent on slots that do not matter.
        (v0,) = jax.vjp(linear_map, states[0])[1](u)
        return singular_values(linear_map, v0, num)

    u = current(xs[-1], steps.coeffs)
    u = jax.random.normal(key, u.shape, u.dtype)
    return canonical_convolutions(jax.vmap(one, (1, 0)))(xs[:-1], u)


def probed_log_volumes(call: CallFn, xs, steps: Steps, *, num: int, key: Key) -> Array:
    """Estimate log|det J_i| of every step, the log of the volume it leaves [N, batch].

        log|det J| = E v^T log((J^T J)^(1/2)) v ~ n sum_k <r_k, v / |v|>^2 log s_k,   E v v^T = I

    Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) with one probe of random signs a step
    and sample: s_k and r_k are the singular values and right vectors of the Krylov space from v.
    Gauss quadrature of a logarithm errs upwards, so too small a `num` hides contraction, never
    invents it. Divide by n for the mean of the log singular values. `amplification.log_volumes`
    is the same from dense Jacobians. For samplers whose state is the sample.

    Args:
      call: full-precision denoiser.
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      num: nodes of the quadrature; exact in v from the number of distinct singular values on.
      key: of the probes.
    """
    xs = jnp.asarray(xs).astype(float_dtype(xs))

    def one(x, t, coeffs, v):
        found = singular_values(jax.linearize(_of_one(step_map(call, t, coeffs)), x)[1], v, num)
        weights = jnp.square(jnp.tensordot(found.right, v.astype(found.right.dtype), v.ndim))
        logs = jnp.log(jnp.where(weights > 0, found.values, 1))
        return jnp.sum(weights * logs)

    def body(slices):
        x, t, coeffs, index = slices
        v = jax.random.rademacher(jax.random.fold_in(key, index), x.shape).astype(x.dtype)
        return jax.vmap(one, (0, None, None, 0))(x, t, coeffs, v)

    sweep = canonical_convolutions(lambda *table: jax.lax.map(body, table))
    return sweep(xs[:-1], times(steps, xs), steps.coeffs, jnp.arange(steps.t.shape[0]))


def squared_frobenius(call: CallFn, xs, steps: Steps, probes) -> Probed:
    """Estimate |J_{i->N}|_F^2 for every i from one adjoint pass a probe [N+1, batch].

        |J_{i->N}|_F^2 = E |l_i|^2,   l_N = v,   l_i = J_i^T l_{i+1},   E v v^T = I

    (Hutchinson 1990). The mean square gain of a random perturbation of state i is this over its
    size n; J_{N->N} gives n, exactly with random signs.

    Args:
      call: full-precision denoiser.
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      probes: v [num, batch, *shape], see `probes.signs`.
    """
    xs = jnp.asarray(xs).astype(float_dtype(xs))
    axes = tuple(range(2, xs.ndim))
    return probed(lambda v: jnp.sum(adjoints(call, xs, steps, v) ** 2, axis=axes), probes)


def _of_one(fn: LinearMap) -> LinearMap:
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
    xs = jnp.asarray(xs).astype(float_dtype(xs))
    num_steps, batch = steps.t.shape[0], xs.shape[1]
    frame = _orthonormal(jax.random.normal(key, (batch, num, *xs.shape[2:]), xs.dtype))[0]
    due = (jnp.arange(1, num_steps + 1) % every == 0) | (jnp.arange(1, num_steps + 1) == num_steps)

    def body(carry, slices):
        frame, total = carry
        x, t, coeffs, due = slices
        push = jax.linearize(step_map(call, t, coeffs), x)[1]
        frame = jax.vmap(push, 1, 1)(frame)
        new, stretch = _orthonormal(frame)
        frame, total = jnp.where(due, new, frame), jnp.where(due, total + jnp.log(stretch), total)
        return (frame, total), total

    zero = jnp.zeros((batch, num), xs.dtype)
    table = (xs[:-1], times(steps, xs), steps.coeffs, due)
    _, totals = jax.lax.scan(body, (frame, zero), table)
    return jnp.concatenate([zero[None], totals])


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

    def one(slices):
        t, x, index = slices
        start = jax.random.normal(jax.random.fold_in(key, index), x.shape, x.dtype)
        jacobian = jax.linearize(lambda x: field(t, x), x)[1]
        return LogNorms(*symmetric_extremes(jacobian, start, num_iterations))

    sweep = canonical_convolutions(lambda *table: jax.lax.map(one, table))
    return sweep(jnp.asarray(ts).astype(xs.dtype), xs, jnp.arange(xs.shape[0]))


def one_sided_constants(field: Field, ts, xs, xs_hat) -> Array:
    """Return the one-sided Lipschitz quotient between two trajectories [M, batch].

        < field(x_hat) - field(x), x_hat - x > / |x_hat - x|^2

    It is the rate d log|x_hat - x| / dt at which two solutions of the field separate, exactly,
    and lies between the extremes of `log_norms` over the segment between them. NaN where they
    coincide; arguments as `log_norms`.
    """

    def one(slices):
        t, x, x_hat = slices
        gap, change = x_hat - x, field(t, x_hat) - field(t, x)
        axes = tuple(range(1, x.ndim))
        return jnp.sum(change * gap, axis=axes) / jnp.sum(gap**2, axis=axes)

    xs = jnp.asarray(xs).astype(float_dtype(xs))
    ts, xs_hat = (jnp.asarray(a).astype(xs.dtype) for a in (ts, xs_hat))
    return jax.lax.map(one, (ts, xs, xs_hat))


def _orthonormal(frame) -> tuple[Array, Array]:
    """Return the frame [batch, num, *shape] orthonormalized, and |diag R| [batch, num]."""
    flat = jnp.swapaxes(frame.reshape(*frame.shape[:2], -1), 1, 2)
    q, r = jnp.linalg.qr(flat)
    return jnp.swapaxes(q, 1, 2).reshape(frame.shape), jnp.abs(jnp.diagonal(r, axis1=1, axis2=2))

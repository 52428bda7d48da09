"""Rates at which errors grow along a trajectory: Lyapunov exponents, logarithmic norms.

Per sample, matrix-free; samples of a batch must not interact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, CallFn, Key
from qdiffjax.analysis.gains import symmetric_extremes
from qdiffjax.analysis.trajectories import step_map, times
from qdiffjax.diffusion import Steps, float_dtype
from qdiffjax.diffusion.ode import Field
from qdiffjax.program import canonical_convolutions


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

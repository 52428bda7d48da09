"""Gains of the sampler's steps: spectral norms of their Jacobians, batched and matrix-free.

A step is F(x) = c.x x + c.eps eps(x, t); its noise is common to both runs and drops out. Samples
of a batch must not interact. Krylov estimates approach a norm from below; see `Gains.gauge`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._checks import (
    FROM_0,
    check_count,
    check_key,
    check_number,
    check_numbers,
    checked,
    require,
)
from qdiffjax._typing import Array, CallFn, Key, PyTree
from qdiffjax.analysis.errors.runs import add, at, check_points, step_map, vectorized, wide, zeros
from qdiffjax.compiling import canonical_convolutions, sweep
from qdiffjax.diffusion import Steps, as_point

LinearMap = Callable[[Array], Array]


class SpectralNorm(NamedTuple):
    """The norm [batch], its relative change by the last iteration (gauge) [batch], and the unit
    right singular vector [batch, *shape].
    """

    norm: Array
    gauge: Array
    vector: Array


class Gains(NamedTuple):
    """norms [N, batch]: |J_i|_2 of step i; gauge [N, batch]: relative change by the last iteration.

    The norms are estimates from below. The gauge is no error bound, but a gauge well below the
    slack asked for is the sign of convergence.
    """

    norms: Array
    gauge: Array


def spectral_norm(linear_map: LinearMap, v0, num_iterations: int) -> SpectralNorm:
    """Estimate |J|_2 = max |J v| / |v| of each sample's linear map, from below.

    The maximum over the Krylov space of J^T J from v0 (Golub & Kahan 1965, fully
    reorthogonalized). That space holds the iterates of the power method, so at equal cost the
    estimate is never below that of the power method. Exact when num_iterations reaches the
    number of distinct singular values that v0 excites.

    Args:
      linear_map: v [batch, *shape] -> J v [batch, *out], sample by sample.
      v0: start [batch, *shape], not zero; random unless a good guess is known.
      num_iterations: products with J; one fewer with J^T.

    Raises:
      ValueError: if num_iterations < 2, which leaves nothing to gauge convergence by.
    """
    _check_iterations(num_iterations)
    transpose = jax.linear_transpose(linear_map, v0)
    basis, images = _krylov(linear_map, lambda image: transpose(image)[0], v0, num_iterations)
    squares, coords = jnp.linalg.eigh(_gram(images, images))
    before = jnp.linalg.eigvalsh(_gram(images[:-1], images[:-1]))[:, -1]
    norm, before = (jnp.sqrt(jnp.maximum(square, 0)) for square in (squares[:, -1], before))
    vector = jnp.einsum("kb...,bk->b...", basis, coords[:, :, -1], precision="highest")
    gauge = jnp.where(norm > 0, (norm - before) / jnp.where(norm > 0, norm, 1), 0)
    return SpectralNorm(norm, gauge, _unit(vector))


def symmetric_extremes(linear_map: LinearMap, v0, num_iterations: int) -> tuple[Array, Array]:
    """Estimate the extreme eigenvalues [batch], [batch] of (D + D^T) / 2 by Lanczos.

    The smallest is approached from above, the largest from below; arguments as `spectral_norm`,
    with a square map D.
    """
    _check_iterations(num_iterations)
    transpose = jax.linear_transpose(linear_map, v0)

    def symmetric(v):
        return (linear_map(v) + transpose(v)[0]) / 2

    basis, images = _krylov(symmetric, lambda image: image, v0, num_iterations)
    projected = _gram(basis, images)
    # Directions that an exhausted Krylov space lacks must not add the eigenvalue 0.
    lacking = jnp.eye(num_iterations, dtype=projected.dtype)[None] - _gram(basis, basis)
    projected = projected + jnp.round(lacking) * projected[:, :1, :1]
    values = jnp.linalg.eigvalsh((projected + jnp.swapaxes(projected, 1, 2)) / 2)
    return values[:, 0], values[:, -1]


@checked(key=check_key, num_burn_in=FROM_0)
def step_gains(
    call: CallFn,
    xs,
    steps: Steps,
    *,
    key: Key,
    num_iterations: int = 6,
    num_burn_in: int = 3,
    per_call: PyTree = None,
) -> Gains:
    """Estimate the gain |J_i|_2, J_i = c.x I + c.eps d eps / dx, of every step at given states.

    One linearization per step, shared by all products with J and J^T. Each step starts from the
    singular vector of the step before plus a random direction of half its length: without it a
    start that is an eigenvector of every step would never see another one overtake.

    Args:
      call: full-precision denoiser (x, t, inputs, state) -> (eps, outputs, state).
      xs: states [N+1, batch, *shape] or [N, ...], noisiest first; step i leaves xs[i].
      steps: the sampler, leaves [N].
      key: of the random directions.
      num_iterations: Krylov dimension per step.
      num_burn_in: times the first step is repeated before its gain is kept, each repetition
        with num_iterations more.
      per_call: pytree with leaves [N, ...]; call i gets slice i as `inputs`.
    """
    _check_iterations(num_iterations)
    check_points("xs", xs, steps)
    xs = at(wide(xs), slice(steps.t.shape[0]))
    # Burning in within the same loop keeps the program to one copy of the network.
    order = jnp.concatenate([jnp.zeros(num_burn_in, int), jnp.arange(steps.t.shape[0])])
    table = (xs, steps.times(as_point(xs).x), steps.coeffs, per_call)

    def body(guess, indexed):
        repetition, i = indexed
        start = guess + _random_like(jax.random.fold_in(key, repetition), guess) / 2
        x, t, coeffs, inputs = at(table, i)
        jacobian = _linearize(*vectorized(step_map(call, t, coeffs, inputs=inputs), x))
        norm, gauge, vector = spectral_norm(jacobian, start, num_iterations)
        return vector, Gains(norm, gauge)

    guess = zeros(vectorized(lambda x: x, at(xs, 0))[1])
    burnt = canonical_convolutions(lambda *indexed: jax.lax.scan(body, guess, indexed))
    return at(burnt(jnp.arange(order.size), order)[1], slice(num_burn_in, None))


def segment_gains(
    call: CallFn, xs, xs_hat, steps: Steps, *, nodes=(0.0, 0.5, 1.0), key: Key, **options
) -> Gains:
    """Estimate max over u of |J_i(x_i + u (x_hat_i - x_i))|_2, the gain between two runs.

    The error obeys delta_{i+1} = A_i delta_i + e_i exactly, with A_i the mean of J_i over the
    segment and e_i the local error at x_hat_i, so |A_i| <= max over u in [0, 1] of |J_i|. Only
    the nodes are looked at: assumes that they catch the maximum.

    Args:
      call: see `step_gains`.
      xs: states of the full-precision run [N+1, batch, *shape].
      xs_hat: states of the quantized run [N+1, batch, *shape].
      steps: the sampler, leaves [N].
      nodes: the values of u.
      key: see `step_gains`.
      options: those of `step_gains`.
    """
    xs = wide(xs)
    gap = jax.tree.map(lambda a, x: jnp.asarray(a).astype(x.dtype) - x, xs_hat, xs)
    check_numbers("nodes", nodes, least_rank=1)
    check_number("nodes", nodes, least=0, most=1)
    nodes = jnp.asarray(nodes, as_point(xs).x.dtype)

    def between(u):
        points = add(xs, jax.tree.map(lambda a: u * a, gap))
        return step_gains(call, points, steps, key=key, **options)

    return Gains(*(jnp.max(a, axis=0) for a in jax.lax.map(between, nodes)))


def log_norm_gains(
    call: CallFn, xs, steps: Steps, *, key: Key, num_iterations: int = 16, per_call: PyTree = None
) -> Array:
    """Estimate the one-sided bound of |J_i|_2, J_i = a I + b D, D = d eps / dx [N, batch].

        |J|_2^2 <= a^2 + 2 a b lambda + b^2 |D|_2^2

    with lambda the largest eigenvalue of (D + D^T) / 2, the smallest if a b < 0: the
    logarithmic norm of an explicit step (Dahlquist 1958; Hairer, Norsett & Wanner, I.10). Never
    below |J|_2 once the Krylov spaces have converged, and equal to it when D is a multiple of
    the identity. Arguments as `step_gains`; every step starts afresh.

    Raises:
      ValueError: a sampler whose J is not a I + b D: with memory, or with matrix coefficients.
    """
    check_scalar(steps, "use step_gains instead")
    xs = at(wide(xs), slice(steps.t.shape[0]))
    a, b = (jnp.asarray(c).astype(xs.dtype) for c in (steps.coeffs.x, steps.coeffs.eps))

    def one(index, x, t, a, b, inputs):
        jacobian = _linearize(lambda x: call(x, t, inputs, ())[0].astype(x.dtype), x)
        start = _random_like(jax.random.fold_in(key, index), x)
        size = spectral_norm(jacobian, start, num_iterations).norm
        low, high = symmetric_extremes(jacobian, start, num_iterations)
        square = a**2 + 2 * a * b * jnp.where(a * b < 0, low, high) + (b * size) ** 2
        return jnp.sqrt(jnp.maximum(square, 0))

    return sweep(one, jnp.arange(xs.shape[0]), xs, steps.times(xs), a, b, per_call)


def check_scalar(steps: Steps, remedy: str) -> None:
    """Raise a ValueError if the sampler's coefficients are not scalars."""
    require(steps.is_first_order, got="a sampler with memory or with matrix coefficients",
            expected="scalar ones", remedy=remedy)  # fmt: skip


def _linearize(fn: LinearMap, x) -> LinearMap:
    return jax.linearize(fn, x)[1]


def _krylov(apply: LinearMap, advance: LinearMap, v0, num: int) -> tuple[Array, Array]:
    """Return an orthonormal Krylov basis and its images under `apply`, both [num, batch, ...]."""
    v0 = _unit(v0)
    basis = jnp.zeros((num, *v0.shape), v0.dtype).at[0].set(v0)

    def body(basis, index):
        image = apply(basis[index])
        new = _orthonormalize(advance(image), basis)
        return basis.at[index + 1].set(new, mode="drop"), image

    # The last `advance` is wasted, but the program then holds a single copy of the network.
    return jax.lax.scan(body, basis, jnp.arange(num))


def _orthonormalize(v, basis) -> Array:
    """Return the unit part of v [batch, *shape] orthogonal to basis [k, batch, *shape]."""
    size = _norm(v)
    for _ in range(2):  # once leaves rounding along the basis, twice is enough (Kahan)
        coords = jnp.einsum("kb...,b...->kb...", basis, v, precision="highest")
        coords = jnp.sum(coords, axis=tuple(range(2, v.ndim + 1)), keepdims=True)
        v = v - jnp.sum(coords * basis, axis=0)
    # An exhausted Krylov space leaves rounding: end it there instead of blowing it up.
    return jnp.where(_norm(v) > 100 * jnp.finfo(v.dtype).eps * size, _unit(v), 0)


def _gram(left, right) -> Array:
    """Return inner products of two families [k, batch, *shape], by sample [batch, k, k]."""
    flat = (a.reshape(*a.shape[:2], -1) for a in (left, right))
    return jnp.einsum("kbn,lbn->bkl", *flat, precision="highest")


def _norm(v) -> Array:
    return jnp.sqrt(jnp.sum(v**2, axis=tuple(range(1, v.ndim)), keepdims=True))


def _unit(v) -> Array:
    size = _norm(v)
    return v / jnp.where(size > 0, size, 1)


def _random_like(key: Key, v) -> Array:
    return _unit(jax.random.normal(key, v.shape, v.dtype))


def _check_iterations(num_iterations: int) -> None:
    check_count("num_iterations", num_iterations, least=2,
                remedy="the last iteration's change is the gauge of convergence")  # fmt: skip

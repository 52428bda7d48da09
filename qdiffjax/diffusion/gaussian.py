"""Exact oracles: Gaussian-mixture data under diffusion, and the Gaussian laws of samplers.

With p_0 = sum_k w_k N(mu_k, S_k) every marginal is again a mixture,

    p_t = sum_k w_k N(m_k, C_k),   m_k = alpha mu_k,   C_k = alpha^2 S_k + sigma^2 I,

so score and optimal eps are closed forms (Efron 2011 for Tweedie's formula). On Gaussian data the
steps of every sampler are affine, and the law of each of its states is Gaussian, in closed form.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_count, check_key, check_numbers, checked, concrete, require
from qdiffjax._typing import Array, EpsFn, Key, float_dtype
from qdiffjax.diffusion.loop import SlotCoeffs, Steps, stack
from qdiffjax.diffusion.schedules import NoiseLevel


class GaussianMixture(NamedTuple):
    """weights [K], positive, sum 1; means [K, n]; covs [K, n, n], symmetric."""

    weights: Any
    means: Any
    covs: Any


def marginal(mixture: GaussianMixture, level: NoiseLevel) -> GaussianMixture:
    """Return the law of x_t = alpha * x_0 + sigma * eps for x_0 ~ mixture; level scalars."""
    mixture = cast(mixture, float_dtype(mixture.means))
    alpha, sigma = cast(level, mixture.means.dtype)
    identity = jnp.eye(mixture.means.shape[-1], dtype=mixture.means.dtype)[None]
    covs = alpha**2 * mixture.covs + sigma**2 * identity
    return GaussianMixture(mixture.weights, alpha * mixture.means, covs)


def log_prob(mixture: GaussianMixture, x) -> Array:
    """Return log p(x) [*batch] in nats for x [*batch, n]."""
    return _pointwise(mixture, x, lambda c: jax.nn.logsumexp(c.log_joint), "(n)->()")


def score(mixture: GaussianMixture, x) -> Array:
    """Return grad log p(x) = sum_k r_k g_k, g_k = -C_k^-1 (x - m_k), r_k = p(k | x) [*batch, n]."""
    return _pointwise(mixture, x, _score, "(n)->(n)")


@checked(key=check_key, num=check_count)
def sample_mixture(key: Key, mixture: GaussianMixture, num: int) -> Array:
    """Draw x [num, n] from the mixture; singular covariances are welcome."""
    mixture = cast(mixture, float_dtype(mixture.means))
    key_k, key_z = jax.random.split(key)
    k = jax.random.categorical(key_k, jnp.log(mixture.weights), shape=(num,))
    z = jax.random.normal(key_z, (num, mixture.means.shape[-1]), mixture.means.dtype)
    roots = jax.vmap(symmetric_root)(mixture.covs)
    return mixture.means[k] + jnp.einsum("bij,bj->bi", roots[k], z, precision="highest")


def eps_fn_for(schedule: Callable[[Any], NoiseLevel]) -> EpsFn:
    """Return the optimal denoiser of mixture data, eps = E[eps | x_t] = -sigma_t * score_t(x).

    It is eps_fn(params, x [*batch, n], t scalar or [*batch]) -> eps [*batch, n] with the mixture
    as its params. At sigma = 0 it is zero, whatever the covariances. `schedule` is any process,
    t -> level.
    """

    def one(params, x, t):
        alpha, sigma = schedule(t)
        # Any positive level will do at sigma = 0; the data's own law may have no density.
        safe = NoiseLevel(alpha, jnp.where(sigma > 0, sigma, jnp.ones_like(sigma)))
        return -sigma.astype(x.dtype) * score(marginal(params, safe), x)

    def eps_fn(params, x, t):
        x = jnp.asarray(x).astype(float_dtype(x))
        params, t = cast(params, x.dtype), jnp.asarray(t).astype(x.dtype)
        return jnp.vectorize(one, excluded={0}, signature="(n),()->(n)")(params, x, t)

    return eps_fn


class _Components(NamedTuple):
    """At one point x [n]: log w_k p_k(x) [K], g_k [K, n], C_k^-1 [K, n, n]."""

    log_joint: Array
    gradients: Array
    precisions: Array


def _components(mixture: GaussianMixture, precisions, log_norms, x) -> _Components:
    diff = x[None, :] - mixture.means
    gradients = -jnp.einsum("kij,kj->ki", precisions, diff, precision="highest")
    log_joint = log_norms + jnp.sum(diff * gradients, axis=-1) / 2
    return _Components(log_joint, gradients, precisions)


def _pointwise(mixture: GaussianMixture, x, fn, signature: str) -> Array:
    """Map fn(components at x) over x [*batch, n]; the factorizations are shared by all points."""
    x = jnp.asarray(x).astype(float_dtype(x))
    mixture = cast(mixture, x.dtype)
    chols = jnp.linalg.cholesky(mixture.covs)
    identity = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), chols.shape)
    whiten = jax.scipy.linalg.solve_triangular(chols, identity, lower=True)
    precisions = jnp.einsum("kji,kjl->kil", whiten, whiten, precision="highest")
    log_roots = jnp.sum(jnp.log(jnp.diagonal(chols, axis1=1, axis2=2)), axis=-1)
    constant = x.shape[-1] / 2 * math.log(2 * math.pi)
    log_norms = jnp.log(mixture.weights) - log_roots - constant

    def at(v):
        return fn(_components(mixture, precisions, log_norms, v))

    return jnp.vectorize(at, signature=signature)(x)


def _score(c: _Components) -> Array:
    return jnp.einsum("k,kn->n", jax.nn.softmax(c.log_joint), c.gradients, precision="highest")


def cast(tree, dtype) -> Any:
    """Return the pytree with every leaf as an array of `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), tree)


def symmetric_root(cov) -> Array:
    """Return the symmetric positive semidefinite square root [n, n] of cov [n, n]."""
    values, vectors = jnp.linalg.eigh(cov)
    roots = jnp.sqrt(jnp.maximum(values, 0))
    return jnp.matmul(vectors * roots[None, :], vectors.T, precision="highest")


class GaussianChain(NamedTuple):
    """The Gaussian law of each state of a sampler: means [N+1, n], covs [N+1, n, n].

    With K slots a state is their concatenation [K n]; slot 0, the first n entries, is x_t.
    """

    means: Array
    covs: Array


def affine_steps(mean, cov, schedule, steps: Steps, *, kappa=0.0, bias=0.0):
    """Return the sampler's steps for data N(mean, cov) as affine maps x_s = matrix x_t + offset.

    With slots, of the concatenated state [K n]: the blocks of the matrix are
    x_jk I + eps_j read_k J, those of the offset eps_j (bias - J alpha_t mean).

    The network is eps_hat = (1 + kappa) eps + bias with eps = sigma_t C_t^-1 (x - alpha_t mean),
    the exact one; kappa = bias = 0 is full precision.

    Args:
      mean: mean of the data [n].
      cov: covariance of the data [n, n].
      schedule: the forward process, t -> level.
      steps: the sampler of N calls.
      kappa: relative error of the network [] or [N].
      bias: constant error of the network [], [n] or [N, n].

    Returns:
      Matrices [N, n, n], the Jacobians of the steps, and offsets [N, n]; K n for n with K slots.

    Raises:
      ValueError: if the coefficients are matrices.
    """
    require(
        jnp.ndim(steps.coeffs.x) != 3 or isinstance(steps.coeffs, SlotCoeffs),
        got="matrix coefficients",
        expected="scalar ones or slots",
        remedy="a process on (x, v) has its own laws, see cld_marginal",
    )
    dtype = float_dtype(mean)
    mean, cov, steps, kappa, bias = cast((mean, cov, steps, kappa, bias), dtype)
    num_steps, n = steps.t.shape[0], mean.shape[0]
    gain, bias = jnp.broadcast_to(1 + kappa, (num_steps,)), jnp.broadcast_to(bias, (num_steps, n))

    def one(level, c, gain, bias):
        cov_t = level.alpha**2 * cov + level.sigma**2 * jnp.eye(n, dtype=dtype)
        jacobian = gain * level.sigma * jnp.linalg.inv(cov_t)
        shift = bias - jnp.matmul(jacobian, level.alpha * mean, precision="highest")
        if isinstance(c, SlotCoeffs):
            read = jnp.kron(c.eps[:, None] * c.input[None, :], jacobian)
            return jnp.kron(c.x, jnp.eye(n, dtype=dtype)) + read, jnp.kron(c.eps, shift)
        return c.x * jnp.eye(n, dtype=dtype) + c.eps * jacobian, c.eps * shift

    return jax.vmap(one)(schedule(steps.t), steps.coeffs, gain, bias)


def push_forward(mean, cov, matrices, offsets, noise) -> GaussianChain:
    """Return the laws along x <- matrices[i] x + offsets[i] + noise[i] z from N(mean, cov).

    Means m <- M m + b and covariances C <- M C M^T + noise^2 I: exact for any affine chain.

    Args:
      mean: mean of the first state [n].
      cov: covariance of the first state [n, n].
      matrices: [N, n, n].
      offsets: [N, n].
      noise: standard deviations [N], or weights [N, K] of one noise [n / K] on each of K slots.
    """
    dtype = float_dtype(mean)
    mean, cov, *maps = cast((mean, cov, matrices, offsets, noise), dtype)
    weights = maps[2] if maps[2].ndim == 2 else maps[2][:, None]
    maps[2] = weights[:, :, None] * weights[:, None, :]
    identity = jnp.eye(mean.shape[0] // weights.shape[1], dtype=dtype)

    def body(law, affine):
        (m, c), (matrix, offset, spread) = law, affine
        m = jnp.matmul(matrix, m, precision="highest") + offset
        c = _congruence(matrix, c) + jnp.kron(spread, identity)
        return (m, c), (m, c)

    laws = jax.lax.scan(body, (mean, cov), tuple(maps))[1]
    return GaussianChain(*stack((mean, cov), laws))


def gaussian_chain(
    mean, cov, schedule, steps: Steps, *, kappa=0.0, bias=0.0, start=None
) -> GaussianChain:
    """Return the exact law of every sampler state for data N(mean, cov), noisiest first.

    Args:
      mean: mean of the data [n].
      cov: covariance of the data [n, n].
      schedule: the forward process, t -> level.
      steps: the sampler of N calls.
      kappa: see `affine_steps`.
      bias: see `affine_steps`.
      start: (mean [n], cov [n, n]) of x_T; None is the sampler's N(0, I). Other slots start at 0.
    """
    matrices, offsets = affine_steps(mean, cov, schedule, steps, kappa=kappa, bias=bias)
    n, size, dtype = jnp.shape(mean)[0], offsets.shape[-1], offsets.dtype
    law = (jnp.zeros(n, dtype), jnp.eye(n, dtype=dtype)) if start is None else cast(start, dtype)
    mean_T = jnp.zeros(size, dtype).at[:n].set(law[0])
    cov_T = jnp.zeros((size, size), dtype).at[:n, :n].set(law[1])
    return push_forward(mean_T, cov_T, matrices, offsets, steps.coeffs.noise)


def gaussian_kl(mean_1, cov_1, mean_2, cov_2) -> Array:
    """Return KL(N_1 || N_2) in nats; means [n], positive definite covariances [n, n].

        ( sum_i (u_i - log(1 + u_i)) + |L^-1 (mean_1 - mean_2)|^2 ) / 2,   cov_2 = L L^T,

    u_i the eigenvalues of L^-1 (cov_1 - cov_2) L^-T: the textbook form
    (tr cov_2^-1 cov_1 - n - log det ...) / 2 without its cancellation between close laws.
    """
    check_gaussians(mean_1, cov_1, mean_2, cov_2)
    mean_1, cov_1, mean_2, cov_2 = cast((mean_1, cov_1, mean_2, cov_2), float_dtype(mean_1))
    chol = jnp.linalg.cholesky(cov_2)

    def whiten(a):
        return jax.scipy.linalg.solve_triangular(chol, a, lower=True)

    relative = whiten(whiten(cov_1 - cov_2).T)
    u = jnp.linalg.eigvalsh((relative + relative.T) / 2)
    return (jnp.sum(log_excess(u)) + jnp.sum(whiten(mean_1 - mean_2) ** 2)) / 2


def gaussian_w2_squared(mean_1, cov_1, mean_2, cov_2) -> Array:
    """Return the squared 2-Wasserstein distance of two Gaussians; means [n], covariances [n, n].

        |mean_1 - mean_2|^2 + tr(cov_1 + cov_2 - 2 (cov_1^.5 cov_2 cov_1^.5)^.5)

    The survey, eq. 17, prints this square as W2, with the root of a product that is not symmetric.
    Computed as |mean_1 - mean_2|^2 + min over orthogonal Q of |cov_1^.5 - cov_2^.5 Q|^2 (Bhatia,
    Jain & Lim 2019, theorem 1), which does not cancel between close laws.
    """
    check_gaussians(mean_1, cov_1, mean_2, cov_2)
    mean_1, cov_1, mean_2, cov_2 = cast((mean_1, cov_1, mean_2, cov_2), float_dtype(mean_1))
    root_1, root_2 = symmetric_root(cov_1), symmetric_root(cov_2)
    left, _, right = jnp.linalg.svd(jnp.matmul(root_2, root_1, precision="highest"))
    q = jnp.matmul(left, right, precision="highest")
    gap = root_1 - jnp.matmul(root_2, q, precision="highest")
    return jnp.sum((mean_1 - mean_2) ** 2) + jnp.sum(gap**2)


def check_gaussians(mean_1, cov_1, mean_2, cov_2) -> None:
    """Refuse means that are no [n] of one n, and what are no covariances [n, n] of finite numbers.

    Raises:
      TypeError: no arrays of real numbers.
      ValueError: other shapes; concrete numbers that are not finite; a negative variance.
    """
    n = jnp.shape(mean_2)[-1] if jnp.ndim(mean_2) else 0
    for name, mean in (("mean_1", mean_1), ("mean_2", mean_2)):
        check_numbers(name, mean, least_rank=1)
        require(jnp.shape(mean) == (n,), name, got=f"shape {jnp.shape(mean)}",
                expected=f"[{n}]", remedy="take both means of one space")  # fmt: skip
    for name, cov in (("cov_1", cov_1), ("cov_2", cov_2)):
        check_numbers(name, cov, least_rank=2)
        require(jnp.shape(cov) == (n, n), name, got=f"shape {jnp.shape(cov)}",
                expected=f"[{n}, {n}]", remedy="pass a covariance, not variances")  # fmt: skip
        values = concrete(cov)
        require(values is None or bool(np.all(np.diagonal(values) >= 0)), name,
                got="a negative variance", expected="a covariance",
                remedy="check its sign and symmetry")  # fmt: skip


def _congruence(matrix, cov) -> Array:
    """Return matrix cov matrix^T [n, n], kept exactly symmetric."""
    out = jnp.matmul(jnp.matmul(matrix, cov, precision="highest"), matrix.T, precision="highest")
    return (out + out.T) / 2


def log_excess(u) -> Array:
    """Return u - log(1 + u), by its series where the difference cancels."""
    series = u**2 * (1 / 2 - u * (1 / 3 - u * (1 / 4 - u / 5)))
    return jnp.where(jnp.abs(u) < 1e-3, series, u - jnp.log1p(u))

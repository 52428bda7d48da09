"""Critically damped Langevin diffusion: position and velocity, noise in the velocity alone.

    dx = r^2 v beta dt,   dv = -(x + 2 r v) beta dt + 2 sqrt(beta / r) dw

Dockhorn, Vahdat & Kreis 2022, eqs. 5-6 with 1 / M = r^2 and their critical damping Gamma = 2 / r.
A state u = (x, v) is [batch, 2, *shape], and a level of the process is a NoiseLevel of matrices:

    u_t = alpha x_0 + sigma eps,   alpha [*times, 2],   sigma [*times, 2, 2] lower triangular

for v_0 ~ N(0, start / r^2) drawn anew. The network is given u and predicts eps [batch, 2, *shape],
of which samplers read the velocity's half alone, eps_v = -sigma_vv grad_v log p_t: coefficients
are matrices (see `StepCoeffs`), so errors propagate as in any other sampler.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_number, require
from qdiffjax._typing import Array, EpsFn, Key, PyTree, float_dtype
from qdiffjax.diffusion import gaussian
from qdiffjax.diffusion.gaussian import cast
from qdiffjax.diffusion.loop import StepCoeffs, Steps
from qdiffjax.diffusion.losses import draw_times
from qdiffjax.diffusion.schedules import NoiseLevel


@dataclasses.dataclass(frozen=True)
class CLD:
    """The process from t = 0 to 1, with c = r beta t; defaults of Dockhorn et al. 2022, app. E.

    Attributes:
      beta: speed, constant.
      rate: r, the double eigenvalue of the drift per unit of beta t.
      start: variance of v_0 in units of its equilibrium 1 / r^2 (their gamma).
    """

    beta: float = 4.0
    rate: float = 2.0
    start: float = 0.04

    def __post_init__(self):
        for name in ("beta", "rate", "start"):
            check_number(name, getattr(self, name), above=0)

    def __call__(self, t) -> NoiseLevel:
        """Return the level at t [*times] in JAX: the dtype of t, or the default for integers."""
        t = jnp.asarray(t).astype(float_dtype(t))
        return self._level(t, jnp, jax.scipy.special.gammainc)

    def exact(self, times) -> NoiseLevel:
        """Return the level at times [*times] in NumPy float64, for tables."""
        return self._level(np.asarray(times, np.float64), np, _gammainc())

    @property
    def equilibrium(self) -> np.ndarray:
        """Standard deviations of x and v as t -> inf [2]: what a sampler starts from."""
        return np.array([1.0, 1 / self.rate])

    def _level(self, t, xp, gammainc) -> NoiseLevel:
        """Return exp(-c) (1 + c, -c / r) and the Cholesky root of the covariance given x_0."""
        c, r = self.rate * self.beta * t, self.rate
        decay = xp.exp(-c)
        xx, xv, vv = _spread(c, r, xp, gammainc)
        xx = xx + self.start * (decay * c) ** 2
        xv = xv + self.start * decay**2 * c * (1 - c) / r
        vv = vv + self.start * (decay * (1 - c) / r) ** 2
        root = xp.sqrt(xx)
        lower = xv / xp.where(root > 0, root, xp.ones_like(root))
        rows = (root, xp.zeros_like(root)), (lower, xp.sqrt(vv - lower**2))
        sigma = xp.stack([xp.stack(row, -1) for row in rows], -2)
        return NoiseLevel(xp.stack([decay * (1 + c), -decay * c / r], -1), sigma)


def _spread(c, r: float, xp: Any, gammainc: Any):
    """Return the covariance that noise of duration c / (r beta) makes: xx, xv, vv [*times].

    1 - exp(-2 c) (1 + 2 c + 2 c^2) is an incomplete gamma function: no cancellation at small c.
    """
    born, decay = gammainc(xp.full_like(c, 3.0), 2 * c), xp.exp(-2 * c)
    return born, 2 * c**2 * decay / r, (born + 4 * c * decay) / r**2


def cld_marginal(mixture: gaussian.GaussianMixture, level: NoiseLevel) -> gaussian.GaussianMixture:
    """Return the law of u_t [2 n] for x_0 ~ mixture of dimension n; level of one time.

    means = alpha (x) mu_k,   covs = alpha alpha^T (x) S_k + sigma sigma^T (x) I
    """
    dtype = float_dtype(mixture.means)
    mixture, (alpha, sigma) = cast((mixture, level), dtype)
    spread = jnp.matmul(sigma, sigma.T, precision="highest")
    noise = jnp.kron(spread, jnp.eye(mixture.means.shape[1], dtype=dtype))
    pair = alpha[:, None] * alpha[None, :]
    covs = jax.vmap(lambda cov: jnp.kron(pair, cov) + noise)(mixture.covs)
    return gaussian.GaussianMixture(
        mixture.weights, jax.vmap(lambda mean: jnp.kron(alpha, mean))(mixture.means), covs
    )


def cld_eps_fn_for(process: CLD) -> EpsFn:
    """Return the optimal denoiser of mixture data, eps = E[eps | u_t] = -sigma^T grad log p_t.

    It is eps_fn(mixture, u [batch, 2, n], t scalar > 0) -> [batch, 2, n].
    """

    def eps_fn(mixture, u, t):
        u = jnp.asarray(u).astype(float_dtype(u))
        level = process(jnp.asarray(t).astype(u.dtype))
        law = cld_marginal(cast(mixture, u.dtype), level)
        score = gaussian.score(law, u.reshape(u.shape[0], -1)).reshape(u.shape)
        return -jnp.einsum("kj,bk...->bj...", level.sigma, score, precision="highest")

    return eps_fn


def cld_loss(eps_fn: EpsFn, params: PyTree, key: Key, x_0, process: CLD) -> Array:
    """Return the hybrid score matching loss []; Dockhorn et al. 2022, eq. 8, unweighted.

        mean of (eps_v - eps_fn(params, u_t, t)_v)^2,   u_t = alpha x_0 + sigma eps

    The initial velocity is averaged out: it is part of sigma. x_0 [batch, *shape]; eps_fn is given
    t [batch].
    """
    x_0 = jnp.asarray(x_0).astype(float_dtype(x_0))
    key_t, key_eps = jax.random.split(key)
    t = draw_times(key_t, x_0.shape[0], process, x_0.dtype)
    eps = jax.random.normal(key_eps, (x_0.shape[0], 2, *x_0.shape[1:]), x_0.dtype)
    level = process(t)
    u = jnp.einsum("bj,b...->bj...", level.alpha, x_0, precision="highest")
    u = u + jnp.einsum("bjk,bk...->bj...", level.sigma, eps, precision="highest")
    return jnp.mean((eps[:, 1] - eps_fn(params, u, t)[:, 1].astype(x_0.dtype)) ** 2)


def cld_euler_maruyama(process: CLD, times, *, eta: float = 1.0) -> Steps:
    """Return Euler-Maruyama on the reverse SDE; Dockhorn et al. 2022, eq. 9.

        x_s = x_t - b r^2 v_t
        v_s = v_t + b (x_t + 2 r v_t) - (1 + eta) (2 b / r) eps_v / sigma_vv
              + 2 sqrt(eta b / r) z,          b = beta (t - s)

    eta = 0 is Euler's method on the probability flow. Weak order one.

    Args:
      process: the forward process.
      times: [N+1], noisiest first; the last may be 0.
      eta: share of the noise, 0 to 1.
    """
    t, b, root = _intervals(process, times)
    r, zero = process.rate, np.zeros_like(b)
    drift = _matrices([[1 + zero, -b * r**2], [b, 1 + 2 * r * b]])
    eps = _matrices([[zero, zero], [zero, -(1 + eta) * 2 * b / r / root(t[:-1])]])
    noise = _matrices([[zero, zero], [zero, 2 * np.sqrt(eta * b / r)]])
    return _table(t, drift, eps, noise)


def sscs(process: CLD, times) -> Steps:
    """Return the symmetric splitting sampler SSCS; Dockhorn et al. 2022, section 3.3, algorithm 1.

        A(b / 2), S(b), A(b / 2),   b = beta (t - s)
        A: u <- Psi u + noise, the reverse process if p_t were its equilibrium, exactly
        S: v <- v + (4 b / r) (r^2 v - eps_v / sigma_vv), eps and sigma at the middle time

    Neighbouring halves of A are one map, so a step costs one call. The first half is left out: it
    keeps the equilibrium, from which the sampler starts. S is Euler's method, so the order is
    one, of smaller errors than Euler-Maruyama where p_t is near the equilibrium.
    """
    t, b, root = _intervals(process, times)
    r, zero = process.rate, np.zeros_like(b)
    middle = (t[:-1] + t[1:]) / 2
    score = _matrices([[1 + zero, zero], [zero, 1 + 4 * r * b]])
    eps = _matrices([[zero, zero], [zero, -4 * b / r / root(middle)]])
    move, noise = _equilibrium_flow(r, r * (b + np.append(b[1:], 0.0)) / 2)
    return _table(t, move @ score, move @ eps, noise, middle)


def _gammainc():
    """Return SciPy's incomplete gamma function, imported when it is needed: it takes .4 s."""
    from scipy import special

    return special.gammainc


def _equilibrium_flow(r: float, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Psi and the Cholesky root of the noise of A over c / r; both [N, 2, 2]."""
    decay = np.exp(-c)
    move = decay[:, None, None] * _matrices([[1 + c, -c * r], [c / r, 1 - c]])
    xx, xv, vv = _spread(c, r, np, _gammainc())
    return move, np.linalg.cholesky(_matrices([[xx, -xv], [-xv, vv]]))


def _intervals(process: CLD, times):
    """Return times [N+1], b = beta (t - s) [N] and the function t -> sigma_vv.

    Raises:
      ValueError: if times do not descend strictly to 0 at the lowest.
    """
    t = np.asarray(times, np.float64)
    require(
        t.ndim == 1 and t.size >= 2 and np.all(np.diff(t) < 0) and t[-1] >= 0,
        "times",
        got=t,
        expected="two or more, strictly descending to 0 or more",
        remedy="see diffusion.grids",
    )
    return t, -process.beta * np.diff(t), lambda at: process.exact(at).sigma[..., 1, 1]


def _matrices(rows) -> np.ndarray:
    """Return [N, 2, 2] from rows of arrays [N]."""
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _table(t: np.ndarray, x, eps, noise, at=None) -> Steps:
    steps: Any = Steps(t[:-1] if at is None else at, t[1:], StepCoeffs(x, eps, noise))  # type: ignore[arg-type]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), steps)

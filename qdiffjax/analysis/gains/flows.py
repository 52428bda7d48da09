"""When errors amplify: exact gains of flows and samplers on data whose law is known.

Levels are s = sigma_edm = sigma / alpha; where no process is named, errors are in x_t / alpha, in
which the probability-flow ODE of the optimal denoiser multiplies them by exp of the integral of
(N - 1) / s over the s it passes, N = Cov[x_0 | x_t] / s^2. In x_t itself multiply by
alpha_s / alpha_t. The survey, sections 2.2 and 5, calls accumulation exponential: that is the
exception, near boundaries between modes and below `onset`. The same results for the steps of a
sampler are in bounds.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, CallFn, Key, float_dtype
from qdiffjax.analysis.errors.runs import norms, step_map
from qdiffjax.diffusion import NoiseLevel, SlotCoeffs, Steps
from qdiffjax.diffusion.gaussian import GaussianMixture, log_prob, marginal, sample_mixture
from qdiffjax.estimates import Estimate, mean_interval
from qdiffjax.labels import Kind, bound


def gaussian_flow_gain(level_t: NoiseLevel, level_s: NoiseLevel, variance) -> Array:
    """Return d x_s / d x_t of the probability-flow ODE along an axis of Gaussian data.

        sqrt(v_s / v_t),   v = alpha^2 c^2 + sigma^2

    as the flow keeps standardized x constant; VE: c / sqrt(c^2 + s^2) down to data. Above one
    only where the variance grows: in x_t with c > 1 (VP), never in x_t / alpha. `variance` is c^2,
    any shape that broadcasts with the levels' leaves.
    """
    return jnp.sqrt(_variance(level_s, variance) / _variance(level_t, variance))


def gaussian_mean_gain(level_t: NoiseLevel, level_s: NoiseLevel, variance) -> Array:
    """Return d E[x_s | x_t] / d x_t along an axis of Gaussian data.

        (alpha_t / alpha_s) v_s / v_t,   v = alpha^2 c^2 + sigma^2

    It is the Jacobian of an ancestral (DDPM, or DDIM with eta = 1) step of any stride, and
    telescopes: the product of the steps from t to s is the gain of one step from t to s, down to
    data alpha_t c^2 / v_t. Arguments as `gaussian_flow_gain`.
    """
    ratio = jnp.asarray(level_t.alpha) / level_s.alpha
    return ratio * _variance(level_s, variance) / _variance(level_t, variance)


@bound(
    Kind.CERTIFIED, "m-strongly log-concave data; |eps errors| <= eps_errors at every x; exact flow"
)
def log_concave_flow_bound(sigma_edm, eps_errors, strength) -> Array:
    """Return the bound of the final error of the flow on m-strongly log-concave data [*batch].

        |delta| <= int_0^s_max eta(s) (1 + m s^2)^(-1/2) ds
                 = sum_i eta_i (asinh(sqrt(m) s_i) - asinh(sqrt(m) s_{i+1})) / sqrt(m)

    for |eps_hat - eps| <= eta_i between the levels s_i and s_{i+1}, since N <= 1 / (1 + m s^2)
    (Brascamp & Lieb 1976). Bound for every solution of the flow of the optimal denoiser, however
    many steps solve it; attained by N(mean, I / m) with aligned errors. DDIM's own steps obey the
    sum `bounds.log_concave_bound`, which is at least this.

    Args:
      sigma_edm: levels [N+1], descending, the last is where the flow ends.
      eps_errors: eta_i [N, *batch], in units of the noise.
      strength: m > 0.
    """
    eps_errors = jnp.asarray(eps_errors).astype(float_dtype(eps_errors))
    root = jnp.sqrt(jnp.asarray(strength).astype(eps_errors.dtype))
    s = jnp.asarray(sigma_edm).astype(eps_errors.dtype)
    # An error at level s reaches the last level s_N enlarged by sqrt(1 + m s_N^2).
    weights = -jnp.diff(jnp.arcsinh(root * s)) / root * jnp.sqrt(1 + (root * s[-1]) ** 2)
    return jnp.tensordot(weights, eps_errors, axes=1, precision="highest")


@bound(Kind.CERTIFIED, "mixture of N(mu_k, r^2 I) with |mu_k| <= R; exact flow")
def mixture_flow_gain(sigma_edm, sigma_edm_end, radius, std) -> Array:
    """Return sup over x of |d x_s' / d x_s|_2 of the flow from level s down to s' [*levels].

        sqrt((r^2 + s'^2) / (r^2 + s^2)) exp( (R^2 / 2) (1 / (r^2 + s'^2) - 1 / (r^2 + s^2)) )

    for a mixture of N(mu_k, r^2 I) with |mu_k| <= R: the integral of the logarithmic norm
    (N - 1) / s with `bounds.mixture_posterior`, all s' from 0 up. Attained between two opposite
    centres. Special cases: R = 0 Gaussian data; r = 0 data in a ball of radius R and nothing
    else known, (s' / s) exp(R^2 (1/s'^2 - 1/s^2) / 2), attained by two opposite points, vacuous
    as s' -> 0. Continuous flow; `euler_gains` for steps.
    """
    start, end = (std**2 + jnp.asarray(s) ** 2 for s in (sigma_edm, sigma_edm_end))
    return jnp.sqrt(end / start) * jnp.exp(radius**2 / 2 * (1 / end - 1 / start))


@bound(Kind.CERTIFIED, "optimal denoiser; N <= posterior at every x")
def euler_gains(sigma_edm, posterior) -> Array:
    """Return the gain bound of Euler (DDIM) steps from every level to the last [N+1].

        prod_{j >= i} ( s_{j+1} / s_j + (1 - s_{j+1} / s_j) N_j )

    Bound of the optimal denoiser's steps if Cov[x_0 | x_t] / s_j^2 <= N_j everywhere
    (`bounds.mixture_posterior`, `bounds.log_concave_posterior`, (R / s)^2 for data in a ball).
    Unlike the flow's gain it depends on the grid.

    Args:
      sigma_edm: levels [N+1], descending.
      posterior: N at the levels left [N].
    """
    s = jnp.asarray(sigma_edm)
    ratio = s[1:] / s[:-1]
    factors = ratio + (1 - ratio) * jnp.asarray(posterior).astype(s.dtype)
    return jnp.concatenate([jnp.cumprod(factors[::-1])[::-1], jnp.ones_like(s[:1])])


def onset(radius, std) -> Array:
    """Return the level s* below which errors of a mixture can grow: s*^2 = max(R^2 - r^2, 0).

    Above it `bounds.mixture_posterior` is below one and every error contracts in x_t / alpha. The
    speciation of Biroli et al. 2024, section III, for bounded centres.
    """
    return jnp.sqrt(jnp.maximum(jnp.asarray(radius) ** 2 - std**2, 0))


# ------------------------------------------------------------------ volumes


def log_volumes(call: CallFn, xs, steps: Steps) -> Array:
    """Return log |det J_i| of every step along given states [N, batch], by dense Jacobians.

    For an invertible sampler, sum_i E log|det J_i| = h(law of x_0) - h(law of x_T) whatever the
    laws: the sum of the finite-time Lyapunov exponents is a difference of entropies, so volumes
    contract on average when data has less entropy than noise. n JVPs a step: small n.

    Args:
      call: full-precision denoiser (x, t, inputs) -> (eps, outputs).
      xs: states [N+1, batch, *shape].
      steps: the sampler, leaves [N], without memory.

    Raises:
      ValueError: a sampler with memory, whose steps forget and have no inverse.
    """
    if isinstance(steps.coeffs, SlotCoeffs):
        raise ValueError("got a sampler with memory, expected one slot; see lyapunov.stretches.")
    xs = jnp.asarray(xs).astype(float_dtype(xs))

    def one(x, t, coeffs):
        jacobian = jax.jacfwd(lambda v: step_map(call, t, coeffs)(v[None])[0])(x)
        return jnp.linalg.slogdet(jacobian.reshape(x.size, x.size))[1]

    table = (xs[:-1], steps.times(xs), steps.coeffs)
    return jax.lax.map(lambda a: jax.vmap(one, (0, None, None))(*a), table)


def entropy_change(
    mixture: GaussianMixture, level_t: NoiseLevel, level_s: NoiseLevel, *, key: Key, num: int
) -> Estimate:
    """Estimate h(p_s) - h(p_t) in nats, the mean log-volume gain of the flow from t to s.

        E log|det d x_s / d x_t| = h(p_s) - h(p_t) = E[log p_t(x_t) - log p_s(x_s)]

    (Cover & Thomas 2006, eq. 8.71). x_t and x_s share x_0 and noise, which cancels most of the
    variance; both levels need sigma > 0 or a mixture with density. Costs no network.
    """
    key_0, key_z = jax.random.split(key)
    x_0 = sample_mixture(key_0, mixture, num)
    z = jax.random.normal(key_z, x_0.shape, x_0.dtype)

    def surprise(level):
        alpha, sigma = (jnp.asarray(c).astype(x_0.dtype) for c in level)
        return -log_prob(marginal(mixture, level), alpha * x_0 + sigma * z)

    return mean_interval(surprise(level_s) - surprise(level_t))


# ------------------------------------------------------------------ one dimension


class Rearranged(NamedTuple):
    """x_s and d x_s / d x_t, both [*shape]."""

    x: Array
    gain: Array


def rearrange(mixture: GaussianMixture, level_t: NoiseLevel, level_s: NoiseLevel, x) -> Rearranged:
    """Return the exact probability flow from x_t to x_s of one-dimensional mixture data.

        F_s(x_s) = F_t(x_t),   d x_s / d x_t = p_t(x_t) / p_s(x_s)

    with F the distribution functions: in one dimension the flow is the monotone rearrangement,
    the optimal map (Villani 2003, section 2.2). No solver; accurate in both tails.

    Args:
      mixture: of one-dimensional data, means [K, 1].
      level_t, level_s: the levels, scalars; p_s must have a density.
      x: x_t [*shape].
    """
    x = jnp.asarray(x).astype(float_dtype(x))
    law_t, law_s = marginal(mixture, level_t), marginal(mixture, level_s)
    target = _log_odds(law_t, x)
    stds = jnp.sqrt(law_s.covs[:, 0, 0])
    low = jnp.full_like(x, jnp.min(law_s.means[:, 0] - 40 * stds))
    high = jnp.full_like(x, jnp.max(law_s.means[:, 0] + 40 * stds))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = _log_odds(law_s, middle) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    y = jax.lax.stop_gradient(sum(jax.lax.fori_loop(0, 64, halve, (low, high))) / 2)

    def slope(v):
        return jax.jvp(lambda v: _log_odds(law_s, v), (v,), (jnp.ones_like(v),))[1]

    # One Newton step, which carries the derivative of the implicit function.
    y = y - (_log_odds(law_s, y) - target) / jax.lax.stop_gradient(slope(y))
    gain = jnp.exp(log_prob(law_t, x[..., None]) - log_prob(law_s, y[..., None]))
    return Rearranged(y, gain)


# ------------------------------------------------------------------ mode flips


class Flips(NamedTuple):
    """Samples that changed mode, apart from those that did not.

    rate: their share with its Wilson interval; flipped: which [batch]; rms_flipped, rms_kept:
    root mean square of |x_hat_0 - x_0| among either (NaN if there are none).
    """

    rate: Estimate
    flipped: Array
    rms_flipped: Array
    rms_kept: Array


def mode_flips(x_0, x_hat_0, label_fn: Callable[[Array], Array]) -> Flips:
    """Split the errors of paired samples into mode flips and the rest.

        E|delta|^2 = rate rms_flipped^2 + (1 - rate) rms_kept^2

    A flip is as large as the distance of two modes however small the cause, so no linearization
    predicts it: report the rate and the two errors apart.

    Args:
      x_0, x_hat_0: final samples on the same noise [batch, *shape].
      label_fn: x [batch, *shape] -> labels [batch]: a classifier, `nearest(centres)`, a threshold.
    """
    flipped = label_fn(x_0) != label_fn(x_hat_0)
    squares = norms((x_hat_0 - x_0)[None])[0] ** 2

    def rms(mask):
        mask = mask.astype(squares.dtype)
        return jnp.sqrt(jnp.sum(mask * squares) / jnp.sum(mask))

    return Flips(_wilson(flipped.astype(squares.dtype)), flipped, rms(flipped), rms(~flipped))


def nearest(centres) -> Callable[[Array], Array]:
    """Return the rule x [batch, *shape] -> index of the nearest of centres [K, *shape]."""
    centres = jnp.asarray(centres)

    def label_fn(x):
        return jnp.argmin(norms(x[:, None] - centres[None].astype(x.dtype)), axis=1)

    return label_fn


def flipped_mass(density, displacement) -> Array:
    """Return the probability of changing mode, to first order in the boundary's displacement.

        sum_b p(b) |displacement_b|

    over the boundaries b between modes in one dimension, at any level; at the end of the sampler
    the displacement of a boundary is minus the error there. Both arguments [*boundaries].
    """
    return jnp.sum(jnp.asarray(density) * jnp.abs(displacement))


def _variance(level: NoiseLevel, variance) -> Any:
    return jnp.asarray(level.alpha) ** 2 * variance + jnp.asarray(level.sigma) ** 2


def _log_odds(law: GaussianMixture, x) -> Array:
    """Return log F(x) - log(1 - F(x)) [*shape]."""
    mean, variance, weight = (
        a.reshape((1,) * x.ndim + (-1,)) for a in (law.means, law.covs, law.weights)
    )
    z, weights = (x[..., None] - mean) / jnp.sqrt(variance), jnp.log(weight)
    below = jax.nn.logsumexp(jax.scipy.stats.norm.logcdf(z) + weights, axis=-1)
    above = jax.nn.logsumexp(jax.scipy.stats.norm.logcdf(-z) + weights, axis=-1)
    return below - above


def _wilson(hits) -> Estimate:
    """Return the mean of hits [num] of 0 and 1 with its 95 % interval; Wilson 1927."""
    num, z = hits.shape[0], 1.96
    rate = jnp.mean(hits)
    centre = (rate + z**2 / (2 * num)) / (1 + z**2 / num)
    width = z / (1 + z**2 / num) * jnp.sqrt(rate * (1 - rate) / num + (z / (2 * num)) ** 2)
    return Estimate(rate, centre - width, centre + width)

"""Bounds of W2 between the two laws of the samples from errors along the way.

Every bound couples both samplers by their noise. The Lipschitz constants are those of the
full-precision network: the quantized one is piecewise constant and has none. Hence the errors
are those at the states of the *quantized* sampler.
"""

import jax.numpy as jnp

from qdiffjax._checks import NOT_NEGATIVE, checked, require
from qdiffjax._typing import Array
from qdiffjax.analysis.bounds.pathwise import gronwall
from qdiffjax.diffusion import Process
from qdiffjax.diffusion.schedules import NoiseLevel
from qdiffjax.estimates import Estimate, mean_interval
from qdiffjax.labels import Kind, bound


@bound(Kind.DISTRIBUTIONAL, "gains valid at every x; same noise; local errors at quantized states")
@checked(gains=NOT_NEGATIVE, local_norms=NOT_NEGATIVE)
def minkowski_bound(gains, local_norms) -> Estimate:
    """Return the bound of W2 between the laws after every step, in units of x [N+1].

        W2 <= (E |delta|^2)^(1/2) <= sum_i (prod_{k > i} gains_k) (E |e_i|^2)^(1/2)

    Synchronous coupling and Minkowski's inequality, any sampler, stochastic ones with common noise.
    Attained by affine steps that multiply by their gain, with errors that are aligned and each
    the same for all samples. The interval carries the 95 % interval of each step's mean square.

    Args:
      gains: sup over x of |J_i| [N], such as `bounds.posterior_gains`.
      local_norms: |e_i| of independent samples [N, batch].
    """
    require(jnp.ndim(local_norms) == 2, "local_norms", got=f"shape {jnp.shape(local_norms)}",
            expected="[N, batch]", remedy="see errors.norms")  # fmt: skip
    squares = mean_interval(jnp.swapaxes(jnp.asarray(local_norms), 0, 1) ** 2)
    roots = (jnp.sqrt(jnp.maximum(leaf, 0)) for leaf in squares)
    gains = jnp.asarray(gains)
    return Estimate(*(gronwall(gains[:, None], root[:, None])[:, 0] for root in roots))


def score_rate(level: NoiseLevel, posterior) -> Array:
    """Return the one-sided Lipschitz constant of the exact score [*times], sup of its Hessian.

        L_s = (posterior - 1) / sigma^2

    from Hess log p_t = (N - I) / sigma^2, 0 <= N <= posterior I, N = Cov[x_0 | x_t] alpha^2 /
    sigma^2 (Tweedie). With `bounds.log_concave_posterior` it is -1 / (alpha^2 / m + sigma^2),
    negative: the score contracts. Exact for N(mean, I / m).

    Args:
      level: leaves [*times].
      posterior: bound of N at these levels, from `bounds` [*times].
    """
    return (posterior - 1) / level.sigma**2


@bound(Kind.DISTRIBUTIONAL, "score rates valid at every x; errors at the quantized sampler's law")
def score_error_bound(
    process: Process, times, score_rates, eps_rms, *, start=0.0, deterministic: bool = False
) -> Array:
    """Return the bound of W2 at times[0] between two reverse SDEs or ODEs, in units of x [].

        W2(t_0) <= int c g^2 I(t) (E |score_hat - score|^2)^(1/2) dt + I(T) W2(T),
        I(t) = exp int_{t_0}^t (L_f + c g^2 L_s),   L_f = -f,   c = 1 (SDE) or 1/2 (PF-ODE)

    Kwon, Fan & Lee 2022 in form; derived as follows. Under common noise |delta| obeys, backwards
    in t, |delta|' <= (L_f + c g^2 L_s) |delta| + c g^2 |score_hat - score| at the second state, L
    the one-sided Lipschitz constants of the first drift; Grönwall and Minkowski. Equality for
    isotropic Gaussian data and a constant error of eps. The integrals are trapezoid rules on the
    given times, second order; choose them fine, and in geometric progression towards t = 0.

    Args:
      process: the forward process.
      times: ascending [M], alpha > 0.
      score_rates: L_s of the full-precision score at these times [M]; see `score_rate`.
      eps_rms: (E |eps_hat - eps|^2)^(1/2) under the quantized sampler's laws [M].
      start: W2 at times[-1].
      deterministic: whether the samplers are PF-ODEs.
    """
    share = 0.5 if deterministic else 1.0
    rms = jnp.asarray(eps_rms)
    rates = process.exact_rates(times)
    drift, g2 = (jnp.asarray(a, rms.dtype) for a in rates)
    sigma = jnp.asarray(process.exact(times).sigma, rms.dtype)
    growth = share * g2 * jnp.asarray(score_rates) - drift
    widths = jnp.diff(jnp.asarray(times, rms.dtype))
    log_gain = jnp.concatenate([jnp.zeros(1, rms.dtype), jnp.cumsum(_panels(growth, widths))])
    integrand = share * g2 / sigma * rms * jnp.exp(log_gain)
    return jnp.sum(_panels(integrand, widths)) + jnp.exp(log_gain[-1]) * start


def _panels(values, widths) -> Array:
    """Return the trapezoids between neighbouring values [M] -> [M-1]."""
    return widths * (values[:-1] + values[1:]) / 2

"""Bounds of what the exact flow multiplies errors by, on data of a known class.

Levels are s = sigma_edm = sigma / alpha; errors are in x_t / alpha, in which the probability-flow
ODE of the optimal denoiser multiplies them by exp of the integral of (N - 1) / s over the s it
passes, N = Cov[x_0 | x_t] / s^2. In x_t itself multiply by alpha_s / alpha_t. The survey, sections
2.2 and 5, calls accumulation exponential: that is the exception, near boundaries between modes and,
for a mixture of N(mu_k, r^2 I) with |mu_k| <= R, below s^2 = R^2 - r^2. The same results for the
steps of a sampler are in bounds/pathwise.py.
"""

import jax.numpy as jnp

from qdiffjax._checks import NOT_NEGATIVE, POSITIVE, checked
from qdiffjax._typing import Array, float_dtype
from qdiffjax.labels import Kind, bound


@bound(
    Kind.CERTIFIED, "m-strongly log-concave data; |eps errors| <= eps_errors at every x; exact flow"
)
@checked(sigma_edm=NOT_NEGATIVE, eps_errors=NOT_NEGATIVE, strength=POSITIVE)
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
@checked(radius=NOT_NEGATIVE, std=NOT_NEGATIVE)
def mixture_flow_gain(sigma_edm, sigma_edm_end, radius, std) -> Array:
    """Return sup over x of |d x_s' / d x_s|_2 of the flow from level s down to s' [*levels].

        sqrt((r^2 + s'^2) / (r^2 + s^2)) exp( (R^2 / 2) (1 / (r^2 + s'^2) - 1 / (r^2 + s^2)) )

    for a mixture of N(mu_k, r^2 I) with |mu_k| <= R: the integral of the logarithmic norm
    (N - 1) / s with `bounds.mixture_posterior`, all s' from 0 up. Attained between two opposite
    centres. Special cases: R = 0 Gaussian data; r = 0 data in a ball of radius R and nothing
    else known, (s' / s) exp(R^2 (1/s'^2 - 1/s^2) / 2), attained by two opposite points, vacuous
    as s' -> 0. Of the continuous flow.
    """
    start, end = (std**2 + jnp.asarray(s) ** 2 for s in (sigma_edm, sigma_edm_end))
    return jnp.sqrt(end / start) * jnp.exp(radius**2 / 2 * (1 / end - 1 / start))


# ------------------------------------------------------------------ volumes


# ------------------------------------------------------------------ one dimension


# ------------------------------------------------------------------ mode flips

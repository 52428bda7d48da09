"""Bounds of the accumulated error, each with its assumption; none uses the error it bounds.

Errors travel by delta_{i+1} = F_i(x_hat_i) - F_i(x_i) + e_i, with F_i the full-precision step and
e_i the local error at the quantized run's state, in units of x, delta_0 = 0 at the noise end.

Pathwise bounds are valid along the run that was measured; sup bounds hold for every run on data
of a known class. The gains that they multiply are in gains/steps.py; those of the continuous flow
on such data in gains/flows.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import FROM_2, NOT_NEGATIVE, POSITIVE, check_numbers, checked, require
from qdiffjax._typing import Array, float_dtype
from qdiffjax.analysis.errors.runs import accumulate, norms
from qdiffjax.analysis.gains.steps import (
    check_scalar,
)
from qdiffjax.diffusion import DiscreteSchedule, Steps
from qdiffjax.labels import Kind, bound


@bound(Kind.ALONG_RUN, "gains_i >= |F_i(x_hat_i) - F_i(x_i)| / |x_hat_i - x_i|")
@checked(gains=NOT_NEGATIVE, local_norms=NOT_NEGATIVE)
def gronwall(gains, local_norms) -> Array:
    """Return the bound r of the accumulated error along the run, in units of x [N+1, batch].

        r_{i+1} = gains_i r_i + local_norms_i,   r_0 = 0

    The discrete Grönwall inequality (Hairer, Norsett & Wanner 1993, I.10). Bound, a posteriori
    along the run: |delta_i| <= r_i if gains_i >= |F_i(x_hat_i) - F_i(x_i)| / |delta_i|, for which
    `segment_gains` suffice when converged and their nodes catch the maximum on the segment. With
    gains valid everywhere (`posterior_gains`) it holds for every run. Attained when every step
    is the multiple gains_i of an isometry and all propagated local errors are aligned.

    Its root mean square over the batch bounds W2 of the two laws of the samples (synchronous
    coupling), up to sampling error.

    Args:
      gains: of each step [N, batch] or [N, 1], nonnegative.
      local_norms: |e_i| [N, batch].
    """
    local_norms = jnp.asarray(local_norms).astype(float_dtype(local_norms))
    is_fit = jnp.ndim(gains) == local_norms.ndim and all(
        g in (1, n) for g, n in zip(jnp.shape(gains), local_norms.shape, strict=True)
    )  # fmt: skip
    require(is_fit, "gains, local_norms, remainder_norms",
            got=(jnp.shape(gains), local_norms.shape), expected="[N, batch], or gains [N, 1]",
            remedy="add the missing axis")  # fmt: skip
    gains = jnp.broadcast_to(jnp.asarray(gains).astype(local_norms.dtype), local_norms.shape)
    zero = jnp.zeros_like(local_norms[0])
    return accumulate(lambda r, gain, local: gain * r + local, zero, gains, local_norms)


@checked(gains=NOT_NEGATIVE, curvature=NOT_NEGATIVE, lengths=NOT_NEGATIVE, num_nodes=FROM_2)
def gains_between_nodes(gains, curvature, lengths, num_nodes: int) -> Array:
    """Return gains that hold on whole segments, not only at their nodes [N, batch].

        max over the segment of |J_i| <= gains_i + M_i |x_hat_i - x_i| / (2 (num_nodes - 1))

    since no point is farther from a node than half their spacing. Without it `segment_gains` may
    miss a maximum, and `gronwall` then be no bound, where a segment crosses a narrow boundary.

    Args:
      gains: largest |J_i| at num_nodes equispaced nodes, both ends among them [N, batch].
      curvature: M_i >= |D^2 F_i| on the segment [N, batch] or [N, 1].
      lengths: |x_hat_i - x_i| [N, batch].
      num_nodes: at least 2.
    """
    return gains + curvature * lengths / (2 * (num_nodes - 1))


@bound(Kind.ALONG_RUN, "gains_i >= |J_i|_2 at the full-precision states")
@checked(gains=NOT_NEGATIVE, remainder_norms=NOT_NEGATIVE, first_order=check_numbers)
def remainder_bound(gains, remainder_norms, first_order) -> tuple[Array, Array]:
    """Return the bound of the error around its first-order prediction E, in units of x.

        |delta_i| <= |E_i| + R_i,   |delta_i - E_i| <= R_i,
        R_{i+1} = gains_i R_i + |rho_i|,   R_0 = 0,   E_{i+1} = J_i E_i + e_i

    Bound, a posteriori along the run: delta - E obeys the linear recursion with Jacobians J_i at
    the full-precision states x_i and the remainders rho_i = F_i(x_hat_i) - F_i(x_i) - J_i delta_i,
    so it only assumes converged gains_i >= |J_i|_2 there (`step_gains` at xs). Exact, R = 0, for
    affine steps.

    Args:
      gains: |J_i|_2 at the full-precision run [N, batch] or [N, 1].
      remainder_norms: |rho_i| [N, batch].
      first_order: E [N+1, batch, *shape].

    Returns:
      The bound |E| + R of |delta| and the radius R, both [N+1, batch].
    """
    radius = gronwall(gains, remainder_norms)
    return norms(jnp.asarray(first_order)).astype(radius.dtype) + radius, radius


@bound(Kind.CERTIFIED, "optimal denoiser; N <= posterior at every x")
@checked(posterior=NOT_NEGATIVE)
def posterior_gains(schedule: DiscreteSchedule, steps: Steps, posterior) -> Array:
    """Return sup over x of |J_i|_2 of the optimal denoiser's steps [N], any first-order sampler.

        J = (a + b / sigma) I - (b / sigma) N,   0 <= N <= posterior I

    with a = c.x, b = c.eps, and N = Cov[x_0 | x_t] / sigma_edm^2 = d E[x_0 | x_t] / d(x_t / alpha)
    (Tweedie). Bound for every run, valid for data whose N obeys it: `log_concave_posterior`,
    `mixture_posterior`. Attained by data for which the posterior bound is.

    Args:
      schedule: the forward process.
      steps: the sampler, leaves [N].
      posterior: upper bound of N at the levels of steps.t [N].

    Raises:
      ValueError: a sampler with memory or with matrix coefficients.
    """
    check_scalar(steps, "use step_gains instead")
    sigma = schedule(steps.t).sigma
    free = steps.coeffs.x + steps.coeffs.eps / sigma
    posterior = jnp.asarray(posterior).astype(free.dtype)
    return jnp.maximum(jnp.abs(free), jnp.abs(free - steps.coeffs.eps / sigma * posterior))


@bound(Kind.CERTIFIED, "m-strongly log-concave data")
@checked(strength=POSITIVE)
def log_concave_posterior(sigma_edm, strength) -> Array:
    """Return the bound 1 / (1 + m s^2) of N = Cov[x_0 | x_t] / s^2 for m-strongly log-concave data.

    Brascamp & Lieb 1976, theorem 4.1; s = sigma_edm [*times], m = strength > 0. Attained by
    N(mean, I / m).
    """
    return 1 / (1 + strength * sigma_edm**2)


@bound(Kind.CERTIFIED, "mixture of N(mu_k, r^2 I) with |mu_k| <= R")
@checked(radius=NOT_NEGATIVE, std=NOT_NEGATIVE)
def mixture_posterior(sigma_edm, radius, std) -> Array:
    """Return the bound of N = Cov[x_0 | x_t] / s^2 for a mixture of N(mu_k, r^2 I), |mu_k| <= R.

        r^2 / (r^2 + s^2) + s^2 R^2 / (r^2 + s^2)^2

    The spread within components and that of their centres, Cov_k(mu) <= R^2, the latter attained
    half-way between two opposite centres; s = sigma_edm [*times], R = radius, r = std.
    """
    total = std**2 + sigma_edm**2
    return std**2 / total + (sigma_edm * radius / total) ** 2


@bound(
    Kind.CERTIFIED,
    "m-strongly log-concave data; optimal denoiser; DDIM to level 0; eta_i at quantized states",
)
@checked(sigma_edm=NOT_NEGATIVE, eps_errors=NOT_NEGATIVE, strength=POSITIVE)
def log_concave_bound(sigma_edm, eps_errors, strength) -> Array:
    """Return the bound of the final error of DDIM on m-strongly log-concave data [*batch].

        |delta| <= sum_i (s_i - s_{i+1}) eta_i (1 + m s_{i+1}^2)^(-1/2),   s = sigma_edm

    where |eps_hat - eps| <= eta_i at the quantized run's states. Bound for every run with the
    optimal eps and final level s_N = 0; DDIM multiplies the error in x_t / alpha by at most
    (1 + m s s') / (1 + m s^2), which Cauchy-Schwarz bounds by the flow's
    sqrt((1 + m s'^2) / (1 + m s^2)), and the product telescopes. As steps shrink it tends to
    the integral of eta (1 + m s^2)^(-1/2) ds, attained by N(mean, I / m) with aligned errors.

    Args:
      sigma_edm: levels [N+1], descending.
      eps_errors: eta_i [N, *batch], in units of the noise.
      strength: m > 0.

    Raises:
      ValueError: concrete levels that do not descend to 0.
    """
    eps_errors = jnp.asarray(eps_errors)
    if not isinstance(sigma_edm, jax.core.Tracer):
        levels = np.asarray(sigma_edm)
        require(levels[-1] == 0 and np.all(np.diff(levels) < 0), "sigma_edm",
                got=f"levels from {levels[0]:.3g} to {levels[-1]:.3g}",
                expected="strictly descending to 0", remedy="append the last step")  # fmt: skip
    num = jnp.shape(sigma_edm)[0] - 1
    require(eps_errors.ndim >= 1 and eps_errors.shape[0] == num, "eps_errors",
            got=f"shape {eps_errors.shape}", expected=f"[{num}, ...], one for each step",
            remedy="levels are one more than steps")  # fmt: skip
    sigma = jnp.asarray(sigma_edm).astype(eps_errors.dtype)
    weights: Any = (sigma[:-1] - sigma[1:]) / jnp.sqrt(1 + strength * sigma[1:] ** 2)
    return jnp.tensordot(weights, eps_errors, axes=1, precision="highest")

"""How fast the KL of two laws grows that two deterministic flows carry.

Path laws of deterministic samplers are mutually singular, their path KL infinite; the KL of the
marginals is not. It obeys an identity that needs both scores.
"""

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.diffusion import float_dtype
from qdiffjax.diffusion.gaussian_laws import cast


def flow_kl_rate(velocity, velocity_hat, score, score_hat) -> Array:
    """Return the integrand of d KL(p_s || p_hat_s) / ds at samples of p_s [batch].

        d/ds KL(p_s || p_hat_s) = E_{p_s} [ (u - u_hat) . (grad log p_s - grad log p_hat_s) ]

    for densities carried by dx/ds = u and u_hat, from the two continuity equations and one
    integration by parts; either sign, 0 where u = u_hat. s runs in the direction of the flow.

    Args:
      velocity, velocity_hat: u(x), u_hat(x) [batch, *shape].
      score, score_hat: grad log p_s(x), grad log p_hat_s(x) [batch, *shape].
    """
    change = (velocity - velocity_hat) * (score - score_hat)
    return jnp.sum(change, axis=tuple(range(1, change.ndim)))


def gaussian_flow_kl_rate(law, law_hat, field, field_hat) -> Array:
    """Return d KL(p_s || p_hat_s) / ds of Gaussians carried by affine fields, closed form [].

        tr(D^T (C_hat^-1 C - I)) + (D m + d)^T C_hat^-1 (m - m_hat),   D = A - A_hat, d = a - a_hat

    the expectation in `flow_kl_rate` for p = N(m, C), p_hat = N(m_hat, C_hat), u = A x + a.

    Args:
      law, law_hat: (mean [n], covariance [n, n]).
      field, field_hat: (A [n, n], a [n]).
    """
    laws = (law, law_hat, field, field_hat)
    (m, c), (m_hat, c_hat), (a, b), (a_hat, b_hat) = cast(laws, float_dtype(law[0]))
    ratio = jnp.linalg.solve(c_hat, c) - jnp.eye(m.shape[0], dtype=m.dtype)
    drift = jnp.matmul(a - a_hat, m, precision="highest") + b - b_hat
    pull = jnp.linalg.solve(c_hat, m - m_hat)
    return jnp.sum((a - a_hat) * ratio) + jnp.sum(drift * pull)

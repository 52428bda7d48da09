"""The Sinkhorn divergence, by ott-jax, which is optional."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.analysis.divergences.transport import paired


def sinkhorn_divergence(
    x, y, epsilon: float, *, threshold: float = 1e-4, max_iterations: int = 2000
) -> Array:
    """Return the debiased entropic transport cost of two empirical laws [].

        S = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2,
        OT = min over couplings P of <C, P> + epsilon KL(P || a b^T),   C = |x_i - y_j|^2

    Convention: the cost is the square without 1/2 and epsilon is in its units, absolute, never
    relative to the spread of C. S tends to W2^2 of the empirical laws as epsilon -> 0 and to
    |mean x - mean y|^2 as epsilon -> infinity; it is 0 between equal sets (Feydy et al. 2019).
    nan where one of the three problems has not converged.

    Args:
      x: samples [num, *shape].
      y: samples [num, *shape].
      epsilon: positive.
      threshold: on the marginals' error, in total variation.
      max_iterations: of each problem.

    Raises:
      ImportError: if ott-jax is not installed.
    """
    tools: Any = _import_ott()
    x, y = paired(x, y)
    with _default_promotion():
        value, out = tools.sinkdiv(
            x, y, epsilon=epsilon,
            solve_kwargs={"threshold": threshold, "max_iterations": max_iterations},
        )  # fmt: skip
    return jnp.where(jnp.all(jnp.stack([jnp.asarray(c) for c in out.converged])), value, jnp.nan)


def _import_ott():
    try:
        from ott.tools import sinkhorn_divergence as tools
    except ImportError as error:
        raise ImportError(
            "got no ott-jax, expected it for Sinkhorn divergences; pip install ott-jax, or use "
            "sliced_w2_squared and assignment_w2_squared"
        ) from error
    return tools


@contextlib.contextmanager
def _default_promotion():
    """ott-jax relies on JAX's default promotions, whatever the caller's."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield

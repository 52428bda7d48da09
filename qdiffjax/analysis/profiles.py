"""Which steps matter: by KL, and by the error of the final sample. They need not agree.

Steps are counted from the noise end. KL sees a local error next to the noise of its own step;
the final sample sees what the remaining steps leave of it.
"""

from typing import NamedTuple

import jax.numpy as jnp

from qdiffjax._typing import Array


class EndShares(NamedTuple):
    """Shares of a profile in its first and in its last steps []."""

    first: Array
    last: Array


class Conflict(NamedTuple):
    """The shares by KL, and by the mean square of the final error."""

    kl: EndShares
    error: EndShares


def error_profile(terms) -> Array:
    """Return what each step contributes to the mean square of the final error [N].

        E <term_i, delta>,   delta = sum_i term_i;   they sum to E |delta|^2

    Signed: a step may undo what others did. Coherent errors count with their alignment, which
    E |term_i|^2 would miss.

    Args:
      terms: contributions that sum to the final error, such as `propagation.fan`
        [N, batch, *shape].
    """
    terms = jnp.asarray(terms)
    products = terms * jnp.sum(terms, axis=0, keepdims=True)
    return jnp.mean(jnp.sum(products, axis=tuple(range(2, terms.ndim))), axis=1)


def end_shares(profile, fraction: float = 0.1) -> EndShares:
    """Return the shares of the first and of the last `fraction` of the steps, profile [N].

    A step that is cut by the fraction counts in proportion.

    Raises:
      ValueError: if the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"got fraction = {fraction}, expected a part of the steps in (0, 1]")
    profile = jnp.asarray(profile)
    steps_before = jnp.arange(profile.size).astype(profile.dtype)
    counted = jnp.clip(fraction * profile.size - steps_before, 0, 1)
    total = jnp.sum(profile)
    return EndShares(jnp.sum(counted * profile) / total, jnp.sum(counted[::-1] * profile) / total)


def conflict(kl_terms, error_terms, fraction: float = 0.1) -> Conflict:
    """Return the shares of the first and last steps by both metrics, of one stochastic sampler.

    Args:
      kl_terms: of `divergences.path_kl` [N, batch].
      error_terms: contributions to the final error on the same steps [N, batch, *shape].
      fraction: see `end_shares`.
    """
    kl = jnp.mean(jnp.asarray(kl_terms), axis=1)
    return Conflict(end_shares(kl, fraction), end_shares(error_profile(error_terms), fraction))

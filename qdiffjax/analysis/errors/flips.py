"""Samples that end in another mode: how many, and the errors of either kind."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.analysis.errors.runs import norms
from qdiffjax.estimates import Estimate


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


def _wilson(hits) -> Estimate:
    """Return the mean of hits [num] of 0 and 1 with its 95 % interval; Wilson 1927."""
    num, z = hits.shape[0], 1.96
    rate = jnp.mean(hits)
    centre = (rate + z**2 / (2 * num)) / (1 + z**2 / num)
    width = z / (1 + z**2 / num) * jnp.sqrt(rate * (1 - rate) / num + (z / (2 * num)) ** 2)
    return Estimate(rate, centre - width, centre + width)

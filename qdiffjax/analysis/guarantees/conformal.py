"""What the score of the next random sample does not exceed."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from qdiffjax._checks import OPEN_SHARE, SAMPLES, checked, optional, require
from qdiffjax.labels import Kind, bound


class Conformal(NamedTuple):
    """A bound of the next sample's score.

    bound: q [*shape], the rank-th smallest of num scores; alpha, delta: as they were asked for;
    coverage: what P(next score <= q | these scores) is at least, with probability 1 - delta over
    the scores; None without delta.
    """

    bound: Any
    rank: int
    num: int
    alpha: float
    delta: float | None
    coverage: float | None


@checked(alpha=OPEN_SHARE)
def samples_needed(alpha: float) -> int:
    """Return the fewest scores that support a bound at level alpha: ceil(1 / alpha) - 1."""
    return math.ceil(1 / _exact(alpha)) - 1


@bound(Kind.GUARANTEED, "the next score and these are exchangeable: fresh noise, drawn alike")
@checked(scores=SAMPLES, alpha=OPEN_SHARE, delta=optional(OPEN_SHARE))
def conformal_bound(scores, alpha: float, delta: float | None = None) -> Conformal:
    """Return what the score of one more random sample exceeds with probability at most alpha.

        q = the k-th smallest of n scores,   k = ceil((n + 1) (1 - alpha)),
        1 - alpha <= P(E_{n+1} <= q) <= 1 - alpha + 1 / (n + 1)

    the upper end for scores without ties. The probability is over the n scores and the next one.
    Given the scores, coverage is a random number of law Beta(k, n + 1 - k), stochastically larger
    with ties, whose delta-quantile is in the result.

    Args:
      scores: of independent noises [num, *shape], any numbers.
      alpha: probability of more.
      delta: probability that these scores are a bad draw; None leaves it out.

    Raises:
      ValueError: fewer scores than alpha needs, for which only infinity is a bound.

    Source: Vovk, Gammerman & Shafer, Algorithmic learning in a random world, 2005; Vovk,
    Conditional validity of inductive conformal predictors, 2012 (the Beta law).
    """
    scores = np.asarray(scores, np.float64)
    num = len(scores)
    rank = math.ceil((num + 1) * (1 - _exact(alpha)))
    require(rank <= num, "scores", got=f"{num} of them at alpha = {alpha:g}",
            expected=f"at least {samples_needed(alpha)}, the bound being infinite below",
            remedy="score more samples, or promise less")  # fmt: skip
    value = np.partition(scores, rank - 1, axis=0)[rank - 1]
    if delta is None:
        return Conformal(value, rank, num, alpha, None, None)
    from scipy import stats

    return Conformal(value, rank, num, alpha, delta,
                     float(stats.beta.ppf(delta, rank, num + 1 - rank)))  # fmt: skip


def _exact(alpha: float) -> Fraction:
    """Return the decimal that a float is written as, so that 20 * 0.95 is 19 and no more."""
    return Fraction(str(float(alpha)))

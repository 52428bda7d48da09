"""Which of several recipes keep a promise: p-values at finite n, tests in an order fixed before."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import OPEN_SHARE, SAMPLES, check_number, checked, require
from qdiffjax.analysis.guarantees.means import log_wealth, over_most
from qdiffjax.labels import Kind, bound

TUNED_FOR = 0.05  # the level that bets are made for; a p-value holds at every level


class FixedSequence(NamedTuple):
    """What a test in a fixed order found.

    passed: names whose promise holds, all of them with probability 1 - delta; failed: the first
    whose promise was not shown, None if there is none; delta: the level.
    """

    passed: tuple[str, ...]
    failed: str | None
    delta: float


def _check_promise(promise, most) -> None:
    check_number("promise", promise, above=0, most=most,
                 remedy="promise a mean that the score can have")  # fmt: skip


@bound(Kind.GUARANTEED, "independent scores in [0, most]; promise fixed before they are drawn")
@checked(scores=SAMPLES)
def betting_p_value(scores, promise: float, most: float = 1.0):
    """Return a p-value of "the mean of the score is `promise` or more" [*shape].

        p = 1 / max_t K_t(promise),   P(p <= u) <= u for every u if the mean is that large

    see `log_wealth`, and `betting_upper` for the arguments.

    Raises:
      ValueError: a score outside of [0, most], a promise that is not in (0, most].
    """
    x = over_most(scores, most)
    _check_promise(promise, most)
    return np.exp(-log_wealth(x, promise / most, TUNED_FOR))


@bound(Kind.GUARANTEED, "independent scores in [0, most]; promise fixed before they are drawn")
@checked(scores=SAMPLES)
def hoeffding_bentkus_p_value(scores, promise: float, most: float = 1.0):
    """Return a p-value of "the mean of the score is `promise` or more" [*shape], from their mean.

        p = min(exp(-n h(min(mean, a), a)), e P(Binomial(n, a) <= ceil(n mean))),  a = promise

    over `most`, with h(p, q) = p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)). Nothing hangs on the
    order of the scores; knows not their variance. Source: Bates et al., Distribution-free
    risk-controlling prediction sets, 2021; Angelopoulos et al., Learn then test, 2021.

    Raises:
      ValueError: a score outside of [0, most], a promise that is not in (0, most].
    """
    from scipy import special, stats

    x = over_most(scores, most)
    _check_promise(promise, most)
    a = promise / most
    num, mean = len(x), np.mean(x, axis=0)
    below = np.minimum(mean, a)
    divergence = special.rel_entr(below, a) + special.rel_entr(1 - below, 1 - a)
    tail = math.e * stats.binom.cdf(np.ceil(num * mean), num, a)
    return np.minimum(1.0, np.minimum(np.exp(-num * divergence), tail))


@bound(Kind.GUARANTEED, "independent scores; tolerance and share fixed before they are drawn")
@checked(scores=SAMPLES, share=OPEN_SHARE)
def share_p_value(scores, tolerance: float, share: float):
    """Return a p-value of "a share of `share` or more of all samples exceeds the tolerance".

        p = P(Binomial(n, share) <= number of scores above the tolerance)

    [*shape], exact. Scores need no bounds: heavy tails cost nothing.

    Args:
      scores: of independent noises [num, *shape].
      tolerance: what a score may be.
      share: of samples that may exceed it.
    """
    check_number("tolerance", tolerance)
    from scipy import stats

    scores = np.asarray(scores, np.float64)
    return stats.binom.cdf(np.sum(scores > tolerance, axis=0), len(scores), share)


@bound(Kind.GUARANTEED, "valid p-values; order, promises and delta fixed before the test noise")
@checked(delta=OPEN_SHARE)
def fixed_sequence(p_values: Mapping[str, float], delta: float) -> FixedSequence:
    """Return which recipes keep their promises, tested in the order of `p_values`.

    Each is tested at level delta, until the first that fails. With probability 1 - delta *all*
    that passed keep their promises, with no price for their number, though all may be scored on
    the same noises: a wrong one passes only if the first wrong one does. Begin with what is
    forecast to be best. A bound *of the chosen one's score* on the same noises is not valid.

    Args:
      p_values: by name, of "the promise is broken"; in an order fixed without their noises.
      delta: probability that any recipe that passed breaks its promise.

    Raises:
      ValueError: none, or what is no probability.

    Source: Maurer, Hothorn & Lehmacher 1995; Angelopoulos et al., Learn then test, 2021.
    """
    require(p_values, "p_values", got="none", expected="one for each recipe",
            remedy="name at least one recipe")  # fmt: skip
    for name, p in p_values.items():
        check_number(f"p_values[{name!r}]", p, least=0, most=1)
    passed: list[str] = []
    for name, p in p_values.items():
        if p > delta:
            return FixedSequence(tuple(passed), name, delta)
        passed.append(name)
    return FixedSequence(tuple(passed), None, delta)

"""What the mean of a bounded score does not exceed, at finite n and whatever its law."""

import functools
import math
from collections.abc import Callable

import numpy as np

from qdiffjax._checks import (
    FUNCTION,
    OPEN_SHARE,
    POSITIVE,
    SAMPLES,
    check_count,
    check_number,
    check_numbers,
    checked,
    require,
)
from qdiffjax.labels import Kind, bound

NUM_HALVINGS = 60  # of [0, 1]: the mean to the last digit


def over_most(scores, most) -> np.ndarray:
    """Return scores over `most`, refused outside of [0, 1]."""
    scores = np.asarray(scores, np.float64)
    check_number("scores", scores, least=0, most=most,
                 remedy="clip what is scored to a stated box, and pass its bound as `most`",
                 )  # fmt: skip
    return scores / most


def log_wealth(scores, mean, delta: float) -> np.ndarray:
    """Return the log of the most that bets against a mean of at least `mean` came to [*shape].

        K_t = prod_{i <= t} (1 + l_i (m - X_i)),   l_i = min(1, sqrt(2 ln(1 / delta) / (n v_{i-1})))

    with v_i the mean of 1/4 and the squared deviations of the first i scores from their running
    means, which begin at 1/2. A bet hangs on earlier scores alone, so K is a supermartingale with
    start 1 if the mean is at least m, and P(max_t K_t >= 1 / u) <= u (Ville), whatever the law in
    [0, 1]. l <= 1 keeps every factor at 0 or more and K rising in m.

    Args:
      scores: in [0, 1], in the order in which they were drawn [num, *shape].
      mean: m [*shape].
      delta: the level that the bets are made for; the law above holds for every u.

    Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, 2024,
    the predictable plug-in, one-sided.
    """
    x = np.asarray(scores, np.float64)
    num = len(x)
    counts = np.arange(2, num + 2, dtype=np.float64).reshape(-1, *[1] * (x.ndim - 1))
    means = (0.5 + np.cumsum(x, axis=0)) / counts
    variances = (0.25 + np.cumsum((x - means) ** 2, axis=0)) / counts
    before = np.concatenate([np.full_like(variances[:1], 0.25), variances[:-1]])
    bets = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (num * before)))
    with np.errstate(divide="ignore"):  # a bet of all on m = 0 against a score of 1
        gains = np.cumsum(np.log1p(bets * (np.asarray(mean, np.float64) - x)), axis=0)
    return np.maximum(np.max(gains, axis=0), 0.0)


@bound(Kind.GUARANTEED, "independent scores in [0, most]")
@checked(scores=SAMPLES, delta=OPEN_SHARE, most=POSITIVE)
def betting_upper(scores, delta: float, most: float = 1.0):
    """Return what the mean of a score exceeds with probability at most delta [*shape].

    The largest mean that bets do not refute: U = sup {m: max_t K_t(m) < 1 / delta}, see
    `log_wealth`. About mean + sqrt(2 v ln(1 / delta) / n) for scores of variance v, and never
    below about most ln(1 / delta) / n, see `mean_floor`.

    Args:
      scores: in [0, most], in the order in which they were drawn [num, *shape].
      delta: probability of more.
      most: what no score can exceed, known before they were drawn.

    Raises:
      ValueError: a score outside of [0, most].
    """
    x = over_most(scores, most)
    low, high = np.zeros(x.shape[1:]), np.ones(x.shape[1:])
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        refuted = log_wealth(x, middle, delta) >= math.log(1 / delta)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return most * high


@bound(Kind.GUARANTEED, "independent scores in [0, most]")
@checked(scores=functools.partial(check_numbers, least_rank=1, least_size=2), delta=OPEN_SHARE,
         most=POSITIVE)  # fmt: skip
def bernstein_upper(scores, delta: float, most: float = 1.0):
    """Return what the mean of a score exceeds with probability at most delta, by its variance.

        U = mean + sqrt(2 v ln(2 / delta) / n) + 7 most ln(2 / delta) / (3 (n - 1))

    [*shape], v the unbiased variance; nothing hangs on the order of the scores. Wider than
    `betting_upper`. Source: Maurer & Pontil, Empirical Bernstein bounds, 2009, theorem 4.

    Args:
      scores: in [0, most] [num, *shape].
      delta, most: as for `betting_upper`.

    Raises:
      ValueError: a score outside of [0, most], fewer than two.
    """
    x = over_most(scores, most)
    level, num = math.log(2 / delta), len(x)
    width = np.sqrt(2 * np.var(x, axis=0, ddof=1) * level / num) + 7 * level / (3 * (num - 1))
    return most * np.minimum(np.mean(x, axis=0) + width, 1.0)


@checked(scores=SAMPLES, delta=OPEN_SHARE, most=POSITIVE, upper_fn=FUNCTION)
def mean_bounds(scores, delta: float, most: float = 1.0, upper_fn: Callable = betting_upper):
    """Return (low, high) that hold the mean of a score with probability 1 - delta, each [*shape].

    Each end fails with probability delta / 2 at most; the lower one is the upper one of
    most - scores.

    Args:
      scores, delta, most: as for `betting_upper`.
      upper_fn: (scores, delta, most) -> bound, `betting_upper` or `bernstein_upper`.
    """
    scores = np.asarray(scores, np.float64)
    high = upper_fn(scores, delta / 2, most)
    return most - upper_fn(most - scores, delta / 2, most), high


@checked(num=check_count, delta=OPEN_SHARE, most=POSITIVE)
def mean_floor(num: int, delta: float, most: float = 1.0) -> float:
    """Return what no valid upper bound of a mean undercuts, even if all scores are zero.

        most (1 - delta^(1 / n)), about most ln(1 / delta) / n

    A score that is `most` with a smaller probability than 1 - delta^(1/n), and else zero, shows
    nothing but zeros more often than delta.
    """
    return most * -math.expm1(math.log(delta) / num)


@checked(mean=POSITIVE, target=POSITIVE, delta=OPEN_SHARE, most=POSITIVE)
def samples_for_mean(mean: float, target: float, delta: float, most: float = 1.0) -> int:
    """Return how many scores near `mean` take `betting_upper` down to `target`.

    To be asked before they are drawn: exact for scores that all equal the mean; those that vary
    need more. Never below most ln(1 / delta) / (target - mean), about.

    Raises:
      ValueError: a target at or below the mean, or beyond `most`.
    """
    require(mean < target <= most, "target", got=f"{target:g} for a mean of {mean:g}",
            expected=f"more than the mean, at most {most:g}", remedy="ask for less")  # fmt: skip

    def reaches(num: int) -> bool:
        wealth = log_wealth(np.full(num, mean / most), target / most, delta)
        return bool(wealth >= math.log(1 / delta))

    high = max(1, math.ceil(-math.log(delta) / math.log1p((target - mean) / most)))
    low = high - 1  # a factor is at most 1 + (target - mean) / most, so that fewer never reach it
    while not reaches(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high

"""What the field does within a budget, to stand beside `recommend`: a pick from scores and costs.

    dear_ends        first and last sites at the dearest choice there is, the others alike
    additive         one number for each site and choice, squares added: HAWQ's, Fisher's, MixDQ's
    random_search    the best of recipes at random, by any score
    evolution        a small genetic search, by any score

A score is a function of a pick: what the algebra forecasts (`ErrorAlgebra.predicted`), which costs
nothing more, or an error that is measured (`Trial.rmse`), at a sampling run each.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from qdiffjax._checks import check_count, require
from qdiffjax.strategies.allocation import choose
from qdiffjax.strategies.choices import Choices
from qdiffjax.strategies.recommendation import uniform_picks

ScoreFn = Callable[[np.ndarray], float]


def dear_ends(choices: Choices, total: float, *, num_ends: int = 1) -> np.ndarray:
    """Return the pick whose first and last sites have the dearest choice that can be afforded.

    The others have the dearest one that all of them fit in, and with what is left of the budget the
    next dearer at the smallest sites, as `recommend` does for uniform.

    Args:
      choices: the sites in the order of evaluation.
      total: the budget, in the choices' costs.
      num_ends: sites at either end.

    Raises:
      ValueError: no others, or a budget below the cheapest such pick.
    """
    num = len(choices.sites)
    check_count("num_ends", num_ends)
    require(2 * num_ends < num, "num_ends", got=num_ends, expected=f"less than half of {num} sites",
            remedy="take fewer")  # fmt: skip
    rows = np.arange(num_ends, num - num_ends)
    rest = dataclasses.replace(
        choices, sites=tuple(choices.sites[i] for i in rows), costs=choices.costs[rows],
        bits=choices.bits[rows], num_weights=choices.num_weights[rows],
    )  # fmt: skip
    ends = np.delete(choices.costs, rows, 0).sum(0)
    least = ends.min() + rest.least
    require(least <= total, "budget", got=f"{total:g} {choices.unit}",
            expected=f"at least {least:g}, the cheapest with ends alike",
            remedy="raise it, or offer cheaper choices")  # fmt: skip
    dearest = int(np.where(ends + rest.least <= total, ends, -np.inf).argmax())
    pick = np.full(num, dearest)
    pick[rows] = uniform_picks(rest, total - ends[dearest])[-1]
    return pick


def additive(choices: Choices, squares, total: float) -> np.ndarray:
    """Return the pick of least sum of a number for each site and choice: the exact optimum.

        HAWQ-V2    tr H_l |dw_l(b)|^2 / n_l      `hessian_traces`, `Choices.weight_rmse`
        Fisher     tr F_l |dw_l(b)|^2 / n_l      `Sensitivity.fisher`, squared
        MixDQ      mean square error of samples with site l alone at b: `ErrorAlgebra.alone`,
                   squared (Zhao et al. 2024 take a metric of samples for each of two groups)

    Args:
      choices: of the sites.
      squares: [sites, choices]; below 0 is taken for 0, infinite where not offered.
      total: the budget, in the choices' costs.
    """
    return choose(choices.costs, np.maximum(np.asarray(squares, np.float64), 0.0), total).choice


def drawn(choices: Choices, total: float, rng: np.random.Generator, pick=None) -> np.ndarray:
    """Return a pick at random that fills the budget, or one made to fit: cheaper one step at a time
    at sites at random while it is too dear, then dearer while any step fits.
    """
    order = np.argsort(choices.costs, 1, kind="stable")
    ranks = np.argsort(order, 1)
    least, most = np.zeros(len(order), int), np.isfinite(choices.costs).sum(1) - 1
    rows = np.arange(len(order))
    place = rng.integers(least, most, endpoint=True) if pick is None else ranks[rows, pick]

    def cost(place):
        return choices.costs[rows, order[rows, place]].sum()

    while cost(place) > total and (place > least).any():
        place[rng.choice(np.flatnonzero(place > least))] -= 1
    open_sites = list(np.flatnonzero(place < most))
    while open_sites:
        site = open_sites[rng.integers(len(open_sites))]
        place[site] += 1
        if cost(place) > total:
            place[site] -= 1
            open_sites.remove(site)
        elif place[site] == most[site]:
            open_sites.remove(site)
    return order[rows, place]


def random_search(
    choices: Choices, score_fn: ScoreFn, total: float, num_scores: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the best of `num_scores` picks at random within a budget."""
    check_count("num_scores", num_scores)
    return min((drawn(choices, total, rng) for _ in range(num_scores)), key=score_fn)


def evolution(
    choices: Choices, score_fn: ScoreFn, total: float, num_scores: int, rng: np.random.Generator,
    *, population: int = 16, share: float = 0.08,
) -> np.ndarray:  # fmt: skip
    """Return the best pick that a genetic search finds in `num_scores` scores.

    It starts at picks at random within the budget. Then, one at a time, two parents, each the
    better of two drawn, give each site the choice of either; a site changes at random with
    probability `share`; the child is made to fit (`drawn`), and one that has been scored gives way
    to a pick at random. It takes the place of the worst, if it is better.

    Args:
      choices: of the sites.
      score_fn: the lower the better.
      total: the budget, in the choices' costs.
      num_scores: in all.
      rng: of everything random.
      population: picks that are kept.
      share: of the sites that change.
    """
    check_count("num_scores", num_scores)
    check_count("population", population, least=2)
    picks = [drawn(choices, total, rng) for _ in range(min(population, num_scores))]
    scores = [score_fn(pick) for pick in picks]

    def parent():
        return picks[min(rng.integers(len(picks), size=2), key=lambda i: scores[i])]

    seen = {tuple(pick) for pick in picks}
    offered = [np.flatnonzero(np.isfinite(row)) for row in choices.costs]
    for _ in range(num_scores - len(picks)):
        child = np.where(rng.random(len(offered)) < 0.5, parent(), parent())
        for site in np.flatnonzero(rng.random(len(offered)) < share):
            child[site] = rng.choice(offered[site])
        child = drawn(choices, total, rng, child)
        if tuple(child) in seen:
            child = drawn(choices, total, rng)
        seen.add(tuple(child))
        score, worst = score_fn(child), int(np.argmax(scores))
        if score < scores[worst]:
            picks[worst], scores[worst] = child, score
    return picks[int(np.argmin(scores))]

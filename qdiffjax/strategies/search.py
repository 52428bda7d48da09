"""One choice for each item where errors add as vectors: a quadratic problem within a budget.

    min over picks c of   sum_{l,m} K[(l, c_l), (m, c_m)] + sum_l v[l, c_l]
    such that             sum_l cost[l, c_l] <= budget

    choose_exhaustively    every pick there is                        exact, for few items
    choose_together        descent by one or two changes              no worse than its starts
    relaxed_together       fractions of choices, a convex problem     no pick has less

Everything is NumPy float64.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import check_count, check_number, check_numbers, require
from qdiffjax.labels import Kind, bound
from qdiffjax.strategies.allocation import Allocation, choose, relaxed_choice

MAX_PICKS = 2_000_000
TINY = 1e-12  # of the scale of the objective, below which a change is none


class Problem(NamedTuple):
    """What is to be minimised, checked and flat.

    costs [items, choices]: infinite for a choice that does not exist; gram
    [items * choices, items * choices]; variances [items * choices]; budget.
    """

    costs: np.ndarray
    gram: np.ndarray
    variances: np.ndarray
    budget: float

    @property
    def places(self) -> np.ndarray:
        """Where the choices of each item begin."""
        return np.arange(len(self.costs)) * self.costs.shape[1]

    def value(self, pick) -> float:
        """Return the objective of a pick [items]."""
        taken = self.places + pick
        return float(self.gram[np.ix_(taken, taken)].sum() + self.variances[taken].sum())

    def cost(self, pick) -> float:
        """Return the cost of a pick [items]."""
        return float(self.costs.ravel()[self.places + pick].sum())

    def allocation(self, pick) -> Allocation:
        """Return a pick with its cost and its error."""
        return Allocation(np.asarray(pick), self.cost(pick), self.value(pick))


def problem(costs, gram, budget: float, variances=None) -> Problem:
    """Check the tables of a problem, see above.

    Args:
      costs: [items, choices], infinite for what does not exist.
      gram: [items, choices, items, choices], symmetric, positive semidefinite.
      budget: on the sum of costs.
      variances: [items, choices], not negative; None is zeros.

    Raises:
      ValueError: shapes that differ, numbers that are not finite, a budget below the cheapest pick.
    """
    check_numbers("costs", costs, finite=False)
    check_numbers("gram", gram)
    costs, gram = np.asarray(costs, np.float64), np.asarray(gram, np.float64)
    require(costs.ndim == 2 and gram.shape == costs.shape * 2, "costs, gram",
            got=(costs.shape, gram.shape), expected="[items, choices] and that twice",
            remedy="give the Gram matrix of every item's choices")  # fmt: skip
    require(not np.isnan(costs).any(), "costs", got="NaN", expected="numbers",
            remedy="write infinity for a choice that does not exist")  # fmt: skip
    flat = gram.reshape(costs.size, costs.size)
    require(np.allclose(flat, flat.T, rtol=1e-6, atol=1e-9 * np.abs(flat).max()), "gram",
            got="a matrix that is not symmetric", expected="inner products",
            remedy="pass (K + K.T) / 2")  # fmt: skip
    if variances is not None:
        check_number("variances", variances, least=0)
    v = np.zeros(costs.size) if variances is None else np.asarray(variances, np.float64).ravel()
    require(v.size == costs.size, "variances", got=v.size, expected=f"{costs.size} numbers",
            remedy="one for each item and choice")  # fmt: skip
    check_number("budget", budget)
    least = costs.min(1).sum()
    require(least <= budget, "budget", got=f"{budget:g}", expected=f"at least {least:g}, the "
            "cheapest", remedy="raise it, or offer cheaper choices")  # fmt: skip
    return Problem(costs, (flat + flat.T) / 2, v, float(budget))


def choose_exhaustively(costs, gram, budget: float, *, variances=None) -> Allocation:
    """Return the best pick of all there are.

    Raises:
      ValueError: more than `MAX_PICKS` picks.
    """
    p = problem(costs, gram, budget, variances)
    options = [np.flatnonzero(np.isfinite(row)) for row in p.costs]
    num = int(np.prod([float(len(o)) for o in options]))
    require(num <= MAX_PICKS, "choose_exhaustively", got=f"{num} picks",
            expected=f"at most {MAX_PICKS}", remedy="use `choose_together`")  # fmt: skip
    picks = np.stack([g.ravel() for g in np.meshgrid(*options, indexing="ij")], 1)
    flat = p.costs.ravel()
    picks = picks[flat[picks + p.places].sum(1) <= p.budget]
    best: tuple[float, np.ndarray] = (np.inf, picks[0])
    for part in np.array_split(picks, max(1, len(picks) // 4096)):
        if not len(part):
            continue
        x = np.zeros((len(part), flat.size))
        np.put_along_axis(x, part + p.places, 1.0, 1)
        values = np.einsum("ij,ij->i", x @ p.gram, x) + x @ p.variances
        k = int(np.argmin(values))
        best = min(best, (float(values[k]), part[k]), key=lambda pair: pair[0])
    return p.allocation(best[1])


def choose_together(
    costs, gram, budget: float, *, variances=None, starts: Iterable = (), num_kicks: int = 60,
    seed: int = 0,
) -> Allocation:  # fmt: skip
    """Return the best pick that descent finds: no better one differs at one item, or at two.

    Starts are those given, all choices alike where that is within the budget, the cheapest pick,
    and the optimum of the diagonal (`choose`), which is that of errors which do not correlate. The
    best is then kicked: some of its items, or every second time all, are drawn anew, and it
    descends again.

    Args:
      costs, gram, budget, variances: see `problem`.
      starts: further picks [items].
      num_kicks: how often.
      seed: of the kicks.

    Raises:
      ValueError: as `problem`; starts of another shape.
    """
    p = problem(costs, gram, budget, variances)
    check_count("num_kicks", num_kicks, least=0)
    items, num = p.costs.shape
    diagonal = (np.diag(p.gram) + p.variances).reshape(items, num)
    first = [np.asarray(start, int) for start in starts]
    for start in first:
        require(start.shape == (items,), "starts", got=f"shape {start.shape}",
                expected=f"({items},)", remedy="one choice for each item")  # fmt: skip
    first += [np.full(items, k) for k in range(num) if p.costs[:, k].sum() <= p.budget]
    first += [p.costs.argmin(1), choose(p.costs, diagonal, p.budget).choice]
    best = min((_descend(p, _afforded(p, start)) for start in first), key=p.value)
    rng = np.random.default_rng(seed)
    options = [np.flatnonzero(np.isfinite(row)) for row in p.costs]
    for number in range(num_kicks):
        kicked = best.copy()
        size = items if number % 2 else rng.integers(2, max(3, items // 3), endpoint=True)
        for item in rng.choice(items, size=min(items, size), replace=False):
            kicked[item] = rng.choice(options[item])
        found = _descend(p, _afforded(p, kicked))
        if p.value(found) < p.value(best):
            best = found
    return p.allocation(best)


def _afforded(p: Problem, pick: np.ndarray) -> np.ndarray:
    """Return the pick, changed at its cheapest loss for each unit of cost until it fits."""
    pick = pick.copy()
    while p.cost(pick) > p.budget:
        change, dearer = _changes(p, pick)
        price = np.where(dearer < 0, change / np.where(dearer < 0, -dearer, 1), np.inf)
        item, k = np.unravel_index(np.argmin(price), price.shape)
        pick[item] = k
    return pick


def _changes(p: Problem, pick: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what changing one item does to the objective and to the cost [items, choices]."""
    taken = p.places + pick
    total = p.gram[:, taken].sum(1)
    own = np.repeat(taken, p.costs.shape[1])
    diagonal = np.diag(p.gram)
    cross = p.gram[np.arange(len(own)), own]
    change = 2 * (total - total[own]) + diagonal + diagonal[own] - 2 * cross
    change = change + p.variances - p.variances[own]
    dearer = p.costs.ravel() - p.costs.ravel()[own]
    shape = p.costs.shape
    return np.where(np.isfinite(dearer), change, np.inf).reshape(shape), dearer.reshape(shape)


def _descend(p: Problem, pick: np.ndarray) -> np.ndarray:
    """Change the best one item, else the best two, until nothing within the budget is better."""
    pick = pick.copy()
    num = p.costs.shape[1]
    floor = -TINY * max(np.diag(p.gram).max(), TINY)
    while True:
        change, dearer = _changes(p, pick)
        left = p.budget - p.cost(pick)
        alone = np.where(dearer <= left, change, np.inf)
        if alone.min() < floor:
            item, k = np.unravel_index(np.argmin(alone), alone.shape)
            pick[item] = k
            continue
        pair = _best_pair(p, pick, change.ravel(), dearer.ravel(), left)
        if pair is None or pair[0] >= floor:
            return pick
        for j in pair[1:]:
            pick[j // num] = j % num


def _best_pair(p: Problem, pick, change, dearer, left) -> tuple[float, int, int] | None:
    """Return (change of the objective, two choices) of the best change of two items."""
    num, taken = p.costs.shape[1], p.places + pick
    usable = np.flatnonzero(np.isfinite(change) & (np.arange(len(change)) != np.repeat(taken, num)))
    own = np.repeat(taken, num)[usable]
    gram = p.gram
    inner = gram[np.ix_(usable, usable)] - gram[np.ix_(usable, own)]
    inner += gram[np.ix_(own, own)] - gram[np.ix_(own, usable)]
    both = change[usable][:, None] + change[usable] + 2 * inner
    item = usable // num
    is_open = (item[:, None] < item) & (dearer[usable][:, None] + dearer[usable] <= left)
    if not is_open.any():
        return None
    both = np.where(is_open, both, np.inf)
    i, j = np.unravel_index(np.argmin(both), both.shape)
    return float(both[i, j]), int(usable[i]), int(usable[j])


class RelaxedTogether(NamedTuple):
    """A bound of every pick's objective from below.

    error: no pick within the budget has less; shares [items, choices]: of the relaxation; num:
    iterations.
    """

    error: float
    shares: np.ndarray
    num: int


@bound(Kind.COUNTED, "a positive semidefinite Gram matrix; a lower bound of every pick's error")
def relaxed_together(
    costs, gram, budget: float, *, variances=None, num_iterations: int = 200,
    tolerance: float = 1e-3,
) -> RelaxedTogether:  # fmt: skip
    """Return a lower bound of the objective: fractions of choices are allowed.

        f(x) = x^T (K - t D) x + (t diag(D) + v) . x,    D the blocks of K of single items

    equals the objective at every pick, where x^T D x = diag(D) . x, and is convex over shares for
    the largest t at which K - t D is positive semidefinite there: t = 1 where errors of different
    items are orthogonal, and f is linear. Frank & Wolfe 1956 minimise it; their linear problem is
    that of `relaxed_choice`, and f(x) + min_s grad f(x) . (s - x) is a bound at *every* x
    (Jaggi 2013, eq. 2), so the best of all iterations is returned.

    Args:
      costs, gram, budget, variances: see `problem`.
      num_iterations: at most.
      tolerance: of the bound relative to f, at which it stops.
    """
    p = problem(costs, gram, budget, variances)
    check_count("num_iterations", num_iterations)
    check_number("tolerance", tolerance, least=0)
    exists = np.isfinite(p.costs).ravel()
    item = np.repeat(np.arange(len(p.costs)), p.costs.shape[1])
    blocks = np.where(item[:, None] == item, p.gram, 0)
    t = _share_of_blocks(p, blocks, exists)
    q = np.where(exists[:, None] & exists, p.gram - t * blocks, 0)
    linear = np.where(exists, t * np.diag(blocks) + p.variances, 0)

    def lowest(gradient):
        errors = np.where(exists, gradient, np.inf).reshape(p.costs.shape)
        found = relaxed_choice(p.costs, errors, p.budget)
        return found.error, found.shares.ravel()

    x = lowest(np.where(exists, np.diag(p.gram) + p.variances, 0))[1]
    corners, images, weights = x[None], x[None] @ q, np.ones(1)
    best = -np.inf
    for step in range(1, num_iterations + 1):  # noqa: B007
        gradient = 2 * q @ x + linear
        value = x @ q @ x + linear @ x
        least, corner = lowest(gradient)
        best = max(best, value + least - gradient @ x)
        if value - best <= tolerance * abs(value) or value <= 0:
            break
        corners, images = np.vstack([corners, corner]), np.vstack([images, corner @ q])
        weights = _mixed(images @ corners.T, corners @ linear, np.append(weights, 0.0))
        corners, images, weights = (each[weights > 0] for each in (corners, images, weights))
        x = weights @ corners
    return RelaxedTogether(float(max(best, 0.0)), x.reshape(p.costs.shape), step)


def _share_of_blocks(p: Problem, blocks: np.ndarray, exists: np.ndarray) -> float:
    """Return the largest t, at most 1, at which K - t D is convex over shares of choices."""
    from scipy import linalg

    columns = []
    for start in p.places:
        own = start + np.flatnonzero(exists[start : start + p.costs.shape[1]])
        for j in own[1:]:  # directions along which the shares of an item keep their sum
            column = np.zeros(len(exists))
            column[own[0]], column[j] = -1, 1
            columns.append(column)
    if not columns:
        return 1.0
    z = np.stack(columns, 1)
    k, d = z.T @ p.gram @ z, z.T @ blocks @ z
    d = d + 1e-9 * max(np.trace(d) / len(d), TINY) * np.eye(len(d))
    least = linalg.eigh(k, d, eigvals_only=True, subset_by_index=[0, 0])[0]
    return float(np.clip(least - 1e-9, 0.0, 1.0))


def _mixed(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weights w >= 0, sum w = 1, that lower w^T a w + b . w: pairwise Frank-Wolfe steps."""
    w = weights.copy()
    gradient = 2 * a @ w + b
    for _ in range(5 * len(w)):
        to = int(gradient.argmin())
        away = int(np.where(w > 0, gradient, -np.inf).argmax())
        slope = gradient[away] - gradient[to]
        bend = a[to, to] + a[away, away] - 2 * a[to, away]
        if slope <= 1e-12 * abs(gradient[away]):
            break
        step = w[away] if bend <= 0 else min(w[away], slope / (2 * bend))
        w[to], w[away] = w[to] + step, w[away] - step
        gradient += 2 * step * (a[:, to] - a[:, away])
    return w / w.sum()

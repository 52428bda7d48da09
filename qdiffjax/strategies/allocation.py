"""Bits within a budget: closed forms for real bits, and the knapsack of tables D(b).

    real bits, D_i = c_i 4^(-b_i)     reverse_water_filling, lagrangian_bits     exact
    any table of (cost, error)        relaxed_choice <= choose                   bound, exact

Everything is NumPy float64 and exact up to rounding: levels are found on the sorted corners of a
piecewise linear function, not by bisection.
"""

import itertools
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import check_number, check_numbers, require
from qdiffjax.labels import Kind, bound

TOLERANCE = 1e-6  # of HiGHS, on a constraint


class WaterFilling(NamedTuple):
    """Rate and distortion of independent Gaussian parts; shapes [n], `level` a number.

    distortions: min(level, variance); rates: bits of each part, 0 for those below the level.
    """

    level: float
    distortions: np.ndarray
    rates: np.ndarray


def reverse_water_filling(
    variances, *, distortion: float | None = None, rate: float | None = None
) -> WaterFilling:
    """Return the least total rate at a total distortion, or the least distortion at a rate.

        D_i = min(theta, var_i),   R_i = max(log2(var_i / theta), 0) / 2   [bits]

    Independent Gaussians, squared error; Cover & Thomas 2006, theorem 10.3.3. Parts whose variance
    is below the level theta get no bits and are replaced by their mean.

    Args:
      variances: of the parts, not negative [n].
      distortion: sum of D_i, in 0 < D; above the sum of variances no bits are spent.
      rate: sum of R_i in bits, not negative; in place of the distortion.

    Raises:
      ValueError: unless exactly one of distortion and rate is given, in its range.
    """
    check_numbers("variances", variances, least_rank=1)
    check_number("variances", variances, least=0)
    variances = np.asarray(variances, np.float64).ravel()
    require((distortion is None) != (rate is None), "distortion, rate",
            got=(distortion, rate), expected="one of the two",
            remedy="leave the other out")  # fmt: skip
    if distortion is not None:
        check_number("distortion", distortion, above=0)
        level = _corner(np.sort(variances), lambda v: np.sum(np.minimum(v, variances)), distortion)
    else:
        assert rate is not None
        check_number("rate", rate, least=0)
        positive = np.log2(variances[variances > 0])
        if not positive.size:
            return WaterFilling(0.0, variances, np.zeros_like(variances))
        # In halves of log2: sum of (log2 var - log2 theta)_+ / 2 falls from infinity to 0.
        spent = lambda log: np.sum(np.maximum(positive - log, 0)) / 2  # noqa: E731
        level = 2 ** -_corner(np.sort(-positive), lambda v: spent(-v), rate)
    distortions = np.minimum(level, variances)
    ratio = np.divide(variances, distortions, out=np.ones_like(variances), where=distortions > 0)
    return WaterFilling(float(level), distortions, np.log2(ratio) / 2)


def lagrangian_bits(
    coefficients, mean_bits: float, *, sizes=None, least: float = 0.0, most: float = np.inf
) -> np.ndarray:
    """Return the real bits [n] of least total error sum_i c_i 4^(-b_i) at a mean width.

        b_i = clip(log2(c_i / (n_i lambda)) / 2, least, most),   sum_i n_i b_i = mean_bits sum_i n_i

    Without the ends b_i = B + log2(w_i / GM(w)) / 2 with w_i = c_i / n_i, which gains AM(w) / GM(w)
    over equal bits (Gersho & Gray 1992, section 8.3). The law 4^(-b) holds for fine steps; for
    tables D(b) of real quantizers see `choose`.

    Args:
      coefficients: c_i, the error of item i at 0 bits, not negative [n].
      mean_bits: B, bits of an element on average, in least ... most.
      sizes: n_i, elements of item i [n]; None is one each.
      least, most: ends of the bits of an item.

    Raises:
      ValueError: a budget outside the ends; coefficients or sizes out of range.
    """
    check_numbers("coefficients", coefficients, least_rank=1)
    check_number("coefficients", coefficients, least=0)
    c = np.asarray(coefficients, np.float64).ravel()
    n = np.ones_like(c) if sizes is None else np.asarray(sizes, np.float64).ravel()
    check_number("sizes", n, above=0)
    require(c.shape == n.shape, "sizes", got=f"{n.size} for {c.size} coefficients",
            expected="as many of each", remedy="give the elements of every item")  # fmt: skip
    require(c.max() > 0, "coefficients", got="zeros", expected="an item with an error",
            remedy="any bits will do")  # fmt: skip
    require(np.isfinite(least) or np.all(c > 0), "least", got=least,
            expected="a number, where an item's error is 0 at any width",
            remedy="pass least=0")  # fmt: skip
    check_number("mean_bits", mean_bits, least=least, most=most)
    with np.errstate(divide="ignore"):
        wanted = np.log2(c / n) / 2  # less log2(lambda) / 2, the level; -inf for what costs nothing

    def spent(level):
        return np.sum(n * np.clip(wanted + level, least, most))

    finite = wanted[np.isfinite(wanted)]
    ends = [end for end in (least, most) if np.isfinite(end)]
    corners = np.unique(np.concatenate([end - finite for end in [*ends, 0.0]]))
    return np.clip(wanted + _corner(corners, spent, mean_bits * n.sum()), least, most)


def _corner(corners: np.ndarray, fn, target: float) -> float:
    """Return where fn, increasing and linear between sorted corners and beyond, is the target.

    The first or last such place if it is flat there, or if fn never reaches the target.
    """
    values = np.array([fn(c) for c in corners])
    right = int(np.searchsorted(values, target))
    if right == 0:
        start, slope = corners[0], fn(corners[0]) - fn(corners[0] - 1)
        return start + (target - values[0]) / slope if slope > 0 else start
    left = right - 1
    if right == len(corners):
        start, slope = corners[left], fn(corners[left] + 1) - fn(corners[left])
    else:
        start = corners[left]
        slope = (values[right] - values[left]) / (corners[right] - corners[left])
    return start + (target - values[left]) / slope if slope > 0 else start


class Relaxed(NamedTuple):
    """A linear relaxation of `choose`.

    error: no allocation within the budget has less; price: what one unit of budget is worth, error
    per cost, >= 0; choice [items]: its integer part, which is within the budget; gap: error of that
    choice less the bound, at most that of the one item which is split; shares [items, choices]: of
    each choice, the optimum itself.
    """

    error: float
    price: float
    choice: np.ndarray
    gap: float
    shares: np.ndarray


class Allocation(NamedTuple):
    """One choice for each item. choice [items]: indices; cost, error: their sums."""

    choice: np.ndarray
    cost: float
    error: float


@bound(Kind.COUNTED, "none: linear programming; a lower bound of every allocation's error")
def relaxed_choice(costs, errors, budget: float) -> Relaxed:
    """Return the linear relaxation of `choose`: fractions of choices are allowed.

    Greedy on the lower convex hull of each item's (cost, error) is its optimum, but for one item
    that is split (Sinha & Zoltners 1979), so that the best allocation lies within one upgrade.

    Args:
      costs: of item i under choice j [items, choices]; infinite for a choice that does not exist.
      errors: [items, choices].
      budget: on the sum of costs.

    Raises:
      ValueError: shapes that differ, NaN, or a budget below the cheapest allocation.
    """
    costs, errors = _tables(costs, errors, budget)
    hulls = [_hull(c, e) for c, e in zip(costs, errors, strict=True)]
    choice = np.array([hull[0] for hull in hulls])
    rows = np.arange(len(hulls))
    left = budget - costs[rows, choice].sum()
    upgrades = sorted(
        (-(errors[i, b] - errors[i, a]) / (costs[i, b] - costs[i, a]), -i, -k, i, b)
        for i, hull in enumerate(hulls)
        for k, (a, b) in enumerate(itertools.pairwise(hull))
    )
    price, error, split = 0.0, errors[rows, choice].sum(), None
    for worth, _, _, i, b in reversed(upgrades):
        step = costs[i, b] - costs[i, choice[i]]
        if step > left:
            price, error = worth, errors[rows, choice].sum() - worth * left
            split = i, b, left / step
            break
        choice[i], left = b, left - step
        error = errors[rows, choice].sum()
    shares = np.zeros_like(costs)
    shares[rows, choice] = 1
    if split is not None:
        i, b, part = split
        shares[i, choice[i]] -= part
        shares[i, b] += part
    gap = float(errors[rows, choice].sum() - error)
    return Relaxed(float(error), float(price), choice, gap, shares)


def choose(costs, errors, budget: float) -> Allocation:
    """Return one choice for each item, of least total error within a budget: the exact optimum.

        min over j(i) of  sum_i errors[i, j(i)]   such that   sum_i costs[i, j(i)] <= budget

    The multiple-choice knapsack, by branch and bound (HiGHS, in SciPy). With tables of an item's
    bytes and error at each width it allots bits; `relaxed_choice` bounds it from below, at once.

    Args:
      costs: [items, choices]; infinite for a choice that does not exist.
      errors: [items, choices].
      budget: on the sum of costs.

    Raises:
      ValueError: shapes that differ, NaN, or a budget below the cheapest allocation.
      RuntimeError: the solver gave up.
    """
    from scipy import optimize, sparse

    costs, errors = _tables(costs, errors, budget)
    exists = np.isfinite(costs) & np.isfinite(errors)
    items, choices = np.nonzero(exists)
    # The solver's tolerances are absolute, 1e-6: errors are scaled beyond them.
    largest = np.abs(errors[exists]).max()
    objective = errors[exists] / (largest if largest > 0 else 1.0) * 1e6
    once = sparse.csr_array((np.ones(items.size), (items, np.arange(items.size))))
    row, most = _constraint(costs[exists], budget)
    rows, choice = np.arange(len(costs)), np.full(len(costs), -1)
    while True:
        found = optimize.milp(
            objective, integrality=np.ones(items.size), bounds=optimize.Bounds(0, 1),
            constraints=[optimize.LinearConstraint(once, 1, 1),
                         optimize.LinearConstraint(row[None], -np.inf, most)],
            options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        require(found.x is not None and found.status == 0, "choose", got=found.message,
                expected="an optimum", remedy="take `relaxed_choice`",
                error=RuntimeError)  # fmt: skip
        taken = found.x > 0.5
        choice[items[taken]] = choices[taken]
        cost = costs[rows, choice].sum()
        if cost <= budget:
            return Allocation(choice, float(cost), float(errors[rows, choice].sum()))
        most -= TOLERANCE  # beyond the budget by less than the solver can see


def _constraint(costs: np.ndarray, budget: float) -> tuple[np.ndarray, float]:
    """Return costs and budget such that the solver's tolerance decides nothing: whole numbers with
    half a unit to spare, or numbers of the order of 1.
    """
    whole = np.abs(costs).max() < 2**53 and np.all(costs == np.floor(costs))
    if whole:
        unit = max(np.gcd.reduce(costs.astype(np.int64)), 1)
        return costs / unit, np.floor(budget / unit) + 0.5
    width = np.abs(costs).max()
    return costs / width, budget / width


def _tables(costs, errors, budget) -> tuple[np.ndarray, np.ndarray]:
    for name, table in (("costs", costs), ("errors", errors)):
        check_numbers(name, table, finite=False)
    costs, errors = (np.asarray(a, np.float64) for a in (costs, errors))
    require(costs.ndim == 2 and costs.shape == errors.shape and costs.size > 0, "costs, errors",
            got=(costs.shape, errors.shape), expected="equal shapes [items, choices]",
            remedy="give a cost and an error to each choice of each item")  # fmt: skip
    for name, table in (("costs", costs), ("errors", errors)):
        require(not np.isnan(table).any(), f"costs, errors: {name}", got="NaN", expected="numbers",
                remedy="write infinity for a choice that does not exist")  # fmt: skip
    check_number("budget", budget)
    least = np.where(np.isfinite(errors), costs, np.inf).min(1).sum()
    require(least <= budget, "budget", got=budget, expected=f"at least {least}, the cheapest",
            remedy="raise it, or offer cheaper choices")  # fmt: skip
    return costs, errors


def _hull(costs: np.ndarray, errors: np.ndarray) -> list[int]:
    """Return the choices on the lower convex hull, from the cheapest to that of least error."""
    hull: list[int] = []
    for j in np.lexsort((errors, costs)):
        if not (np.isfinite(costs[j]) and np.isfinite(errors[j])):
            continue
        if hull and errors[j] >= errors[hull[-1]]:
            continue  # as dear or dearer, and no better
        while len(hull) > 1 and _slope(costs, errors, hull[-2], j) <= _slope(
            costs, errors, hull[-2], hull[-1]
        ):
            hull.pop()
        hull.append(int(j))
    return hull


def _slope(costs, errors, a, b) -> float:
    return (errors[b] - errors[a]) / (costs[b] - costs[a])

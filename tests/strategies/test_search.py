"""The quadratic problem against every pick there is, and cases whose answer is known."""

import numpy as np
import pytest

from qdiffjax.labels import label
from qdiffjax.strategies import (
    choose,
    choose_exhaustively,
    choose_together,
    relaxed_together,
)
from tests.tolerances import assert_close


def tables(seed, items, choices, rank, mix=0.8):
    """Costs, and a Gram matrix of vectors that fall with the cost and share a direction."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(items, 1, rank)) * mix + rng.normal(size=(items, choices, rank))
    vectors *= rng.gamma(1.0, size=(items, 1, 1)) * 2.0 ** -np.arange(choices)[:, None]
    sizes = rng.integers(1, 9, size=items)
    costs = sizes[:, None] * (2.0 + np.arange(choices))
    return costs, np.einsum("lar,mbr->lamb", vectors, vectors), 3.0 * sizes.sum()


def value(gram, variances, pick):
    """The objective, item by item."""
    places = range(len(pick))
    total = sum(gram[i, pick[i], j, pick[j]] for i in places for j in places)
    return total + sum(variances[i, pick[i]] for i in places)


@pytest.mark.parametrize("seed", range(10))
def test_twelve_items_of_three_choices_are_within_two_percent_of_the_best_of_all(seed):
    costs, gram, budget = tables(seed, 12, 3, 40)
    best = choose_exhaustively(costs, gram, budget)
    found = choose_together(costs, gram, budget)
    assert found.cost <= budget
    assert best.error <= found.error * (1 + 1e-12)
    assert found.error <= 1.02**2 * best.error  # 2 % of the RMSE
    lower = relaxed_together(costs, gram, budget)
    assert 0 < lower.error <= best.error
    assert_close(found.error, value(gram, np.zeros(costs.shape), found.choice), factor=256)


@pytest.mark.parametrize("seed", range(3))
def test_all_picks_are_tried(seed):
    """Four items of three choices, one of which one item lacks, by loops."""
    costs, gram, budget = tables(seed, 4, 3, 6)
    costs[1, 1] = np.inf
    variances = np.random.default_rng(seed).gamma(0.1, size=costs.shape)
    picks = [p for p in np.ndindex(3, 3, 3, 3) if sum(costs[range(4), p]) <= budget]
    best = min(picks, key=lambda p: value(gram, variances, p))
    found = choose_exhaustively(costs, gram, budget, variances=variances)
    assert tuple(found.choice) == best
    assert choose_together(costs, gram, budget, variances=variances).error >= found.error - 1e-12


def test_errors_that_do_not_correlate_are_the_knapsack_and_its_bound():
    costs, gram, budget = tables(0, 10, 4, 3)
    diagonal = np.einsum("lala->la", gram)
    places, names = np.meshgrid(range(10), range(4), indexing="ij")
    apart = np.zeros_like(gram)
    apart[places, names, places, names] = diagonal
    exact = choose(costs, diagonal, budget)
    assert_close(choose_together(costs, apart, budget).error, exact.error, factor=256)
    # Orthogonal choices within an item: the relaxation is the linear one, tight at a whole pick.
    whole = costs.max(1).sum()
    least = diagonal.min(1).sum()
    assert_close(relaxed_together(costs, apart, whole).error, least, factor=1e7)
    assert relaxed_together(costs, apart, budget).error <= exact.error


def test_choices_that_cancel_are_found_where_each_alone_is_worse():
    """Two items: the second choice of each has twice the error, of opposite signs."""
    e = np.array([[[1.0], [2.0]], [[1.0], [-2.0]]])
    gram = np.einsum("lar,mbr->lamb", e, e)
    found = choose_together(np.ones((2, 2)), gram, 2.0, num_kicks=0)
    assert found.choice.tolist() == [1, 1]
    assert found.error == 0
    assert choose(np.ones((2, 2)), np.einsum("lala->la", gram), 2.0).choice.tolist() == [0, 0]


def test_a_start_within_the_budget_is_never_made_worse():
    costs, gram, budget = tables(5, 20, 4, 50)
    rng = np.random.default_rng(0)
    for _ in range(5):
        start = rng.integers(2, size=20)
        assert costs[range(20), start].sum() <= budget
        found = choose_together(costs, gram, budget, starts=[start], num_kicks=0)
        assert found.error <= value(gram, np.zeros(costs.shape), start)


def test_the_bound_holds_for_random_picks_of_many_items():
    costs, gram, budget = tables(7, 40, 5, 200)
    lower = relaxed_together(costs, gram, budget)
    assert label(relaxed_together) is not None
    assert_close(lower.shares.sum(1), np.ones(40), factor=1e3)
    assert np.sum(np.where(lower.shares > 0, costs, 0) * lower.shares) <= budget * (1 + 1e-9)
    rng, seen = np.random.default_rng(1), 0
    for _ in range(2000):
        pick = rng.choice(5, p=[0.4, 0.3, 0.1, 0.1, 0.1], size=40)
        if costs[range(40), pick].sum() <= budget:
            seen += 1
            assert value(gram, np.zeros(costs.shape), pick) >= lower.error
    assert seen > 10


@pytest.mark.parametrize(
    ("change", "match"),
    [({"budget": 1.0}, "cheapest"), ({"gram": np.ones((2, 2))}, "costs, gram"),
     ({"variances": -np.ones((3, 2))}, "variances"), ({"starts": [[0]]}, "starts"),
     ({"gram": np.arange(36.0).reshape(3, 2, 3, 2)}, "symmetric")],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_what_is_no_problem_is_refused(change, match):
    costs, gram, budget = tables(0, 3, 2, 4)
    arguments = {"costs": costs, "gram": gram, "budget": budget} | change
    with pytest.raises(ValueError, match=match):
        choose_together(**arguments)


def test_too_many_picks_are_not_enumerated():
    with pytest.raises(ValueError, match="choose_together"):
        choose_exhaustively(*tables(0, 30, 3, 4))

"""Allocations against closed forms, optimality conditions and every allocation there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from qdiffjax.labels import label
from qdiffjax.strategies import (
    choose,
    lagrangian_bits,
    relaxed_choice,
    reverse_water_filling,
)
from tests.tolerances import assert_close

# ------------------------------------------------------------------ real bits


def test_parts_below_the_level_get_no_bits():
    """Variances 4, 1, 1/4, 1/16 at D = 13/16: level 1/4 for the first two, the others whole."""
    found = reverse_water_filling([4.0, 1.0, 0.25, 0.0625], distortion=0.8125)
    assert_close(found.level, 0.25)
    assert_close(found.distortions, np.array([0.25, 0.25, 0.25, 0.0625]))
    assert_close(found.rates, np.array([2.0, 1.0, 0.0, 0.0]))


def test_rate_and_distortion_are_inverse_to_each_other_and_convex():
    variances = np.random.default_rng(0).gamma(0.5, size=20)
    rates = np.linspace(0, 30, 40)
    totals = []
    for rate in rates:
        by_rate = reverse_water_filling(variances, rate=rate)
        assert_close(by_rate.rates.sum(), rate, factor=256, scale=30.0)
        by_distortion = reverse_water_filling(variances, distortion=by_rate.distortions.sum())
        assert_close(by_distortion.rates, by_rate.rates, factor=1e4, scale=30.0)
        totals.append(by_rate.distortions.sum())
    assert np.all(np.diff(totals, 2) > 0)
    # Slope: dD/dR = -2 ln 2 theta, whatever the part.
    theta = reverse_water_filling(variances, rate=10.0).level
    ends = [reverse_water_filling(variances, rate=10 + h).distortions.sum() for h in (-1e-4, 1e-4)]
    np.testing.assert_allclose((ends[1] - ends[0]) / 2e-4, -2 * np.log(2) * theta, rtol=1e-6)


def test_more_distortion_than_variance_costs_nothing_and_parts_without_variance_never_do():
    for found in (
        reverse_water_filling([1.0, 2.0, 0.0], distortion=5.0),
        reverse_water_filling([1.0, 2.0, 0.0], rate=0.0),
    ):
        assert_close(found.distortions, np.array([1.0, 2.0, 0.0]))
        assert_close(found.rates, np.zeros(3))
    assert reverse_water_filling([0.0, 0.0], rate=3.0).rates.sum() == 0
    assert_close(reverse_water_filling([1.0, 1e-12], distortion=1e-15).rates.sum(),
                 np.log2(1 / 5e-16) / 2 + np.log2(1e-12 / 5e-16) / 2, factor=64)  # fmt: skip


def test_without_ends_bits_gain_the_arithmetic_over_the_geometric_mean():
    c = np.array([8.0, 1.0, 0.125, 3.0])
    bits = lagrangian_bits(c, 4.0, least=-np.inf)
    geometric = np.exp(np.log(c).mean())
    assert_close(bits, 4 + np.log2(c / geometric) / 2)
    equal, best = np.sum(c * 4.0**-4), np.sum(c * 4.0**-bits)
    assert_close(equal / best, c.mean() / geometric)


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 2**31)
)
@settings(max_examples=60, deadline=None)
def test_bits_within_ends_meet_the_budget_and_the_conditions_of_the_optimum(c, share, seed):
    sizes = np.random.default_rng(seed).integers(1, 9, len(c)).astype(float)
    least, most = 2.0, 8.0
    mean = least + share * (most - least)
    c = np.array(c)
    bits = lagrangian_bits(c, mean, sizes=sizes, least=least, most=most)
    np.testing.assert_allclose(sizes @ bits, mean * sizes.sum(), rtol=1e-9)
    assert np.all((bits >= least) & (bits <= most))
    # Kuhn and Tucker: marginal errors per bit are equal inside, smaller at least, larger at most.
    worth = np.log2(c / sizes) / 2 - bits
    inside = (bits > least + 1e-9) & (bits < most - 1e-9)
    if inside.any():
        price = worth[inside].mean()
        np.testing.assert_allclose(worth[inside], price, atol=1e-9)
        assert np.all(worth[bits <= least + 1e-9] <= price + 1e-9)
        assert np.all(worth[bits >= most - 1e-9] >= price - 1e-9)


def test_an_item_without_error_takes_the_least_bits():
    assert_close(lagrangian_bits([0.0, 1.0], 4.0, least=2.0), np.array([2.0, 6.0]))


# ------------------------------------------------------------------ tables


def tables(seed, num_items=5, num_choices=4):
    """Costs that ascend and errors that do not always descend: hulls leave choices out."""
    rng = np.random.default_rng(seed)
    costs = np.cumsum(rng.integers(1, 9, (num_items, num_choices)), 1)
    errors = rng.gamma(1.0, size=(num_items, num_choices)) * 4.0 ** -np.arange(num_choices)
    return costs, errors


def every_allocation(costs, errors, budget):
    rows, best = np.arange(len(costs)), np.inf
    for choice in itertools.product(range(costs.shape[1]), repeat=len(costs)):
        if costs[rows, choice].sum() <= budget:
            best = min(best, errors[rows, choice].sum())
    return best


def by_linear_programming(costs, errors, budget):
    items, choices = costs.shape
    once = np.kron(np.eye(items), np.ones(choices))
    return optimize.linprog(errors.ravel(), costs.ravel()[None], budget, once, np.ones(items)).fun


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_of_all_and_the_bound_that_of_linear_programming(seed):
    costs, errors = tables(seed)
    for budget in (costs[:, 0].sum(), costs[:, 0].sum() + 7, costs.mean(1).sum(), costs.sum()):
        found, bound = choose(costs, errors, budget), relaxed_choice(costs, errors, budget)
        best = every_allocation(costs, errors, budget)
        rows = np.arange(len(costs))
        assert_close(found.error, best)
        assert found.cost == costs[rows, found.choice].sum() <= budget
        np.testing.assert_allclose(
            bound.error, by_linear_programming(costs, errors, budget), rtol=1e-7
        )
        # Bound, optimum, and the greedy choice within one upgrade of the bound.
        assert bound.error <= best * (1 + 1e-12)
        greedy = errors[rows, bound.choice].sum()
        assert best <= greedy * (1 + 1e-12)
        assert costs[rows, bound.choice].sum() <= budget
        assert_close(bound.gap, greedy - bound.error, scale=greedy)
        assert bound.gap <= np.max(errors.max(1) - errors.min(1))


def test_the_price_is_what_a_unit_of_budget_is_worth():
    costs, errors = tables(3)
    budget = costs.mean(1).sum()
    more, less = (relaxed_choice(costs, errors, budget + h) for h in (1e-3, -1e-3))
    price = relaxed_choice(costs, errors, budget).price
    np.testing.assert_allclose((less.error - more.error) / 2e-3, price, rtol=1e-6)
    assert relaxed_choice(costs, errors, costs.sum()).price == 0


def test_real_costs_and_choices_that_do_not_exist():
    costs = np.array([[0.1, 0.2, np.inf], [0.1, 0.30000001, 0.7]])
    errors = np.array([[1.0, 0.5, 0.0], [3.0, 1.0, 0.0]])
    found = choose(costs, errors, 0.5)  # 0.2 + 0.30000001 is beyond it by less than a tolerance
    assert found.choice.tolist() == [0, 1]
    assert found.cost <= 0.5
    assert choose(costs, errors, 0.9).choice.tolist() == [1, 2]


def test_bytes_of_large_networks_are_counted_to_the_last_one():
    costs = np.array([[10**9, 2 * 10**9 + 1], [10**9, 2 * 10**9]])
    errors = np.array([[2.0, 0.0], [1.0, 0.0]])
    assert choose(costs, errors, 3 * 10**9).choice.tolist() == [0, 1]
    assert choose(costs, errors, 3 * 10**9 + 1).choice.tolist() == [1, 0]


def test_the_bound_is_labelled_as_one():
    assert "lower bound" in label(relaxed_choice).assumption


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reverse_water_filling([1.0]), "expected one of the two"),
        (lambda: reverse_water_filling([1.0], rate=1.0, distortion=1.0), "expected one of the two"),
        (lambda: reverse_water_filling([-1.0], rate=1.0), "variances: got"),
        (lambda: reverse_water_filling([], rate=1.0), "variances: got shape"),
        (lambda: reverse_water_filling([1.0], rate=np.nan), "rate: got nan"),
        (lambda: reverse_water_filling([1.0], distortion=0.0), "distortion: got 0.0"),
        (lambda: lagrangian_bits([1.0], 1.0, least=2.0), "mean_bits: got 1.0"),
        (lambda: lagrangian_bits([0.0, 1.0], 1.0, least=-np.inf), "least: got -inf"),
        (lambda: lagrangian_bits([1.0], 4.0, sizes=[1, 2]), "as many of each"),
        (lambda: choose(np.ones((2, 2)), np.ones((2, 3)), 5), "equal shapes"),
        (lambda: choose(np.ones((2, 2)), np.full((2, 2), np.nan), 5), "got NaN"),
        (lambda: relaxed_choice(np.ones((2, 2)), np.ones((2, 2)), 1), "at least 2.0, the cheapest"),
    ],
)
def test_what_cannot_be_allotted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shares_are_the_optimum_that_the_relaxation_speaks_of():
    rng = np.random.default_rng(4)
    costs, errors = rng.integers(1, 9, (12, 4)).astype(float), rng.gamma(1.0, size=(12, 4))
    for budget in np.linspace(costs.min(1).sum(), costs.max(1).sum(), 7):
        found = relaxed_choice(costs, errors, budget)
        assert_close(found.shares.sum(1), np.ones(12))
        assert np.all(found.shares >= 0)
        assert np.sum(found.shares * costs) <= budget * (1 + 1e-12)
        assert_close(np.sum(found.shares * errors), found.error)
        assert np.sum((found.shares > 0) & (found.shares < 1)) in (0, 2)

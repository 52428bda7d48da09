"""Picks of the field's methods: within the budget, full, and the optimum where that is known."""

import itertools

import numpy as np
import pytest

from qdiffjax import strategies
from qdiffjax.strategies import baselines
from tests.strategies import parallel

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def choices():
    """Four sites of 36 weights, 6 scales each: 36 b + 192 bits."""
    words = tuple(f"W{bits}" for bits in (2, 3, 4, 6))
    return strategies.offer(parallel.calibrated(1), parallel.ONE_STEP, words, sites=("*",))


def total_of(*bits):
    return 36 * sum(bits) + 4 * 192


def test_ends_are_dear_and_the_others_take_what_is_left(choices):
    pick = baselines.dear_ends(choices, total_of(6, 3, 4, 6))
    assert [choices.names[k] for k in pick] == ["W6", "W4", "W3", "W6"]
    assert choices.total(pick) == total_of(6, 3, 4, 6)
    pick = baselines.dear_ends(choices, total_of(6, 6, 6, 6))
    assert set(pick) == {3}
    pick = baselines.dear_ends(choices, total_of(6, 2, 2, 5))
    assert [choices.names[k] for k in pick] == ["W4", "W4", "W3", "W4"]
    with pytest.raises(ValueError, match=f"at least {total_of(2, 2, 2, 2)}"):
        baselines.dear_ends(choices, total_of(1, 2, 2, 2))
    with pytest.raises(ValueError, match="less than half of 4"):
        baselines.dear_ends(choices, 1e9, num_ends=2)


def test_squares_below_zero_are_taken_for_zero(choices):
    """Sites a and b have nothing to lose: the bits go to c and d."""
    squares = np.array([-1.0, 0.0, 1.0, 1.0])[:, None] * 4.0 ** -np.array([2, 3, 4, 6])
    pick = baselines.additive(choices, squares, total_of(2, 2, 4, 4))
    assert [choices.names[k] for k in pick[2:]] == ["W4", "W4"]


def test_what_is_drawn_fits_and_no_further_step_does(choices):
    totals = set()
    for seed in range(20):
        pick = baselines.drawn(choices, total_of(3, 3, 4, 4), RNG(seed))
        assert choices.total(pick) <= total_of(3, 3, 4, 4)
        for site in np.flatnonzero(pick < 3):
            dearer = pick.copy()
            dearer[site] += 1
            assert choices.total(dearer) > total_of(3, 3, 4, 4)
        totals.add(tuple(pick))
    assert len(totals) > 5
    fitted = baselines.drawn(choices, total_of(3, 3, 4, 4), RNG(0), np.full(4, 3))
    assert choices.total(fitted) <= total_of(3, 3, 4, 4)


@pytest.mark.parametrize("search", [baselines.random_search, baselines.evolution])
def test_a_search_spends_its_scores_and_finds_the_optimum_of_few_picks(choices, search):
    rng = RNG(3)
    a = rng.normal(size=(16, 5))
    gram = a @ a.T
    total, scored = total_of(3, 3, 4, 4), []

    def score(pick):
        taken = 4 * np.arange(4) + pick
        scored.append(tuple(int(k) for k in pick))
        return float(gram[np.ix_(taken, taken)].sum())

    pick = search(choices, score, total, 300, RNG(0))
    assert len(scored) == 300
    assert len(set(scored)) > 10
    best = min(score(np.array(other)) for other in set(scored))
    assert score(pick) == best
    full = [np.array(p) for p in itertools.product(range(4), repeat=4)
            if total - 36 < choices.total(np.array(p)) <= total]  # fmt: skip
    assert best <= min(map(score, full))
    few = search(choices, score, total, 3, RNG(0))
    assert choices.total(few) <= total

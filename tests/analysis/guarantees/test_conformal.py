"""The next sample's bound: its rank by hand, its coverage exact, by simulation and by formula."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import special, stats

from qdiffjax.analysis import guarantees
from qdiffjax.labels import Kind, label


@pytest.mark.parametrize(
    ("num", "alpha", "rank"),
    [(1, 0.5, 1), (3, 0.25, 3), (3, 0.5, 2), (4, 0.5, 3), (9, 0.1, 9), (9, 0.3, 7), (19, 0.05, 19),
     (20, 0.05, 20), (39, 0.05, 38), (99, 0.1, 90), (10, 0.1, 10), (999, 0.001, 999)],
)  # fmt: skip
def test_the_bound_is_the_score_of_the_rank_that_the_formula_says(num, alpha, rank):
    scores = np.random.default_rng(num).permutation(np.arange(1.0, num + 1))
    found = guarantees.conformal_bound(scores, alpha)
    assert (found.bound, found.rank, found.num) == (rank, rank, num)


@pytest.mark.parametrize("percent", [1, 3, 5, 7, 10, 25, 30, 50, 90])
def test_the_samples_needed_are_the_fewest_that_work(percent):
    """The least n with (n + 1) alpha >= 1, in exact arithmetic; one fewer is refused with it."""
    share = Fraction(percent, 100)
    need = next(n for n in range(1, 200) if (n + 1) * share >= 1)
    assert guarantees.samples_needed(percent / 100) == need
    assert guarantees.conformal_bound(np.ones(need), percent / 100).rank == need
    if need > 1:
        with pytest.raises(ValueError, match=rf"got {need - 1} of them .* at least {need}, "):
            guarantees.conformal_bound(np.ones(need - 1), percent / 100)


def test_coverage_is_within_one_of_n_of_what_was_asked_for():
    """P(U_{n+1} <= U_(k)) = k / (n + 1) exactly."""
    for num in range(9, 60):
        rank = guarantees.conformal_bound(np.zeros(num), 0.1).rank
        wanted = Fraction(9, 10)
        assert wanted <= Fraction(rank, num + 1) <= wanted + Fraction(1, num + 1)


@pytest.mark.parametrize(("num", "alpha"), [(19, 0.1), (64, 0.1), (128, 0.05)])
def test_the_lower_quantile_of_coverage_is_that_of_the_beta_law(num, alpha):
    """By the incomplete beta function, and as the share of drawn uniform scores that fall short."""
    found = guarantees.conformal_bound(np.zeros(num), alpha, 0.05)
    below = special.betainc(found.rank, num + 1 - found.rank, found.coverage)
    np.testing.assert_allclose(below, 0.05, rtol=1e-10)
    scores = np.random.default_rng(0).uniform(size=(num, 20_000))
    coverage = guarantees.conformal_bound(scores, alpha).bound  # of uniform scores
    short = int(np.sum(coverage < found.coverage))
    low, high = stats.binom.ppf([0.001, 0.999], 20_000, 0.05)
    assert low <= short <= high


@pytest.mark.parametrize("law", [stats.lognorm(2.0), stats.pareto(0.8), stats.bernoulli(0.3)])
def test_coverage_does_not_hang_on_the_law_nor_on_ties(law):
    """Without a mean (Pareto .8) it is met; with ties it is exceeded."""
    num, repetitions = 39, 20_000
    rng = np.random.default_rng(1)
    draws = np.asarray(law.rvs(size=(num + 1, repetitions), random_state=rng), np.float64)
    covered = int(np.sum(draws[-1] <= guarantees.conformal_bound(draws[:-1], 0.1).bound))
    assert covered >= stats.binom.ppf(0.001, repetitions, 0.9)
    if law.dist.name != "bernoulli":
        assert covered <= stats.binom.ppf(0.999, repetitions, 36 / 40)


def test_scores_of_several_kinds_are_bounded_each_by_itself():
    scores = np.random.default_rng(2).normal(size=(40, 3))
    whole = guarantees.conformal_bound(scores, 0.2).bound
    alone = [guarantees.conformal_bound(column, 0.2).bound for column in scores.T]
    np.testing.assert_array_equal(whole, alone)
    assert math.isfinite(whole.sum())


def test_it_is_labelled_guaranteed():
    assert label(guarantees.conformal_bound).kind == Kind.GUARANTEED == "guaranteed"

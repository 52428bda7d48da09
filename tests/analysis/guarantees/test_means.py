"""Bounds of means: valid at every mean by enumeration, no wider than theory, tight where it is."""

import math

import numpy as np
import pytest
from scipy import stats

from qdiffjax.analysis import guarantees
from tests.analysis.guarantees.enumerated import chances, sequences

UPPERS = {"betting": guarantees.betting_upper, "Bernstein": guarantees.bernstein_upper}
MEANS = np.linspace(0.02, 0.98, 25)


@pytest.mark.parametrize("delta", [0.05, 0.3])
@pytest.mark.parametrize("num", [2, 5, 9, 12])
@pytest.mark.parametrize("name", UPPERS)
def test_a_bound_of_bernoulli_scores_fails_at_most_as_often_as_it_says(name, num, delta):
    """Every one of 2^n outcomes, at 25 means: the exact probability that the mean is above."""
    scores = sequences(num)
    upper = UPPERS[name](scores, delta)
    for mean in MEANS:
        assert chances(scores, mean)[upper < mean].sum() <= delta


@pytest.mark.parametrize("name", UPPERS)
def test_both_ends_hold_the_mean_of_bernoulli_scores(name):
    scores = sequences(10)
    low, high = guarantees.mean_bounds(scores, 0.2, upper_fn=UPPERS[name])
    assert np.all(low <= high)
    for mean in MEANS:
        assert chances(scores, mean)[(low > mean) | (high < mean)].sum() <= 0.2


def test_a_mean_beyond_the_bound_is_refuted_and_one_below_is_not():
    """The bound is where the product of bets, here factor by factor, reaches 1 / delta."""
    x, delta = np.random.default_rng(0).uniform(size=30), 0.1
    upper = guarantees.betting_upper(x, delta)

    def most_wealth(mean):
        wealth, best, seen = 1.0, 1.0, []
        variance, deviations = 0.25, 0.25
        for score in x:
            bet = min(1.0, math.sqrt(2 * math.log(1 / delta) / (len(x) * variance)))
            wealth *= 1 + bet * (mean - score)
            best = max(best, wealth)
            seen.append(score)
            deviations += (score - (0.5 + sum(seen)) / (len(seen) + 1)) ** 2
            variance = deviations / (len(seen) + 1)
        return best

    assert most_wealth(upper * (1 - 1e-9)) < 1 / delta <= most_wealth(upper * (1 + 1e-9))
    np.testing.assert_allclose(np.exp(guarantees.log_wealth(x, upper, delta)), most_wealth(upper))


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.9])
def test_wealth_reaches_a_level_at_most_as_often_as_ville_says(mean):
    scores = sequences(12)
    wealth = np.exp(guarantees.log_wealth(scores, mean, 0.05))
    for level in np.unique(wealth):
        assert chances(scores, mean)[wealth >= level].sum() <= (1 + 1e-12) / level


def test_bernstein_is_its_formula():
    x = np.array([0.0, 1.0, 0.5, 0.25])
    mean, variance, level = 0.4375, 0.5468750 / 3, math.log(2 / 0.5)
    width = math.sqrt(2 * variance * level / 4) + 7 * level / 9
    np.testing.assert_allclose(guarantees.bernstein_upper(x, 0.5), min(mean + width, 1.0))
    many = np.tile(x, 100)
    variance = 0.5468750 * 100 / 399
    width = math.sqrt(2 * variance * level / 400) + 7 * level / (3 * 399)
    np.testing.assert_allclose(guarantees.bernstein_upper(many, 0.5), mean + width)


@pytest.mark.parametrize("law", [stats.beta(2, 5), stats.beta(0.05, 2), stats.bernoulli(0.01)])
def test_bounds_hold_on_skewed_laws_and_betting_is_the_narrower(law):
    scores = np.asarray(law.rvs(size=(200, 3000), random_state=np.random.default_rng(3)), float)
    betting, bernstein = (fn(scores, 0.05) for fn in UPPERS.values())
    for upper in (betting, bernstein):
        assert np.sum(upper < law.mean()) <= stats.binom.ppf(0.999, 3000, 0.05)
    assert np.mean(betting) < np.mean(bernstein)


def test_the_betting_bound_has_the_width_of_the_normal_law_at_large_n():
    """sqrt(2 v ln(1 / delta) / n), within 10 %, and 1 / sqrt(n) in n."""
    rng = np.random.default_rng(4)
    widths = []
    for num in (2000, 8000):
        x = rng.beta(2, 5, size=(num, 50))
        widths.append(np.mean(guarantees.betting_upper(x, 0.05) - x.mean(0)))
        theory = math.sqrt(2 * stats.beta(2, 5).var() * math.log(20) / num)
        assert theory * 0.85 < widths[-1] < theory * 1.1
    assert 1.8 < widths[0] / widths[1] < 2.2


@pytest.mark.parametrize("num", [1, 8, 100, 4096])
def test_no_bound_of_zeros_is_below_the_floor_and_betting_is_near_it(num):
    """The floor is Clopper and Pearson's bound of no success."""
    floor = guarantees.mean_floor(num, 0.05, 4.0)
    np.testing.assert_allclose(floor, 4 * stats.beta.ppf(0.95, 1, num))
    betting = guarantees.betting_upper(np.zeros(num), 0.05, 4.0)
    assert floor <= betting
    if num >= 100:
        assert betting < 1.06 * floor
        np.testing.assert_allclose(floor, 4 * math.log(20) / num, rtol=0.02)
        assert guarantees.bernstein_upper(np.zeros(num), 0.05, 4.0) > floor


def test_the_floor_of_rms_is_what_512_and_4096_samples_promise_of_images():
    assert [round(guarantees.mean_floor(n, 0.05, 4.0) ** 0.5, 3) for n in (512, 4096)] == [
        0.153, 0.054,
    ]  # fmt: skip


@pytest.mark.parametrize(("mean", "target"), [(0.01, 0.09), (1e-4, 9e-4), (0.0025, 0.01), (1, 2)])
def test_the_samples_for_a_mean_are_the_fewest_of_constant_scores(mean, target):
    num = guarantees.samples_for_mean(mean, target, 0.05, 4.0)
    assert guarantees.betting_upper(np.full(num, mean, float), 0.05, 4.0) <= target * (1 + 1e-12)
    assert guarantees.betting_upper(np.full(num - 1, mean, float), 0.05, 4.0) > target
    assert num >= math.log(20) / math.log1p((target - mean) / 4)


def test_units_do_not_matter():
    x = np.random.default_rng(5).uniform(size=50)
    for fn in UPPERS.values():
        np.testing.assert_allclose(fn(4 * x, 0.1, 4.0), 4 * fn(x, 0.1), rtol=1e-12)

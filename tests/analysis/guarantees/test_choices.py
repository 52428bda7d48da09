"""p-values valid by enumeration; a fixed sequence stops, and errs at most as often as it says."""

import math

import numpy as np
import pytest
from scipy import stats

from qdiffjax.analysis import guarantees
from tests.analysis.guarantees.enumerated import assert_valid, chances, sequences

MEAN_TESTS = {"betting": guarantees.betting_p_value,
              "Hoeffding-Bentkus": guarantees.hoeffding_bentkus_p_value}  # fmt: skip


@pytest.mark.parametrize("num", [1, 4, 9, 12])
@pytest.mark.parametrize("name", MEAN_TESTS)
def test_p_values_of_a_mean_are_valid_at_and_above_the_promise(name, num):
    """P(p <= u) <= u for every u, over all 2^n outcomes."""
    scores = sequences(num)
    for promise in (0.05, 0.3, 0.5, 0.9):
        p = MEAN_TESTS[name](scores, promise)
        for mean in (promise, (1 + promise) / 2, 1.0):
            assert_valid(p, chances(scores, mean))


@pytest.mark.parametrize("num", [1, 4, 9, 12])
def test_p_values_of_a_share_are_valid_and_exact_on_the_boundary(num):
    scores = sequences(num)
    for share in (0.05, 0.3, 0.5):
        p = guarantees.share_p_value(scores, 0.5, share)
        assert_valid(p, chances(scores, share))
        assert_valid(p, chances(scores, min(1.0, 2 * share)))
        for u in np.unique(p):  # P(p <= u) = u at what p takes
            np.testing.assert_allclose(chances(scores, share)[p <= u].sum(), u)


def test_p_values_of_a_share_are_those_of_the_binomial_test():
    scores = np.r_[np.zeros(57), np.full(3, 1e9)]
    wanted = stats.binomtest(3, 60, 0.1, alternative="less").pvalue
    np.testing.assert_allclose(guarantees.share_p_value(scores, 0.5, 0.1), wanted)


def test_hoeffding_bentkus_is_its_formula():
    scores = np.r_[np.zeros(18), np.ones(2)]
    hoeffding = math.exp(-20 * (0.1 * math.log(0.1 / 0.3) + 0.9 * math.log(0.9 / 0.7)))
    bentkus = math.e * sum(math.comb(20, i) * 0.3**i * 0.7 ** (20 - i) for i in range(3))
    found = guarantees.hoeffding_bentkus_p_value(scores, 0.3)
    np.testing.assert_allclose(found, min(hoeffding, bentkus), rtol=1e-10)


@pytest.mark.parametrize("name", MEAN_TESTS)
def test_a_kept_promise_is_shown_and_a_broken_one_is_not(name):
    rng = np.random.default_rng(0)
    scores = 4 * rng.beta(1, 9, size=400)  # mean .4
    assert MEAN_TESTS[name](scores, 0.8, 4.0) < 1e-3
    assert MEAN_TESTS[name](scores, 0.3, 4.0) > 0.5


def test_bets_see_a_small_variance_that_hoeffding_and_bentkus_do_not():
    scores = np.random.default_rng(1).uniform(0.48, 0.5, size=200)
    betting, hoeffding = (fn(scores, 0.55) for fn in MEAN_TESTS.values())
    assert betting < 0.05 < hoeffding


def test_the_bound_of_a_mean_is_where_its_p_value_crosses_the_level():
    scores = np.random.default_rng(2).uniform(size=80)
    upper = guarantees.betting_upper(scores, 0.05)
    assert guarantees.betting_p_value(scores, upper * (1 + 1e-9)) <= 0.05
    assert guarantees.betting_p_value(scores, upper * (1 - 1e-9)) > 0.05


def test_a_sequence_stops_at_its_first_failure():
    p = {"W8": 0.001, "W6": 0.02, "W5": 0.06, "W4": 0.0}
    assert guarantees.fixed_sequence(p, 0.05) == (("W8", "W6"), "W5", 0.05)
    assert guarantees.fixed_sequence(p, 0.01) == (("W8",), "W6", 0.01)
    assert guarantees.fixed_sequence(p, 1e-4) == ((), "W8", 1e-4)
    assert guarantees.fixed_sequence({"W8": 0.05}, 0.05) == (("W8",), None, 0.05)


def test_any_broken_promise_passes_at_most_as_often_as_the_level_says():
    """Ten recipes on the same noises, of which from the fifth on all break their promise."""
    rng = np.random.default_rng(3)
    rates = np.r_[np.full(4, 0.01), np.full(6, 0.1)]
    broken = 0
    for _ in range(2000):
        uniform = rng.uniform(size=100)  # common noise: the harder case is a common failure
        p = {str(i): guarantees.share_p_value((uniform < rate) * 1.0, 0.5, 0.1)
             for i, rate in enumerate(rates)}  # fmt: skip
        passed = guarantees.fixed_sequence(p, 0.1).passed
        broken += any(int(name) >= 4 for name in passed)
    assert broken <= stats.binom.ppf(0.999, 2000, 0.1)
    assert broken > 0


@pytest.mark.parametrize("p", [{}, {"W8": float("nan")}, {"W8": 1.2}, {"W8": -0.1}, {"W8": "x"}])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"p_values.*got .* expected .*; "):
        guarantees.fixed_sequence(p, 0.05)

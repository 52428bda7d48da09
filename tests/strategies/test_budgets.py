"""Budgets of bytes, operations, time and energy: prices worked by hand, and picks within them."""

import jax
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import hardware, strategies
from qdiffjax.strategies import budgets, recommendation
from tests.strategies import parallel

KEY = jax.random.key(5)
WORDS = ("W3", "W4", "W4g3", "W4A8", "W8A8")


@pytest.fixture(scope="module")
def choices():
    return strategies.offer(parallel.calibrated(1), parallel.ONE_STEP, WORDS, sites=("*",))


def of(choices, budget):
    """Costs of the first site by choice."""
    priced = budget.priced(choices)
    assert priced.costs.shape == choices.bits.shape
    np.testing.assert_array_equal(priced.costs, priced.costs[:1].repeat(4, 0))
    return dict(zip(choices.names, priced.costs[0], strict=True))


def test_bytes_are_those_of_codes_and_scales(choices):
    """36 weights, 6 output channels; groups of 3 of the 6 that are summed: 12 scales."""
    found = of(choices, budgets.stored_bytes(1000))
    assert found == {"W3": 36 * 3 / 8 + 24, "W4": 18 + 24, "W4g3": 18 + 48, "W4A8": 18 + 24,
                     "W8A8": 36 + 24}  # fmt: skip


def test_bit_operations_are_macs_times_both_widths(choices):
    found = of(choices, budgets.bit_operations(1000, batch=2))
    assert found == {"W3": 72 * 3 * 32, "W4": 72 * 4 * 32, "W4g3": 72 * 4 * 32, "W4A8": 72 * 32,
                     "W8A8": 72 * 64}  # fmt: skip


def test_seconds_are_those_of_the_chip_and_its_name_will_do(choices):
    site = next(s for s in parallel.denoiser().sites(3) if s.name == "a")
    by_name = of(choices, budgets.seconds(1.0, "v5e", batch=3))
    chip = hardware.find_chip("v5e")
    for name, entry in choices.entries.items():
        assert by_name[name] == hardware.site_seconds(site, entry, chip)


def test_joules_of_codes_are_less_than_those_of_weights_alone(choices):
    found = of(choices, budgets.joules(1.0))
    counts = hardware.count([s for s in parallel.denoiser().sites() if s.name == "a"])
    expected = hardware.predict_energy(counts, hardware.uniform(8, 8, full=16)).total
    np.testing.assert_allclose(found["W8A8"], expected)
    expected = hardware.predict_energy(counts, hardware.uniform(4, 16, full=16)).total
    np.testing.assert_allclose(found["W4"], expected)


def test_sites_that_share_a_weight_pay_for_it_once_but_each_computes():
    def net_fn(params, x, t):
        return x @ params["w"] @ params["w"]

    params = {"w": parallel.denoiser().params["a"]}
    denoiser = qd.Denoiser(net_fn, params, parallel.SCHEDULE, (6,))
    calibration = qd.calibrate(denoiser, parallel.ONE_STEP, KEY, num_samples=2)
    tied = strategies.offer(calibration, parallel.ONE_STEP, (4,), sites=("*",))
    assert len(tied.sites) == 1
    assert budgets.stored_bytes(99).priced(tied).least == 18 + 24
    assert budgets.bit_operations(99).priced(tied).least == 2 * 36 * 4 * 32


@pytest.mark.parametrize(
    "budget", [budgets.stored_bytes("W4"), budgets.bit_operations("W4A8"),
               budgets.seconds("W4A8", "H200", batch=64), budgets.joules("W8A8"),
               strategies.Budget(4.5, lambda site, bits: 1 + (bits.activation is None), "points")],
    ids=lambda b: b.unit,
)  # fmt: skip
def test_what_is_recommended_is_within_a_budget_of_any_unit(budget):
    found = qd.recommend(
        parallel.calibrated(1), parallel.ONE_STEP, budget, WORDS, key=KEY, sites=("*",),
        num_noises=4, num_samples=8, num_probes=None,
    )  # fmt: skip
    for pick in (found.pick, found.found, found.uniform):
        assert found.choices.total(pick) <= found.budget
    assert found.choices.unit == budget.unit
    assert budget.unit in str(found)
    assert found.floor <= found.predicted * (1 + 1e-9)


def test_a_plain_price_is_searched_as_the_knapsack_of_its_table(choices):
    """At one point for codes and two for weights alone, 4 sites and 5 points: one alone at most."""
    budget = strategies.Budget(5, lambda site, bits: 1 + (bits.activation is None), "points")
    priced = budget.priced(choices)
    noise = strategies.trial(priced, KEY, 4)
    pick = recommendation.least_error(strategies.error_algebra(noise), 5.0).choice
    assert sum(not choices.rounds_activations[k] for k in pick) <= 1


def refused(budget, choices=("W4", "W8")):
    with pytest.raises((ValueError, TypeError)) as error:
        qd.recommend(parallel.calibrated(1), parallel.ONE_STEP, budget, choices, key=KEY,
                     sites=("*",), num_noises=2)  # fmt: skip
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_budget_that_nothing_meets_names_the_nearest():
    assert "got 100 bytes, expected at least 168" in refused(budgets.stored_bytes(100))
    assert "at least 9216" in refused(budgets.bit_operations(1.0), ("W4A16", "W8A8"))
    assert "seconds on v5e" in refused(budgets.seconds(1e-15, "v5e"))
    assert "one of" in refused(budgets.joules("W5"))


def test_a_site_that_no_format_can_be_had_for_is_named():
    price = lambda site, bits: np.inf if site.name == "b" else 1.0  # noqa: E731
    said = refused(strategies.Budget(9.0, price, "points"))
    assert said.startswith("b: got no choice of finite points")
    only = lambda site, bits: np.inf if bits.weight.bits == 4 else 1.0  # noqa: E731
    assert "infinite points" in refused(strategies.Budget("W4", only, "points"))
    assert "price of" in refused(strategies.Budget(9.0, lambda site, bits: -1.0, "points"))


@pytest.mark.parametrize(
    ("make", "match"),
    [(lambda: budgets.seconds(1.0, "K80"), "one of H100"),
     (lambda: budgets.seconds(1.0, "v5e", batch=0), "batch"),
     (lambda: budgets.seconds(1.0, "v5e", full=8), "full"),
     (lambda: budgets.joules(-1.0), "budget"), (lambda: budgets.stored_bytes(0), "budget"),
     (lambda: strategies.Budget(1.0, 3.0, "points"), "function")],
)  # fmt: skip
def test_what_is_no_budget_is_refused_where_it_is_made(make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make()

"""Faults that are drawn, what they change, and what the tables say of verdicts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from experiments.faults import draws, plots
from experiments.faults import experiment as faults
from experiments.harness import command
from qdiffjax import precision
from qdiffjax.precision import OperandFormat, SiteBits, Switch
from qdiffjax.quant import ActivationGrid, FloatFormat, IntFormat
from tests.tolerances import assert_close
from tests.worlds import normal32

PARAMS = {"in": normal32(0, 2, 8), "out": normal32(1, 8, 2)}
DENOISER = qd.Denoiser(
    lambda params, x, t: jnp.tanh(x @ params["in"]) @ params["out"], PARAMS, qd.linear(), (2,)
)
STEPS = qd.ddim(DENOISER.schedule, 4)
CALIBRATION = qd.calibrate(DENOISER, STEPS, jax.random.key(0), num_samples=8)
STATIC = OperandFormat(IntFormat(8, signed=False), scales="static")
Q = precision.quantize(
    CALIBRATION, qd.Recipe({name: SiteBits(8, STATIC) for name in ("in", "out")})
)
GRID = ActivationGrid(IntFormat(4, signed=False), jnp.float32(0.5), jnp.int32(6))  # -3 .. 4.5


def fault(kind, site="in", start=0, stop=4, amount=0.5):
    return draws.Fault(kind, site, start, stop, amount)


def built(own):
    return draws.applied(own, Q, CALIBRATION, 4)


@pytest.mark.parametrize("kind", draws.KINDS)
def test_a_fault_is_drawn_at_a_site_that_can_have_it_and_at_some_steps(kind):
    rng = np.random.default_rng(0)
    drawn = [draws.draw(rng, Q, kind, 4) for _ in range(60)]
    assert {own.site for own in drawn} == ({None} if kind == draws.STEP else {"in", "out"})
    assert all(0 <= own.start < own.stop <= 4 for own in drawn)
    lengths = {own.stop - own.start for own in drawn}
    assert {1, 4} <= lengths
    assert 20 <= sum(own.stop - own.start == 4 for own in drawn) <= 55


@pytest.mark.parametrize("kind", draws.KINDS)
def test_a_fault_changes_its_site_alone(kind):
    bad = built(fault(kind, None if kind == draws.STEP else "in"))
    assert bad.site_inputs["out"] is Q.site_inputs["out"]
    assert (bad.site_inputs["in"] is Q.site_inputs["in"]) == (kind == draws.STEP)


def test_a_wrong_scale_is_a_factor_of_the_weight():
    bad = built(fault(draws.SCALE, amount=1.5)).site_inputs["in"]
    assert_close(bad.weight, 1.5 * Q.site_inputs["in"].weight)
    assert bad.activations == Q.site_inputs["in"].activations


def test_two_bits_leave_four_numbers_of_activations_and_three_of_a_channel():
    bad = built(fault(draws.TWO_BITS)).site_inputs["in"]
    assert all(len(np.unique(column)) <= 3 for column in np.asarray(bad.weight).T)
    x = jnp.linspace(-2e3, 2e3, 200, dtype=jnp.float32)[:, None]
    assert len(np.unique(precision.round_activation(x, bad.activations[0], axes=(1,)))) == 4


@pytest.mark.parametrize(("left", "ends"), [(0.5, (-3.0, 2.25)), (-0.5, (-1.5, 4.5))])
def test_a_clipped_edge_leaves_a_share_of_one_side(left, ends):
    x = jnp.linspace(-9, 9, 200, dtype=jnp.float32)[:, None]
    own = precision.round_activation(x, draws.clipped(GRID, left), axes=(1,))
    step = (ends[1] - ends[0]) / 15
    assert float(own.min()) == pytest.approx(ends[0], abs=step)
    assert float(own.max()) == pytest.approx(ends[1], abs=step)
    assert len(np.unique(own)) == 16


def test_the_range_of_a_symmetric_grid_is_clipped_on_both_sides():
    grid = ActivationGrid(FloatFormat(2, 1), jnp.float32(0.5))
    assert float(draws.clipped(grid, -0.5).scale) == 0.25


def test_a_swapped_zero_point_is_that_of_the_other_as_far_as_codes_go():
    for other, own in ((3, 3), (99, 15)):
        assert int(draws.swapped(GRID, other).zero_point) == own
    assert draws.next_zero_point(Q, "in") == Q.site_inputs["out"].activations[0].zero_point


def test_a_fault_at_some_steps_is_a_switch_that_takes_it_there():
    bad = built(fault(draws.SCALE, start=1, stop=3)).site_inputs["in"]
    assert isinstance(bad.weight, Switch)
    np.testing.assert_array_equal(bad.weight.which, [0, 1, 1, 0])
    twice = draws.at_steps(bad.weight, bad.weight.alternatives[0], np.array([1, 0, 1, 0], bool))
    chosen = [twice.alternatives[k] for k in twice.which]
    for own, factor in zip(chosen, (1, 0.5, 1, 1), strict=True):
        assert_close(own, factor * Q.site_inputs["in"].weight)


def test_a_step_off_by_one_is_given_the_time_of_its_neighbour():
    t = np.asarray(STEPS.t)
    late = draws.shifted(fault(draws.STEP, None, 1, 3, 1.0), STEPS)
    np.testing.assert_array_equal(late.t, [t[0], t[2], t[3], t[3]])
    early = draws.shifted(fault(draws.STEP, None, 0, 4, -1.0), STEPS)
    np.testing.assert_array_equal(early.t, [t[0], t[0], t[1], t[2]])
    assert draws.shifted(fault(draws.SCALE), STEPS) is STEPS


def ratios(total, step, site, where="in", when=0):
    return {"total_ratio": total, "step_ratio": step, "site_ratio": site, "worst_site": where,
            "worst_site_step": when, "worst_step": when, "measured": total,
            "forecast": 1.0}  # fmt: skip


def rows():
    """Made-up rows: limits of 3, 3 and 6, four honest recipes and four faults."""
    fixed = [{"part": plots.FIXED, "honest": ratios(*pair)} for pair in ((2, 1, 4), (1, 2, 1))]
    tested = [
        (ratios(1.0, 1.0, 1.0), ratios(1, 1, 9) | {"effect": 1.05, "site": "in"}),
        (ratios(3.5, 1.0, 1.0), ratios(1, 9, 9, "out", 2) | {"effect": 3.0, "site": "in"}),
        (ratios(1.0, 1.0, 6.5), ratios(9, 9, 1, "out", 2) | {"effect": 5.0, "site": None}),
        (ratios(3.0, 3.0, 6.0), ratios(1, 1, 1) | {"effect": 2.0, "site": "in"}),
    ]  # fmt: skip
    return fixed + [
        {
            "part": plots.TESTED,
            "honest": own,
            "faults": [bad | {"kind": "k", "start": 1, "stop": 3}],
        }
        for own, bad in tested
    ]


def test_limits_are_the_largest_of_few_recipes_that_fix_them_times_a_margin():
    assert plots.limits(rows(), 1.0) == {"total_ratio": 2, "step_ratio": 2, "site_ratio": 4}
    assert plots.limits(rows()) == {"total_ratio": 3, "step_ratio": 3, "site_ratio": 6}
    many = [{"part": plots.FIXED, "honest": ratios(i, i, i)} for i in range(199)]
    assert plots.limits(many, 1.0)["site_ratio"] == 197  # the 198th of 199
    assert plots.lowest(many) == pytest.approx(1 / plots.MARGIN)  # the second


def test_alarms_are_honest_recipes_beyond_a_limit():
    counts = {way: plots.alarms(rows(), way)[0] for way in plots.WAYS}
    assert counts == {"samples alone": 1, "and steps": 1, "and sites": 2}


def test_faults_are_found_named_and_timed():
    told = plots.judged(rows())
    assert [f["found"]["and sites"] for f in told] == [True, True, True, False]
    assert [f["found"]["samples alone"] for f in told] == [False, False, True, False]
    assert [f["named"] for f in told] == [True, False, True, False]
    assert [f["timed"] for f in told] == [False, True, True, False]
    large = plots.groups(told)["2 or more"]
    assert plots.share(large, lambda f: f["found"]["and sites"]) == (2, 3)


def test_a_ratio_that_is_no_number_is_found():
    most = {"total_ratio": 2.0, "step_ratio": 2.0, "site_ratio": 2.0}
    assert plots.is_found(ratios(math.nan, 1, 1), most)
    assert plots.is_found(ratios(1, 1, math.inf), most)


@pytest.mark.parametrize(
    "change", [{"mean_bits": (2,)}, {"num_fixed": 1}, {"num_recipes": 0}, {"num_faults": 6},
               {"num_steps": 1}, {"num_samples": 1}, {"num_calibrations": 1}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        command.check(faults.Config(**change))

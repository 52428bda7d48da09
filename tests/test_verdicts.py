"""Verdicts: honest networks pass, faults are found and named, on a network of known sites."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, verdicts
from qdiffjax.analysis.errors import Evidence, local_errors, predict_errors, site_squares
from qdiffjax.precision import full_call, quantized_call
from tests import tolerances
from tests.worlds import normal32

PARAMS = {"in": normal32(0, 2, 8, scale=0.5), "out": normal32(1, 8, 2, scale=0.5),
          "time": normal32(2, 4, 8, scale=0.5)}  # fmt: skip


def waves(t):
    return jnp.cos(t[:, None] / jnp.array([[100.0, 200.0, 300.0, 500.0]], jnp.float32))


def net_fn(params, x, t):
    time = waves(t.reshape(1)) @ params["time"]
    return jnp.tanh(x @ params["in"] + time) @ params["out"]


DENOISER = qd.Denoiser(net_fn, PARAMS, qd.linear(), (2,))
STEPS = qd.ddim(DENOISER.schedule, 5)
KEY = jax.random.key(3)
LIMITS = verdicts.Limits(total=3.0, step=2.0, site=2.5, low=0.3)


def built(words, seed=0, calibrated=qd.calibrate(DENOISER, STEPS, jax.random.key(0))):  # noqa: B008
    calibration = calibrated if not seed else qd.calibrate(DENOISER, STEPS, jax.random.key(seed))
    return qd.quantize(calibration, words, sites=("*",))


Q = built("W8A8")


def assert_close(actual, expected, **options):
    """As `tolerances.assert_close`, of numbers that were computed in float32."""
    tolerances.assert_close(*(np.asarray(a, np.float32) for a in (actual, expected)), **options)


def judge(suspect, **options):
    return qd.verdict(Q, suspect, STEPS, KEY, 16, limits=LIMITS, **options)


def wrong_weight(site, factor=1.5, q=Q):
    inputs = q.site_inputs[site]
    return dataclasses.replace(q, site_inputs=q.site_inputs | {
        site: inputs._replace(weight=jnp.float32(factor) * inputs.weight)})  # fmt: skip


def test_an_honest_network_passes_with_the_ranges_of_another_calibration():
    found = judge(built("W8A8", seed=7))
    assert not found.is_bug
    assert found.site is found.step is None
    assert found.sentence == "within what rounding explains"
    value, low, high = found.forecast
    assert (low, high) == (value * LIMITS.low, value * LIMITS.total)


def test_what_is_claimed_commits_what_its_formats_commit():
    found = judge(Q)
    assert_close(found.steps, np.ones(5), factor=64)
    for ratios in found.sites.values():
        assert_close(ratios, np.ones(5), factor=64)


@pytest.mark.parametrize("site", ["in", "out"])
def test_the_site_of_a_wrong_scale_is_named_and_no_other_one_differs(site):
    found = judge(wrong_weight(site))
    assert found.is_bug
    assert found.site == site
    for name, ratios in found.sites.items():
        if name != site:
            assert_close(ratios, np.ones(5), factor=64)


def test_the_step_at_which_a_fault_begins_is_named():
    good, bad = (q.site_inputs["in"] for q in (Q, wrong_weight("in", 3.0)))
    which = np.array([0, 0, 0, 1, 0], np.int32)
    inputs = good._replace(weight=precision.Switch((good.weight, bad.weight), which))
    found = judge(dataclasses.replace(Q, site_inputs=Q.site_inputs | {"in": inputs}))
    assert (found.site, found.step) == ("in", 3)
    assert found.sentence == "a bug: look at in (step 3) first"


def test_a_function_without_sites_is_judged_as_the_network_that_it_is():
    call = quantized_call(Q)
    found = judge(lambda x, t: call(x, t)[0])
    whole = judge(Q)
    assert not found.is_bug
    assert found.sites == {}
    assert_close(found.suspect.errors, whole.suspect.errors, factor=64, scale=1.0)
    assert_close(found.steps, whole.steps, factor=64)


@pytest.mark.parametrize("suspect", [lambda x, t: x[:, :1], lambda x, t: (x, t)])
def test_a_function_whose_result_is_no_prediction_of_x_is_refused(suspect):
    """A column was spread over x, and called a bug of the first step."""
    with pytest.raises(ValueError, match=r"suspect: got a .*expected eps \[16, 2\], as x"):
        judge(suspect)


def test_the_step_of_a_function_that_is_off_is_named():
    call, t_bad = quantized_call(Q), float(STEPS.t[2])

    def eps_fn(x, t):
        return call(x, t)[0] + jnp.where(t == t_bad, 0.3, 0.0).astype(x.dtype)

    found = judge(eps_fn)
    assert (found.site, found.step) == (None, 2)
    assert found.sentence == "a bug: look at step 2 first, no site is seen"


def test_a_time_of_the_step_before_is_no_fault_of_a_site():
    found = judge(Q, own_steps=STEPS._replace(t=np.r_[STEPS.t[:1], STEPS.t[:-1]]))
    assert found.is_bug
    assert found.site is None
    assert found.step != 0  # whose time is right
    assert "between the sites" in found.sentence
    assert_close(found.sites["time"], np.ones(5), factor=64)


def test_what_is_carried_from_step_to_step_is_blamed_if_no_step_stands_out():
    sizes = np.ones(3)
    found = verdicts.Verdict(Evidence(np.ones(4), sizes, {}), Evidence(9 * np.ones(4), sizes, {}))
    assert found.is_bug
    assert found.step is None
    assert "carried" in found.sentence


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_a_bug(bad):
    found = judge(wrong_weight("out", bad))
    assert found.ratio == math.inf
    assert found.site == "out"


def test_a_site_that_was_to_stay_plain_is_named():
    claimed = built("W8A8")
    sites = {name: inputs for name, inputs in claimed.site_inputs.items() if name != "out"}
    found = qd.verdict(dataclasses.replace(claimed, site_inputs=sites), claimed, STEPS, KEY)
    assert found.site == "out"


def test_evidence_is_local_errors_at_full_precision_states_and_the_forecast_that_of_predict():
    run = qd.couple(Q, STEPS, KEY, 16)
    found = judge(wrong_weight("in"))
    bad = quantized_call(wrong_weight("in"))
    e = local_errors(full_call(Q), bad, run.xs, STEPS)
    assert_close(found.suspect.steps, jnp.mean(e**2, (1, 2)), factor=64)
    forecast = jnp.sqrt(jnp.mean(predict_errors(Q, run.xs, STEPS)[-1] ** 2, 1))
    assert_close(found.expected.errors, forecast, factor=64)
    squares = site_squares(Q, run.xs, STEPS)["time"]
    call = {"weight": Q.site_inputs["time"].weight, "grid": Q.site_inputs["time"].activations[0]}
    cos = waves(jnp.asarray(STEPS.t, jnp.float32))
    rounded = precision.round_activation(cos, call["grid"], axes=(1,))
    by_hand = rounded @ call["weight"] - cos @ PARAMS["time"]
    assert_close(squares, jnp.mean(by_hand**2, 1), factor=64)


def test_integers_are_judged_beside_the_simulation_of_their_recipe():
    calibration = qd.calibrate(DENOISER, STEPS, jax.random.key(0))
    claimed, lowered = (make(calibration, "W8A8", sites=("in", "out"))
                        for make in (qd.quantize, qd.lower))  # fmt: skip
    found = qd.verdict(claimed, lowered, STEPS, KEY, 16, limits=LIMITS)
    assert not found.is_bug
    for ratios in found.sites.values():
        np.testing.assert_allclose(ratios, 1, rtol=1e-2)


def test_a_function_is_given_the_conditions_of_its_samples():
    def net_fn(params, x, t, label):
        return jnp.tanh(x @ params["in"]) @ params["out"] + label[:, None] * params["in"][:1, :2]

    denoiser = qd.Denoiser(net_fn, PARAMS, qd.linear(), (2,), cond=np.arange(3, dtype=np.float32))
    q = qd.quantize(qd.calibrate(denoiser, STEPS, jax.random.key(0)), "W8A8", sites=("*",))
    right, wrong = (
        qd.verdict(q, lambda x, t, label, by=by: q.eps_fn(PARAMS, x, t, by * label), STEPS, KEY, 6,
                   batch_size=4, limits=LIMITS) for by in (1, 2)
    )  # fmt: skip
    assert right.ratio < 1e-3  # full precision
    assert wrong.is_bug


def test_noise_of_the_sampler_is_common_and_what_a_site_remembers_is_carried():
    steps = qd.ddpm(DENOISER.schedule, 5)
    calibration = qd.calibrate(DENOISER, steps, jax.random.key(0))
    q = qd.quantize(calibration, "W8A8 shaped", sites=("*",))
    found = qd.verdict(q, q, steps, KEY, 16, limits=LIMITS)
    assert found.ratio < 3
    assert_close(found.steps, np.ones(5), factor=64)


def test_batches_are_joined_by_their_sizes():
    whole, parts = judge(wrong_weight("in")), judge(wrong_weight("in"), batch_size=6)
    assert_close(parts.suspect.errors, whole.suspect.errors, factor=64, scale=1.0)
    assert_close(parts.suspect.steps, whole.suspect.steps, factor=64)
    assert_close(parts.expected.sites["out"], whole.expected.sites["out"], factor=64)


def test_the_ratio_of_samples_is_the_geometric_mean():
    none = np.ones(1)
    known, own = Evidence(np.array([1.0, 2.0]), none, {}), Evidence(np.array([4.0, 2.0]), none, {})
    assert verdicts.Verdict(known, own).ratio == pytest.approx(2.0)


def test_it_prints_as_a_table_with_its_sentence():
    text = str(judge(wrong_weight("in")))
    assert text.startswith("Verdict: a bug: look at in (step ")
    assert "samples (RMSE, geometric mean)" in text

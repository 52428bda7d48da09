"""Corrections: lines recovered, means removed, noise absorbed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import comparisons, precision, strategies
from qdiffjax.analysis.errors import ledger, predict_errors
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision.around import Affine
from qdiffjax.strategies import corrections, lines
from tests import worlds
from tests.precision.small import STEPS, calibrated, denoiser
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 8, 6, 6, 3)
KEY = jax.random.key(1)


def test_least_squares_recovers_a_line():
    y = worlds.normal(1, 50, 4, 3)
    gain, shift = jnp.asarray([0.5, 1.0, 2.0]), jnp.asarray([0.1, -0.2, 0.0])
    fit = lines.least_squares(y, gain[None, None] * y + shift[None, None])
    assert_close(fit.gain[0], gain, factor=256)
    assert_close(fit.shift[0], shift, factor=256, scale=1.0)


def test_least_squares_is_the_conditional_mean_of_a_joint_gaussian():
    """wanted = 0.8 y + noise of its own: the gain is Cov / Var, and a ridge pulls it to 1."""
    y = worlds.normal(1, 4000, 5)
    wanted = 0.8 * y + 0.5 * worlds.normal(2, 4000, 5)
    fit = lines.least_squares(y, wanted, over="tensor")
    assert abs(float(fit.gain.squeeze()) - 0.8) < 0.02
    pulled = lines.least_squares(y, wanted, over="tensor", ridge=1.0)
    assert_close(pulled.gain, (fit.gain + 1) / 2)


def test_a_constant_has_no_gain():
    fit = lines.least_squares(jnp.ones((5, 2)), 3 * jnp.ones((5, 2)))
    assert_close(fit.gain, np.ones_like(fit.gain))
    assert_close(fit.shift[0], np.full(2, 2.0) if fit.shift.ndim > 1 else 2.0)


def test_ptqd_takes_out_the_correlated_part_and_the_bias():
    """y = 1.25 wanted + (0.5, 0): gain 0.8, shift (-0.4, 0); a negative slope is taken as none."""
    wanted = worlds.normal(1, 200, 3, 2)
    bias = jnp.asarray([0.5, 0.0])
    fit = lines.correlated_noise(1.25 * wanted + bias[None, None], wanted)
    assert_close(fit.gain, 0.8, factor=256)
    assert_close(fit.shift, np.array([-0.4, 0.0]), factor=1024, scale=1.0)
    assert_close(lines.correlated_noise(0.5 * wanted, wanted).gain, 1.0)


def test_moments_are_matched():
    y, wanted = worlds.normal(1, 300, 2), 3 * worlds.normal(2, 300, 2) + 1
    fit = lines.matched_moments(y, wanted)
    moved = fit.gain[None] * y + fit.shift[None]
    assert_close(jnp.mean(moved, 0), jnp.mean(wanted, 0), factor=256)
    assert_close(jnp.std(moved, 0), jnp.std(wanted, 0), factor=256)


LINEAR = Denoiser(
    lambda p, x, t: p["w"][None] * x, {"w": jnp.asarray([0.31, 0.72])}, worlds.SCHEDULE, (2,)
)
LINES = worlds.normal(4, 16, 2)


def scaled_rule(site, op, operands, inputs):
    """A network whose prediction comes out 1.3 times too large, plus 0.2."""
    y = op(*operands)
    if site.kind == "output" and inputs is not None:
        y = 1.3 * y + 0.2
        correction = None if inputs.around is None else inputs.around.correction
        return (y if correction is None else correction(y, inputs.call)), None
    return y, None


def test_an_error_that_is_a_line_is_undone():
    """A gain and a shift of the prediction by call: the corrected run is the full-precision one."""
    steps = qd.ddim(worlds.SCHEDULE, 6)
    q = precision.Quantized(LINEAR, {"output": precision.SiteQuant()}, rule=scaled_rule)
    fit = corrections.fit_along(q, LINES, steps, lines.least_squares)
    assert_close(fit.gain, np.full(fit.gain.shape, 1 / 1.3), factor=1024)
    around = precision.around.Around(correction=Affine(*fit))
    fixed = dataclasses.replace(q, site_inputs={"output": precision.SiteQuant(around=around)})
    run = qd.diffusion.sample(precision.quantized_call(fixed), LINES, steps,
                              per_call=fixed.calls(steps)).x_0  # fmt: skip
    exact = qd.diffusion.sample(precision.full_call(q), LINES, steps).x_0
    assert_close(run, exact, factor=4096)


@pytest.mark.parametrize("name", ["ddim", "stochastic"])
def test_compensation_leaves_no_mean_error_on_its_samples(name):
    steps = STEPS if name == "ddim" else qd.ddim(denoiser().schedule, 5, eta=0.6)
    done = strategies.improve(calibrated(), "W3A4", [strategies.compensation()], steps, KEY,
                              x_T=NOISE)  # fmt: skip
    q = done.quantized()
    run = qd.diffusion.sample(precision.quantized_call(q), NOISE, steps, key=KEY,
                              per_call=q.calls(steps)).states  # fmt: skip
    exact = qd.diffusion.sample(precision.full_call(q), NOISE, steps, key=KEY).states
    errors = run - exact
    assert float(jnp.max(jnp.abs(jnp.mean(errors[1:], 1)))) < 2e-3 * float(jnp.std(errors[-1]))
    assert done.bill.evaluations == 5 * 8 + 4 * 5 * 8


def test_compensation_is_for_predictions_of_any_kind():
    """The network predicts x_0: the missing eps is turned into a missing prediction."""
    for prediction in ("x0", "v"):
        world = dataclasses.replace(denoiser(), prediction=prediction)
        calibration = precision.calibrate(world, STEPS, x_T=NOISE)
        done = strategies.improve(calibration, "W3A4", [strategies.compensation()], STEPS, KEY,
                                  x_T=NOISE)  # fmt: skip
        q = done.quantized()
        run = qd.diffusion.sample(precision.quantized_call(q), NOISE, STEPS,
                                  per_call=q.calls(STEPS)).x_0  # fmt: skip
        exact = qd.diffusion.sample(precision.full_call(q), NOISE, STEPS).x_0
        assert float(jnp.max(jnp.abs(jnp.mean(run - exact, 0)))) < 1e-3 * float(jnp.std(exact))


@pytest.mark.parametrize(
    "cure",
    [strategies.joint_gaussian(), strategies.timestep_aware(), strategies.drift(),
     strategies.compensation(ridge=0.1)],
    ids=lambda cure: cure.name,
)  # fmt: skip
def test_corrections_make_a_run_of_other_samples_better(cure):
    """Two-bit weights; PTQD, which shrinks and never stretches, does nothing for this network."""
    fresh = worlds.normal(77, 16, 6, 6, 3)
    errors = []
    for cures in ([], [cure]):
        done = strategies.improve(calibrated(), "W2A8", cures, STEPS, KEY, x_T=NOISE)
        q = done.quantized()
        run = qd.diffusion.sample(precision.quantized_call(q), fresh, STEPS,
                                  per_call=q.calls(STEPS)).x_0  # fmt: skip
        exact = qd.diffusion.sample(precision.full_call(q), fresh, STEPS).x_0
        errors.append(float(jnp.linalg.norm(run - exact)))
    assert errors[1] < errors[0]


def test_the_ledger_of_a_corrected_network_adds_up():
    done = strategies.improve(calibrated(), "W6A8", [strategies.bias_correction(),
                              strategies.compensation()], STEPS, KEY, x_T=NOISE)  # fmt: skip
    entries = ledger.attribution(done.quantized(), NOISE[:2], STEPS, num_nodes=4)
    assert "output" in entries.contributions
    assert float(jnp.median(ledger.defect(entries))) < 2e-2


@pytest.mark.parametrize("recipe", ["W3A16", "W3A3 shaped", "W3A3 difference"])
@pytest.mark.parametrize("by_call", [False, True])
def test_bias_correction_leaves_products_without_a_mean_error(by_call, recipe):
    """With memory too: what is handed on is of the operand, which a shift of the result leaves."""
    cures = [strategies.bias_correction(by_call=by_call)]
    done = strategies.improve(calibrated(), recipe, cures, STEPS, KEY, x_T=NOISE, num_calls=5,
                              sites=("conv",))  # fmt: skip
    left = corrections._mean_errors(done, done.quantized())["conv"]
    before = corrections._mean_errors(
        dataclasses.replace(done, around={}), dataclasses.replace(done, around={}).quantized()
    )["conv"]
    mean = left if by_call else jnp.mean(left, 0)
    assert float(jnp.max(jnp.abs(mean))) < 1e-5
    assert float(jnp.max(jnp.abs(before))) > 1e-2


def test_bias_by_call_needs_every_call():
    with pytest.raises(ValueError, match="num_calls=5"):
        strategies.improve(calibrated(), "W3A8", [strategies.bias_correction(by_call=True)], STEPS,
                           KEY, x_T=NOISE, num_calls=3)  # fmt: skip


def test_bias_is_that_of_the_weights_channels():
    by_name = {site.name: site for site in calibrated().sites}
    assert corrections.channel_axes(by_name["conv"]) == (3,)
    assert corrections.channel_axes(by_name["in"]) == (3,)


SHAPED = "W4A8 shaped"


def bent_fn(p, x, t):
    """An even part, so that rounded weights leave a mean error."""
    h = jax.nn.relu(worlds.convolve(x, p["conv"]) + 0.3)
    return jax.nn.relu(h @ p["in"]) @ p["out"]


@functools.cache
def shaped(*cures):
    bent = dataclasses.replace(denoiser(), net_fn=bent_fn)
    calibration = precision.calibrate(bent, STEPS, x_T=NOISE)
    return strategies.improve(calibration, SHAPED, cures, STEPS, KEY, x_T=NOISE).quantized()


BY_CALL = strategies.bias_correction(by_call=True)


@pytest.mark.parametrize("cure", [BY_CALL, strategies.bias_correction()], ids=lambda c: c.name)
def test_bias_correction_lowers_the_mean_error_beside_feedback(cure):
    """On fresh samples, run with what calls hand on: the mean over them of the final error."""
    fresh = worlds.normal(78, 64, 6, 6, 3)
    means = []
    for q in (shaped(), shaped(cure)):
        exact, run = (precision.final_samples(q, fresh, STEPS, in_full=on) for on in (True, False))
        means.append(float(jnp.linalg.norm(jnp.mean(run - exact, 0))))
    assert means[1] < 0.6 * means[0]


def test_ledger_and_prediction_of_a_correction_beside_feedback():
    q = shaped(BY_CALL)
    assert set(q.start(NOISE)) == {"conv", "in"}
    x_T = NOISE[:2]
    xs = qd.diffusion.sample(precision.full_call(q), x_T, STEPS).states
    run = jax.jit(comparisons.measured)(q, x_T, xs, STEPS)
    entries = ledger.attribution(q, x_T, STEPS, num_nodes=4)
    np.testing.assert_allclose(entries.x_hat_0, run.xs_hat[-1], rtol=1e-6, atol=1e-6)
    assert float(jnp.median(ledger.defect(entries))) < 2e-2
    predicted = predict_errors(q, xs, STEPS)[-1]
    ratio = jnp.linalg.norm(predicted) / jnp.linalg.norm(run.errors[-1])
    assert 0.8 < float(ratio) < 1.25


def test_bias_beside_feedback_needs_every_call():
    with pytest.raises(ValueError, match="for what each hands on to the next"):
        strategies.improve(calibrated(), SHAPED, [strategies.bias_correction()], STEPS, KEY,
                           x_T=NOISE, num_calls=3)  # fmt: skip


def test_states_of_a_sampler_with_memory_are_refused():
    steps = qd.dpmpp_2m(denoiser().schedule, 5)
    with pytest.raises(ValueError, match="a sampler with memory"):
        strategies.improve(calibrated(), "W3A8", [strategies.compensation()], steps, KEY, x_T=NOISE)
    done = strategies.improve(calibrated(), "W3A8", [strategies.ptqd()], steps, KEY, x_T=NOISE)
    q = done.quantized()
    assert bool(jnp.all(jnp.isfinite(qd.diffusion.sample(
        precision.quantized_call(q), NOISE, steps, per_call=q.calls(steps)).x_0)))  # fmt: skip


def test_the_ceiling_is_the_share_of_the_mean():
    """Mean 3, variance 1: 90 % of the square is the mean's, so removing it gains 10 dB."""
    errors = 3 + np.asarray(worlds.normal(1, 20000, 2))
    assert abs(corrections.ceiling(errors) - 10.0) < 0.1
    assert corrections.ceiling(worlds.normal(2, 3000, 4)) < 0.05


def test_noise_of_the_error_takes_the_place_of_the_samplers():
    steps = qd.ddim(worlds.SCHEDULE, 5, eta=1.0)
    variances = jnp.full(5, 0.01)
    less = strategies.absorbed(steps, variances)
    total = less.coeffs.noise**2 + steps.coeffs.eps**2 * variances
    free = np.asarray(less.coeffs.noise) > 0
    assert free.sum() >= 3
    assert_close(total[free], (steps.coeffs.noise**2)[free], factor=64)
    with pytest.raises(ValueError, match="without noise"):
        strategies.absorbed(qd.ddim(worlds.SCHEDULE, 5), variances)
    with pytest.raises(ValueError, match="one for each call"):
        strategies.absorbed(steps, variances[:3])

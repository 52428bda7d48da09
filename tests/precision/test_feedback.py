"""Activations rounded with error feedback from call to call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion, precision, quant
from qdiffjax.analysis.errors import ledger, prediction, runs, site_variances
from qdiffjax.denoiser import Denoiser
from tests import worlds
from tests.precision.small import (
    INT,
    SCHEDULE,
    STEPS,
    X_T,
    calibrated,
    denoiser,
)
from tests.tolerances import assert_close


def test_feedback_makes_the_error_of_an_operand_a_difference_of_residuals():
    grid = quant.ActivationGrid(INT(3), jnp.asarray(0.5), feedback=True)
    xs = 0.4 * worlds.normal(11, 30, 5)
    residual, errors, residuals = jnp.zeros(5), [], [np.zeros(5)]
    for x in xs:
        rounded, residual = grid.round_with_residual(x, residual, (0,))
        errors.append(np.asarray(rounded - x))
        residuals.append(np.asarray(residual))
    assert np.max(np.abs(residuals)) <= 0.25 + 1e-9
    assert_close(np.asarray(errors), -np.diff(residuals, axis=0), factor=64)
    assert_close(np.sum(errors, 0), -residuals[-1], factor=4096)


def test_feedback_does_not_wind_up_beyond_the_ends_of_a_grid():
    grid = quant.ActivationGrid(INT(3), jnp.asarray(1.0), feedback=True)
    residual = jnp.zeros(1)
    for _ in range(10):
        rounded, residual = grid.round_with_residual(jnp.full(1, 7.3), residual, (0,))
        assert float(rounded[0]) == 3
        assert abs(float(residual[0])) <= 0.5
    rounded, _ = grid.round_with_residual(jnp.zeros(1), residual, (0,))
    assert abs(float(rounded[0])) <= 1


def by_hand(q, num_steps, carries=None):
    """The sampler with feedback at the input alone, step by step."""
    x, residual = X_T, jnp.zeros_like(X_T)
    grid = q.site_inputs["input"].activations[0]
    for i in range(num_steps):
        if carries is not None:
            residual = residual * (carries[i - 1] if i else 0)
        rounded, residual = grid.round_with_residual(x, residual, (1, 2, 3))
        eps = denoiser().eps_fn(denoiser().params, rounded, STEPS.t[i])
        x = STEPS.coeffs.x[i] * x + STEPS.coeffs.eps[i] * eps
    return x


@pytest.mark.parametrize("words", ["A4 static shaped", "A4 shaped", "A:e2m1g4 shaped"])
def test_a_run_with_feedback_is_the_recursion(words):
    q = precision.quantize(calibrated(), words, sites=("input",))
    call = precision.quantized_call(q)
    run = diffusion.sample(call, X_T, STEPS, per_call=q.calls(STEPS), state=q.start(X_T))
    assert_close(run.x_0, by_hand(q, 5), factor=4096)


@pytest.mark.parametrize("words", ["A4 static shaped", "A4 shaped"])
def test_cancelled_residuals_are_weighed_by_the_steps_coefficients(words):
    q = precision.quantize(calibrated(), words, sites=("input",))
    weighed = precision.cancelled(q, STEPS)
    c_eps = np.asarray(STEPS.coeffs.eps)
    run = diffusion.sample(precision.quantized_call(weighed), X_T, STEPS,
                           per_call=weighed.calls(STEPS), state=weighed.start(X_T))  # fmt: skip
    expected = by_hand(q, 5, carries=c_eps[:-1] / c_eps[1:])
    np.testing.assert_allclose(run.x_0, expected, rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(run.x_0 - by_hand(q, 5)))) > 1e-3  # it is another run


def test_weighed_recipes_are_made_alike():
    own = [precision.quantize(calibrated(), f"A{bits} shaped", sites=("input",)) for bits in (4, 6)]
    qs = [own[0], precision.cancelled(own[0], STEPS), precision.cancelled(own[1], STEPS)]
    run = jax.jit(lambda q: diffusion.sample(
        precision.quantized_call(q), X_T, STEPS, per_call=q.calls(STEPS), state=q.start(X_T)
    ).x_0)  # fmt: skip
    for q, alike in zip(qs, precision.alike(qs, STEPS), strict=True):
        np.testing.assert_allclose(run(alike), run(q), rtol=1e-5, atol=1e-5)


def test_weighed_losses_add_up_to_the_last_one():
    h, xs = np.asarray([3.0, 2.5, 1.0, 0.25]), 0.3 * worlds.normal(12, 4, 6)
    carries = np.append(h[:-1] / h[1:], 1.0)
    residual, total = jnp.zeros(6), np.zeros(6)
    for x, weight, carry in zip(xs, h, carries, strict=True):
        grid = quant.ActivationGrid(INT(8), jnp.asarray(0.05), feedback=True,
                                    carry=jnp.asarray(carry))  # fmt: skip
        rounded, residual = grid.round_with_residual(x, residual, (0,))
        total += weight * np.asarray(rounded - x)
    assert_close(total, -h[-1] * np.asarray(residual), factor=4096)


def test_what_cannot_be_weighed_is_refused():
    plain = precision.quantize(calibrated(), "A4", sites=("input",))
    with pytest.raises(ValueError, match="no activation that is rounded with feedback"):
        precision.cancelled(plain, STEPS)
    q = precision.quantize(calibrated(), "A4 shaped", sites=("input",))
    with pytest.raises(ValueError, match="a sampler with memory"):
        precision.cancelled(q, diffusion.dpmpp_2m(SCHEDULE, 5))
    probes = runs.signs(jax.random.key(0), 2, X_T)
    with pytest.raises(ValueError, match="weighed residuals"):
        site_variances.activation_variances(precision.cancelled(q, STEPS), X_T, STEPS, probes)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_ledger_and_prediction_see_the_residuals(dtype):
    q = precision.quantize(calibrated(), "A6 static shaped", sites=("input", "in"))
    q = q if dtype is None else precision.narrowed(q, dtype)
    xs = diffusion.sample(precision.full_call(q), X_T, STEPS).states
    run = jax.jit(comparisons.measured)(q, X_T, xs, STEPS)
    entries = ledger.attribution(q, X_T, STEPS, num_nodes=4)
    np.testing.assert_allclose(entries.x_hat_0, run.xs_hat[-1], rtol=1e-6)
    assert float(jnp.median(ledger.defect(entries))) < 1e-2
    ones = {name: jnp.ones(5) for name in q.site_inputs}
    np.testing.assert_allclose(ledger.inject(q, X_T, STEPS, ones), run.xs_hat[-1], rtol=1e-6)
    for predict in (prediction.predict_errors, prediction.predict_first_order):
        ratio = jnp.linalg.norm(predict(q, xs, STEPS)[-1]) / jnp.linalg.norm(run.errors[-1])
        assert 0.7 < float(ratio) < 1.4


def test_a_call_without_its_residuals_is_refused():
    q = precision.quantize(calibrated(), "A4 shaped", sites=("input",))
    with pytest.raises(ValueError, match=r"pass state=q.start\(x_T\)"):
        precision.quantized_call(q)(X_T, STEPS.t[0])


def test_feedback_at_the_input_of_a_smooth_network_lets_no_error_pile_up():
    """eps = x / 2: gains change slowly, so that errors of neighbouring calls cancel."""
    steps = diffusion.ddim(SCHEDULE, 60)
    half = Denoiser(lambda p, x, t: p["half"] * x, {"half": jnp.asarray(0.5)}, SCHEDULE, (50,))
    x_T = worlds.normal(12, 8, 50)
    calibration = precision.calibrate(half, steps, x_T=x_T)
    errors = {}
    for words in ("A5 static", "A5 static shaped", "A5 static stochastic"):
        q = precision.quantize(calibration, words, sites=("input",))
        xs = diffusion.sample(precision.full_call(q), x_T, steps).states
        errors[words] = float(jnp.linalg.norm(comparisons.measured(q, x_T, xs, steps).errors[-1]))
    assert errors["A5 static shaped"] < 0.6 * min(
        errors["A5 static"], errors["A5 static stochastic"]
    )


def test_the_forecast_of_feedback_is_the_sum_over_differences_of_gains():
    """eps = x / 2: gains are numbers, and errors of runs with feedback follow the forecast."""
    num = 30
    steps = diffusion.ddim(SCHEDULE, num)
    half = Denoiser(lambda p, x, t: p["half"] * x, {"half": jnp.asarray(0.5)}, SCHEDULE, (40,))
    x_T = worlds.normal(12, 64, 40)
    calibration = precision.calibrate(half, steps, x_T=x_T).widened(1.5, names=("input",))
    q = precision.quantize(calibration, "A8 static shaped", sites=("input",))
    probes = runs.signs(jax.random.key(3), 2, x_T)
    predicted = site_variances.activation_variances(q, x_T, steps, probes, feedback=True)
    slopes = np.asarray(steps.coeffs.x + 0.5 * steps.coeffs.eps)
    after = np.append(np.cumprod(slopes[::-1])[::-1][1:], 1.0)
    gains = 0.5 * np.asarray(steps.coeffs.eps) * after
    scale = float(q.site_inputs["input"].activations[0].scale)
    expected = 40 * scale**2 / 12 * np.diff(np.append(gains, 0.0)) ** 2
    got = predicted.contributions["input"]
    np.testing.assert_allclose(got, np.broadcast_to(expected, (64, num)), rtol=1e-3)
    xs = diffusion.sample(precision.full_call(q), x_T, steps).states
    errors = comparisons.measured(q, x_T, xs, steps).errors[-1]
    measured = float(jnp.mean(jnp.sum(errors**2, axis=1)))
    assert abs(measured / expected.sum() - 1) < 0.2


def test_residuals_kept_in_a_narrower_type_lose_what_the_type_loses():
    q = precision.quantize(calibrated(), "A4 static shaped", sites=("input",))
    narrow = precision.narrowed(q, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.start(X_T))} == {jnp.dtype(jnp.bfloat16)}
    x, residual = X_T, jnp.zeros(X_T.shape, jnp.bfloat16)
    grid = q.site_inputs["input"].activations[0]
    for i in range(len(STEPS.t)):
        rounded, lost = grid.round_with_residual(x, residual.astype(x.dtype), (1, 2, 3))
        residual = lost.astype(jnp.bfloat16)
        eps = denoiser().eps_fn(denoiser().params, rounded, STEPS.t[i])
        x = STEPS.coeffs.x[i] * x + STEPS.coeffs.eps[i] * eps
    ours, plain = (jax.jit(precision.final_samples)(each, X_T, STEPS) for each in (narrow, q))
    assert_close(ours, x, factor=4096)
    assert float(jnp.max(jnp.abs(ours - plain))) > 0
    wide = jax.jit(precision.final_samples)(precision.narrowed(q, X_T.dtype), X_T, STEPS)
    assert np.array_equal(wide, plain)


def test_narrowed_refuses_what_has_no_memory_and_types_that_are_not_real():
    plain = precision.quantize(calibrated(), "A4", sites=("*",))
    with pytest.raises(ValueError, match="no activation that is rounded with memory"):
        precision.narrowed(plain, jnp.bfloat16)
    fed = precision.quantize(calibrated(), "A4 shaped", sites=("*",))
    with pytest.raises(ValueError, match="int8"):
        precision.narrowed(fed, jnp.int8)

"""The full-precision run forecasts the error: exactly where it can, in the mean elsewhere."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import prediction
from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import gaussian
from qdiffjax.sites import rules
from tests import worlds
from tests.analysis import coupled
from tests.laws import gaussian_law
from tests.tolerances import assert_close, slope
from tests.worlds import normal

MEAN, COV = np.array([0.3, -0.5]), np.array([[1.5, 0.6], [0.6, 0.4]])
BIAS = np.array([0.1, -0.3])


def stretch(site, op, operands, inputs):
    """Multiply the result of a site."""
    y = op(*operands)
    return (y if inputs is None else (1 + inputs) * y), None


EPS_FN = gaussian.eps_fn_for(worlds.SCHEDULE)


def on_gaussian_data(rule, inputs):
    """The exact denoiser of Gaussian data, disturbed at its output."""
    data = gaussian_law(MEAN, COV)
    return precision.Quantized(Denoiser(EPS_FN, data), {"output": inputs}, rule)


@functools.partial(jax.jit, static_argnames="followed")
def predicted(q, x_T, followed=prediction.EDGES):
    xs = diffusion.sample(precision.full_call(q), x_T, worlds.DDIM).xs
    return prediction.predict_errors(q, xs, worlds.DDIM, followed=followed)


@jax.jit
def predicted_first_order(q, x_T):
    xs = diffusion.sample(precision.full_call(q), x_T, worlds.DDIM).xs
    return prediction.predict_first_order(q, xs, worlds.DDIM)


def closed_form_error(**kwargs):
    """Errors of the disturbed sampler by its affine maps."""
    runs = []
    for disturbance in ({}, kwargs):
        maps = gaussian.affine_steps(MEAN, COV, worlds.SCHEDULE, worlds.DDIM, **disturbance)
        xs = [np.asarray(worlds.X_T)]
        for matrix, offset in zip(*map(np.asarray, maps), strict=True):
            xs.append(xs[-1] @ matrix.T + offset)
        runs.append(np.stack(xs))
    return runs[1] - runs[0]


@pytest.mark.parametrize("forecast", [predicted, predicted_first_order])
def test_on_gaussian_data_an_error_that_ignores_the_state_is_predicted_exactly(forecast):
    q = on_gaussian_data(rules.perturb, jnp.asarray(BIAS)[None])
    if forecast is predicted:
        assert_close(forecast(q, worlds.X_T, followed=()), closed_form_error(bias=BIAS), factor=256)
    assert_close(forecast(q, worlds.X_T), closed_form_error(bias=BIAS), factor=256)


def test_an_error_that_ignores_the_state_is_predicted_exactly_by_any_network_however_large():
    """First order is not: the network bends, and the error is as large as the signal."""
    q = precision.Quantized(
        Denoiser(worlds.net_fn, worlds.PARAMS),
        {"output": 5 * jnp.asarray(BIAS)[None]},
        rules.perturb,
    )
    actual = measured(q, worlds.X_T)
    assert_close(predicted(q, worlds.X_T, followed=()), actual, factor=1024)
    miss = np.linalg.norm(predicted_first_order(q, worlds.X_T)[-1] - actual[-1])
    assert miss > 0.05 * np.linalg.norm(actual[-1])


def test_the_two_predictions_differ_by_the_square_of_the_error():
    sizes, gaps = np.array([0.4, 0.2, 0.1, 0.05]), []
    for size in sizes:
        bias = size * jnp.asarray(BIAS)[None]
        denoiser = Denoiser(worlds.net_fn, worlds.PARAMS)
        q = precision.Quantized(denoiser, {"output": bias}, rules.perturb)
        gaps.append(
            predicted(q, worlds.X_T, followed=())[-1] - predicted_first_order(q, worlds.X_T)[-1]
        )
    assert slope(sizes, [np.linalg.norm(g) for g in gaps]) == pytest.approx(2, abs=0.1)


def test_on_gaussian_data_a_relative_error_is_predicted_to_first_order():
    kappas, errors = np.array([0.2, 0.1, 0.05, 0.025]), []
    for kappa in kappas:
        expected = closed_form_error(kappa=kappa)[-1]
        q = on_gaussian_data(stretch, jnp.float64(kappa))
        actual = predicted(q, worlds.X_T, followed=())[-1]
        errors.append(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    assert slope(kappas, errors) == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.05


MANY = normal(70, 2000, 2)


@jax.jit
def measured(q, x_T):
    full, hat = coupled.calls(q)
    runs = (diffusion.sample(call, x_T, worlds.DDIM).xs for call in (hat, full))
    return jnp.subtract(*runs)


def test_activation_rounding_at_10_bits_is_predicted_in_root_mean_square():
    """Within three standard errors of the difference of the two means, which are below 2%."""
    q = coupled.quantized(None, 10, high=8.0)
    actual, forecast = measured(q, MANY)[-1] ** 2, predicted(q, MANY)[-1] ** 2
    difference = np.mean(forecast - actual, axis=1)
    standard_error = np.std(difference) / np.sqrt(difference.size)
    assert standard_error < 0.05 * np.mean(actual)
    assert abs(np.mean(difference)) < 3 * standard_error + 0.02 * np.mean(actual)


def test_weight_rounding_at_8_bits_is_predicted_sample_by_sample():
    q = coupled.quantized(8, None)
    actual, forecast = measured(q, MANY)[-1], predicted(q, MANY)[-1]
    assert np.linalg.norm(forecast - actual) < 0.1 * np.linalg.norm(actual)


@pytest.mark.parametrize(("widths", "followed"), [
    ((4, 4), ("input", "in", "out", "output")), ((None, 3), prediction.EDGES)])  # fmt: skip
def test_what_is_followed_is_exact_however_coarse(widths, followed):
    """All sites followed are the quantized run; so are the edges where nothing else is rounded."""
    q = coupled.quantized(*widths)
    q = dataclasses.replace(q, site_inputs={n: q.site_inputs[n] for n in followed})
    actual = measured(q, worlds.X_T)
    assert np.linalg.norm(actual[-1]) > 0.05 * np.linalg.norm(worlds.X_T)
    assert_close(predicted(q, worlds.X_T, followed), actual, factor=1024)


@pytest.mark.slow
def test_a_sample_alone_takes_its_own_frozen_errors():
    """As if the other sample had no error: e_i at x_i itself."""
    q = coupled.quantized(4, 4)
    xs = diffusion.sample(precision.full_call(q), worlds.X_T[:1], worlds.DDIM).xs
    found = prediction.predict_errors(q, xs, worlds.DDIM, followed=())
    full, hat = coupled.calls(q)
    d = jnp.zeros_like(xs[0])
    for i, t in enumerate(worlds.DDIM.t):
        c = jax.tree.map(lambda leaf, i=i: leaf[i], worlds.DDIM.coeffs)
        move = lambda call, x, t=t, c=c: c.advance(x, call(x, t, None)[0])  # noqa: E731
        d = move(full, xs[i] + d) - 2 * move(full, xs[i]) + move(hat, xs[i])
    assert_close(found[-1], d, factor=1024)


def test_in_a_batch_local_errors_are_those_of_another_sample_as_far_off():
    """At y_i = x_i + d_i of the sample before; at x_i it would be that of a run without error."""
    q = coupled.quantized(4, 4)
    xs = diffusion.sample(precision.full_call(q), worlds.X_T, worlds.DDIM).xs
    found = jax.jit(lambda q: prediction.predict_errors(q, xs, worlds.DDIM, followed=()))(q)
    full, hat = (jax.jit(lambda x, t, f=f: f(x, t, None)[0]) for f in coupled.calls(q))
    d = np.zeros_like(xs[0])
    for i, t in enumerate(worlds.DDIM.t):
        c = jax.tree.map(lambda leaf, i=i: leaf[i], worlds.DDIM.coeffs)
        y = np.asarray(xs[i]) + np.concatenate([d[-1:], d[:-1]])
        moved = full(xs[i] + d, t) - full(xs[i], t) + hat(y, t) - full(y, t)
        d = np.asarray(c.x * d + c.eps * moved)
    assert_close(found[-1], d, factor=1024)


def test_inputs_by_call_are_predicted_at_their_step():
    """Steps left in full precision commit nothing: the error starts at the first quantized one."""
    q = coupled.quantized(8, None)
    plain = precision.Quantized(q.denoiser, {})
    amount = jnp.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    out = precision.weight_operands(worlds.net_fn, worlds.PARAMS, worlds.X_T, jnp.float64(1))["out"]
    per_call = {"out": precision.SiteQuant(out[None] * (1 + amount)[:, None, None])}
    xs = diffusion.sample(precision.full_call(q), worlds.X_T, worlds.DDIM).xs
    errors = prediction.predict_errors(plain, xs, worlds.DDIM, per_call=per_call)
    np.testing.assert_array_equal(errors[:3], 0)
    eps = worlds.net_fn(worlds.PARAMS, xs[2], worlds.DDIM.t[2])
    assert_close(errors[3], worlds.DDIM.coeffs.eps[2] * 0.5 * eps, factor=64)


def test_the_root_mean_square_is_over_all_but_the_step():
    errors = jnp.array([[[3.0, -3.0], [3.0, 3.0]], [[0.0, 0.0], [0.0, 4.0]]])
    assert_close(prediction.root_mean_square(errors), np.array([3.0, 2.0]))

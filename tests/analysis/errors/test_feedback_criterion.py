"""Where error feedback of activations pays, from gains alone: numbers by hand, and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion, precision
from qdiffjax.analysis import errors
from qdiffjax.denoiser import Denoiser
from tests import worlds
from tests.precision.small import SCHEDULE, STEPS, X_T, calibrated

NUM = 30
LINE = diffusion.ddim(SCHEDULE, NUM)
NOISE = worlds.normal(12, 64, 40)
SLOPES = {
    "smooth": np.full(NUM, 0.5),
    "alternating": 0.3 * (-1.0) ** np.arange(NUM),
}


def linear(slopes):
    """eps = k_i x at call i, and the gains of the input: products of numbers."""

    def net_fn(params, x, t):
        return params["k"][jnp.argmin(jnp.abs(jnp.asarray(LINE.t) - t))] * x

    denoiser = Denoiser(net_fn, {"k": jnp.asarray(slopes)}, SCHEDULE, (40,))
    c_x, c_eps = np.asarray(LINE.coeffs.x), np.asarray(LINE.coeffs.eps)
    after = np.append(np.cumprod((c_x + c_eps * slopes)[::-1])[::-1][1:], 1.0)
    calibration = precision.calibrate(denoiser, LINE, x_T=NOISE).widened(1.5, names=("input",))
    return calibration, c_eps * slopes * after


@pytest.mark.parametrize(("name", "pays"), [("smooth", True), ("alternating", False)])
def test_of_a_linear_network_it_is_a_ratio_of_numbers_and_right_about_runs(name, pays):
    calibration, gains = linear(SLOPES[name])
    q = precision.quantize(calibration, "A8 static", sites=("input",))
    probes = errors.signs(jax.random.key(3), 2, NOISE)
    found = errors.feedback_criterion(q, NOISE, LINE, probes)
    r = 40 * float(q.site_inputs["input"].activations[0].scale) ** 2 / 12
    plain, fed = np.sum(gains**2), np.sum(np.diff(np.append(gains, 0.0)) ** 2)
    np.testing.assert_allclose(found.independent["input"], np.full(64, r * plain), rtol=1e-3)
    np.testing.assert_allclose(found.fed_back["input"], np.full(64, r * fed), rtol=1e-3)
    np.testing.assert_allclose(found.ratio["input"], fed / plain, rtol=1e-5)
    assert bool(found.pays["input"]) == (fed < plain) == pays
    measured = {}
    for word in ("stochastic", "shaped"):
        own = precision.quantize(calibration, f"A8 static {word}", sites=("input",))
        xs = diffusion.sample(precision.full_call(own), NOISE, LINE).states
        measured[word] = float(jnp.sum(comparisons.measured(own, NOISE, xs, LINE).errors[-1] ** 2))
    # Squares of 64 * 40 numbers: 3 % each; stochastic rounding has twice the variance.
    assert abs(2 * measured["shaped"] / measured["stochastic"] / (fed / plain) - 1) < 0.15


def test_it_is_two_calls_of_the_variances_and_sums_over_steps():
    q = precision.quantize(calibrated(), "W8A6", sites=("input", "in", "conv"))
    probes = errors.signs(jax.random.key(4), 2, X_T)
    found = jax.jit(lambda q: errors.feedback_criterion(q, X_T, STEPS, probes))(q)
    for feedback, each in ((False, found.independent), (True, found.fed_back)):
        cells = jax.jit(lambda q, feedback=feedback: errors.activation_variances(
            q, X_T, STEPS, probes, feedback=feedback
        ).contributions)(q)  # fmt: skip
        assert each.keys() == cells.keys()
        for name, cell in cells.items():
            np.testing.assert_allclose(each[name], jnp.sum(cell, 1), rtol=1e-6)
            assert float(jnp.min(each[name])) > 0


def test_sites_without_rounded_activations_are_left_out_or_refused():
    q = precision.quantize(calibrated(), "in: W4; conv: A6", sites=("*",))
    probes = errors.signs(jax.random.key(4), 2, X_T)
    assert [*errors.feedback_criterion(q, X_T, STEPS, probes).ratio] == ["conv"]
    q = precision.quantize(calibrated(), "W4")
    with pytest.raises(ValueError, match="no rounded activation, expected some"):
        errors.feedback_criterion(q, X_T, STEPS, probes)

"""The variance of samples whose weights are rounded anew at every call, without a run of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision, quant
from qdiffjax.analysis import errors
from qdiffjax.denoiser import Denoiser
from tests import worlds
from tests.analysis import coupled

SCHEDULE, NUM = diffusion.linear(200), 12
STEPS = diffusion.ddim(SCHEDULE, NUM)
W, X_T = worlds.normal(4, 5, 3), worlds.normal(3, 2, 3)
PROBES = coupled.axes(X_T)
NUM_PHASES = 5 * 4096


def weights_alone(toggle_fn, recipe="W4", power=1):
    """eps = sum of the rows of w^power for every x: first order is exact for power 1."""
    net_fn = lambda p, x, t: ((0 * x[:, :1] + jnp.ones((1, 5))) @ p["w"]) ** power  # noqa: E731
    denoiser = Denoiser(net_fn, {"w": W}, SCHEDULE, (3,))
    calibration = precision.calibrate(denoiser, STEPS, x_T=X_T)
    round_fn = precision.shaped(jax.random.key(0), toggle_fn)
    return precision.quantize(calibration, recipe, sites=("*",), round_fn=round_fn)


def gains():
    c_x, c_eps = np.asarray(STEPS.coeffs.x), np.asarray(STEPS.coeffs.eps)
    return c_eps * np.append(np.cumprod(c_x[::-1])[::-1][1:], 1.0)


@pytest.mark.parametrize(
    ("recipe", "is_rounded"),
    [("W4", np.ones(NUM)), (f"W4; steps {NUM - 1}: float", np.arange(NUM) < NUM - 1),
     ("W4; steps 0,3-5: float", ~np.isin(np.arange(NUM), [0, 3, 4, 5]))],
)  # fmt: skip
@pytest.mark.parametrize(
    ("toggle_fn", "rtol"),
    [(quant.sigma_delta, 5e-5), (quant.golden_ratio, 2e-4),  # of the phases
     (quant.noble_ratios, 3e-3)],  # whose phases choose the rotation
)  # fmt: skip
def test_over_all_phases_the_mean_square_is_the_forecast(recipe, is_rounded, toggle_fn, rtol):
    q = weights_alone(toggle_fn, recipe)
    sequence = q.site_inputs["w"].weight
    if isinstance(sequence, precision.Switch):
        (sequence,) = [a for a in sequence.alternatives if a is not None]
    phases = jnp.asarray((np.arange(NUM_PHASES) + 0.5) / NUM_PHASES)
    calls = jnp.arange(float(NUM))
    upper = jax.vmap(lambda phase: jax.vmap(lambda i: toggle_fn(
        i, sequence.fraction, jnp.full(W.shape, phase)
    ))(calls))(phases)  # fmt: skip
    misses = (np.asarray(upper) - np.asarray(sequence.fraction)) * np.asarray(sequence.scale)
    total = np.einsum("i,pikl->pkl", gains() * is_rounded, misses)
    expected = np.mean(total**2, axis=0).sum()  # phases of elements are independent
    found = errors.sequence_variances(q, X_T, STEPS, PROBES)
    np.testing.assert_allclose(found["w"], [expected, expected], rtol=rtol)


def test_fresh_bits_add_in_squares():
    q = weights_alone(quant.fresh_bits)
    sequence = q.site_inputs["w"].weight
    f, s = np.asarray(sequence.fraction), np.asarray(sequence.scale)
    expected = np.sum(gains() ** 2) * np.sum(s**2 * f * (1 - f))
    found = errors.sequence_variances(q, X_T, STEPS, PROBES)
    np.testing.assert_allclose(found["w"], [expected, expected], rtol=1e-9)


@pytest.mark.parametrize("toggle_fn", [quant.sigma_delta, quant.fresh_bits, quant.golden_ratio,
                                       quant.noble_ratios])  # fmt: skip
def test_of_a_bent_network_it_is_the_mean_over_runs_at_many_bits(toggle_fn):
    params = {"in": worlds.normal(1, 3, 6, scale=0.7), "out": worlds.normal(2, 6, 3, scale=0.4)}
    denoiser = Denoiser(lambda p, x, t: jnp.tanh(x @ p["in"]) @ p["out"], params, SCHEDULE, (3,))
    calibration = precision.calibrate(denoiser, STEPS, x_T=X_T)

    @jax.jit
    def square(q):
        full, quantized = precision.full_call(q), precision.quantized_call(q)
        x_0 = diffusion.sample(full, X_T, STEPS).x_0
        x_hat_0 = diffusion.sample(quantized, X_T, STEPS, per_call=q.calls(STEPS)).x_0
        return jnp.sum((x_hat_0 - x_0) ** 2, axis=1)

    qs = [precision.quantize(calibration, "W10", sites=("*",),
                             round_fn=precision.shaped(jax.random.key(seed), toggle_fn))
          for seed in range(300)]  # fmt: skip
    runs = np.stack([square(q) for q in qs])
    forecast = sum(errors.sequence_variances(qs[0], X_T, STEPS, PROBES).values())
    spread = runs.std(0) / np.sqrt(len(runs))
    print(toggle_fn, runs.mean(0) / np.asarray(forecast), spread / np.asarray(forecast))
    assert np.all(np.abs(runs.mean(0) - np.asarray(forecast)) < 4 * spread)
    assert np.all(spread < 0.12 * np.asarray(forecast))


def test_of_several_roundings_it_is_that_of_each():
    ways = [(quant.sigma_delta, "W4"), (quant.sigma_delta, "W3; steps 4: float"),
            (quant.golden_ratio, "W4"), (quant.fresh_bits, "W5")]  # fmt: skip
    qs = [weights_alone(*way) for way in ways]
    together = errors.variances_of_sequences(qs, X_T, STEPS, PROBES)
    for q, found in zip(qs, together, strict=True):
        alone = errors.sequence_variances(q, X_T, STEPS, PROBES)
        np.testing.assert_allclose(found["w"], alone["w"], rtol=1e-12)
    assert len({float(found["w"][0]) for found in together}) == len(ways)
    with pytest.raises(ValueError, match="at least one quantized denoiser"):
        errors.variances_of_sequences([], X_T, STEPS, PROBES)


WAYS = [quant.sigma_delta, quant.fresh_bits, quant.golden_ratio]


@pytest.mark.parametrize("toggle_fn", WAYS)
def test_the_bias_of_a_square_is_the_variance_of_every_call(toggle_fn):
    # E (sum of rows of w + d)^2 - (sum of rows of w)^2 = sum of rows of s^2 f (1 - f), at each call
    q = weights_alone(toggle_fn, f"W4; steps {NUM - 1}: float", power=2)
    (sequence,) = [a for a in q.site_inputs["w"].weight.alternatives if a is not None]
    f, s = np.asarray(sequence.fraction), np.asarray(sequence.scale)
    expected = np.sum(gains()[:-1]) * np.sum(s**2 * f * (1 - f), axis=0)
    found = errors.sequence_bias(q, X_T, STEPS, phases=jax.random.key(3), num=800)
    value, spread = np.asarray(found.value), np.asarray(found.standard_error)
    assert np.all(np.abs(value - expected) < 4 * spread)
    assert np.all(spread < 0.08 * np.abs(expected))


def test_the_bias_of_a_bent_network_is_the_mean_error_of_runs():
    params = {"in": worlds.normal(1, 3, 6, scale=0.9), "out": worlds.normal(2, 6, 3, scale=0.6)}
    denoiser = Denoiser(lambda p, x, t: jnp.cos(x @ p["in"]) @ p["out"], params, SCHEDULE, (3,))
    calibration = precision.calibrate(denoiser, STEPS, x_T=X_T)
    round_fn = precision.shaped(jax.random.key(0), quant.fresh_bits)
    q = precision.quantize(calibration, "W5", sites=("*",), round_fn=round_fn)

    @jax.jit
    def error(key):
        drawn = precision.redrawn(q, key)
        full, quantized = precision.full_call(q), precision.quantized_call(drawn)
        x_0 = diffusion.sample(full, X_T, STEPS).x_0
        return diffusion.sample(quantized, X_T, STEPS, per_call=q.calls(STEPS)).x_0 - x_0

    runs = jax.lax.map(error, jax.random.split(jax.random.key(1), 40_000))
    mean, spread = np.mean(runs, 0), np.std(runs, 0) / np.sqrt(len(runs))
    found = errors.sequence_bias(q, X_T, STEPS, phases=jax.random.key(2), num=4000)
    allowed = 4 * np.hypot(spread, np.asarray(found.standard_error)) + 0.06 * np.abs(
        mean
    )  # of fourth order
    assert np.all(np.abs(np.asarray(found.value) - mean) < allowed)
    assert np.sum(np.abs(mean) > 4 * allowed) >= 2  # it is there


def upper(call, fraction, phase):
    """Take the upper code at every call."""
    return fraction >= 0


def test_what_has_no_forecast_is_refused():
    with pytest.raises(ValueError, match="got upper, expected sigma_delta, golden_ratio, noble"):
        errors.sequence_variances(weights_alone(upper), X_T, STEPS, PROBES)
    q = weights_alone(quant.sigma_delta)
    mixed = weights_alone(quant.sigma_delta, "W4; steps 2: W8")
    with pytest.raises(ValueError, match="w: got roundings of several kinds"):
        errors.sequence_variances(mixed, X_T, STEPS, PROBES)
    with pytest.raises(ValueError, match="num: got 1, expected at least 2"):
        errors.sequence_bias(q, X_T, STEPS, phases=jax.random.key(0), num=1)
    plain = dataclasses.replace(q, site_inputs={"w": precision.SiteQuant(W)})
    with pytest.raises(ValueError, match="no weights that change"):
        errors.sequence_variances(plain, X_T, STEPS, PROBES)

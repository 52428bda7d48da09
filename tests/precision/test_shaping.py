"""Weights that are rounded anew at every call: what it does to a sampler, and that all see it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion, precision, quant
from qdiffjax.analysis.errors import ledger, prediction
from qdiffjax.denoiser import Denoiser
from tests import worlds
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(200)
BITS = 4


def network(dtype=jnp.float64):
    """A weight before and after a bend, in [batch, 3]."""
    params = {"in": worlds.normal(1, 3, 6, scale=0.7), "out": worlds.normal(2, 6, 3, scale=0.4)}
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    return Denoiser(lambda p, x, t: jnp.tanh(x @ p["in"]) @ p["out"], params, SCHEDULE, (3,))


@jax.jit
def run_of(q, x_T, steps):
    """Both runs, in float64."""
    xs = diffusion.sample(precision.full_call(q), x_T, steps).states
    return comparisons.measured(q, x_T, xs, steps)


def quantized(num_steps, seed=5, toggle_fn=quant.sigma_delta, **options):
    denoiser, steps = network(), diffusion.ddim(SCHEDULE, num_steps)
    calibration = precision.calibrate(denoiser, steps, x_T=worlds.normal(3, 8, 3))
    round_fn = precision.shaped(jax.random.key(seed), toggle_fn, **options)
    q = precision.quantize(calibration, f"W{BITS}", sites=("*",), round_fn=round_fn)
    return q, steps


def test_weights_in_groups_over_several_axes_are_in_the_mean_themselves():
    kernel = worlds.normal(5, 3, 3, 4, 6)  # 36 numbers of an output channel: groups of 8, one of 4

    def net_fn(p, x, t):
        return jax.lax.conv_general_dilated(
            x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[..., :4]

    steps = diffusion.ddim(SCHEDULE, 64)
    denoiser = Denoiser(net_fn, {"kernel": kernel}, SCHEDULE, (4, 4, 4))
    calibration = precision.calibrate(denoiser, steps, x_T=worlds.normal(3, 2, 4, 4, 4))
    q = precision.quantize(calibration, "W3g8 shaped", sites=("*",))
    weight = q.site_inputs["kernel"].weight
    kept = precision.quantize(calibration, "W3g8", sites=("*",), adjust_fn=None)
    once = kept.site_inputs["kernel"].weight
    step = np.asarray(weight.scale)
    calls = np.stack([weight.at(call) for call in range(64)])
    assert np.all(np.abs(calls - np.asarray(kernel)) <= step * (1 + 1e-12))
    assert np.all(np.abs(once - np.asarray(kernel)) <= step / 2 * (1 + 1e-12))  # the same groups
    assert np.all(np.abs(calls.mean(0) - np.asarray(kernel)) <= step / 64 * (1 + 1e-9))
    assert len(np.unique(step.transpose(3, 0, 1, 2).reshape(6, 36)[0])) == 5  # scales of a channel


def test_the_error_of_a_network_that_is_its_weight_is_a_sum_by_parts():
    """eps = w for every x: error = sum_i G_i (q_i - w), at most the variation of the gains."""
    num = 40
    w = worlds.normal(4, 5, 3)
    denoiser = Denoiser(lambda p, x, t: (0 * x[:, :1] + jnp.ones((1, 5))) @ p["w"], {"w": w},
                        SCHEDULE, (3,))  # fmt: skip
    steps = diffusion.ddim(SCHEDULE, num)
    calibration = precision.calibrate(denoiser, steps, x_T=worlds.normal(3, 2, 3))
    q = precision.quantize(calibration, "W4", sites=("*",),
                           round_fn=precision.shaped(jax.random.key(0)))  # fmt: skip
    run = run_of(q, worlds.normal(3, 2, 3), steps)
    c_x, c_eps = np.asarray(steps.coeffs.x), np.asarray(steps.coeffs.eps)
    gains = c_eps * np.append(np.cumprod(c_x[::-1])[::-1][1:], 1.0)
    weights = np.stack([q.site_inputs["w"].weight.at(i) for i in range(num)])
    errors = (weights - np.asarray(w)).sum(1)  # [N, 3]
    assert_close(run.errors[-1], np.broadcast_to(gains @ errors, (2, 3)), factor=1024)
    scale = np.asarray(q.site_inputs["w"].weight.scale)
    variation = abs(gains[0]) + abs(gains[-1]) + np.abs(np.diff(gains)).sum()
    bound = 5 * scale[0] / 2 * variation
    assert np.all(np.abs(np.asarray(run.errors[-1])) <= bound * (1 + 1e-9))
    once = precision.quantize(calibration, "W4", sites=("*",), adjust_fn=None)
    coherent = run_of(once, worlds.normal(3, 2, 3), steps)
    assert np.linalg.norm(run.errors[-1]) < 0.25 * np.linalg.norm(coherent.errors[-1])


def test_what_is_left_falls_with_the_number_of_calls():
    """Shaped errors are O(1/N) to first order where one rounding is O(1); here 8 bits."""
    sizes = {}
    for num in (10, 40):
        denoiser, steps = network(), diffusion.ddim(SCHEDULE, num)
        calibration = precision.calibrate(denoiser, steps, x_T=worlds.normal(3, 8, 3))
        norms = []
        for seed in range(6):
            round_fn = precision.shaped(jax.random.key(seed))
            q = precision.quantize(calibration, "W8", sites=("*",), round_fn=round_fn)
            run = run_of(q, worlds.normal(6, 16, 3), steps)
            norms.append(float(jnp.sqrt(jnp.mean(run.errors[-1] ** 2))))
        sizes[num] = np.mean(norms)
    assert sizes[40] < 0.6 * sizes[10]


@pytest.mark.parametrize(
    "toggle_fn", [quant.sigma_delta, quant.golden_ratio, quant.noble_ratios, quant.fresh_bits],
    ids=lambda fn: fn.__name__,
)  # fmt: skip
def test_ledger_and_prediction_see_every_call_as_it_runs(toggle_fn):
    q, steps = quantized(12, toggle_fn=toggle_fn)
    x_T = worlds.normal(7, 4, 3)
    run = run_of(q, x_T, steps)
    entries = ledger.attribution(q, x_T, steps, num_nodes=4)
    np.testing.assert_allclose(entries.x_hat_0, run.xs_hat[-1], rtol=1e-9)
    assert float(jnp.max(ledger.defect(entries))) < 1e-3
    ones = {name: jnp.ones(12) for name in q.site_inputs}
    np.testing.assert_allclose(ledger.inject(q, x_T, steps, ones), run.xs_hat[-1], rtol=1e-9)
    predicted = prediction.predict_errors(q, run.xs, steps)[-1]
    error = run.errors[-1]
    assert float(jnp.linalg.norm(predicted - error)) < 0.3 * float(jnp.linalg.norm(error))


def test_layers_of_a_scan_have_phases_of_their_own():
    kernel = worlds.normal(8, 3, 4, 4, scale=0.4)
    denoiser = Denoiser(
        lambda p, x, t: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["k"])[0],
        {"k": jnp.stack([kernel[0]] * 3)}, SCHEDULE, (4,),
    )  # fmt: skip
    steps = diffusion.ddim(SCHEDULE, 6)
    calibration = precision.calibrate(denoiser, steps, x_T=worlds.normal(3, 8, 4))
    round_fn = precision.shaped(jax.random.key(2))
    q = precision.quantize(calibration, "W4", sites=("*",), round_fn=round_fn)
    values = [q.site_inputs[f"k[{i}]"].weight.at(3) for i in range(3)]
    assert not np.array_equal(values[0], values[1])
    run = run_of(q, worlds.normal(9, 2, 4), steps)
    x = run.xs_hat[0]
    for i in range(6):
        h = x
        for layer in range(3):
            h = jnp.tanh(h @ q.site_inputs[f"k[{layer}]"].weight.at(i))
        x = steps.coeffs.x[i] * x + steps.coeffs.eps[i] * h
        assert_close(run.xs_hat[i + 1], x, factor=64)


def test_the_settings_say_how_weights_are_rounded():
    q, _ = quantized(4)
    assert q.settings.weights == "output channels, rounded by sigma delta"


def test_a_plain_recipe_adds_nothing_to_the_calls():
    denoiser, steps = network(), diffusion.ddim(SCHEDULE, 3)
    q = precision.quantize(precision.calibrate(denoiser, steps, x_T=worlds.normal(3, 8, 3)), "W4")
    assert q.calls(steps) is None
    assert q.calls(steps, {"in": 1}) == {"in": 1}


def test_lowering_a_sequence_is_refused_with_the_way_out():
    q, steps = quantized(4)
    calibration = precision.calibrate(q.denoiser, steps, x_T=worlds.normal(3, 8, 3))
    with pytest.raises(
        (TypeError, ValueError), match="round_fn without codes, expected codes that stay"
    ):
        precision.lower(calibration, "W4A8", round_fn=precision.shaped(jax.random.key(0)))


def test_phases_drawn_anew_are_another_seed():
    q, steps = quantized(6)
    first, second = (precision.redrawn(q, jax.random.key(seed)) for seed in (1, 2))
    for name in ("in", "out"):
        weights = [p.site_inputs[name].weight for p in (first, second)]
        for weight in weights:
            np.testing.assert_array_equal(weight.lower, q.site_inputs[name].weight.lower)
            assert 0 <= float(weight.phase.min()) < float(weight.phase.max()) < 1
        assert not np.allclose(weights[0].phase, weights[1].phase)
    calibration = precision.calibrate(q.denoiser, steps, x_T=worlds.normal(3, 8, 3))
    mixed = precision.quantize(calibration, "W4; steps 5: float", sites=("*",),
                               round_fn=precision.shaped(jax.random.key(0)))  # fmt: skip
    drawn = precision.redrawn(mixed, jax.random.key(1)).site_inputs["in"].weight
    assert [a is None for a in drawn.alternatives].count(True) == 1

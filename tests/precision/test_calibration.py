"""Post-training quantization against NumPy: ranges along a sampler, grids, and the whole way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import inputs
from qdiffjax.quant import IntFormat, activation_grid
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close
from tests.worlds import normal

PARAMS = {"a": normal(1, 4, 16), "b": normal(2, 16, 4)}
X = normal(3, 64, 4)
SCHEDULE = diffusion.linear(100)
FIRST = diffusion.ddim(SCHEDULE, 2).t[0]  # where x_T is seen in calibration: nothing is clipped


def dense_fn(params, x, t):
    return jnp.tanh(x @ params["a"] + t / 100) @ params["b"]


def trajectory_by_hand(steps, noise=None):
    """States, hidden activations and eps of every step, in NumPy."""
    x, a, b = np.asarray(X), np.asarray(PARAMS["a"]), np.asarray(PARAMS["b"])
    seen = []
    for i, t in enumerate(np.asarray(steps.t)):
        h = np.tanh(x @ a + t / 100)
        seen.append({"input": x, "a": x, "b": h, "output": h @ b})
        c = [float(leaf[i]) for leaf in steps.coeffs]
        x = c[0] * x + c[1] * (h @ b) + (0.0 if noise is None else c[2] * noise[i])
    return seen


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_observed_ranges_are_the_extremes_along_the_sampling_run(eta):
    steps = diffusion.ddim(SCHEDULE, 3, eta=eta)
    key = jax.random.key(0)
    noise = [np.asarray(diffusion.step_noise(key, i, X)) for i in range(3)] if eta else None
    ranges = precision.observe_ranges(dense_fn, PARAMS, steps, X, key=key if eta else None)
    seen = trajectory_by_hand(steps, noise)
    assert set(ranges) == {"input", "a", "b", "output"}
    for name, operands in ranges.items():
        ((low, high),) = operands
        assert_close(low, np.array([step[name].min() for step in seen]), factor=256)
        assert_close(high, np.array([step[name].max() for step in seen]), factor=256)


def test_over_steps_keeps_the_widest_range_of_each_operand():
    low, high = jnp.asarray([-1.0, -3.0]), jnp.asarray([5.0, 2.0])
    ranges = {"dense": ((low, high),), "product": ((low, high), (low - 1, high + 1)), "none": ()}
    assert jax.tree.map(float, precision.over_steps(ranges)) == {
        "dense": ((-3.0, 5.0),), "product": ((-3.0, 5.0), (-4.0, 6.0)), "none": (),
    }  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_activation_grids_cover_the_range_and_hold_zero(low, high):
    how = activation_grid(jnp.float64(low), jnp.float64(high), IntFormat(4, signed=False))
    if low == high:
        assert float(how.scale) > 0
        return
    expected = by_hand.affine(low, high, 4)
    got = [float(v) for v in (how.scale, how.zero_point, how.format.qmin, how.format.qmax)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def calibrated(net, steps=None):
    """The calibration of a network on a sampler from its own x."""
    steps = diffusion.ddim(SCHEDULE, 2) if steps is None else steps
    return precision.calibrate(Denoiser(net.fn, net.params), steps, x_T=net.x)


def uniform(calibrated, bits):
    return precision.uniform(calibrated.sites, weight_bits=bits, activation_bits=bits)


def test_ranges_by_step_become_inputs_by_step():
    net = worlds.Network(dense_fn, PARAMS, X, jnp.float64(1))
    steps = diffusion.ddim(SCHEDULE, 3)
    measured = calibrated(net, steps)
    ranges, recipe = measured.ranges, uniform(measured, 4)
    per_call = inputs.site_inputs(recipe, {}, ranges)
    q = precision.quantize(measured, recipe)
    run = diffusion.sample(precision.quantized_call(q), X, steps, per_call=per_call)
    x = np.asarray(X)
    for i, t in enumerate(np.asarray(steps.t)):
        grid = {n: by_hand.affine(*(float(r[i]) for r in ranges[n][0]), 4) for n in ranges}
        h = by_hand.on_grid(by_hand.on_grid(x, *grid["input"]), *grid["a"])
        h = np.tanh(h @ by_hand.weight(PARAMS["a"], 4, (0,)) + t / 100)
        eps = by_hand.on_grid(h, *grid["b"]) @ by_hand.weight(PARAMS["b"], 4, (0,))
        eps = by_hand.on_grid(eps, *grid["output"])
        x = float(steps.coeffs.x[i]) * x + float(steps.coeffs.eps[i]) * eps
    assert_close(run.x_0, x, factor=256)


def test_each_bit_divides_the_error_of_a_quantized_denoiser_by_four():
    """Rounding error is uniform over a step, and the step halves with each bit (Bennett 1948)."""
    net = worlds.Network(dense_fn, PARAMS, X, FIRST)
    exact = jax.jit(net.fn)(*net.args)
    run = jax.jit(lambda q: precision.quantized_call(q)(X, FIRST, None)[0])
    measured, widths, errors = calibrated(net), (6, 8, 10, 12), []
    for bits in widths:
        q = precision.quantize(measured, uniform(measured, bits))
        errors.append(float(jnp.mean((run(q) - exact) ** 2)))
    slope = np.polyfit(widths, np.log(errors) / np.log(4), 1)[0]
    assert abs(slope + 1) < 0.1


def test_eight_bits_are_close_to_float_on_a_network_with_attention_and_convolution():
    net = worlds.nnx_net()
    net = net._replace(t=FIRST.astype(jnp.float32))
    measured = calibrated(net)
    q = precision.quantize(measured, uniform(measured, 8))
    got = jax.jit(lambda q: precision.quantized_call(q)(net.x, net.t, None)[0])(q)
    exact = jax.jit(net.fn)(*net.args)
    relative = float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact))
    assert 1e-5 < relative < 0.05
    assert got.dtype == jnp.float32


def test_a_recipe_without_activation_bits_rounds_weights_only():
    net = worlds.Network(dense_fn, PARAMS, X, jnp.float64(1))
    measured = calibrated(net)
    recipe = precision.uniform(measured.sites, weight_bits=4, activation_bits=None, globs=["a"])
    inputs = precision.quantize(measured, recipe).site_inputs
    assert set(inputs) == {"a"}
    assert inputs["a"].activations == ()
    assert_close(inputs["a"].weight, by_hand.weight(PARAMS["a"], 4, (0,)), factor=64)


def test_widening_the_input_widens_every_operand_that_reads_it_and_no_other():
    low, high = jnp.array([-3.0, -2.0]), jnp.array([3.0, 2.5])
    ranges = {
        "input": ((low, high),), "first": ((low, high),),
        "product": ((low + 0.5, high), (low, high)),
    }  # fmt: skip
    measured = precision.Calibration(Denoiser(dense_fn, PARAMS), (), {}, ranges)
    found = measured.widened(1.5, ["input"]).ranges
    for operand in (found["input"][0], found["first"][0], found["product"][1]):
        np.testing.assert_array_equal(operand[0], [-4.5, -3.0])
        np.testing.assert_array_equal(operand[1], [4.5, 3.75])
    np.testing.assert_array_equal(found["product"][0][0], [-2.5, -1.5])
    with pytest.raises(ValueError, match=r"names: got 'inputs'"):
        measured.widened(1.5, ["inputs"])


def test_noise_beyond_the_range_is_lost_and_grows_with_alpha_unless_the_edges_are_wide():
    """One pixel of the exact denoiser of point data: x_t = sigma eps, so nothing pulls it back."""
    schedule = diffusion.linear()
    steps = diffusion.ddim(schedule, 20)

    def eps_fn(params, x, t):
        return x / schedule(t).sigma

    x_T = jnp.asarray([[1.0], [-1.0]])
    measured = precision.calibrate(Denoiser(eps_fn, {}), steps, x_T=x_T)
    recipe = precision.uniform(measured.sites, weight_bits=None, activation_bits=16)

    def final(measured):
        q = precision.quantize(measured, recipe)
        return diffusion.sample(precision.quantized_call(q), jnp.asarray([[1.5]]), steps).x_0[0, 0]

    alpha = schedule(steps.t[0]).alpha
    np.testing.assert_allclose(final(measured), 0.5 / alpha, rtol=0.02)
    assert abs(final(measured.widened(1.6))) < 0.05

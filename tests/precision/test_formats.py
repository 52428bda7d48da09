"""Recipes of any format: what is computed, on every kind of network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision, quant
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import OperandFormat, Recipe, SiteBits, formats
from tests import worlds
from tests.precision.small import (
    INT,
    SCHEDULE,
    X_T,
    denoiser,
    eps_of,
    quantized,
)
from tests.tolerances import assert_close


def test_groups_of_a_weight_lie_along_what_is_summed():
    q = quantized("W4g5 nearest")
    w = denoiser().params["in"]
    scale, _ = quant.absmax(w, format=INT(4), scale_shape=(1, 20))
    np.testing.assert_array_equal(
        q.site_inputs["in"].weight, quant.fake_quant(w, scale, format=INT(4))
    )
    w = denoiser().params["out"]  # [20, 3]: four groups of five
    scale, _ = quant.absmax(w, format=INT(4), scale_shape=(4, 3))
    np.testing.assert_array_equal(
        q.site_inputs["out"].weight, quant.fake_quant(w, scale, format=INT(4))
    )


@pytest.mark.parametrize("size", [4, 8, 32])
def test_groups_of_a_kernel_lie_in_the_order_of_its_columns(size):
    """[3, 3, 3, 5]: 27 numbers of each output channel, the last group is shorter."""
    q = quantized(f"W4g{size} nearest")
    rows = np.asarray(denoiser().params["conv"]).reshape(27, 5).T
    expected = np.zeros_like(rows)
    for start in range(0, 27, size):
        part = rows[:, start : start + size]
        scale = np.abs(part).max(1, keepdims=True) / 7
        expected[:, start : start + size] = np.round(part / scale) * scale
    assert_close(q.site_inputs["conv"].weight, expected.T.reshape(3, 3, 3, 5), factor=8)


def test_a_block_format_of_a_weight_is_that_of_quant():
    q = quantized("W:mxfp4 nearest")
    w = denoiser().params["out"]
    rows = jnp.pad(w.T, [(0, 0), (0, 12)])  # 20 of 32
    expected = quant.fake_quant_block(rows, quant.MXFP4)[:, :20].T
    assert_close(q.site_inputs["out"].weight, expected, factor=1)


def test_sums_of_output_channels_stay_in_groups_too():
    w = denoiser().params["out"]
    scale, _ = quant.absmax(w, format=INT(3), scale_shape=(4, 3))
    lost = {
        way: np.abs(np.sum(np.reshape(quantized(f"W3g5 {way}").site_inputs["out"].weight - w,
                                      (4, 5, 3)), 1)) / scale
        for way in ("sums", "nearest")
    }  # fmt: skip
    assert np.all(lost["sums"] <= 0.5 + 1e-6)
    assert np.any(lost["nearest"] > 0.6)


def test_blocks_of_an_activation_lie_along_what_is_summed():
    grid = quant.ActivationGrid(quant.MXFP8_E4M3)
    x = worlds.normal(5, 4, 70)
    got = precision.round_activation(x, grid, axes=(1,), group_axis=1)
    padded = jnp.pad(x, [(0, 0), (0, 26)])
    assert_close(got, quant.fake_quant_block(padded, quant.MXFP8_E4M3)[:, :70], factor=1)


def test_groups_of_an_activation_have_the_range_of_their_neighbours():
    grid = quant.ActivationGrid(INT(4, signed=False), group_size=8)
    x = worlds.normal(6, 3, 20)
    got = np.asarray(precision.round_activation(x, grid, axes=(1,), group_axis=1))
    for row, start in np.ndindex(3, 3):
        part = np.asarray(x[row, 8 * start : 8 * start + 8])
        alone = quant.ActivationGrid(INT(4, signed=False))
        expected = precision.round_activation(jnp.asarray(part)[None], alone, axes=(1,))[0]
        np.testing.assert_array_equal(got[row, 8 * start : 8 * start + 8], expected)


def test_an_axis_shorter_than_a_group_is_joined_by_its_neighbours():
    """Channels of an image: one scale a pixel would leave nothing to round."""
    grid = quant.ActivationGrid(INT(4), group_size=16)
    x = worlds.normal(7, 2, 4, 4, 3)
    got = precision.round_activation(x, grid, axes=(1, 2, 3), group_axis=3)
    rows = x.reshape(2, 3, 16)
    expected = precision.round_activation(
        rows, quant.ActivationGrid(INT(4)), axes=(2,)
    ).reshape(x.shape)  # fmt: skip
    np.testing.assert_array_equal(got, expected)


def test_one_scale_for_an_operand_is_that_of_all_its_numbers():
    x = worlds.normal(8, 3, 7)
    got = precision.round_activation(x, quant.ActivationGrid(INT(4), group_size=0), axes=(1,))
    scale = jnp.max(jnp.abs(x)).astype(jnp.float32) / 7
    assert_close(got, quant.fake_quant(x, scale.reshape(1, 1), format=INT(4)), factor=1)


def test_a_dynamic_scale_of_a_recipe_is_that_of_a_tensor_a_token_or_a_group_as_it_says():
    x = worlds.normal(8, 3, 20)
    a = np.abs(np.asarray(x))
    largest = {
        "tensor": np.max(a), "token": np.max(a, axis=1, keepdims=True),
        5: np.repeat(a.reshape(3, 4, 5).max(2), 5, axis=1),
    }  # fmt: skip
    for granularity, absmax in largest.items():
        entry = OperandFormat(INT(4), granularity, scales="dynamic")
        q = quantized(Recipe({"out": SiteBits(None, entry)}))
        (grid,) = q.site_inputs["out"].activations
        got = precision.round_activation(x, grid, axes=(1,), group_axis=1)
        np.testing.assert_allclose(got, np.round(7 * x / absmax) * absmax / 7, atol=1e-6)


def test_a_network_of_rounded_operands_is_what_its_parts_are():
    q = quantized("W:e4m3 nearest A:e2m1g4; in: W4A8 symmetric token; out: float")
    p, inputs = denoiser().params, q.site_inputs
    x = precision.round_activation(X_T, quant.ActivationGrid(quant.E2M1, group_size=4),
                                   axes=(1, 2, 3), group_axis=3)  # fmt: skip
    h = jnp.tanh(worlds.convolve(x, inputs["conv"].weight))
    h = precision.round_activation(h, quant.ActivationGrid(INT(8)), axes=(3,), group_axis=3)
    h = jnp.tanh(h @ inputs["in"].weight)
    edge = quant.ActivationGrid(quant.E2M1, group_size=4)
    ends = functools.partial(precision.round_activation, grid=edge, axes=(1, 2, 3))
    expected = ends(h @ p["out"])
    only = {name: inputs[name] for name in ("conv", "in", "output")}
    got = eps_of(precision.Quantized(denoiser(), only), X_T)
    assert_close(got, expected, factor=4096)


ODD = ("4g3", "8 tensor", "8 token", "8", ":nf4", ":e3m4", ":ternary", ":mxfp6", ":nvfp4",
       ":msfp12", "8 static", "8 by-step", "6 stochastic")  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_both_modes_of_autodiff_go_through_a_recipe(name):
    activation = "" if name.endswith("tensor") else f" A{name}"
    weight = name.split()[0]
    q = quantized(f"W{weight}{activation}")
    call = 1

    def loss(x):
        return jnp.sum(eps_of(q, x, call) ** 2)

    v = worlds.normal(9, *X_T.shape)
    _, tangent = jax.jvp(loss, (X_T,), (v,))
    gradient = jax.grad(loss)(X_T)
    assert np.all(np.isfinite(gradient))
    assert float(jnp.max(jnp.abs(gradient))) > 0
    assert_close(jnp.sum(gradient * v), tangent, factor=4096)


NETWORKS = {"linen": worlds.linen_layers, "nnx": worlds.nnx_net, "equinox": worlds.eqx_net,
            "plain": worlds.handwritten}  # fmt: skip
WORDS = [
    *(f"W:{n} A:{n}" for n in formats.FORMATS if n != "binary"), "W:binary",
    *(f"W:{n} A:{n}" for n in ("pot4", "uroot4", "lloyd3", "bfp4", "int4b8")),
    *(f"W{size} A{size}" for size in ("4g8", ":e2m1g16", ":nf4g8", ":ternaryg4")),
    *(f"W{f} tensor A{f} tensor" for f in ("8", ":e4m3", ":nf4")),
    *(f"W{f} channel A{f} token" for f in ("8", ":e4m3", ":nf4")),
    *(f"W{f} A{f} {s}" for f in ("8", ":e4m3", ":nf4") for s in ("static", "by-step")),
    *(f"W{bits}A{bits}" for bits in (1, 2, 3, 4, 6, 8, 16)),
    *(f"W4 {c} A8 symmetric" for c in formats.CALIBRATIONS),
    *(f"W4 {r}" for r in formats.ROUNDINGS if r != formats.DIFFERENCE), "A4 stochastic",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_format_and_granularity_runs_on_every_kind_of_network(network, compile_fast):
    net = NETWORKS[network]()
    params, x, t = net.args
    whole = Denoiser(net.fn, params, SCHEDULE, x.shape[1:])
    steps = diffusion.ddim(SCHEDULE, 2)
    with jax.numpy_dtype_promotion("standard"):
        calibration = precision.calibrate(whole, steps, x_T=x)
        plain = whole.eps_fn(params, x, t)
        for words in WORDS:
            q = precision.quantize(calibration, words, sites=("*",))
            first = jax.tree.map(lambda a: a[0], q.calls(steps))
            run = jax.jit(lambda q, x, first: precision.quantized_call(q)(x, t, first)[0])
            eps = run(q, x, first)
            assert eps.shape == plain.shape, words
            assert np.all(np.isfinite(eps)), words
            assert float(jnp.max(jnp.abs(eps - plain))) > 0, words

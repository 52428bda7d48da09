"""Skips that are rounded apart: equal to each part by itself, and what it is worth where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, strategies
from qdiffjax.sites import list_sites, rules, transform
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close

KEY = jax.random.key(1)
PARAMS = {
    "down": worlds.normal32(1, 3, 3, 3, 4, scale=0.4), "wide": worlds.normal32(2, 4, 6, scale=9.0),
    "join": worlds.normal32(3, 1, 1, 10, 5, scale=0.4), "out": worlds.normal32(4, 5, 3, scale=0.3),
}  # fmt: skip
PARAMS["join"] = PARAMS["join"].at[:, :, 4:].multiply(0.02)  # the wide part has small weights
X, T = worlds.normal32(5, 4, 6, 6, 3), jnp.float32(100)


def net_fn(p, x, t):
    """A skip of 4 channels beside 6 of a hundredfold range, into a convolution."""
    h = jnp.tanh(worlds.convolve(x, p["down"]))
    return worlds.convolve(jnp.concatenate([h, h @ p["wide"]], -1), p["join"]) @ p["out"]


DENOISER = qd.Denoiser(net_fn, PARAMS, qd.linear(), (6, 6, 3))
STEPS = qd.ddim(DENOISER.schedule, 4)


@pytest.fixture(scope="module")
def calibration():
    return qd.calibrate(DENOISER, STEPS, jax.random.key(0), num_samples=4)


def improved(calibration, words, *cures, **options):
    return strategies.improve(calibration, words, [strategies.split_skips(), *cures], STEPS, KEY,
                              num_samples=4, sites=("join",), **options)  # fmt: skip


def test_the_site_that_reads_a_concatenation_says_of_which_lengths():
    pieces = {s.name: s.pieces for s in DENOISER.sites() if s.pieces}
    assert pieces == {"join": (4, 6)}
    fn = lambda p, x, t: jnp.tanh(jnp.concatenate([x, x @ p["a"]], -1)) @ p["b"]  # noqa: E731
    params = {"a": worlds.normal(1, 2, 3), "b": worlds.normal(2, 5, 2)}
    assert not any(s.pieces for s in list_sites(fn, params, worlds.normal(3, 4, 2), 0.0))


def test_split_rounding_is_that_of_each_part_by_itself_and_the_products_add(calibration):
    """Q(x) Q(w) = Q_1(x_1) Q_1(w_1) + Q_2(x_2) Q_2(w_2), each factor by hand."""
    q = improved(calibration, "W4 nearest A4").quantized()
    seen = transform(DENOISER.eps_fn, rules.collect_operands)(PARAMS, X, T)[1]["join"]
    x, w = (np.float64(v) for v in seen)
    parts = []
    for start, stop in ((0, 4), (4, 10)):
        own = np.stack([by_hand.on_grid(s, *by_hand.affine(s.min(), s.max(), 4))
                        for s in x[..., start:stop]])  # fmt: skip
        parts.append(own @ by_hand.weight(w[0, 0, start:stop], 4, 0))

    def rule(site, op, operands, inputs):
        y, _ = precision.quantize_site(site, op, operands, inputs)
        return y, y

    out = transform(DENOISER.eps_fn, rule)(PARAMS, X, T, site_inputs=q.site_inputs)[1]["join"]
    assert_close(out, np.float32(sum(parts)))


def test_static_parts_have_the_ranges_of_their_channels(calibration):
    made = improved(calibration, "W4A8", activations="static")
    (grid,) = made.quantized().site_inputs["join"].activations
    g = transform(DENOISER.eps_fn, rules.collect_operands)
    seen = [
        g(PARAMS, x, t)[1]["join"][0] for x, t in zip(made.states.x, made.states.t, strict=True)
    ]
    assert grid.scale.shape == (1, 1, 1, 10)
    for start, stop in ((0, 4), (4, 10)):
        part = np.stack(seen)[..., start:stop]
        scale = by_hand.affine(part.min(), part.max(), 8)[0]
        assert_close(grid.scale[..., start:stop], np.full((1, 1, 1, stop - start), scale, "f4"),
                     factor=64)  # fmt: skip


def test_parts_are_worth_more_where_their_ranges_differ(calibration):
    run = qd.couple(improved(calibration, "W4A4").quantized(), STEPS, KEY, 8)
    whole = qd.couple(qd.quantize(calibration, "W4A4", sites=("join",)), STEPS, KEY, 8)
    errors = [float(jnp.linalg.norm(r.errors[-1])) for r in (run, whole)]
    assert errors[0] < 0.7 * errors[1]


OTHERS = strategies.gptq(), strategies.clips("mse"), strategies.smoothing()


@pytest.mark.parametrize("cure", OTHERS, ids=lambda cure: cure.name)
def test_other_cures_build_on_the_grids_of_the_parts(calibration, cure):
    made = improved(calibration, "W4A8", cure)
    grid = made.weight_grids()["join"]
    w = np.asarray(made.quantized().site_inputs["join"].weight)
    codes = w / np.asarray(grid.scale)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    scales = np.asarray(grid.scale)[0, 0]
    assert (np.ptp(scales[:4], 0) == 0).all()
    assert (np.ptp(scales[4:], 0) == 0).all()
    assert (scales[0] != scales[4]).all()
    # Two float32 scales for each of five output channels, beside ten codes of four bits.
    extra = 16 * 10 if cure.name.startswith("smoothing") else 0
    assert strategies.stored_bits(made) == (4 * 50 + 32 * 2 * 5 + extra) / 50


def test_what_cannot_be_split_is_refused(calibration):
    with pytest.raises(ValueError, match="channels that another cure mixes"):
        improved(calibration, "W4A8", strategies.rotation(KEY))
    with pytest.raises(ValueError, match="no product that reads a concatenation"):
        strategies.improve(calibration, "W4A8", [strategies.split_skips()], STEPS, KEY,
                           sites=("down",), num_samples=2)  # fmt: skip
    with pytest.raises(ValueError, match="activations in groups"):
        improved(calibration, "W4A8g2")
    with pytest.raises(ValueError, match="without 'shaped'"):
        improved(calibration, "W4 shaped A8").quantized()

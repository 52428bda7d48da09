"""Recipes of stored values: words, exact rounding, derivatives, lowering, and what reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import analysis, precision
from qdiffjax.sites import rules, transform
from tests import worlds
from tests.sites import by_hand
from tests.tolerances import assert_close, both_modes
from tests.worlds import normal

WEIGHTS = {"in": normal(1, 6, 6), "out": normal(2, 6, 6), "join": normal(3, 12, 6)}


def net_fn(params, x, t):
    """A norm, a sum, a skip and a softmax, x [batch, 6]."""
    h = jax.nn.standardize(x @ params["in"])
    h = h + jnp.tanh(h + jnp.sin(t)) @ params["out"]
    return jax.nn.softmax(jnp.concatenate([h, x], -1) @ params["join"])


DENOISER = qd.Denoiser(net_fn, WEIGHTS, qd.linear(), (6,)).with_values()
STEPS = qd.ddim(DENOISER.schedule, 4)
X, T = normal(4, 3, 6), jnp.float64(100)
VALUES = {"norm": "norm_0", "residual": "residual_0", "skip": "skip_0", "softmax": "softmax_0"}


@pytest.fixture(scope="module")
def calibration():
    return qd.calibrate(DENOISER, STEPS, jax.random.key(0), num_samples=4)


def by_hand_at(kind, round_fn):
    """The network in NumPy with the values of one kind rounded."""
    at = lambda own, v: round_fn(v) if own == kind else v  # noqa: E731
    w = {name: np.asarray(v) for name, v in WEIGHTS.items()}
    h = np.asarray(X) @ w["in"]
    mean, square = h.mean(-1, keepdims=True), (h**2).mean(-1, keepdims=True)
    h = at("norm", (h - mean) / np.sqrt(square - mean**2 + 1e-5))
    h = at("residual", h + np.tanh(h + np.sin(float(T))) @ w["out"])
    joined = np.concatenate([at("skip", h), at("skip", np.asarray(X))], -1)
    return at("softmax", by_hand.softmax(joined @ w["join"]))


@pytest.mark.parametrize("kind", VALUES)
def test_a_stored_value_is_rounded_to_the_grid_of_each_sample(calibration, kind):
    def rounded(v):  # a grid for each sample
        return np.stack([by_hand.on_grid(row, *by_hand.affine(row.min(), row.max(), 4))
                         for row in np.asarray(v)])  # fmt: skip

    q = qd.quantize(calibration, f"{kind}: A4")
    assert list(q.site_inputs) == [VALUES[kind]]
    out = precision.quantized_call(q)(X, T, None)[0]
    plain, expected = by_hand_at("none", rounded), by_hand_at(kind, rounded)
    assert np.abs(expected - plain).max() > 1e-3
    # Scales are float32, x float64.
    assert_close(out.astype(jnp.float32), expected.astype(np.float32), factor=64)


def test_the_parts_of_a_skip_have_ranges_and_grids_of_their_own(calibration):
    q = qd.quantize(calibration, "skip: A4 static")
    grids = q.site_inputs["skip_0"].activations
    _, seen = transform(DENOISER.eps_fn, rules.collect_operands)(WEIGHTS, X, T)
    for grid, (low, high), part in zip(
        grids, calibration.ranges["skip_0"], seen["skip_0"], strict=True
    ):
        ends = by_hand.affine(jnp.min(low), jnp.max(high), 4)
        assert_close(np.float32(grid.scale), np.float32(ends[0]))
        expected = by_hand.on_grid(part, float(grid.scale), float(grid.zero_point), *ends[2:])
        np.testing.assert_array_equal(grid.round(part, (1,)), expected)
    assert grids[0].scale != grids[1].scale


def test_recipes_in_words_leave_stored_values_out_unless_they_are_named(calibration):
    plain = qd.Denoiser(net_fn, WEIGHTS, qd.linear(), (6,))
    assert list(qd.quantize(calibration, "W8A8").site_inputs) == list(
        qd.quantize(qd.calibrate(plain, STEPS, jax.random.key(0)), "W8A8").site_inputs
    )
    named = qd.quantize(calibration, "W8A8; values !softmax: A6; skip*: A4")
    assert {n: s.activation for n, s in named.widths.items() if n in VALUES.values()} == {
        "norm_0": 6, "residual_0": 6, "skip_0": 4
    }  # fmt: skip


@pytest.mark.parametrize("recipe", [
    "residual: W4A8", "values: W4", qd.Recipe({"residual_0": qd.SiteBits(4, 8)})
], ids=["words", "weights alone", "table"])  # fmt: skip
def test_a_weight_where_there_is_none_is_refused(calibration, recipe):
    with pytest.raises(ValueError, match=r"a stored value has no weight; such as 'residual: A8'"):
        qd.quantize(calibration, recipe)


def test_a_kind_that_was_not_asked_for_is_refused_with_the_way_to_ask():
    calibration = qd.calibrate(DENOISER.with_values("norm"), STEPS, jax.random.key(0))
    with pytest.raises(ValueError, match=r"denoiser\.with_values\('skip'\)"):
        qd.quantize(calibration, "skip: A8")
    with pytest.raises(ValueError, match="softmax"):
        DENOISER.with_values("softmaxes")


@pytest.mark.parametrize("kind", VALUES)
def test_derivatives_pass_straight_through_rounded_values(calibration, kind):
    call = precision.quantized_call(qd.quantize(calibration, f"{kind}: A8"))
    both_modes(lambda x: call(x, T, None)[0], X)


def test_lowered_values_are_rounded_as_simulated_and_what_is_not_is_named(calibration):
    words = "values: A8; norm: A8 shaped"
    with pytest.raises(ValueError, match="error feedback at norm_0"):
        qd.lower(calibration, words)
    q, low = (make(calibration, "W8A8; values: A8") for make in (qd.quantize, qd.lower))
    ways = precision.lowering_of(calibration.sites, low.site_inputs)
    assert {ways[name] for name in VALUES.values()} == {"rounded"}
    own = {name: low.site_inputs[name] for name in VALUES.values()}
    for each in (q, low):
        each.site_inputs.clear()
    q.site_inputs.update(qd.quantize(calibration, "values: A8").site_inputs)
    low.site_inputs.update(own)
    outs = [precision.quantized_call(each)(X.astype(jnp.float32), T, None)[0] for each in (q, low)]
    np.testing.assert_array_equal(*outs)


def test_ledger_prediction_and_bounds_see_stored_values(calibration):
    q = qd.quantize(calibration, "values: A6")
    run = qd.couple(q, STEPS, jax.random.key(1), 3)
    assert float(jnp.abs(run.xs_hat[-1] - run.xs[-1]).max()) > 0
    ledger = qd.attribute(q, STEPS, run)
    assert set(VALUES.values()) <= set(ledger.names)

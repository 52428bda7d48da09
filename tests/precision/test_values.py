"""Recipes of stored values: words, exact rounding, derivatives, lowering, and what reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision
from qdiffjax.sites import transform
from qdiffjax.sites.values import KINDS
from tests.sites import by_hand
from tests.tolerances import assert_close, both_modes
from tests.worlds import normal32

WEIGHTS = {"in": normal32(1, 6, 6), "out": normal32(2, 6, 6), "join": normal32(3, 12, 6)}


def net_fn(params, x, t):
    """A norm, a sum, a skip and a softmax, x [batch, 6]."""
    h = jax.nn.standardize(x @ params["in"])
    h = h + jnp.tanh(h + jnp.sin(t)) @ params["out"]
    return jax.nn.softmax(jnp.concatenate([h, x], -1) @ params["join"])


DENOISER = qd.Denoiser(net_fn, WEIGHTS, qd.linear(), (6,)).with_values()
STEPS = qd.ddim(DENOISER.schedule, 4)
X, T = normal32(4, 3, 6), jnp.float32(100)
VALUES = {"norm": "norm_0", "residual": "residual_0", "skip": "skip_0", "softmax": "softmax_0"}


@pytest.fixture(scope="module")
def calibration():
    return qd.calibrate(DENOISER, STEPS, jax.random.key(0), num_samples=4)


def at_the_sites(q):
    """What the rule of q is handed at its sites and what goes on, by name."""

    def rule(site, op, operands, inputs):
        y, _ = precision.quantize_site(site, lambda *values: values, operands, inputs)
        return op(*y), (operands, y)

    site_inputs = q.site_inputs
    return transform(q.eps_fn, rule)(WEIGHTS, X, T, site_inputs=site_inputs)[1]


@pytest.mark.parametrize("kind", VALUES)
def test_what_goes_on_from_a_stored_value_is_on_its_grid_exactly(calibration, kind):
    q = qd.quantize(calibration, f"{kind}: A4 static")
    assert list(q.site_inputs) == [VALUES[kind]]
    operands, rounded = at_the_sites(q)[VALUES[kind]]
    ranges = precision.over_steps(calibration.ranges)[VALUES[kind]]
    assert len(operands) == len(rounded) == len(ranges) == (2 if kind == "skip" else 1)
    for x, y, grid, ends in zip(
        operands, rounded, q.site_inputs[VALUES[kind]].activations, ranges, strict=True
    ):
        own = by_hand.affine(*ends, 4)
        assert_close(np.float32(grid.scale), np.float32(own[0]))
        expected = by_hand.on_grid(np.float64(x), float(grid.scale), *own[1:])
        np.testing.assert_array_equal(y, np.float32(expected))
        assert float(jnp.abs(x - y).max()) > 0


@pytest.mark.parametrize("kind", VALUES)
def test_a_dynamic_grid_is_that_of_each_sample_and_operand(calibration, kind):
    operands, rounded = at_the_sites(qd.quantize(calibration, f"{kind}: A4"))[VALUES[kind]]
    for x, y in zip(operands, rounded, strict=True):
        rows = [by_hand.on_grid(row, *by_hand.affine(row.min(), row.max(), 4))
                for row in np.float64(x)]  # fmt: skip
        assert_close(y, np.float32(rows))


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


def test_lowered_values_are_rounded_as_simulated_and_what_cannot_be_is_named(calibration):
    with pytest.raises(ValueError, match="error feedback at norm_0"):
        qd.lower(calibration, "values: A8; norm: A8 shaped")
    q, low = (make(calibration, "values: A8") for make in (qd.quantize, qd.lower))
    ways = precision.lowering_of(calibration.sites, low.site_inputs)
    assert {ways[name] for name in VALUES.values()} == {"rounded"}
    outs = [precision.quantized_call(each)(X, T, None)[0] for each in (q, low)]
    np.testing.assert_array_equal(*outs)
    with pytest.warns(precision.DiagnosisWarning, match=r"softmax_0 \(an activation is rounded at"):
        qd.lower(calibration, "values: A8; softmax: A8 stochastic")


def test_ledger_prediction_and_bounds_see_stored_values(calibration):
    q = qd.quantize(calibration, "values: A8")
    run = qd.couple(q, STEPS, jax.random.key(1), 3)
    ledger = qd.attribute(q, STEPS, run)
    assert set(ledger.contributions) == set(VALUES.values())
    total = sum(np.asarray(c).sum(-1) for c in ledger.contributions.values())
    np.testing.assert_allclose(total, ledger.change, rtol=1e-3)  # quadrature
    errors, predicted = (np.asarray(e)[-1] for e in (run.errors, qd.predict(q, STEPS, run)[0]))
    assert np.linalg.norm(predicted - errors) < 0.03 * np.linalg.norm(errors)  # first order
    assert qd.bound(q, STEPS, run).holds() == (True, True)


def test_values_are_the_networks_own_inside_conversion_preconditioning_and_guidance():
    def conditioned(params, x, t, label):
        return net_fn(params, x, t + label[:, None])

    names = [s.name for s in DENOISER.sites()]
    guided = qd.Denoiser(
        conditioned, WEIGHTS, qd.linear(), (6,), "v", cond=jnp.ones(2, jnp.float32)
    ).guided(3.0, jnp.float32(0))  # fmt: skip
    edm = qd.Denoiser(net_fn, WEIGHTS, qd.EDM(), (6,), qd.edm_preconditioning(0.5))
    assert [s.name for s in guided.with_values().sites()] == names
    assert [s.name for s in edm.with_values().sites()] == names
    assert guided.with_values().sites()[2].shapes == ((2, 6),)  # of both branches


def test_denoisers_of_the_same_values_share_one_function_and_are_trees():
    other = qd.Denoiser(net_fn, {}, DENOISER.schedule, (6,))
    assert other.with_values().eps_fn is DENOISER.eps_fn is not other.eps_fn
    assert other.with_values("norm").eps_fn is not DENOISER.eps_fn
    assert jax.tree.map(lambda leaf: leaf, DENOISER).values == KINDS

"""GPTQ and AdaRound: matrices of products, worked cases, and never worse than nearest."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision, quant, strategies
from qdiffjax.sites import list_sites
from qdiffjax.strategies import statistics, weights
from qdiffjax.strategies.training.widths import with_widths
from tests import worlds
from tests.precision.small import STEPS, X_T, calibrated, denoiser
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 8, 6, 6, 3)

KEY = jax.random.key(1)
INT4 = quant.IntFormat(4)


def conv(shape, kernel, **options):
    def fn(x, w):
        return jax.lax.conv_general_dilated(
            x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **({"window_strides": (1, 1), "padding": "SAME"} | options),
        )  # fmt: skip

    return worlds.one_site(fn, shape, kernel, weight=1)


PRODUCTS = {
    **{name: worlds.dot(name) for name in ("x w", "w x", "rows of w", "two axes",
                                           "w in the middle")},
    "3x3": conv((2, 5, 6, 3), (3, 3, 3, 4)),
    "strides": conv((2, 6, 6, 3), (3, 2, 3, 4), window_strides=(2, 1), padding=((1, 0), (0, 1))),
    "dilated": conv((2, 6, 6, 3), (2, 2, 3, 4), rhs_dilation=(2, 1)),
    "transposed": conv((2, 4, 4, 3), (3, 3, 3, 4), lhs_dilation=(2, 2), padding=((1, 2), (2, 1))),
}  # fmt: skip


@pytest.mark.parametrize("network", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_is_that_of_its_matrices(network):
    site = next(s for s in list_sites(network.fn, *network.args) if s.product is not None)
    w = network.params["w"]
    assert statistics.has_matrix(site)
    matrix = statistics.weight_matrix(site, w)
    assert_close(statistics.weight_operand(site, matrix), w)
    rows = statistics.activation_matrix(site, network.x)
    y = network.fn(*network.args)
    found = rows @ matrix
    if site.weight == 0:  # channels come first in the result
        y = jnp.moveaxis(y, 0, -1)
    assert_close(found.reshape(-1), y.reshape(-1), factor=64)


def test_groups_and_batches_have_no_matrix():
    for network in (worlds.dot("batch of w"), worlds.dot("q k"),
                    conv((2, 5, 5, 4), (3, 3, 1, 4), feature_group_count=4)):  # fmt: skip
        site = next(s for s in list_sites(network.fn, *network.args) if s.product is not None)
        assert not statistics.has_matrix(site)


@pytest.mark.parametrize("recipe", ["W4", "W4A8"])
def test_grams_are_second_moments_of_what_weights_multiply(recipe):
    """Rows as they are, or rounded on a grid of their own each, as the recipe says."""
    draft = strategies.draft(calibrated(), recipe, STEPS, jax.random.key(1), x_T=NOISE[:3],
                             num_calls=2, sites=("conv", "in"))  # fmt: skip
    found = statistics.grams(draft, ("in",))["in"]
    params = denoiser().params
    rows = jnp.tanh(worlds.convolve(draft.states.x.reshape(-1, 6, 6, 3), params["conv"]))
    rows = rows.reshape(-1, 5)
    if recipe == "W4A8":
        rows = quant.ActivationGrid(quant.IntFormat(8, signed=False)).round(rows, (1,))
    assert_close(found, rows.T @ rows / len(rows), factor=256)
    assert draft.states.call.tolist() == [0, 4]


def gptq(w, gram, scale=1.0, damping=1e-9):
    w, gram = jnp.asarray(w), jnp.asarray(gram)
    return weights.gptq_matrix(w, jnp.full(w.shape, scale), None, gram, format=INT4,
                               damping=damping)  # fmt: skip


def test_gptq_of_uncorrelated_inputs_is_nearest():
    w = worlds.normal(1, 6, 3, scale=2.0)
    assert_close(gptq(w, jnp.diag(jnp.arange(1.0, 7.0))), jnp.round(w))


def test_gptq_of_two_inputs_by_hand():
    """H = [[4, 2], [2, 2]]: input 0 comes first, and input 1 makes up by H_01 / H_11 = 1.

    w = (0.4, 0.3): q_0 = 0 leaves an error of 0.4, so w_1 = 0.3 + 0.4 rounds to 1, not to 0.
    """
    assert_close(gptq([[0.4], [0.3]], [[4.0, 2.0], [2.0, 2.0]]), np.array([[0.0], [1.0]]))
    gram = jnp.asarray([[4.0, 2.0], [2.0, 2.0]])
    errors = [float(weights.squared_error(gram, jnp.asarray([[0.4], [0.3]]) - jnp.asarray(q)))
              for q in ([[0.0], [1.0]], [[0.0], [0.0]])]  # fmt: skip
    assert_close(np.array(errors), np.array([0.5, 1.3]), factor=64)


def test_gptq_leaves_inputs_that_are_never_there_to_nearest():
    w = worlds.normal(1, 4, 3, scale=2.0)
    gram = jnp.diag(jnp.asarray([1.0, 0.0, 2.0, 0.0])).at[0, 2].set(0.5).at[2, 0].set(0.5)
    found = gptq(w, gram)
    assert bool(jnp.all(jnp.isfinite(found)))
    assert_close(found[jnp.asarray([1, 3])], jnp.round(w[jnp.asarray([1, 3])]))


def correlated(seed, n):
    x = worlds.normal32(seed, 200, n) @ worlds.normal32(seed + 50, n, n)
    return x.T @ x / 200


def adaround(w, gram, num_steps=500):
    return weights.adaround_matrix(
        w, jnp.ones_like(w), None, gram, format=INT4, num_steps=num_steps, learning_rate=0.03,
        weight=3.0,
    )  # fmt: skip


UPS = list(itertools.product((0.0, 1.0), repeat=6))


def test_both_come_near_the_best_of_all_roundings():
    """Six weights have 64 roundings up or down; nearest is far from the best of them."""
    found = {"nearest": [], "gptq": [], "adaround": []}
    for seed in range(8):
        gram, w = correlated(seed, 6), worlds.normal32(seed + 9, 6, 1, scale=2.0)
        every = jnp.floor(w)[None] + jnp.asarray(UPS, jnp.float32)[..., None]
        best = min(float(weights.squared_error(gram, each - w)) for each in every)
        for name, q in (("nearest", jnp.round(w)), ("gptq", gptq(w, gram, damping=0.01)),
                        ("adaround", adaround(w, gram))):  # fmt: skip
            found[name].append(float(weights.squared_error(gram, q - w)) / best)
    middle = {name: float(np.median(values)) for name, values in found.items()}
    assert middle["nearest"] > 1.7
    assert middle["adaround"] < 1.1
    assert middle["gptq"] < 0.7 * middle["nearest"]


def test_adaround_is_never_worse_than_nearest():
    gram, w = correlated(3, 6), worlds.normal32(4, 6, 5, scale=2.0)
    for num_steps in (1, 50):
        found = adaround(w, gram, num_steps)
        assert_close(found, jnp.round(found))
        assert float(weights.squared_error(gram, found - w)) <= float(
            weights.squared_error(gram, jnp.round(w) - w)
        )


@pytest.mark.parametrize(
    "cure", [strategies.gptq(), strategies.adaround(200)], ids=["gptq", "adaround"]
)
@pytest.mark.parametrize("recipe", ["W3A16", "W3g5A16", "W3 mse A16", "W3 affine A16"])
def test_products_err_less_than_with_nearest(cure, recipe):
    """The layer's own error, which is what both make small, on samples that they have not seen."""
    site, name = {s.name: s for s in calibrated().sites}["in"], "in"
    rows = statistics.activation_matrix(
        site, jnp.tanh(worlds.convolve(X_T, denoiser().params["conv"]))
    )
    errors = []
    for cures in ([], [cure]):
        done = strategies.improve(calibrated(), recipe, cures, STEPS, jax.random.key(1),
                                  x_T=NOISE, sites=("in",))  # fmt: skip
        w = done.quantized().site_inputs[name].weight
        errors.append(float(jnp.linalg.norm(rows @ (w - calibrated().weights[name]))))
    assert errors[1] < 0.95 * errors[0]


def test_groups_over_several_axes_are_refused():
    draft = strategies.draft(calibrated(), "W4g32A8", STEPS, jax.random.key(1), x_T=NOISE[:2],
                             sites=("conv",))  # fmt: skip
    with pytest.raises(ValueError, match="groups of 32"):
        strategies.gptq()(draft)


@pytest.mark.parametrize("cure", [strategies.gptq(), strategies.adaround(20)],
                         ids=["GPTQ", "AdaRound"])  # fmt: skip
def test_weights_whose_sums_are_kept_round_as_others_do(cure):
    """What keeps sums moved weights onto the grid before a cure saw them, which then did nothing:
    in words, in a recipe that is spelled out or recommended, and after widths were learned."""

    def rounded(recipe, *before):
        return strategies.improve(calibrated(), recipe, [*before, cure], STEPS, KEY,
                                  x_T=NOISE[:4]).rounded  # fmt: skip

    expected = rounded("W4A8")
    widths = strategies.Cure("widths", 2, lambda draft: with_widths(draft, dict.fromkeys(
        expected, 4
    )))  # fmt: skip
    spelled = precision.spelled_out(calibrated(), "W4A8")
    for found in (rounded("W4 sums A8"), rounded(spelled), rounded("W4A8", widths)):
        for name, w in expected.items():
            assert_close(found[name], w)
    nearest = precision.quantize(calibrated(), spelled).site_inputs
    assert any(bool(jnp.any(w != nearest[name].weight)) for name, w in expected.items())


def test_sites_that_are_left_out_may_have_any_weight():
    """GPTQ of one site was refused over another's weight by step."""
    draft = strategies.draft(calibrated(), "conv: W4A8; in: W3A8; steps 0 conv: W8A8", STEPS,
                             jax.random.key(1), x_T=NOISE[:2])  # fmt: skip
    done = strategies.gptq(sites=("in",))(draft)
    assert set(done.rounded) == {"in"}
    with pytest.raises(ValueError, match="a weight by step"):
        strategies.gptq()(draft)


@pytest.mark.parametrize("recipe", ["W4g2 A8", "W:fp4 A8", "W4 affine A8"])
def test_clips_are_of_every_format_that_leaves_its_scales_open(recipe):
    """They changed nothing where the recipe names a format, and said that they had."""
    q = strategies.improve(calibrated(), recipe, [strategies.clips("mse")], STEPS, KEY,
                           x_T=NOISE).quantized()  # fmt: skip
    said = precision.quantize(calibrated(), recipe.replace(" A8", " mse A8"))
    plain = precision.quantize(calibrated(), recipe)
    for name in ("conv", "in"):
        own = q.site_inputs[name].weight
        assert_close(own, said.site_inputs[name].weight)
        assert float(jnp.max(jnp.abs(own - plain.site_inputs[name].weight))) > 0


@pytest.mark.parametrize(
    ("recipe", "rule", "said"),
    [("W:nvfp4 A8", "mse", "leaves its scales to a rule"),
     ("W4 mse A8", "mse", "leaves its scales to a rule"),
     ("W4 affine A8", "gaussian", "finds zero points")],
)  # fmt: skip
def test_clips_that_no_weight_takes_are_refused(recipe, rule, said):
    with pytest.raises(ValueError, match=said):
        strategies.improve(calibrated(), recipe, [strategies.clips(rule)], STEPS, KEY, x_T=NOISE)


def test_clips_are_those_of_their_rule():
    for name, rule in (("mse", quant.mse), ("gaussian", quant.gaussian_clip)):
        done = strategies.improve(calibrated(), "W4A8", [strategies.clips(name)], STEPS,
                                  jax.random.key(1), x_T=NOISE[:2], sites=("in",))  # fmt: skip
        w = calibrated().weights["in"]
        scale, _ = rule(w, format=INT4, scale_shape=(1, 20))
        assert_close(done.weight_grids()["in"].scale, scale, factor=64)
    with pytest.raises(ValueError, match="perhaps"):
        strategies.clips("msee")


def test_diffusion_times_are_those_of_the_draft():
    draft = strategies.draft(calibrated(), "W4A8", STEPS, jax.random.key(1), x_T=NOISE[:2],
                             num_calls=3)  # fmt: skip
    xs = diffusion.sample(
        precision.full_call(precision.Quantized(denoiser(), {})), draft.x_T, STEPS
    )
    assert_close(draft.states.x, xs.states[draft.states.call], factor=64)
    assert_close(draft.states.t, STEPS.t[draft.states.call])

"""Recipes by step, and as records."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion, precision, quant
from qdiffjax.analysis.errors import ledger, prediction
from qdiffjax.precision import OperandFormat, Phase, Recipe, SiteBits
from tests import worlds
from tests.precision.small import (
    SCHEDULE,
    STEPS,
    X_T,
    calibrated,
    denoiser,
    eps_of,
    quantized,
)
from tests.tolerances import assert_close


def by_turns(names, which):
    """Run the sampler with one quantized denoiser a call."""
    qs = [quantized(name) for name in names]
    x = X_T
    for i, k in enumerate(which):
        eps = precision.quantized_call(qs[k])(x, STEPS.t[i])[0]
        x = STEPS.coeffs.x[i] * x + STEPS.coeffs.eps[i] * eps
    return x


def test_a_recipe_by_step_is_its_recipes_by_turns():
    q = quantized("W4A4; steps 0-1: W8A8; steps 4: float")
    per_call = q.calls(STEPS)
    got = diffusion.sample(precision.quantized_call(q), X_T, STEPS, per_call=per_call).x_0
    expected = by_turns(["W4A4", "W8A8"], [1, 1, 0, 0])
    eps = denoiser().eps_fn(denoiser().params, expected, STEPS.t[4])
    expected = STEPS.coeffs.x[4] * expected + STEPS.coeffs.eps[4] * eps
    assert_close(got, expected, factor=4096)


def test_at_a_step_of_a_phase_its_widths_take_the_place_of_the_recipe_s_own():
    phases = Phase((0,), {"out": SiteBits(2)}), Phase((2,), {"conv": SiteBits(3)})
    recipe = Recipe({"in": SiteBits(4, 4), "out": SiteBits(8, 8)}, phases)
    assert recipe.at(0) == {"in": SiteBits(4, 4), "out": SiteBits(2)}
    assert recipe.at(1) == {"in": SiteBits(4, 4), "out": SiteBits(8, 8)}
    assert recipe.at(2) == {**recipe.at(1), "conv": SiteBits(3)}


def test_ledger_and_prediction_see_a_recipe_by_step():
    q = quantized("W6; steps 0-1: W8; steps 3 out: float")
    xs = diffusion.sample(precision.full_call(q), X_T, STEPS).states
    run = jax.jit(comparisons.measured)(q, X_T, xs, STEPS)
    entries = ledger.attribution(q, X_T, STEPS, num_nodes=4)
    np.testing.assert_allclose(entries.x_hat_0, run.xs_hat[-1], rtol=1e-9)
    assert float(jnp.max(ledger.defect(entries))) < 0.02
    assert float(jnp.max(jnp.abs(entries.contributions["out"][:, 3]))) == 0
    predicted = prediction.predict_errors(q, xs, STEPS)[-1]
    ratio = jnp.linalg.norm(predicted) / jnp.linalg.norm(run.errors[-1])
    assert 0.6 < float(ratio) < 1.6


def test_static_scales_by_step_are_those_of_each_call():
    q = quantized("A8 by-step")
    per_call = precision.site_inputs(
        Recipe({s.name: SiteBits(None, 8) for s in calibrated().sites}), {}, calibrated().ranges
    )
    plain = quantized("A8", activations="static")
    ours = diffusion.sample(precision.quantized_call(q), X_T, STEPS, per_call=q.calls(STEPS)).x_0
    theirs = diffusion.sample(precision.quantized_call(plain), X_T, STEPS, per_call=per_call).x_0
    assert_close(ours, theirs, factor=64)


def test_static_scales_of_ranges_of_calls_are_the_widest_of_each():
    """Five calls in two ranges, floor(2 i / 5): calls 0, 1, 2 and calls 3, 4."""
    q = quantized("A8 2-ranges")
    for name, pairs in calibrated().ranges.items():
        for (low, high), series in zip(pairs, q.site_inputs[name].activations, strict=True):
            for calls in ((0, 1, 2), (3, 4)):
                least, most = np.min(low[np.array(calls)]), np.max(high[np.array(calls)])
                expected = quant.activation_grid(least, most, quant.IntFormat(8, signed=False))
                for call in calls:
                    grid = series.at(call)
                    np.testing.assert_array_equal(grid.scale, expected.scale)
                    np.testing.assert_array_equal(grid.zero_point, expected.zero_point)


@pytest.mark.parametrize(("words", "same"), [("A8 1-ranges", "A8 static"),
                                             ("A8 5-ranges", "A8 by-step")])  # fmt: skip
def test_one_range_is_static_and_as_many_as_calls_is_by_step(words, same):
    one, other = map(quantized, (words, same))
    for call in range(5):
        np.testing.assert_array_equal(eps_of(one, X_T, call), eps_of(other, X_T, call))


def test_random_bits_are_new_at_every_call_and_site():
    q = quantized("A4 stochastic")
    first, again, second = (eps_of(q, X_T, call) for call in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert float(jnp.max(jnp.abs(first - second))) > 0
    keys = [jax.random.key_data(inputs.activations[0].key) for inputs in q.site_inputs.values()]
    assert len({tuple(map(int, key)) for key in keys}) == len(q.site_inputs) == 5
    other = quantized("A4 stochastic", key=jax.random.key(1))
    assert float(jnp.max(jnp.abs(first - eps_of(other, X_T, 0)))) > 0


@pytest.mark.parametrize(
    ("recipe", "steps", "message"),
    [
        ("W8A8; steps 7: W4A4", 5, "got 7, expected 0..4"),
        ("W8A8; steps 1-2: W4; steps 2-3: W6", 5, "2 in two phases"),
        ("W8A8; steps 1: W4", 6, "a sampler of 6 calls, expected one of 5"),
        ("A8 by-step", 6, "a sampler of 6 calls, expected one of 5"),
        ("A8 2-ranges", 6, "a sampler of 6 calls, expected one of 5"),
        ("A8 6-ranges", 5, "got 6 ranges of 5 calls"),
        ("A8 0-ranges", 5, "got '0-ranges', expected one of"),
        ("A8 2-ranges static", 5, "expected one scales"),
        ("A8 token 2-ranges", 5, "'token' with 2-ranges scales, expected 'tensor'"),
    ],
)
def test_steps_that_do_not_fit_are_refused(recipe, steps, message):
    with pytest.raises(ValueError, match=message):
        quantized(recipe).calls(diffusion.ddim(SCHEDULE, steps))


def test_a_rounding_by_step_without_its_steps_is_refused():
    q = quantized("W8A8; steps 1: W4")
    with pytest.raises(ValueError, match=r"pass per_call=q\.calls"):
        precision.quantized_call(q)(X_T, STEPS.t[0])


RECIPE = Recipe(
    {"conv": SiteBits(OperandFormat(quant.NVFP4), 8), "out": SiteBits(4, None)},
    (Phase((0, 3), {"out": SiteBits(8, OperandFormat(quant.E4M3FN, scales="static"))}),),
)


def test_a_recipe_of_formats_survives_json():
    text = RECIPE.to_json()
    assert Recipe.from_json(text, calibrated().sites) == RECIPE
    assert json.loads(text)["conv"] == {"weight": ":nvfp4", "activation": 8}


def test_a_recipe_with_ranges_gives_the_same_samples_bit_for_bit():
    whole = Recipe({s.name: SiteBits(None if s.weight is None else 4, 6) for s in
                    calibrated().sites}, ranges=calibrated().ranges)  # fmt: skip
    again = Recipe.from_json(whole.to_json(), calibrated().sites)
    other = precision.calibrate(denoiser(), STEPS, x_T=2 * X_T)
    samples = [
        diffusion.sample(precision.quantized_call(precision.quantize(c, recipe)), X_T, STEPS).x_0
        for c, recipe in ((calibrated(), whole), (other, again))
    ]
    np.testing.assert_array_equal(*samples)


def test_a_recipe_prints_its_steps():
    text = str(RECIPE)
    assert all(part in text for part in ("0, 3", "nvfp4", "e4m3 static"))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Halves:
    """A user's own format: multiples of one half up to 3."""

    name, bits, low, high, is_static = "halves", 4, -3.0, 3.0, True

    def round(self, v, round_fn):
        """Round to the grid."""
        return round_fn(2 * v) / 2


def test_a_format_of_ones_own_rounds_and_is_written():
    own = {"halves": Halves()}
    entry = OperandFormat(own["halves"])
    q = quantized(Recipe({"out": SiteBits(entry, entry)}))
    w = denoiser().params["out"]
    w = np.asarray(w)
    scale = np.abs(w).max(0, keepdims=True) / 3
    assert_close(q.site_inputs["out"].weight, np.round(w / scale * 2) / 2 * scale, factor=8)
    assert np.all(np.isfinite(eps_of(q, X_T)))
    recipe = Recipe({"out": SiteBits(entry)})
    assert Recipe.from_json(recipe.to_json(), calibrated().sites, own) == recipe


def test_a_format_without_a_name_is_not_written():
    book = quant.CodebookFormat((-1.0, -0.3, 0.0, 0.3, 1.0))
    with pytest.raises(ValueError, match="have a name"):
        Recipe({"out": SiteBits(OperandFormat(book))}).to_json()


def test_globs_in_one_text_are_refused():
    with pytest.raises(TypeError, match=r"expected a tuple of them; \('w\*',\)"):
        precision.uniform(calibrated().sites, weight_bits=4, activation_bits=8, globs="w*")


def test_formats_that_are_data_share_one_compilation():
    """Floats of any split, codebooks of one size, integers of any width."""
    traced = []

    @jax.jit
    def run(grid, x):
        traced.append(None)
        return precision.round_activation(x, grid, axes=(1,))

    x = worlds.normal(10, 4, 9)
    for e, m in ((2, 1), (4, 3), (5, 2), (3, 0)):
        as_data = quant.FloatFormat(jnp.asarray(e), jnp.asarray(m))
        got = run(quant.ActivationGrid(as_data), x)
        fixed = quant.ActivationGrid(quant.FloatFormat(e, m))
        assert_close(got, precision.round_activation(x, fixed, axes=(1,)), factor=1)
    assert len(traced) == 1
    for levels in ((-1.0, 0.0, 1.0), (-1.0, 0.2, 1.0)):
        got = run(quant.ActivationGrid(quant.CodebookFormat(jnp.asarray(levels))), x)
        fixed = quant.ActivationGrid(quant.CodebookFormat(levels))
        assert_close(got, precision.round_activation(x, fixed, axes=(1,)), factor=1)
    assert len(traced) == 2

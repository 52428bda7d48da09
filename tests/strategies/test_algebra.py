"""Errors of sites add as vectors: exactly where the sample is affine in the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, strategies
from tests.strategies import parallel
from tests.tolerances import assert_close

KEY = jax.random.key(3)
WORDS = ("W3", "W4", "W4 nearest", "W6", "W3 mse")


def offered(num_steps=1, choices=WORDS, **options):
    steps = {1: parallel.ONE_STEP, 4: parallel.STEPS}[num_steps]
    return strategies.offer(parallel.calibrated(num_steps), steps, choices, sites=("*",), **options)


def noise(choices, num=8):
    return strategies.trial(choices, KEY, num)


def test_predicted_is_measured_where_the_sample_is_affine_in_the_weights():
    choices = offered()
    batch = noise(choices)
    algebra = strategies.error_algebra(batch)
    assert algebra.num_runs == 1 + 4 * 5
    rng = np.random.default_rng(0)
    for _ in range(20):
        pick = rng.integers(5, size=4)
        assert_close(np.float32(algebra.predicted(pick)), batch.rmse(pick), scale=1.0)
    uniform = choices.pick("W3")
    alone = [batch.rmse([k if i == j else None for j, k in enumerate(uniform)]) for i in range(4)]
    assert_close(np.float32(algebra.alone[:, 0]), np.array(alone), scale=1.0)
    squares = np.sqrt(np.sum(np.square(alone)))
    assert_close(np.float32(algebra.additive(uniform)), squares, scale=1.0)


def test_around_a_pick_it_is_exact_there_and_one_change_away():
    """Four steps, so that weights multiply: elsewhere it is not exact."""
    choices = offered(4)
    batch = noise(choices)
    base = np.array([0, 4, 2, 1])
    here = strategies.error_algebra(batch, base)
    plain = strategies.error_algebra(batch)
    assert here.num_runs == 2 + 4 * 4
    assert_close(np.float32(here.predicted(base)), batch.rmse(base), scale=1.0)
    for site in range(4):
        pick = base.copy()
        pick[site] = 3
        assert_close(np.float32(here.predicted(pick)), batch.rmse(pick), scale=1.0)
    assert abs(plain.predicted(base) - batch.rmse(base)) > 1e-4


def test_a_recipe_is_what_quantize_makes_of_it_and_its_json():
    """Words at all sites, the recipe of the pick, and the pick itself are one denoiser."""
    choices = offered(4, ("W3", "W4 mse", "W4A8"))
    batch = noise(choices)
    calibration = parallel.calibrated(4)
    x_T = batch.draw.x_T
    for name in choices.names:
        pick = choices.pick(name)
        recipe = choices.recipe(pick)
        read = precision.Recipe.from_json(recipe.to_json(), calibration.sites)
        words = qd.quantize(calibration, name, sites=choices.sites)
        expected = qd.sample(words, parallel.STEPS, KEY, x_T=x_T)
        for each in (recipe, read):
            q = qd.quantize(calibration, each)
            assert_close(qd.sample(q, parallel.STEPS, KEY, x_T=x_T), expected, factor=64)
        assert_close(batch.final(pick), expected, factor=64)


def test_bits_are_codes_and_scales():
    """6 x 6 weights, an output channel of 6; groups of 4 are two a channel."""
    words = ("W4", "W4 tensor", "W4g3", "W4 affine", "W4 shaped", "W:mxfp4")
    bits = offered(1, {"*": words[:5], "a": words}).bits
    expected = [36 * 4 + 32 * 6, 36 * 4 + 32, 36 * 4 + 32 * 12, 36 * 4 + 64 * 6, 36 * 32 + 32 * 6]
    assert bits[1].tolist() == [*expected, np.inf]
    multiplied = offered(1, words[:5], counted="multiplied")
    assert set(multiplied.bits.ravel()) == {36 * 4}
    assert multiplied.mean_bits(multiplied.pick("W4g3")) == 4


def test_activations_add_a_variance_and_no_vector():
    choices = offered(4, ("W4", "W4A4"))
    algebra = strategies.error_algebra(noise(choices))
    plain = strategies.error_algebra(noise(offered(4, ("W4",))))
    assert_close(algebra.vectors[:, 1], plain.vectors[:, 0], factor=64)
    assert_close(algebra.vectors[:, 0], algebra.vectors[:, 1], factor=64)
    assert np.all(algebra.variances[:, 0] == 0)
    assert np.all(algebra.variances[:, 1] > 0)
    pick = choices.pick("W4A4")
    squares = algebra.predicted(choices.pick("W4")) ** 2 + algebra.variances[:, 1].sum()
    assert_close(algebra.predicted(pick) ** 2, squares, factor=256)


def test_sites_that_share_a_weight_are_one():
    from tests import worlds

    params = {"kernel": worlds.normal32(0, 4, 4)}
    denoiser = qd.Denoiser(lambda p, x, t: worlds.tied(p, x, t), params, parallel.SCHEDULE, (4,))
    calibration = precision.calibrate(denoiser, parallel.STEPS, KEY, num_samples=2)
    choices = strategies.offer(calibration, parallel.STEPS, (4, 5), sites=("*",))
    assert choices.sites == ("kernel",)
    assert choices.members == {"kernel": ("kernel", "kernel#2")}
    assert choices.num_weights.sum() == 16
    recipe = choices.recipe([0])
    assert recipe.bits["kernel"] == recipe.bits["kernel#2"]


def test_choices_that_are_free_of_bits_and_cancel_are_found():
    """Free roundings at every site: the search beats every uniform one and the sum of squares."""
    choices = offered(1, ("W4", "W4 nearest", "W4 mse", "W4 mse nearest", "W4 percentile"))
    batch = noise(choices)
    algebra = strategies.error_algebra(batch)
    budget = choices.total(choices.pick("W4"))
    found = strategies.choose_together(choices.bits, algebra.gram, budget)
    plain = strategies.choose(choices.bits, algebra.alone**2, budget)
    measured = batch.rmse(found.choice)
    assert measured < min(batch.rmse(choices.pick(name)) for name in choices.names)
    assert measured < batch.rmse(plain.choice)


@pytest.mark.parametrize(
    ("choices", "match"),
    [((1.5,), "choices"), (("A8",), "one line, of a weight"), (("steps 0: W4",), "one line"),
     ((), "at least one"), ((4, "W4"), "each once"), ({"a": (4,)}, "no format"),
     ({"q*": (4,)}, "no site matches"), (("W4 msee",), "mse"), ({"*": "W4"}, "a tuple")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_offered_is_refused_in_one_line(choices, match):
    with pytest.raises((ValueError, TypeError), match=match) as error:
        offered(1, choices)
    assert "\n" not in str(error.value)


def test_what_is_no_pick_is_refused():
    choices = offered(1, {"*": (4,), "a": (4, 5)})
    for pick in ([0, 0], [0, 0, 0, 9], [0, 1, 0, 0], [0.5, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"pick|not offered"):
            choices.total(pick)
    with pytest.raises(ValueError, match="no 'W5'"):
        choices.pick(5)
    assert jnp.isfinite(choices.total([1, 0, 0, 0]))

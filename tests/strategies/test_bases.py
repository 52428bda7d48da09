"""Smoothing, rotation, order and low rank: worked cases, and the product stays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision, quant, strategies
from qdiffjax.denoiser import Denoiser
from qdiffjax.strategies import bases, drafts
from tests import worlds
from tests.precision.small import STEPS, calibrated, denoiser
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 8, 6, 6, 3)

KEY = jax.random.key(5)


@functools.cache
def eps_of():
    return jax.jit(
        lambda q, x, inputs: precision.quantized_call(q)(x, jnp.asarray(90.0), inputs)[0]
    )


def made(cures, recipe="W16A16", sites=("conv", "in"), **options):
    """A draft of the small network, whose sites have 3, 5 and 20 channels."""
    return strategies.improve(calibrated(), recipe, cures, STEPS, jax.random.key(1),
                              x_T=NOISE[:4], sites=sites, **options)  # fmt: skip


def test_smoothing_meets_half_way():
    """Activations to 16 and 1, weights to 1 and 4: both channels end at sqrt(max X max W)."""
    x, w = jnp.asarray([16.0, 1.0]), jnp.asarray([1.0, 4.0])
    s = bases.smoothing_factors(x, w, 0.5)
    assert_close(s, np.array([4.0, 0.5]))
    assert_close(x / s, np.sqrt(x * w))
    assert_close(w * s, np.sqrt(x * w))
    assert_close(bases.smoothing_factors(x, w, 1.0), x)
    assert_close(bases.smoothing_factors(x, w, 0.0), 1 / w)
    assert_close(bases.smoothing_factors(jnp.asarray([0.0, 2.0]), w, 0.5)[0], 1.0)


CURES = {
    "smoothing": strategies.smoothing(), "by range": strategies.smoothing(0.7, 5),
    "rotation": strategies.rotation(KEY), "reordering": strategies.reordering(),
    "rank": strategies.low_rank(2),
    "all": strategies.compose([strategies.low_rank(1), strategies.rotation(KEY),
                               strategies.smoothing()]),
}  # fmt: skip


@pytest.mark.parametrize(("cure", "recipe"), [
    *(pytest.param(cure, "W16 A16g5", id=name) for name, cure in CURES.items()),
    *(pytest.param(CURES[name], "A16g5", id=f"{name}, activations alone")
      for name in ("smoothing", "by range", "rotation", "reordering")),
])  # fmt: skip
def test_at_sixteen_bits_every_basis_gives_the_network(cure, recipe):
    """Weights that the recipe leaves in full precision are in the basis of their activations."""
    draft = made([cure], recipe, sites=("conv", "in", "out"))
    assert draft.around
    q = draft.quantized()
    x = worlds.normal(8, 2, 6, 6, 3)
    calls = q.calls(STEPS)
    inputs = None if calls is None else jax.tree.map(lambda a: jnp.asarray(a)[3], calls)
    exact = denoiser().eps_fn(denoiser().params, x, jnp.asarray(90.0))
    error = eps_of()(q, x, inputs) - exact
    assert float(jnp.max(jnp.abs(error))) < 2e-3 * float(jnp.max(jnp.abs(exact)))
    assert "cures:" in q.settings.weights


def test_low_rank_is_the_best_of_its_rank():
    matrix = worlds.normal(2, 7, 5)
    singular = np.linalg.svd(np.asarray(matrix), compute_uv=False)
    for rank in (1, 3):
        rest = matrix - bases.low_rank_part(matrix, rank)
        assert_close(jnp.linalg.norm(rest), np.sqrt(np.sum(singular[rank:] ** 2)), factor=256)
        assert np.linalg.matrix_rank(np.asarray(matrix - rest), tol=1e-9) == rank


def test_what_low_rank_leaves_has_a_smaller_range():
    w = jnp.outer(jnp.arange(1.0, 9.0), jnp.ones(4)) + 0.01 * worlds.normal(1, 8, 4)
    assert float(jnp.max(jnp.abs(w - bases.low_rank_part(w, 1)))) < 0.05


def outlier_world():
    """A product whose third input channel is 100 times the others."""
    size = jnp.ones(16, jnp.float32).at[2].set(100.0)
    params = {"w": worlds.normal32(3, 16, 16, scale=0.25)}

    def net_fn(p, x, t):
        return (x * size[None]) @ p["w"] / 10

    return Denoiser(net_fn, params, worlds.SCHEDULE, (16,))


@pytest.mark.parametrize("recipe", ["W8A6", "A6"])
@pytest.mark.parametrize(
    "cure", [strategies.smoothing(), strategies.rotation(KEY)], ids=["smoothing", "rotation"]
)
def test_an_outlier_channel_hurts_less_after(cure, recipe):
    world, steps = outlier_world(), diffusion.ddim(worlds.SCHEDULE, 4)
    calibration = precision.calibrate(world, steps, jax.random.key(0))
    x = worlds.normal32(4, 64, 16)
    errors = []
    for cures in ([], [cure]):
        done = strategies.improve(calibration, recipe, cures, steps, jax.random.key(1),
                                  sites=("w",), num_samples=8)  # fmt: skip
        eps = precision.quantized_call(done.quantized())(x, jnp.float32(3), None)[0]
        errors.append(jnp.linalg.norm(eps - world.eps_fn(world.params, x, jnp.float32(3))))
    assert float(errors[1]) < 0.6 * float(errors[0])


def test_reordering_helps_groups_of_mixed_ranges():
    size = jnp.asarray([100.0, 1.0] * 8, jnp.float32)
    params = {"w": worlds.normal32(3, 16, 16, scale=0.25) / size[:, None]}
    world = Denoiser(lambda p, x, t: (x * size[None]) @ p["w"], params, worlds.SCHEDULE, (16,))
    steps = diffusion.ddim(worlds.SCHEDULE, 4)
    calibration = precision.calibrate(world, steps, jax.random.key(0))
    x = worlds.normal32(4, 64, 16)
    errors = []
    for cures in ([], [strategies.reordering()]):
        done = strategies.improve(calibration, "W16A4g8", cures, steps, jax.random.key(1),
                                  sites=("w",), num_samples=8)  # fmt: skip
        eps = precision.quantized_call(done.quantized())(x, jnp.float32(3), None)[0]
        errors.append(jnp.linalg.norm(eps - world.eps_fn(world.params, x, jnp.float32(3))))
    assert float(errors[1]) < 0.6 * float(errors[0])


def test_stored_bits_are_codes_scales_and_factors():
    done = made([strategies.low_rank(2)], "W4A8")
    shapes = {"conv": (27, 5), "in": (5, 20)}
    num = sum(a * b for a, b in shapes.values())
    bits = sum(4 * a * b + 32 * b + 16 * 2 * (a + b) for a, b in shapes.values())
    assert_close(strategies.stored_bits(done, rank=2), bits / num)


def test_stored_bits_count_blocks_and_factors_of_ranges_as_they_are_stored():
    """Scales of blocks are in the bits of their format; of two ranges there are two factors."""
    x, w = worlds.normal32(5, 4, 32), worlds.normal32(3, 32, 16, scale=0.2)
    world = Denoiser(lambda p, x, t: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": w}, worlds.SCHEDULE,
                     (32,))  # fmt: skip
    steps = diffusion.ddim(worlds.SCHEDULE, 5)
    calibration = precision.calibrate(world, steps, x_T=x)

    def stored(recipe, *cures):
        done = strategies.improve(calibration, recipe, cures, steps, KEY, x_T=x, sites=("w",))
        return strategies.stored_bits(done)

    assert_close(stored("W:nvfp4 A8"), 4.5)
    assert_close(stored("W:mxfp4 A8"), 4.25)
    assert_close(stored("W4A8"), 4 + 32 / 32)
    factors = 16 * 32 / (32 * 16)
    assert_close(stored("W4A8", strategies.smoothing()), 5 + factors)
    assert_close(stored("W4A8", strategies.smoothing(num_ranges=2)), 2 * (5 + factors))


def test_weights_in_another_basis_and_full_precision_are_not_called_quantized():
    done = made([strategies.rotation(KEY)], "A8", ("out",))
    assert done.quantized().site_inputs["out"].weight is not None
    assert " 0 quantized" in str(done.quantized())
    table = precision.Recipe({"in": precision.SiteBits(8, 8), "out": precision.SiteBits()})
    with pytest.raises(ValueError, match="odd numbers of channels at all 1 sites"):  # that of "in"
        made([strategies.rotation(KEY)], table, None, activations="dynamic")


@pytest.mark.parametrize("cure", [strategies.smoothing(), strategies.rotation(KEY)],
                         ids=["smoothing", "rotation"])  # fmt: skip
@pytest.mark.parametrize("recipe", ["W8A8", "W8 A8 static", "W8 A8 by-step", "W8 A8 5-ranges",
                                    "W8A8; steps 0: W8 A8 static"])  # fmt: skip
def test_static_grids_of_another_basis_are_refused(cure, recipe):
    """Ranges of the network's own basis clipped what was in another, unless an option said so."""
    options = {"activations": "static"} if recipe == "W8A8" else {}
    with pytest.raises(ValueError, match="activations='dynamic'"):
        made([cure], recipe, ("out",), **options)


def test_a_recipe_that_says_dynamic_takes_another_basis():
    """A table has static scales unless it says otherwise, and this one does."""
    dynamic = precision.OperandFormat(quant.IntFormat(8, signed=False), scales="dynamic")
    table = precision.Recipe({"out": precision.SiteBits(8, dynamic)})
    done = made([strategies.rotation(KEY)], table, None)
    assert done.quantized().site_inputs["out"].activations[0].scale is None


def test_a_recipe_without_weights_leaves_no_rest_to_round():
    with pytest.raises(ValueError, match="a recipe such as W4A8"):
        made([strategies.low_rank()], "A8")


def test_factors_follow_the_calls_of_their_range():
    done = made([strategies.smoothing(0.5, 5)], num_calls=5)
    scale = done.around["in"].bases[0].scale
    maxima = strategies.statistics.channel_maxima(made([], num_calls=5), ("in",))["in"]
    w = jnp.max(jnp.abs(calibrated().weights["in"]), 1)
    for call in range(5):
        assert_close(scale[call], bases.smoothing_factors(maxima[call], w, 0.5), factor=64)
    assert isinstance(done, drafts.Draft)


def test_weights_rounded_anew_are_stored_as_themselves():
    done = made([], "W4 shaped A8")
    num, channels = 27 * 5 + 5 * 20, 5 + 20
    assert_close(strategies.stored_bits(done), 32 + 32 * channels / num)
    with pytest.raises(ValueError, match="leave the word 'shaped' out"):
        done.weight_grids()


def test_shaped_weights_shape_in_their_basis():
    """Sigma-delta codes of rotated weights: their mean over calls is the rotated weight."""
    done = made([strategies.rotation(KEY)], "W4 shaped A16", ("out",))
    q = done.quantized()
    weight = q.site_inputs["out"].weight
    mean = sum(weight.at(i) for i in range(200)) / 200
    w = calibrated().weights["out"]
    turned = done.around["out"].weight(w, 0)
    assert float(jnp.max(jnp.abs(mean - turned))) < 0.02 * float(jnp.max(jnp.abs(turned)))
    assert float(jnp.max(jnp.abs(turned - w))) > 0.1


def test_rotation_leaves_an_odd_number_of_channels_alone():
    done = made([strategies.rotation(KEY)], "W4A16", ("*",))
    assert set(done.around) == {"out"}

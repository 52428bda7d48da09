"""What is learned: where it starts, and derivatives against differences of plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import quant, strategies
from qdiffjax.precision import Series
from qdiffjax.strategies.training import values as learned
from tests import worlds
from tests.precision.small import STEPS, calibrated
from tests.tolerances import assert_close

NOISE = worlds.normal(31, 4, 6, 6, 3)
KEY = jax.random.key(1)
SITES = ("conv", "in")
H = 1e-30  # of a complex difference, which loses no digits


def made(recipe, cures=(), **options):
    options = {"sites": SITES} | options
    return strategies.improve(calibrated(), recipe, list(cures), STEPS, KEY, x_T=NOISE, **options)


def begun(draft, learn=learned.LEARNED, rank=None, clip="lsq"):
    return learned.starting_point(draft, None, learned.Choice({}, learn, rank, clip))


def changed(tree, seed=0, scale=0.3):
    """Values away from zero, where some numbers lie beyond the ends of their grid."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), tree)


def direction(tree):
    return changed(tree, seed=1, scale=1.0)


def complex_difference(fn, values, along):
    """The derivative of fn, a smooth function of arrays, along a direction."""
    moved = jax.tree.map(lambda a, d: np.asarray(a) + 1j * H * np.asarray(d), values, along)
    return np.imag(fn(moved)) / H


def plain_integers(grid, values, numbers_of):
    """Offsets held where they are at `values`: inside w + scale c, outside scale (end - zero)."""
    s_0, z_0 = np.asarray(grid.scale), grid.zero_point

    def parts(v):
        scale = s_0 * np.exp(v["scale"]) if "scale" in v else s_0
        zero = 0.0 if z_0 is None else np.asarray(z_0) + v.get("zero", 0.0)
        return numbers_of(v), scale, zero

    now = jax.tree.map(np.asarray, values)
    w, scale, zero = parts(now)
    offset = np.round(w / scale) - w / scale
    whole = np.round(np.real(zero))
    low, high = float(grid.format.low) - whole, float(grid.format.high) - whole
    inside = (w / scale >= low) & (w / scale <= high)
    end = np.where(w / scale < low, float(grid.format.low), float(grid.format.high))

    def plain(v):
        w, scale, zero = parts(v)
        return np.where(inside, w + scale * offset, scale * (end - zero - (whole - now.get(
            "zero", 0.0) - (0.0 if z_0 is None else np.asarray(z_0)))))  # fmt: skip

    assert 0 < inside.mean() < 1  # both cases are met
    return plain


@pytest.mark.parametrize(
    ("recipe", "rank"),
    [("W4", None), ("W3 affine", None), ("W4g5", None), ("W4", 2), ("W2", None)],
    ids=["LSQ", "LSQ+", "groups", "low rank", "two bits"],
)
def test_derivatives_of_a_weight_are_differences_of_its_plain_form(recipe, rank):
    start, choice = begun(made(recipe, sites=("in",)), rank=rank)
    grid = start.grids["in"]
    values = changed(choice.first(start, KEY))
    along = direction(values)
    flat = {"u": values["weights"]["in"], **values["scales"]["in"]}
    flat_along = {"u": along["weights"]["in"], **along["scales"]["in"]}
    w, s = np.asarray(grid.w), np.asarray(grid.scale)

    def numbers(v):
        if rank is not None:
            return w + np.mean(s) * (v["u"][0] @ v["u"][1])
        return w + np.repeat(s, w.shape[0] // s.shape[0], 0) * v["u"]

    wide = grid._replace(scale=np.repeat(s, w.shape[0] // s.shape[0], 0))
    if s.shape[0] == 1:
        wide = grid
    plain = plain_integers(wide, flat, numbers)
    value, slope = jax.jvp(lambda v: choice.weight("in", grid, v), (values,), (along,))
    assert_close(value, plain(jax.tree.map(np.asarray, flat)), factor=64)
    assert_close(slope, complex_difference(plain, flat, flat_along), factor=64)


def test_derivatives_of_levels_are_differences_of_looking_them_up():
    start, choice = begun(made("W:nf4", sites=("in",)), learn=("weights", "levels"))
    grid = start.grids["in"]
    values = changed(choice.first(start, KEY), scale=0.01)
    along = direction(values)
    w, s = np.asarray(grid.w), np.asarray(grid.scale)
    levels = np.asarray(grid.format.values)
    now = jax.tree.map(np.asarray, values)
    moved = w + s * now["weights"]["in"]
    book = levels + now["levels"]["in"]
    index = np.argmin(np.abs(moved[..., None] / s[..., None] - book), -1)
    inside = (moved / s >= book[0]) & (moved / s <= book[-1])
    held = np.where(inside, moved / s, 0)

    def plain(v):
        moved, book = w + s * v["weights"]["in"], levels + v["levels"]["in"]
        return np.where(inside, moved - held * s, 0) + s * book[index]

    value, slope = jax.jvp(lambda v: choice.weight("in", grid, v), (values,), (along,))
    assert_close(value, plain(now), factor=64)
    assert_close(slope, complex_difference(plain, values, along), factor=64)
    assert 0 < inside.mean() < 1


X = worlds.normal(5, 4, 36, 20, scale=2.0)


@pytest.mark.parametrize("recipe", ["A4 symmetric", "A4 affine"], ids=["LSQ", "LSQ+"])
def test_derivatives_of_a_clip_are_differences_of_its_plain_form(recipe):
    draft = made(f"{recipe} static", sites=("out",), activations="static")
    (grid,) = draft.quantized().site_inputs["out"].activations
    start, choice = begun(draft, learn=("activations",))
    values = changed(choice.first(start, KEY)["activations"]["out"]["0"])
    along = direction(values)
    x = np.asarray(X)

    def at(v):
        return learned.moved(grid, v).round(X, (2,))

    plain = plain_integers(grid, values, lambda v: x)
    value, slope = jax.jvp(at, (values,), (along,))
    assert_close(value, plain(jax.tree.map(np.asarray, values)), factor=64)
    assert_close(slope, complex_difference(plain, values, along), factor=64)
    back = jax.vjp(at, values)[1](jnp.ones_like(X))[0]
    inner = sum(jnp.sum(back[name] * along[name]) for name in along)
    assert_close(inner, jnp.sum(slope), factor=64, scale=float(jnp.sum(jnp.abs(slope))))


def test_pact_moves_the_clip_alone():
    """What is above the clip moves with it, what is below does not."""
    grid = quant.ActivationGrid(quant.IntFormat(3, signed=False), jnp.asarray(0.2), jnp.asarray(0))
    values = {"scale": jnp.asarray(0.1), "zero": jnp.asarray(0.0)}
    x, qmax = jnp.abs(X), 7
    scale = 0.2 * np.exp(0.1)

    def at(v):
        return learned.moved(grid, v, "pact").round(x, (2,))

    value, slope = jax.jvp(at, (values,), ({"scale": jnp.asarray(1.0), "zero": jnp.asarray(0.0)},))
    codes = np.clip(np.round(np.asarray(x) / scale), 0, qmax)
    assert_close(value, scale * codes, factor=64)
    assert_close(slope, np.where(np.asarray(x) >= scale * qmax, scale * qmax, 0.0), factor=64)


def test_pact_of_a_grid_with_negative_numbers_is_refused():
    draft = made("A4", sites=("in",), activations="static")
    with pytest.raises(ValueError, match="from zero up"):
        begun(draft, learn=("activations",), clip="pact")


@pytest.mark.parametrize("cures", [[], [strategies.gptq()]], ids=["sums", "GPTQ"])
def test_training_starts_from_what_the_cures_before_it_rounded(cures):
    draft = made("W3A6", cures)
    start, choice = begun(draft)
    first = choice.applied(start, choice.first(start, KEY)).site_inputs
    for name, inputs in draft.quantized().site_inputs.items():
        weights = (each.astype(jnp.float32) for each in (first[name].weight, inputs.weight))
        assert_close(*weights)  # GPTQ works in float32
    for name, grid in draft.weight_grids().items():  # as near to the weight as may be
        apart = jnp.abs(start.grids[name].w - grid.w)
        rounded = jnp.abs(draft.quantized().site_inputs[name].weight - grid.w)
        assert float(jnp.max(apart - rounded)) < 1e-6 * float(jnp.max(grid.scale))


def test_scales_of_every_call_are_learned_apart():
    draft = made("A4", [strategies.static_clips(5)])
    start, choice = begun(draft, learn=("activations",))
    values = choice.first(start, KEY)["activations"]
    assert {name: each["0"]["scale"].shape for name, each in values.items()} == {
        "conv": (5,), "in": (5,),
    }  # fmt: skip
    moved = choice.settled(start, {"activations": changed(values)}, draft)
    (grid,), (before,) = moved.grids["in"], draft.quantized().site_inputs["in"].activations
    assert isinstance(grid, Series)
    assert grid.values.zero_point.dtype == before.values.zero_point.dtype
    np.testing.assert_array_equal(grid.values.format.bits, before.values.format.bits)


def test_edges_are_learned_where_the_recipe_rounds_them():
    draft = made("A6 static", sites=("input", "output"))
    start, choice = begun(draft, learn=("activations",))
    values = choice.first(start, KEY)["activations"]
    assert set(values) == {"input", "output"}
    q = choice.applied(start, {"activations": changed(values)})
    assert q.site_inputs["input"].activations[0].scale != (
        start.q.site_inputs["input"].activations[0].scale
    )

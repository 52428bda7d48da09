"""Recipes of any format, by site and by step: what words mean, and what is then computed."""

import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import comparisons, diffusion, precision, quant
from qdiffjax.analysis.errors import ledger, prediction, runs, site_variances
from qdiffjax.denoiser import Denoiser
from qdiffjax.precision import OperandFormat, Phase, Recipe, SiteBits, formats
from qdiffjax.precision.words import parse_recipe
from tests import worlds
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(200)
INT = quant.IntFormat

# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("W4A8", 4, 8),
        ("w4 a8", 4, 8),
        ("A6", None, 6),
        ("float", None, None),
        ("W4g32 A8 token", OperandFormat(INT(4), 32), OperandFormat(INT(8, False), "token")),
        ("W:nvfp4 A:mxfp8", OperandFormat(quant.NVFP4), OperandFormat(quant.MXFP8_E4M3)),
        ("W:e2m1g16", OperandFormat(quant.E2M1, 16), None),
        ("W:e3m4", OperandFormat(quant.FloatFormat(3, 4)), None),
        ("W4 affine mse nearest", OperandFormat(INT(4, False), None, None, "mse", "nearest"), None),
        ("W3 shaped A8 symmetric static",
         OperandFormat(INT(3), rounding="shaped"), OperandFormat(INT(8), scales="static")),
        ("A8 by-step stochastic", None,
         OperandFormat(INT(8, False), scales="by-step", rounding="stochastic")),
    ],
)  # fmt: skip
def test_words_of_one_line(text, weight, activation):
    (line,) = parse_recipe(text)
    assert line == ((), (), SiteBits(weight, activation))


def test_lines_name_sites_and_steps():
    text = "W4A8; attn/* !attn/out/*: W8A8\nsteps 0-2,47: W8A16\nsteps 5 head/*: float"
    assert [line[:2] for line in parse_recipe(text)] == [
        ((), ()), ((), ("attn/*", "!attn/out/*")), ((0, 1, 2, 47), ()), ((5,), ("head/*",)),
    ]  # fmt: skip
    assert parse_recipe(text)[3].bits == SiteBits()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_format_is_written_as_it_is_read(name):
    for words in ("", " mse", " sums", " stochastic"):
        entry = precision.parse_operand(f":{name}{words}")
        assert entry.format == formats.FORMATS[name]
        assert precision.parse_operand(str(entry)) == entry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W:nvfp5", "perhaps nvfp4"),
        ("W4 toke", "perhaps token"),
        ("W:e4m3 affine", "expected integers beside 'affine'"),
        ("W:nvfp4g16", "for a block format, expected None"),
        ("W4 mse absmax", "expected one calibration"),
        ("A8 token static", "with static scales, expected 'tensor'"),
        ("W4g0", "size of a group"),
        ("W17", r"expected 1\.\.16"),
        ("W4A8; steps 3-1: W8", "a form like 0-3,47-49"),
        ("W4A8; steps: W8A8", "perhaps|a glob|a form like"),
        ("W4A8; ;A8 W4", "got 'w4'"),
    ],
)
def test_words_that_mean_nothing_are_refused(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        precision.quantize(calibrated(), text)


# ------------------------------------------------------------------ what is computed


@functools.cache
def denoiser():
    """A convolution, a product and a product of activations, [batch, 6, 6, 3] in float64."""
    params = {
        "conv": worlds.normal(1, 3, 3, 3, 5, scale=0.4), "in": worlds.normal(2, 5, 20, scale=0.5),
        "out": worlds.normal(3, 20, 3, scale=0.3),
    }  # fmt: skip

    def net_fn(p, x, t):
        h = jnp.tanh(worlds.convolve(x, p["conv"]))
        h = jnp.tanh(h @ p["in"])
        return h @ p["out"]

    return Denoiser(net_fn, params, SCHEDULE, (6, 6, 3))


STEPS = diffusion.ddim(SCHEDULE, 5)
X_T = worlds.normal(4, 4, 6, 6, 3)


@functools.cache
def calibrated():
    return precision.calibrate(denoiser(), STEPS, x_T=X_T)


def quantized(recipe, **options):
    return precision.quantize(calibrated(), recipe, sites=("*",), **options)


@jax.jit
def eps_of(q, x, call=None):
    per_call = q.calls(STEPS)
    inputs = None if call is None else jax.tree.map(lambda a: jnp.asarray(a)[call], per_call)
    return precision.quantized_call(q)(x, jnp.asarray(100.0), inputs)[0]


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


# ------------------------------------------------------------------ by step


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
    ],
)
def test_steps_that_do_not_fit_are_refused(recipe, steps, message):
    with pytest.raises(ValueError, match=message):
        quantized(recipe).calls(diffusion.ddim(SCHEDULE, steps))


def test_a_rounding_by_step_without_its_steps_is_refused():
    q = quantized("W8A8; steps 1: W4")
    with pytest.raises(ValueError, match=r"pass per_call=q\.calls"):
        precision.quantized_call(q)(X_T, STEPS.t[0])


# ------------------------------------------------------------------ records


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


# ------------------------------------------------------------------ every format, every network


NETWORKS = {"linen": worlds.linen_layers, "nnx": worlds.nnx_net, "equinox": worlds.eqx_net,
            "plain": worlds.handwritten}  # fmt: skip
WORDS = [
    *(f"W:{n} A:{n}" for n in formats.FORMATS if n != "binary"), "W:binary",
    *(f"W{size} A{size}" for size in ("4g8", ":e2m1g16", ":nf4g8", ":ternaryg4")),
    *(f"W{f} tensor A{f} tensor" for f in ("8", ":e4m3", ":nf4")),
    *(f"W{f} channel A{f} token" for f in ("8", ":e4m3", ":nf4")),
    *(f"W{f} A{f} {s}" for f in ("8", ":e4m3", ":nf4") for s in ("static", "by-step")),
    *(f"W{bits}A{bits}" for bits in (1, 2, 3, 4, 6, 8, 16)),
    *(f"W4 {c} A8 symmetric" for c in formats.CALIBRATIONS),
    *(f"W4 {r}" for r in formats.ROUNDINGS), "A4 stochastic",
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


# ------------------------------------------------------------------ real low precision

LOWERED = (
    "W4A8", "W:e4m3 A:e4m3", "W:e5m2 A:e4m3 static", "W2A8", "W:nf4 A8", "W:e2m1 A8", "W8 A:mxfp8",
    "W4A8; steps 0-1: W8A8", "W8A8; steps 2: float; steps 4: W:e4m3 A:e4m3", "W8 A8 by-step",
    "W8 A8 token; out in: W:mxfp4g5 A8", "W4g5 A8",
)  # fmt: skip


@pytest.mark.parametrize("recipe", [r for r in LOWERED if "mxfp4g5" not in r])
def test_a_lowered_recipe_is_the_simulation(recipe):
    sites = ("in", "out") if "g5" in recipe else ("*",)
    c32 = lowered_calibration()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", precision.DiagnosisWarning)
        low = precision.lower(c32, recipe, sites=sites)
    simulated = precision.quantize(c32, recipe, sites=sites)
    x_T = X_T.astype(jnp.float32)
    run = jax.jit(lambda q: diffusion.sample(precision.quantized_call(q), x_T, STEPS,
                                             per_call=q.calls(STEPS)).states)  # fmt: skip
    states, same = run(low), run(simulated)
    # Sums in another order flip some codes: two runs of one recipe, not two recipes.
    full = diffusion.sample(precision.full_call(low), x_T, STEPS).states
    lost = float(jnp.linalg.norm(same[-1] - full[-1]))
    assert float(jnp.linalg.norm(states[1] - same[1])) < 1e-3 * float(jnp.linalg.norm(same[1]))
    assert float(jnp.linalg.norm(states[-1] - same[-1])) < 0.5 * lost


@functools.cache
def lowered_calibration():
    whole = denoiser()
    params = jax.tree.map(lambda a: a.astype(jnp.float32), whole.params)
    return precision.calibrate(dataclasses.replace(whole, params=params), STEPS,
                               x_T=X_T.astype(jnp.float32))  # fmt: skip


def test_what_is_unpacked_is_named_before_work():
    with pytest.warns(precision.DiagnosisWarning, match="codes of the weight are unpacked"):
        q = precision.lower(lowered_calibration(), "W:nf4 A8", sites=("in", "out"))
    ways = precision.lowering_of(lowered_calibration().sites, q.site_inputs)
    assert ways["in"] == "simulated: codes of the weight are unpacked"
    by_turns = precision.lower(lowered_calibration(), "W8A8; steps 0: float", sites=("in",))
    assert precision.lowering_of(lowered_calibration().sites, by_turns.site_inputs)["in"] == (
        "codes | plain"
    )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("W4 shaped", "'shaped' in real low precision"),
        ("W4 stochastic", "'stochastic' in real low precision"),
        ("W4A8 shaped", "error feedback at"),
        ("W16A8", "got 16 bits, expected 2..8"),
        ("W:nvfp4", "a divisor of axis"),
    ],
)
def test_what_cannot_be_lowered_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        precision.lower(lowered_calibration(), recipe, sites=("*",))


# ------------------------------------------------------------------ error feedback


def test_feedback_makes_the_error_of_an_operand_a_difference_of_residuals():
    grid = quant.ActivationGrid(INT(3), jnp.asarray(0.5), feedback=True)
    xs = 0.4 * worlds.normal(11, 30, 5)
    residual, errors, residuals = jnp.zeros(5), [], [np.zeros(5)]
    for x in xs:
        rounded, residual = grid.round_with_residual(x, residual, (0,))
        errors.append(np.asarray(rounded - x))
        residuals.append(np.asarray(residual))
    assert np.max(np.abs(residuals)) <= 0.25 + 1e-9
    assert_close(np.asarray(errors), -np.diff(residuals, axis=0), factor=64)
    assert_close(np.sum(errors, 0), -residuals[-1], factor=4096)


def test_feedback_does_not_wind_up_beyond_the_ends_of_a_grid():
    grid = quant.ActivationGrid(INT(3), jnp.asarray(1.0), feedback=True)
    residual = jnp.zeros(1)
    for _ in range(10):
        rounded, residual = grid.round_with_residual(jnp.full(1, 7.3), residual, (0,))
        assert float(rounded[0]) == 3
        assert abs(float(residual[0])) <= 0.5
    rounded, _ = grid.round_with_residual(jnp.zeros(1), residual, (0,))
    assert abs(float(rounded[0])) <= 1


def by_hand(q, num_steps):
    """The sampler with feedback at the input alone, step by step."""
    x, residual = X_T, jnp.zeros_like(X_T)
    grid = q.site_inputs["input"].activations[0]
    for i in range(num_steps):
        rounded, residual = grid.round_with_residual(x, residual, (1, 2, 3))
        eps = denoiser().eps_fn(denoiser().params, rounded, STEPS.t[i])
        x = STEPS.coeffs.x[i] * x + STEPS.coeffs.eps[i] * eps
    return x


@pytest.mark.parametrize("words", ["A4 static shaped", "A4 shaped", "A:e2m1g4 shaped"])
def test_a_run_with_feedback_is_the_recursion(words):
    q = precision.quantize(calibrated(), words, sites=("input",))
    call = precision.quantized_call(q)
    run = diffusion.sample(call, X_T, STEPS, per_call=q.calls(STEPS), state=q.start(X_T))
    assert_close(run.x_0, by_hand(q, 5), factor=4096)


def test_ledger_and_prediction_see_the_residuals():
    q = precision.quantize(calibrated(), "A6 static shaped", sites=("input", "in"))
    xs = diffusion.sample(precision.full_call(q), X_T, STEPS).states
    run = jax.jit(comparisons.measured)(q, X_T, xs, STEPS)
    entries = ledger.attribution(q, X_T, STEPS, num_nodes=4)
    np.testing.assert_allclose(entries.x_hat_0, run.xs_hat[-1], rtol=1e-6)
    assert float(jnp.median(ledger.defect(entries))) < 1e-2
    ones = {name: jnp.ones(5) for name in q.site_inputs}
    np.testing.assert_allclose(ledger.inject(q, X_T, STEPS, ones), run.xs_hat[-1], rtol=1e-6)
    for predict in (prediction.predict_errors, prediction.predict_first_order):
        ratio = jnp.linalg.norm(predict(q, xs, STEPS)[-1]) / jnp.linalg.norm(run.errors[-1])
        assert 0.7 < float(ratio) < 1.4


def test_a_call_without_its_residuals_is_refused():
    q = precision.quantize(calibrated(), "A4 shaped", sites=("input",))
    with pytest.raises(ValueError, match=r"pass state=q.start\(x_T\)"):
        precision.quantized_call(q)(X_T, STEPS.t[0])


def test_feedback_at_the_input_of_a_smooth_network_lets_no_error_pile_up():
    """eps = x / 2: gains change slowly, so that errors of neighbouring calls cancel."""
    steps = diffusion.ddim(SCHEDULE, 60)
    half = Denoiser(lambda p, x, t: p["half"] * x, {"half": jnp.asarray(0.5)}, SCHEDULE, (50,))
    x_T = worlds.normal(12, 8, 50)
    calibration = precision.calibrate(half, steps, x_T=x_T)
    errors = {}
    for words in ("A5 static", "A5 static shaped", "A5 static stochastic"):
        q = precision.quantize(calibration, words, sites=("input",))
        xs = diffusion.sample(precision.full_call(q), x_T, steps).states
        errors[words] = float(jnp.linalg.norm(comparisons.measured(q, x_T, xs, steps).errors[-1]))
    assert errors["A5 static shaped"] < 0.6 * min(
        errors["A5 static"], errors["A5 static stochastic"]
    )


def test_the_forecast_of_feedback_is_the_sum_over_differences_of_gains():
    """eps = x / 2: gains are numbers, and errors of runs with feedback follow the forecast."""
    num = 30
    steps = diffusion.ddim(SCHEDULE, num)
    half = Denoiser(lambda p, x, t: p["half"] * x, {"half": jnp.asarray(0.5)}, SCHEDULE, (40,))
    x_T = worlds.normal(12, 64, 40)
    calibration = precision.calibrate(half, steps, x_T=x_T).widened(1.5, names=("input",))
    q = precision.quantize(calibration, "A8 static shaped", sites=("input",))
    probes = runs.signs(jax.random.key(3), 2, x_T)
    predicted = site_variances.activation_variances(q, x_T, steps, probes, feedback=True)
    slopes = np.asarray(steps.coeffs.x + 0.5 * steps.coeffs.eps)
    after = np.append(np.cumprod(slopes[::-1])[::-1][1:], 1.0)
    gains = 0.5 * np.asarray(steps.coeffs.eps) * after
    scale = float(q.site_inputs["input"].activations[0].scale)
    expected = 40 * scale**2 / 12 * np.diff(np.append(gains, 0.0)) ** 2
    got = predicted.contributions["input"]
    np.testing.assert_allclose(got, np.broadcast_to(expected, (64, num)), rtol=1e-3)
    xs = diffusion.sample(precision.full_call(q), x_T, steps).states
    errors = comparisons.measured(q, x_T, xs, steps).errors[-1]
    measured = float(jnp.mean(jnp.sum(errors**2, axis=1)))
    assert abs(measured / expected.sum() - 1) < 0.2

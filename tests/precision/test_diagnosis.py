"""What is told about a network before any long work: one test for each fault that others had."""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Draw
from qdiffjax.precision import DiagnosisWarning, SiteBits
from qdiffjax.sites import Sites, list_sites
from tests import foreign
from tests.foreign import LABELLED, STEPS, WIDTH, of_images, of_vectors
from tests.worlds import normal32

KEY = jax.random.key(0)


def kinds(denoiser):
    return [finding.kind for finding in precision.diagnose(denoiser, STEPS, KEY).findings]


@pytest.mark.parametrize(
    "denoiser",
    [
        of_vectors(foreign.sound),
        of_vectors(foreign.one_time_each),
        of_vectors(foreign.takes_labels, LABELLED, cond=foreign.LABELS),
        of_vectors(foreign.sound, prediction="v"),
        of_vectors(foreign.returns_tuple, output=1),
        of_vectors(foreign.returns_dict, output="sample"),
        of_images(foreign.twice_the_channels, output=lambda out: out[..., :2]),
        of_images(foreign.filtered, {"k": normal32(1, 3, 3, 2, 2), "rest": normal32(2, 900)}),
        of_vectors(foreign.frozen_context, foreign.CROSS),
    ],
    ids=lambda denoiser: denoiser.net_fn.__name__,
)
def test_nothing_is_found_where_nothing_is_odd(denoiser):
    diagnosis = precision.diagnose(denoiser, STEPS, KEY)
    assert str(diagnosis) == f"{len(diagnosis.sites)} sites, nothing odd"
    with warnings.catch_warnings():
        warnings.simplefilter("error", DiagnosisWarning)
        diagnosis.warn()


MIXED = "samples that depend on their batch"
OPAQUE = "opaque products"


@pytest.mark.parametrize(
    ("denoiser", "kind", "words"),
    [
        (of_vectors(foreign.labels_closed_over, LABELLED), MIXED, "cond="),
        (of_vectors(foreign.batch_statistics), MIXED, "batch norm"),
        (of_vectors(foreign.spread_tokens, {"a": foreign.A, "tokens": foreign.CONTEXT}),
         "weights with the batch axis", "before spreading"),
        (of_vectors(foreign.hidden_layer), "hidden weights", "50.0 % of the weights"),
        (of_vectors(foreign.hidden_scan), "hidden weights", "66.7 % of the weights"),
        (of_vectors(foreign.complex_weights, {"a": foreign.A, "b": foreign.B}),
         "numbers that are not real", "of complex64"),
        (of_vectors(foreign.undefined_at(2)), "eps that is not finite", "4 of 4 samples at t = "),
        (of_vectors(foreign.in_custom_vjp), OPAQUE, "custom_vjp_call hides dot_general at foreign"),
        (of_vectors(foreign.in_cond), OPAQUE, "cond hides dot_general at foreign.py:"),
        (of_vectors(foreign.in_while), OPAQUE, "while hides dot_general at foreign.py:"),
    ],
    ids=lambda value: value.net_fn.__name__ if hasattr(value, "net_fn") else "",
)  # fmt: skip
def test_each_fault_is_found_and_warned_of(denoiser, kind, words):
    diagnosis = precision.diagnose(denoiser, STEPS, KEY)
    assert [finding.kind for finding in diagnosis.findings] == [kind]
    assert words in str(diagnosis)
    with pytest.warns(DiagnosisWarning, match=kind) as caught:
        precision.calibrate(denoiser, STEPS, KEY, num_samples=5)
    assert [warning.filename for warning in caught] == [__file__]


TUPLE = r"got a tuple of 2, expected one array, .* output=1\)"
DICT = r"got a dict of \['loss', 'sample'\], expected one array, .* output='sample'\)"
TWICE = r"got an array \[4, 4, 4, 4\] for x \[4, 4, 4, 2\], .* output=lambda out: out\[\.\.\., :2\]"
BATCH = r"Denoiser\(\.\.\., cond=\)"


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (of_vectors(foreign.returns_tuple), TUPLE),
        (of_vectors(foreign.returns_dict), DICT),
        (of_vectors(foreign.returns_tuple, prediction="v"), TUPLE),
        (of_images(foreign.twice_the_channels), TWICE),
        (of_vectors(lambda p, x, t: x[:1] @ p["a"]), r"got an array \[1, 6\] .*" + BATCH),
        (of_vectors(lambda p, x, t: jnp.fft.fft(x)), r"a result of complex64.*output=jnp.real"),
        (of_vectors(foreign.undefined_at(0)), r"eps that is not finite for 4 of 4 samples"),
    ],
)
def test_a_network_that_cannot_be_sampled_is_refused_in_words_before_any_long_work(
    denoiser, message
):
    with pytest.raises(ValueError, match=message):
        precision.calibrate(denoiser, STEPS, KEY)


def test_a_network_of_one_batch_size_is_refused_where_that_is_the_callers():
    denoiser = of_vectors(foreign.labels_of_one_batch, LABELLED)
    message = "got one that takes 8 samples but not 4, .*" + BATCH
    with pytest.raises(ValueError, match=message):
        precision.calibrate(denoiser, STEPS, KEY, num_samples=8)


@pytest.mark.parametrize("net_fn", [foreign.takes_labels, foreign.labels_of_one_batch])
def test_what_a_network_itself_raises_comes_with_a_note_of_its_call(net_fn):
    with pytest.raises(TypeError) as caught:
        precision.calibrate(of_vectors(net_fn, LABELLED), STEPS, KEY)
    note = caught.value.__notes__[-1]
    assert "called as net_fn(params, x, t) with x (4, 6)" in note
    assert "Denoiser(..., cond=)" in note


def test_conditions_of_another_number_of_samples_are_refused():
    denoiser = of_vectors(foreign.takes_labels, LABELLED)
    draw = Draw(normal32(0, 4, WIDTH), jnp.arange(3))
    with pytest.raises(ValueError, match=r"cond: got a leaf of shape \(3,\), .* 4 samples"):
        precision.diagnose(denoiser, STEPS, draw=draw)


def test_mixing_is_measured_against_the_sample_s_own_eps():
    """Every other sample changes by a twentieth in company, small beside what the others have."""
    x_T = normal32(7, 4, WIDTH).at[:, 0].set(jnp.float32([1, -1, 1, -1]))

    def mixed(p, x, t):
        alone = jnp.float32(1.05 if x.shape[0] == 1 else 1)
        return foreign.sound(p, x, t) * jnp.where(x[:, :1] > 0, 1e4, alone).astype(x.dtype)

    diagnosis = precision.diagnose(of_vectors(mixed), STEPS, draw=Draw(x_T, None))
    assert [finding.kind for finding in diagnosis.findings] == [MIXED]
    assert "differs by 0.05 (relative)" in str(diagnosis)


def test_rounding_of_a_narrow_type_is_no_mixing_of_samples():
    def narrow(p, x, t):
        h = x.astype(jnp.bfloat16) @ p["a"].astype(jnp.bfloat16)
        noise = jnp.float32(0.01 * (x.shape[0] == 1))  # as another order of sums
        return h.astype(jnp.float32) * (1 + noise) + t / 50

    assert kinds(of_vectors(narrow)) == []


def test_the_cost_is_a_few_traces_and_no_run_of_the_sampler():
    fn, traces = foreign.counted(foreign.sound)
    precision.diagnose(of_vectors(fn), diffusion.ddim(foreign.SCHEDULE, 50), KEY)
    assert len(traces) <= 6


def test_inside_of_jit_what_shapes_tell_is_found():
    denoiser, kinds = of_vectors(foreign.in_cond), []

    @jax.jit
    def lowest(denoiser, x_T):
        diagnosis = precision.diagnose(denoiser, STEPS, draw=Draw(x_T, None))
        kinds.extend(finding.kind for finding in diagnosis.findings)
        return calibrated(denoiser, x_T=x_T).ranges["input"][0][0]

    assert lowest(denoiser, normal32(1, 4, WIDTH)).shape == STEPS.t.shape
    assert kinds == [OPAQUE]


# ------------------------------------------------------------------ what recipes make of it


def calibrated(denoiser, **samples):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiagnosisWarning)
        return precision.calibrate(denoiser, STEPS, KEY, **(samples or {"num_samples": 4}))


def test_a_frozen_context_is_an_activation_and_its_attention_products_are_products():
    denoiser = of_vectors(foreign.frozen_context, foreign.CROSS)
    sites = {s.name: s for s in calibrated(denoiser).sites}
    parts = [f"cross/{part}" for part in ("q", "k", "v", "dot_0", "dot_1")]
    assert list(sites) == ["input", *parts, "out", "output"]
    assert {name: sites[name].weight for name in parts} == dict(
        zip(parts, (1, 1, 1, None, None), strict=True)
    )
    recipe = precision.uniform(tuple(sites.values()), weight_bits=8, activation_bits=8)
    q = precision.quantize(calibrated(denoiser), recipe)
    x = normal32(1, 7, WIDTH)  # another number of samples than calibration had
    t = STEPS.times(x)[0]
    got = precision.quantized_call(q)(x, t, None)[0]
    exact = denoiser.eps_fn(denoiser.params, x, t)
    assert 0 < float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact)) < 0.05


@pytest.mark.parametrize(
    "denoiser", [of_vectors(foreign.hidden_layer), of_images(foreign.filtered)],
    ids=["hidden layer", "filter"],
)  # fmt: skip
def test_constants_are_left_out_of_recipes_unless_they_are_named(denoiser):
    sites = calibrated(denoiser).sites
    (constant,) = [s.name for s in sites if s.is_constant]
    assert re.fullmatch(r"const@(foreign|worlds)\.py:\d+", constant)
    usual = precision.uniform(sites, weight_bits=8, activation_bits=8)
    assert set(usual.bits) == {s.name for s in sites} - {constant}
    for globs in (["*", "const@*"], ["*", constant]):
        named = precision.uniform(sites, weight_bits=8, activation_bits=8, globs=globs)
        assert named.bits[constant] == SiteBits(8, 8)
    with pytest.raises(ValueError, match='named by a glob that begins with "const"'):
        precision.uniform(sites, weight_bits=8, activation_bits=8, globs=["*.py:*"])


def test_complex_products_are_left_out_of_recipes_and_refused_by_name():
    calibration = calibrated(of_vectors(foreign.complex_weights, {"a": foreign.A, "b": foreign.B}))
    (odd,) = [s.name for s in calibration.sites if not s.is_real]
    recipe = precision.uniform(calibration.sites, weight_bits=8, activation_bits=8)
    assert odd not in recipe.bits
    precision.quantize(calibration, recipe)
    bad = precision.Recipe({odd: SiteBits(8, None)})
    for refused in (
        lambda: precision.uniform(calibration.sites, weight_bits=8, activation_bits=8, globs=[odd]),
        lambda: precision.quantize(calibration, bad),
        lambda: precision.lower(calibration, bad),
    ):
        with pytest.raises(ValueError, match=rf"{odd}: got a product of complex64"):
            refused()


def test_a_transposed_convolution_is_said_to_be_simulated():
    params = {"down": foreign.KERNEL, "up": foreign.KERNEL + 1}
    calibration = calibrated(of_images(foreign.transposed, params))
    recipe = precision.uniform(calibration.sites, weight_bits=8, activation_bits=8)
    with pytest.warns(DiagnosisWarning, match=r"simulated.*: up \(a dilated input\)"):
        q = precision.lower(calibration, recipe)
    ways = precision.lowering_of(calibration.sites, q.site_inputs)
    assert ways["up"] == "simulated: a dilated input"
    assert ways["down"] == "codes"


def test_sites_of_a_calibration_are_static_metadata():
    calibration = calibrated(of_vectors(foreign.in_cond))
    assert isinstance(calibration.sites, Sites)
    traces = []

    @jax.jit
    def run(c):
        traces.append(c.sites.opaque)
        return c.ranges["input"][0][0]

    again = dataclasses.replace(calibration, sites=Sites(calibration.sites, ()))
    np.testing.assert_array_equal(run(calibration), run(again))
    assert traces == [calibration.sites.opaque]
    assert calibration.sites.opaque
    rebuilt = jax.tree.map(lambda leaf: leaf, calibration)
    assert rebuilt.sites.opaque == calibration.sites.opaque


def test_a_listing_of_a_shape_is_that_of_an_array():
    denoiser = of_vectors(foreign.hidden_layer)
    args = denoiser.eps_fn, denoiser.params, normal32(0, 2, WIDTH), jnp.float32(1)
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args[1:])
    assert list_sites(*args) == list_sites(args[0], *shaped)

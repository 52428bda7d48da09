"""What is compared by whom, and tests of all distances at once."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import qdiffjax as qd
from experiments.evaluate import experiment as evaluate
from experiments.evaluate import plots
from experiments.harness import command, subject
from qdiffjax import _tables as tables
from qdiffjax import measures
from qdiffjax.denoiser import Codec
from qdiffjax.metrics import features
from tests.tolerances import assert_close
from tests.worlds import normal32


def linear_denoiser():
    params = {"w": normal32(0, 2, 2)}
    return qd.Denoiser(lambda params, x, t: x @ params["w"], params, qd.linear(), (2,))


def metric(name, value, half, samples="quantized", floor=None):
    return {"samples": samples, "name": name, "value": value, "low": value - half,
            "high": value + half, "floor": floor}  # fmt: skip


def rows(**values):
    """Made-up rows: {recipe: (value, half-width) of every unbiased distance}."""
    return [{"kind": "recipe", "recipe": words, "protocol": "made up", "metrics": [
        *(metric(name, *own) for name in evaluate.UNBIASED), metric("PSNR", 30.0, 1.0)]}
        for words, own in values.items()]  # fmt: skip


def test_p_is_students_of_the_value_over_its_standard_error():
    half = stats.t.ppf(0.975, 19)
    assert evaluate.p_of_zero(metric("", 0.0, 1.0), 20) == 1
    assert evaluate.p_of_zero(metric("", half, half), 20) == pytest.approx(0.05)
    assert evaluate.p_of_zero(metric("", -2.5, half), 20) == pytest.approx(
        2 * stats.t.cdf(-2.5, 19)
    )


def test_tests_are_adjusted_for_all_recipes_and_distances():
    found = evaluate.tests(rows(W8A8=(0.1, 1.0), W4A4=(3.0, 1.0)), 20)["tests"]
    p = [2 * stats.t.sf(v * stats.t.ppf(0.975, 19), 19) for v in (0.1, 3.0)]
    assert [test["p"] for test in found] == pytest.approx([p[0]] * 3 + [p[1]] * 3)
    assert [test["holm"] for test in found][3:] == pytest.approx([6 * p[1]] * 3)
    assert [test["holm"] for test in found][:3] == [1.0] * 3


def test_rows_of_unlike_protocols_are_refused():
    told = rows(W8A8=(0.1, 1.0), W4A4=(3.0, 1.0))
    assert plots.recipes(told) == told
    other = copy.deepcopy(told)
    other[1]["protocol"] = "another"
    with pytest.raises(ValueError, match=r"protocol: got \['another', 'made up'\], expected one"):
        plots.table(other)


def test_a_protocol_names_all_that_comparisons_must_share():
    base = evaluate.protocol(evaluate.Config())
    for change in (
        {"num_samples": 8},
        {"sampler": "ddpm"},
        {"num_steps": 3},
        {"guidance": 2.0},
        {"data": "x/y"},
        {"features": "numpy:ravel"},
        {"probabilities": "numpy:ravel"},
    ):
        assert evaluate.protocol(evaluate.Config(**change)) != base
    same = {"seed": 1, "recipe": ("W8A8",), "checkpoint": "fashion_unet", "batch_size": 2}
    assert evaluate.protocol(evaluate.Config(**same)) == base


def test_features_that_cannot_be_imported_are_refused_before_any_work():
    for reference, words in (("nowhere:f", "nowhere:f failed"), ("numpy:nothing", "no 'nothing'")):
        with pytest.raises(ImportError, match=words):
            evaluate.run(evaluate.Config(features=reference))


def test_an_implementation_is_part_of_the_protocol_and_may_be_a_function():
    base = evaluate.protocol(evaluate.Config())
    assert evaluate.protocol(evaluate.Config(implementation="a:b")) != base
    assert evaluate.protocol(evaluate.Config(expected=True)) == base
    denoiser = linear_denoiser()
    q = qd.Quantized(denoiser, {})
    assert evaluate.as_model(denoiser, q) is q
    model = evaluate.as_model(denoiser, lambda x, t: 2 * x)
    x = jnp.ones((3, 2), jnp.float32)
    assert (model.eps_fn(model.params, x, jnp.float32(1)) == 2 * x).all()


def test_a_verdict_stands_beside_its_forecast(capsys):
    denoiser = linear_denoiser()
    steps = qd.ddim(denoiser.schedule, 3)
    calibration = qd.calibrate(denoiser, steps, jax.random.key(0), num_samples=4)
    claimed, built = (qd.quantize(calibration, words, sites=("*",)) for words in ("W8", "W2"))
    honest, bad = (evaluate.judged(claimed, q, steps, jax.random.key(1))["expected"]
                   for q in (claimed, built))  # fmt: skip
    assert not honest["is_bug"]
    assert honest["low"] < honest["measured"] < honest["high"]
    assert bad["is_bug"]
    assert bad["site"] == "w"
    told = [{"recipe": "W8", "expected": honest}, {"recipe": "W2", "expected": bad}]
    tables.show(plots.expected(told))
    text = capsys.readouterr().out
    assert "within what rounding explains" in text
    assert "look at w (step" in text
    assert plots.expected([{"recipe": "W8"}]) == []


def test_latents_are_seen_as_the_images_that_they_decode_to():
    denoiser = linear_denoiser()
    seen_fn, shape = subject.images_of(denoiser)
    assert shape == (2,)
    np.testing.assert_array_equal(seen_fn(np.eye(2)), np.eye(2))
    codec = Codec(lambda x: x[:, :2], lambda z: jnp.concatenate([2 * z, z + 1], -1), None)
    seen_fn, shape = subject.images_of(dataclasses.replace(denoiser, codec=codec))
    assert shape == (4,)
    z = normal32(1, subject.DECODED + 3, 2)  # more than one batch
    assert_close(seen_fn(z), codec.decode(z))


def test_predicted_samples_are_the_full_precision_ones_and_their_predicted_errors():
    denoiser = linear_denoiser()
    steps = qd.ddim(denoiser.schedule, 3)
    calibration = qd.calibrate(denoiser, steps, jax.random.key(0), num_samples=4)
    q = qd.quantize(calibration, "W4", sites=("*",))
    key = jax.random.key(1)
    x, x_hat = evaluate.predicted_pairs(q, steps, key, 6, 4)  # in two chunks
    full, measured = (measures.sample(m, steps, key, 6, batch_size=4) for m in (denoiser, q))
    assert_close(x, full)
    errors = np.linalg.norm(measured - full, axis=1)
    assert np.all(errors > 1e-3)
    ratio = np.linalg.norm(x_hat - x, axis=1).mean() / errors.mean()
    assert 0.5 < ratio < 2


def test_a_predicted_distance_is_resolved_beyond_five_half_widths_of_what_was_measured():
    measured = [metric("KID to float", 1.0, 0.1, floor=metric("KID to float", 0.2, 0.1)),
                metric("KID to data", 1.0, 0.1), metric("Frechet to float", 1.0, 0.3)]  # fmt: skip
    predicted = [metric("KID to float", 0.9, 0.1), metric("Frechet to float", 2.0, 0.1),
                 metric("KID to data", 3.0, 0.1), metric("MMD^2 to float", 3.0, 0.1)]  # fmt: skip
    told = [{"recipe": "W8", "metrics": measured, "expected": {"metrics": predicted}},
            {"recipe": "W4", "metrics": measured}]  # fmt: skip
    found = plots.forecasts(told)
    assert [(r["name"], r["ratio"], r["is_resolved"], r["floor"]) for r in found] == [
        ("KID to float", 0.9, True, 0.2), ("Frechet to float", 2.0, False, None)
    ]  # fmt: skip
    assert plots.distances([told[1]]) == []


@pytest.mark.parametrize(
    "change", [{"recipe": ("W8A8", "words")}, {"num_samples": 39}, {"num_groups": 1}], ids=str
)
def test_what_cannot_be_run_is_refused_first(change):
    with pytest.raises(ValueError, match=r"got .* expected .*; "):
        command.check(evaluate.Config(**change))


def test_features_are_of_the_shipped_classifier_unless_others_are_named():
    fashion, digits, other, pixels, named = (
        evaluate.seen_by(evaluate.Config(**own))
        for own in ({}, {"features": "random"}, {"checkpoint": "digits_unet"},
                    {"features": "pixels", "checkpoint": "mixture_mlp"},
                    {"features": "numpy:ravel", "probabilities": "numpy:abs"})
    )  # fmt: skip
    assert fashion.name.startswith("fashion classifier ")
    assert fashion.features_fn is not None
    assert fashion.probabilities_fn is not None
    for own in (digits, other):
        assert own.name == features.NAME
        assert own.features_fn is own.probabilities_fn is None
        x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
        assert_close(own.features_of(x.shape[1:])(x), features.random_convolutions((8, 8, 1))(x))
    assert fashion.features_of((28, 28, 1)) is fashion.features_fn
    assert pixels.name == "pixels"
    np.testing.assert_array_equal(pixels.features_fn(np.eye(2)), np.eye(2))
    assert (named.name, named.features_fn) == ("numpy:ravel", np.ravel)


def test_classes_have_their_own_errors_flips_and_agreement():
    p = np.eye(3)[[0, 0, 1, 2]]
    p_hat = np.eye(3)[[0, 1, 1, 2]]
    errors = np.array([1.0, 3.0, 2.0, 0.5])
    told = evaluate.by_class(errors, p, p_hat, np.array([0, 0, 1, 1]))
    assert told[0] == {"class": 0, "num": 2, "rmse": pytest.approx(5**0.5), "flips": 0.5,
                       "agreement": 0.5, "float_agreement": 1.0}  # fmt: skip
    assert told[1]["agreement"] == told[1]["float_agreement"] == 0.5
    assert [row["num"] for row in evaluate.by_class(errors, p, p_hat)] == [2, 1, 1]

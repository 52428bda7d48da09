"""All metrics in one record."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import metrics, results

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
X, OTHER, DATA = RNG.normal(size=(3, 48, 12, 12, 1)).astype(np.float32)
X_HAT = X + 0.1 * RNG.normal(size=X.shape).astype(np.float32)

LABELS = np.arange(48) % 3


def features_fn(x):
    return np.asarray(x).reshape(len(x), 144)[:, :3]


def probabilities_fn(x):
    return jax.nn.softmax(jnp.asarray(features_fn(x)))


@pytest.fixture(scope="module")
def comparison():
    return metrics.compare(X, X_HAT, DATA, key=KEY, independent=OTHER, features_fn=features_fn,
                           features="three pixels", probabilities_fn=probabilities_fn,
                           labels=LABELS, num_groups=4)  # fmt: skip


def test_it_holds_what_each_metric_says_whatever_the_order(comparison):
    found, pairs = comparison.metrics, (features_fn(X_HAT), features_fn(X))
    assert np.isclose(found["PSNR"].value, metrics.psnr(X, X_HAT, data_range=2).value)
    assert np.isclose(found["Frechet to float"].value,
                      metrics.frechet_distance(*pairs, num_groups=4).value)  # fmt: skip
    kid = metrics.kernel_inception_distance(*pairs, paired=True, num_groups=4)
    assert np.isclose(found["KID to float"].value, kid.value)
    flips = metrics.label_flips(probabilities_fn(X), probabilities_fn(X_HAT))
    assert np.isclose(found["label flips"].value, flips.value)
    for own, x in ((found, X_HAT), (comparison.float_metrics, X)):
        agreement = metrics.class_agreement(probabilities_fn(x), LABELS)
        assert np.isclose(own["class agreement"].value, agreement.value)


def test_floors_are_of_independent_samples_and_float_samples_have_their_own(comparison):
    floor = comparison.metrics["Frechet to float"].floor
    expected = metrics.frechet_distance(features_fn(OTHER), features_fn(X), num_groups=4)
    assert np.isclose(floor.value, expected.value)
    own = metrics.frechet_distance(features_fn(X), features_fn(DATA), num_groups=4)
    assert np.isclose(comparison.float_metrics["Frechet to data"].value, own.value)
    assert comparison.metrics["PSNR"].floor is None


def test_it_prints_and_is_saved_as_rows(comparison, tmp_path):
    comparison.save(tmp_path)
    config, _, rows = results.load(tmp_path)
    assert config["protocol"] == metrics.PROTOCOL
    assert config["features"] == "three pixels"
    assert rows == json.loads(json.dumps(comparison.rows()))
    names = {row["name"] for row in rows}
    assert {"coverage in data", "MMD^2 to independent", "inception score form"} <= names
    text = str(comparison)
    assert all(name.split(",")[0] in text for name in comparison.metrics)


def test_unlike_versions_and_features_are_not_put_side_by_side(comparison):
    both = {"W8A8": comparison, "W4A4": comparison}
    assert "W4A4" in str(metrics.side_by_side(both))
    for change in ({"protocol": "another"}, {"features": "pixels"}):
        both["W4A4"] = dataclasses.replace(comparison, **change)
        with pytest.raises(ValueError, match=r"got .*expected one protocol"):
            metrics.side_by_side(both)


def test_samples_of_no_images_have_no_metrics_of_images():
    x = RNG.normal(size=(40, 2))
    found = metrics.compare(x, x + 0.1, key=KEY, num_groups=4)
    assert found.features == "pixels"
    assert not {"PSNR", "SSIM"} & set(found.metrics)
    np.testing.assert_allclose(found.metrics["Frechet to float"].value, 0.02, rtol=1e-8)


def test_videos_flicker():
    x = RNG.normal(size=(12, 3, 4, 4, 1))
    x_hat = x + 0.1 * RNG.normal(size=x.shape)
    found = metrics.compare(x, x_hat, key=KEY, num_groups=4)
    assert np.isclose(found.metrics["flicker"].value, metrics.flicker(x_hat).value)
    assert np.isclose(found.float_metrics["flicker"].value, metrics.flicker(x).value)
    errors = found.metrics["flicker of errors"].value
    assert np.isclose(errors, metrics.flicker_of_errors(x, x_hat).value)
    assert "SSIM" not in found.metrics
    for own, of in ((found.metrics, x_hat), (found.float_metrics, x)):
        consistency = metrics.temporal_consistency(of)
        assert np.isclose(own["temporal consistency"].value, consistency.value)


def test_distances_of_videos_are_of_the_mean_of_the_features_of_frames():
    x = RNG.normal(size=(12, 3, 4, 4, 1))
    of_frames, of_videos = (
        metrics.compare(x, x + 1, key=KEY, num_groups=4, features_fn=fn).metrics
        for fn in (lambda x: x.mean((3, 4)), lambda x: x.mean((1, 3, 4)))
    )
    for name in ("Frechet to float", "KID to float"):
        assert np.isclose(of_frames[name].value, of_videos[name].value)


def test_features_of_whole_videos_have_no_temporal_consistency():
    x = RNG.normal(size=(12, 3, 4, 4, 1))
    found = metrics.compare(x, x + 1, key=KEY, num_groups=4, features_fn=lambda x: x.mean(1))
    assert "temporal consistency" not in found.metrics


def test_a_floor_of_another_size_is_refused_beside_what_depends_on_the_size():
    x = RNG.normal(size=(40, 2))
    found = metrics.frechet_distance(x, x + 1, num_groups=4)
    floor = metrics.noise_floor(metrics.frechet_distance, x[:40], RNG.normal(size=(60, 2)))
    assert found.beside(floor).floor == floor
    few = metrics.frechet_distance(x[:20], x[20:], num_groups=4)
    with pytest.raises(ValueError, match=r"floor: got 20 samples beside 40, expected as many"):
        found.beside(few)
    kid = metrics.kernel_inception_distance(x, x + 1, num_groups=4)
    assert kid.beside(metrics.kernel_inception_distance(x[:20], x[20:], num_groups=4)).floor

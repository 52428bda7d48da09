"""Classifiers: what they say of images, the shipped one, and which network it is for."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.special

from experiments.train import fitting
from qdiffjax.networks import configs, data, denoisers
from qdiffjax.networks.classifiers import FOLDER, load_classifier, shipped_for

TINY = configs.ModelConfig((8, 8, 1), "classifier", {"channels": (8,), "num_features": 5},
                           num_classes=3)  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(7, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier")
    params = configs.init_params(TINY, jax.random.key(0))
    denoisers.save(path, params, TINY)
    return path, params


def test_features_and_probabilities_are_those_of_the_network(tiny):
    path, params = tiny
    classifier = load_classifier(path)
    features, logits = configs.build(TINY).apply(params, jnp.asarray(IMAGES))
    assert features.shape == (7, 5)
    np.testing.assert_allclose(classifier.features_fn(IMAGES), features, rtol=1e-5, atol=1e-6)
    expected = scipy.special.softmax(np.asarray(logits), axis=1)
    np.testing.assert_allclose(classifier.probabilities_fn(IMAGES), expected, rtol=1e-5)


def test_images_of_a_batch_do_not_see_each_other(tiny):
    classifier = load_classifier(tiny[0])
    alone = np.concatenate([classifier.features_fn(IMAGES[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(classifier.features_fn(IMAGES), alone, rtol=1e-5, atol=1e-6)


def test_a_name_tells_other_parameters_apart(tiny, tmp_path):
    denoisers.save(tmp_path, configs.init_params(TINY, jax.random.key(1)), TINY)
    assert load_classifier(tmp_path).name != load_classifier(tiny[0]).name


def test_images_of_another_shape_are_refused(tiny):
    with pytest.raises(ValueError, match=r"images: got of shape \(4, 4, 1\), expected \(8, 8, 1\)"):
        load_classifier(tiny[0]).features_fn(np.zeros((2, 4, 4, 1)))


def test_a_denoiser_is_no_classifier_nor_the_other_way_round():
    with pytest.raises(ValueError, match="got dit, expected a classifier"):
        load_classifier(denoisers.SHIPPED / "fashion_dit")
    with pytest.raises(ValueError, match="got a classifier, expected a denoiser"):
        configs.make_net_fn(TINY)


def test_the_classifier_of_a_network_is_that_of_the_first_word_of_its_name():
    assert shipped_for("fashion_dit") == shipped_for("some/where/fashion_unet") == "fashion"
    for name in ("digits_unet", "package.module:make", ""):
        assert shipped_for(name) is None


def test_the_shipped_classifier_is_small_and_was_better_than_nine_in_ten():
    classifier = load_classifier("fashion")
    assert sum(f.stat().st_size for f in (FOLDER / "fashion").rglob("*") if f.is_file()) < 1e6
    trained = classifier.config.trained
    assert trained["command"].startswith("python -m experiments.train ")
    assert trained["test_accuracy"] >= 0.9
    assert classifier.features_fn(np.zeros((1, 28, 28, 1))).shape == (1, 64)


@pytest.mark.parametrize("name", ["fashion_dit", "fashion_latent"])
def test_the_shipped_classifier_sees_most_classes_that_a_network_drew(name):
    """Their grids of samples, one class a column, every pixel drawn twice each way."""
    grid = plt.imread(denoisers.SHIPPED / name / "samples.png")[::2, ::2, 0]
    x = grid.reshape(10, 28, 10, 28).transpose(0, 2, 1, 3).reshape(100, 28, 28, 1) * 2 - 1
    p = load_classifier("fashion").probabilities_fn(x)
    assert np.mean(p.argmax(1) == np.arange(100) % 10) > 0.6  # one in ten by chance


def test_cross_entropy_is_minus_the_log_of_what_the_label_is_given():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))
    labels = jnp.asarray([0, 3, 1, 1, 2, 0])
    p = scipy.special.softmax(np.asarray(logits), axis=1)
    expected = -np.mean(np.log(p[np.arange(6), np.asarray(labels)]))
    assert float(fitting.cross_entropy(logits, labels)) == pytest.approx(expected)


def test_accuracy_is_the_share_of_right_classes_over_all_batches(tiny):
    path, params = tiny
    right = load_classifier(path).probabilities_fn(IMAGES).argmax(1).astype(np.int32)
    wrong = np.where(np.arange(7) < 2, (right + 1) % 3, right).astype(np.int32)
    dataset = data.Dataset(IMAGES, wrong)
    assert fitting.accuracy(TINY, params, dataset, batch=3) == pytest.approx(5 / 7)


def test_the_surest_images_of_each_class_stand_in_its_column(tiny):
    classifier = load_classifier(tiny[0])
    images = np.random.default_rng(2).normal(size=(40, 8, 8, 1)).astype(np.float32)
    p = classifier.probabilities_fn(images)
    shown = fitting.classified(classifier, images)
    assert shown.shape == (9, 8, 8, 1)
    for c in range(3):
        np.testing.assert_array_equal(shown[c], images[p[:, c].argmax()])


@pytest.mark.parametrize("name", ["fashion", "cifar"])
def test_what_is_written_of_a_shipped_classifier_is_in_its_description(name):
    page = " ".join((FOLDER.parents[3] / "docs" / "networks.md").read_text().split())
    config = load_classifier(name).config
    assert f"{100 * config.trained['test_accuracy']:.1f} % of the 10 000 test images" in page
    shapes = jax.eval_shape(lambda key: configs.init_params(config, key), jax.random.key(0))
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e3:.0f}k parameters" in page

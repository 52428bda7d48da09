"""Distances in features of pairs, and of the frames of a video, against loops."""

import jax
import numpy as np
import pytest

from qdiffjax import metrics

RNG = np.random.default_rng(0)
LAYERS = [(RNG.normal(size=(2, 3, 4, 5, c))) for c in (2, 6)]  # [pair, num, h, w, c]
HEADS = [RNG.uniform(size=c) for c in (2, 6)]


@pytest.mark.parametrize("heads", [None, HEADS], ids=["uncalibrated", "heads"])
def test_the_lpips_form_is_eq_18_on_unit_features(heads):
    expected = np.zeros(3)
    for layer, (phi, phi_hat) in enumerate(LAYERS):
        for n, h, w in np.ndindex(3, 4, 5):
            a, b = (f[n, h, w] / np.linalg.norm(f[n, h, w]) for f in (phi, phi_hat))
            weights = 1 if heads is None else heads[layer]
            expected[n] += np.sum((weights * (a - b)) ** 2) / 20
    found = metrics.perceptual_distance(*([f[i] for f in LAYERS] for i in (0, 1)), heads)
    np.testing.assert_allclose(found.value, expected.mean(), rtol=1e-8)
    half = 1.96 * expected.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.high - found.value, half, rtol=1e-6)


def test_without_heads_it_is_called_uncalibrated():
    assert "uncalibrated" in metrics.perceptual_name(None)
    assert "uncalibrated" not in metrics.perceptual_name(HEADS)


def test_agreement_is_the_mean_cosine():
    x, y = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[4.0, 3.0], [0.0, 2.0]])
    np.testing.assert_allclose(metrics.condition_agreement(x, y).value, 24 / 25 / 2, rtol=1e-12)


def test_flicker_is_the_mean_change_from_frame_to_frame():
    video = np.array([0.0, 1.0, -1.0])[None, :, None] * np.ones((2, 3, 4))
    assert metrics.flicker(video).value == 1.5


def test_errors_that_stay_do_not_flicker():
    video = RNG.normal(size=(3, 5, 2, 2, 1))
    np.testing.assert_allclose(metrics.flicker_of_errors(video, video + 1).value, 0, atol=1e-12)
    signs = (-1.0) ** np.arange(5)[None, :, None, None, None]
    np.testing.assert_allclose(metrics.flicker_of_errors(video, video + signs).value, 2, rtol=1e-12)


def test_consistency_is_the_mean_cosine_of_neighbouring_frames():
    frames = np.array([[[1.0, 0], [1, 1], [0, 3]], [[2, 0], [2, 0], [0, 1]]])
    expected = (np.sqrt(2) / 2 + (1 + 0) / 2) / 2
    np.testing.assert_allclose(metrics.temporal_consistency(frames).value, expected, rtol=1e-12)


def test_random_convolutions_are_the_same_function_everywhere():
    x = RNG.normal(size=(4, 12, 12, 3)).astype(np.float32)
    first = metrics.random_convolutions((12, 12, 3), num_features=8)(x)
    with jax.enable_x64(False):
        again = metrics.random_convolutions((12, 12, 3), num_features=8)(x)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 8)
    np.testing.assert_allclose(metrics.random_convolutions((12, 12, 3), num_features=8)(-2 * x),
                               2 * first, rtol=1e-6)  # fmt: skip


def test_random_convolutions_of_a_video_are_those_of_its_frames():
    x = RNG.normal(size=(3, 5, 12, 12, 1)).astype(np.float32)
    found = metrics.random_convolutions((5, 12, 12, 1), num_features=8)(x)
    of_images = metrics.random_convolutions((12, 12, 1), num_features=8)
    expected = np.stack([of_images(video) for video in x])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_random_convolutions_of_vectors_are_refused():
    with pytest.raises(ValueError, match=r"got samples of shape \(2,\), expected \(height"):
        metrics.random_convolutions((2,))

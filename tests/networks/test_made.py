"""Data that is made: where moving images are, frame by frame, and what points are drawn from."""

import numpy as np
import pytest

from qdiffjax.networks import data, made

FRAMES, SIDE = 5, 9
IMAGES = np.random.default_rng(0).uniform(-0.5, 1, (6, 4, 3, 2)).astype(np.float32)


def places_of(videos):
    """The first row and column that are not black in each frame [n, frames, 2]."""
    lit = (videos > -1).any(-1)
    return np.stack([lit.any(3 - axis).argmax(2) for axis in (0, 1)], -1)


def test_every_frame_is_black_but_for_the_image():
    videos = made.moving(IMAGES, frames=FRAMES, size=(SIDE, SIDE), paths=3)
    assert (videos.shape, videos.dtype) == ((18, FRAMES, SIDE, SIDE, 2), np.float32)
    for video, image, places in zip(videos, IMAGES.repeat(3, 0), places_of(videos), strict=True):
        for frame, (i, j) in zip(video, places, strict=True):
            np.testing.assert_array_equal(frame[i : i + 4, j : j + 3], image)
            assert np.sum(frame > -1) == image.size


def test_ways_are_straight_and_turn_only_at_the_borders():
    places = places_of(made.moving(IMAGES, frames=FRAMES, size=(SIDE, SIDE), paths=50))
    most = np.array([SIDE - 4, SIDE - 3])
    assert places.min() == 0
    np.testing.assert_array_equal(places.max((0, 1)), most)
    steps = np.diff(places, axis=1)
    assert {tuple(step) for step in steps[:, 0]} == {
        (i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j
    }
    inside = (places[:, 1:-1] > 0) & (places[:, 1:-1] < most)
    np.testing.assert_array_equal(steps[:, 1:], np.where(inside, 1, -1) * steps[:, :-1])


def test_a_seed_makes_the_same_videos_again_and_another_does_not():
    first, again, other = (made.moving(IMAGES, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_moving_digits_have_the_labels_of_their_digits():
    images, labels = data.load("digits")
    videos, own = data.load("moving-digits")
    assert videos.shape == (4 * 1797, 6, 8, 12, 1)
    np.testing.assert_array_equal(own, np.repeat(labels, 4))
    np.testing.assert_allclose(
        (videos + 1).sum((1, 2, 3, 4))[::4], 6 * (images + 1).sum((1, 2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize("moment", [1, 2])
def test_points_have_the_moments_of_the_mixture(moment):
    points, law = data.load("mixture").images, made.mixture()
    mean = law.weights @ law.means
    if moment == 1:
        spread = points.std(0) / np.sqrt(len(points))
        assert np.all(np.abs(points.mean(0) - mean) < 4 * spread)
        return
    second = np.einsum(
        "k,kij->ij", law.weights, law.covs + law.means[:, :, None] * law.means[:, None]
    )
    products = points[:, :, None] * points[:, None]
    assert np.all(np.abs(products.mean(0) - second) < 4 * products.std(0) / np.sqrt(len(points)))


def test_images_move_along_the_axis_where_there_is_room():
    places = places_of(made.moving(IMAGES, frames=FRAMES, size=(4, 5)))
    np.testing.assert_array_equal(places[..., 0], 0)
    np.testing.assert_array_equal(np.abs(np.diff(places[..., 1], axis=1)), 1)
    for size in ((4, 3), (3, 9)):
        with pytest.raises(ValueError, match=r"images: got \[4, 3\], expected smaller than frames"):
            made.moving(IMAGES, size=size)

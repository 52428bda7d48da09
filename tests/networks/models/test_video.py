"""The video transformer: space and time are mixed by their own blocks, and only by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models.dit import DiT
from qdiffjax.networks.models.video import VideoDiT
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit, random_params

T = jnp.float32(7.0)
NET = VideoDiT(patch=2, width=8, depth=1, num_heads=2, num_classes=3)
X = normal32(0, 2, 3, 4, 4, 1)


def with_zeros(params, *names):
    """The same parameters with every array below one of these modules set to zero."""

    def zero(path, leaf):
        keys = {entry.key for entry in path}
        return jnp.zeros_like(leaf) if keys & set(names) else leaf

    return jax.tree_util.tree_map_with_path(zero, params)


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def params():
    with jax.numpy_dtype_promotion("standard"):
        return random_params(NET, X, T)


run = quick_jit(NET.apply)


def differs(a, b):
    return ~np.isclose(a, b, rtol=0, atol=1e-5)


def test_without_its_temporal_blocks_each_frame_is_denoised_alone(params):
    """A block whose modulation is zero is the identity."""
    still = with_zeros(params, "time_0")
    before, after = (np.asarray(run(still, x, T)) for x in (X, X.at[:, 1].add(1.0)))
    changed = differs(before, after).any(axis=(0, 2, 3, 4))
    np.testing.assert_array_equal(changed, [False, True, False])
    mixed = differs(run(params, X, T), run(params, X.at[:, 1].add(1.0), T)).any(axis=(0, 2, 3, 4))
    assert mixed.all()


def test_without_its_spatial_blocks_each_patch_sees_only_its_own_past_and_future(params):
    line = with_zeros(params, "space_0")
    before, after = (np.asarray(run(line, x, T)) for x in (X, X.at[:, 0, 0, 0].add(1.0)))
    changed = differs(before, after).any(axis=(0, 4))
    expected = np.zeros((3, 4, 4), bool)
    expected[:, :2, :2] = True
    np.testing.assert_array_equal(changed.reshape(3, 2, 2, 2, 2).any(axis=(2, 4)),
                                  expected.reshape(3, 2, 2, 2, 2).any(axis=(2, 4)))  # fmt: skip


def test_one_frame_without_temporal_blocks_is_the_image_transformer(params):
    image = DiT(patch=2, width=8, depth=1, num_heads=2, num_classes=3)
    still = with_zeros(params, "time_0")["params"]
    # The time of frame 0 is encoded as zeros and ones; the patchifying bias takes it away.
    shift = np.concatenate([np.zeros(4), np.ones(4)]).astype(np.float32)
    patchify = dict(still["patchify"], bias=still["patchify"]["bias"] + shift)
    names = {"space_0": "block_0", "condition": "condition", "head": "head"}
    weights = {new: still[old] for old, new in names.items()} | {"patchify": patchify}
    label = jnp.asarray([0, 2])
    expected = quick_jit(image.apply)({"params": weights}, X[:, 0], T, label)
    got = run({"params": still}, X[:, :1], T, label)
    assert_close(got[:, 0], expected, factor=256)


def test_each_video_has_its_own_time_and_class(params):
    times, labels = jnp.asarray([3.0, 500.0], jnp.float32), jnp.asarray([0, 2])
    both = run(params, X, times, labels)
    assert_close(run(params, X[::-1], times[::-1], labels[::-1])[::-1], both, factor=256)
    for change in ((times, labels.at[1].set(1)), (times.at[1].set(9.0), labels)):
        other = run(params, X, *change)
        assert_close(other[0], both[0], factor=256)
        assert differs(other[1], both[1]).any()


@pytest.mark.parametrize("shape", [(1, 4, 4, 1), (1, 2, 5, 4, 1)])
def test_videos_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"VideoDiT: got x of shape .* \[batch, frames, height"):
        jax.eval_shape(lambda k: NET.init(k, jnp.zeros(shape), T), jax.random.key(0))


def test_a_width_that_position_vectors_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="got width=6, expected a multiple of 4 and of num_heads"):
        jax.eval_shape(lambda k: NET.clone(width=6).init(k, X, T), jax.random.key(0))

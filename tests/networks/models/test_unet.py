"""The UNet: shapes, its start at zero, its float32 times, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models.unet import UNet, depth_to_space, space_to_depth, time_features
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit, random_params

T = jnp.float32(7.0)


NET = UNet(channels=(8,), attention=(False,), patch=2)
X, TIMES = normal32(0, 2, 4, 4, 1), jnp.asarray([3.0, 500.0], jnp.float32)
run = quick_jit(NET.apply)


@pytest.fixture(scope="module")
def params():
    return random_params(NET, X, T)


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 7, 7, 3), 1), ((2, 6, 10, 2), 2), ((1, 1, 5, 1), 1)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_output_has_the_shape_and_dtype_of_x_even_at_odd_sizes(shape, patch, dtype):
    net = UNet(channels=(8, 16, 8), attention=(False, True, False), patch=patch, dtype=dtype)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    out, shapes = jax.eval_shape(net.init_with_output, jax.random.key(0), x, T)
    assert (out.shape, out.dtype) == (shape, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_a_fresh_network_predicts_zero_because_its_residual_branches_end_in_zeros():
    out, fresh = quick_jit(NET.init_with_output)(jax.random.key(0), X, TIMES)
    np.testing.assert_array_equal(out, np.zeros(X.shape))
    zero = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-2]
        for path, leaf in jax.tree_util.tree_leaves_with_path(fresh)
        if path[-1].key == "kernel" and not np.any(leaf)
    }
    assert zero == {"conv_2", "out", "conv_out"}


def test_each_image_of_a_batch_is_denoised_alone_at_its_own_time(params):
    both = run(params, X, TIMES)
    assert np.isfinite(both).all()
    assert_close(run(params, X[::-1], TIMES[::-1])[::-1], both, factor=256)
    for change in ((X.at[1].set(9.0), TIMES), (X, TIMES.at[1].set(1.0))):
        other = run(params, *change)
        assert_close(other[0], both[0], factor=256)
        assert not np.allclose(other[1], both[1])


def test_time_features_are_sines_and_cosines_in_float32_even_for_bfloat16_networks():
    t = jnp.asarray([0.0, 751.0], jnp.float32)
    features = time_features(t, 6)
    freqs = 10_000.0 ** (-np.arange(3) / 3)
    angles = np.array([0.0, 751.0])[:, None] * freqs
    expected = np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    # An angle of 751 radians is known to 751 float32 roundings at best.
    assert_close(features, expected, factor=751.0)
    assert features.dtype == jnp.float32
    # In bfloat16 the times 750 and 751 are both 752 apart from rounding: the network must not.
    net = UNet(channels=(8,), attention=(False,), patch=1, dtype=jnp.bfloat16)
    x = jnp.ones((1, 2, 2, 1), jnp.float32)
    params, apply = random_params(net, x, T), quick_jit(net.apply)
    assert np.any(apply(params, x, jnp.float32(750)) != apply(params, x, jnp.float32(751)))


def test_a_shift_makes_the_last_frequency_the_longest_period_and_sines_can_be_first():
    t = jnp.asarray([0.5, 2.0], jnp.float32)
    angles = np.array([0.5, 2.0])[:, None] * np.array([1.0, 1e-2, 1e-4])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)
    assert_close(time_features(t, 6, freq_shift=1, sines_first=True), expected)


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_depth_to_space_undoes_space_to_depth(patch):
    x = jnp.arange(2 * 6 * 12 * 3).reshape(2, 6, 12, 3)
    folded = space_to_depth(x, patch)
    assert folded.shape == (2, 6 // patch, 12 // patch, 3 * patch**2)
    np.testing.assert_array_equal(depth_to_space(folded, patch), x)
    np.testing.assert_array_equal(  # a folded pixel holds its patch, row by row
        folded[1, 1, 2], x[1, patch : 2 * patch, 2 * patch : 3 * patch].reshape(-1)
    )


def test_a_float64_network_is_float64_throughout():
    net = UNet(channels=(8,), attention=(True,), patch=1, dtype=jnp.float64)
    x, step = normal32(0, 1, 2, 2, 1).astype(jnp.float64), 1e-7
    params = jax.tree.map(lambda p: p.astype(jnp.float64), random_params(net, x, T))
    points = jnp.concatenate([x + step, x - step, x])
    tangents = jnp.ones_like(points)
    out, tangent = quick_jit(
        lambda points: jax.jvp(lambda x: net.apply(params, x, T), (points,), (tangents,))
    )(points)
    # In float32 anywhere, a change of 1e-7 in x would vanish or be magnified.
    slope = (out[0] - out[1]) / (2 * step)
    np.testing.assert_allclose(slope, tangent[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 7, 8, 1), (1, 8, 7, 1), (8, 8, 1)])
def test_images_that_do_not_fit_the_patch_are_refused(shape):
    net = UNet(channels=(8,), attention=(False,), patch=2)
    with pytest.raises(ValueError, match=r"UNet: got x of shape .* divisible by patch=2; pad"):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros(shape), T), jax.random.key(0))


def test_names_of_an_unconditional_network_are_those_of_the_shipped_checkpoints():
    """Classes and tokens add parameters, and rename none."""
    x = jnp.zeros((1, 4, 4, 1), jnp.float32)

    def names(**kwargs):
        shapes = jax.eval_shape(UNet((8,), 1, (True,), 1, **kwargs).init, jax.random.key(0), x, T)
        leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}

    plain = names()
    assert {"time_2/kernel", "mid_attn_0/query/kernel", "up_0_block_1/skip/kernel"} <= plain
    assert names(num_classes=3) - plain == {"label/table/embedding"}
    added = names(token_features=5) - plain
    assert plain < names(token_features=5)
    assert {name.split("/")[0] for name in added} == {
        "tokens", "down_0_cross_0", "mid_cross_0", "up_0_cross_0", "up_0_cross_1",
    }  # fmt: skip


def test_each_image_has_its_own_class_and_tokens_and_none_are_the_null_ones():
    net = UNet(channels=(8,), attention=(False,), patch=2, num_classes=2, token_features=5)
    labels, tokens = jnp.asarray([0, 1]), normal32(1, 2, 3, 5)
    params, apply = random_params(net, X, T), quick_jit(net.apply)
    both = apply(params, X, TIMES, labels, tokens)
    for change in ((labels.at[1].set(2), tokens), (labels, tokens.at[1].set(0.0))):
        other = apply(params, X, TIMES, *change)
        assert_close(other[0], both[0], factor=256)
        assert not np.allclose(other[1], both[1])
    assert_close(apply(params, X, TIMES, labels, tokens[:, ::-1]), both, factor=256)  # a set
    null = jnp.broadcast_to(params["params"]["tokens"]["null"], tokens.shape)  # three are one
    none = apply(params, X, TIMES)
    assert_close(apply(params, X, TIMES, labels * 0 + 2, null), none, factor=256)


@pytest.mark.parametrize(
    ("arguments", "call", "message"),
    [
        ({"attention": (True, False)}, {}, r"1 levels of channels and 2 of attention"),
        ({"channels": (12,)}, {}, r"got 12 channels in \(12,\), expected multiples of 8"),
        ({"num_classes": 2}, {"label": 3}, r"labels from 3 to 3, expected 0 \.\.\. 1, or 2 for no"),
        ({}, {"label": 0}, "got a label, expected none"),
        ({}, {"tokens": jnp.zeros((1, 2, 3))}, "got tokens, expected none"),
    ],
)
def test_a_condition_that_the_network_cannot_take_is_refused(arguments, call, message):
    net = UNet(**{"channels": (8,), "attention": (True,), "patch": 1, **arguments})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros((1, 4, 4, 1)), T, **call), jax.random.key(0))

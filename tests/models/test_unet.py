"""The UNet: shapes, its start at zero, its float32 times, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.models.unet import UNet, depth_to_space, space_to_depth, time_features
from tests.helpers import assert_close

T = jnp.float32(7.0)


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # flax's GroupNorm mixes bfloat16 and float32
        yield


def quick_jit(fn):
    """Compile in a hurry: these are tests of definitions, not of speed."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def init(net, x):
    shapes = jax.eval_shape(lambda key: net.init(key, x, T), jax.random.key(0))
    return shapes, lambda p: net.apply(p, x, T)


def randomized(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 7, 7, 3), 1), ((2, 6, 10, 2), 2), ((1, 1, 5, 1), 1)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_output_has_the_shape_and_dtype_of_x_even_at_odd_sizes(shape, patch, dtype):
    net = UNet(channels=(8, 16, 8), attention=(False, True, False), patch=patch, dtype=dtype)
    x = jnp.zeros(shape, jnp.float32)
    shapes, apply = init(net, x)
    out = jax.eval_shape(apply, shapes)
    assert (out.shape, out.dtype) == (shape, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_a_fresh_network_predicts_zero_and_a_trained_one_depends_on_x_and_t():
    net = UNet(channels=(8,), attention=(False,), patch=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 1)), jnp.float32)
    params = quick_jit(net.init)(jax.random.key(0), x, T)
    run = quick_jit(net.apply)
    np.testing.assert_array_equal(run(params, x, T), np.zeros(x.shape))
    # Its kernels are not all zero: only the ends of residual branches and of the network are.
    zero = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-2]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel" and not np.any(leaf)
    }
    assert zero == {"conv_2", "out", "conv_out"}
    params = randomized(params)
    y = run(params, x, T)
    assert np.all(np.isfinite(y))
    assert not np.allclose(y, run(params, x, 2 * T))
    assert not np.allclose(y, run(params, 2 * x, T))


def test_each_image_of_a_batch_is_denoised_alone_at_its_own_time():
    net = UNet(channels=(8,), attention=(False,), patch=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32)
    shapes, _ = init(net, x)
    params, run = randomized(shapes), quick_jit(net.apply)
    times = jnp.asarray([3.0, 500.0], jnp.float32)
    both = run(params, x, times)
    assert_close(run(params, x[::-1], times[::-1]), both[::-1], factor=256)
    other = run(params, x.at[1].set(9.0), times.at[1].set(1.0))
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
    params = randomized(init(net, x)[0])
    run = quick_jit(net.apply)
    assert np.any(run(params, x, jnp.float32(750)) != run(params, x, jnp.float32(751)))


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
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 1)))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), randomized(init(net, x)[0]))
    run = quick_jit(lambda x: net.apply(params, x, T))
    # In float32 anywhere, a change of 1e-12 in x would vanish or be magnified.
    step = 1e-7 * jnp.ones_like(x)
    slope = (run(x + step) - run(x - step)) / 2e-7
    _, tangent = jax.jvp(run, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(slope, tangent, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 7, 8, 1), (1, 8, 7, 1), (8, 8, 1)])
def test_images_that_do_not_fit_the_patch_are_refused(shape):
    net = UNet(channels=(8,), attention=(False,), patch=2)
    with pytest.raises(ValueError, match=r"UNet got x of shape .* divisible by patch=2; pad"):
        jax.eval_shape(lambda k: net.init(k, jnp.zeros(shape), T), jax.random.key(0))

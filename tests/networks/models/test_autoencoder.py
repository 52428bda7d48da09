"""The autoencoder: shapes, the draw of its latent, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.networks.models.autoencoder import Autoencoder
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit, random_params

NET = Autoencoder(channels=(8, 16), latent_channels=3, image_channels=2)
X = normal32(0, 2, 8, 4, 2)


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_level_halves_the_image_and_the_decoder_doubles_it_back(dtype):
    net = NET.clone(dtype=dtype)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X)
    x_hat, mean, log_var = jax.eval_shape(net.apply, shapes, X)
    assert (x_hat.shape, x_hat.dtype) == (X.shape, jnp.float32)
    assert mean.shape == log_var.shape == (2, 2, 1, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


class Undecoded(Autoencoder):
    """Shows the latent itself."""

    def decode(self, z):
        return z


@pytest.mark.slow
def test_the_latent_is_the_mean_or_a_gaussian_draw_around_it():
    net, key = Undecoded(channels=(8,), latent_channels=3, image_channels=2), jax.random.key(1)
    run, params = quick_jit(net.apply), random_params(net, X, scale=0.1)
    plain, mean, log_var = run(params, X)
    np.testing.assert_array_equal(plain, mean)
    drawn, _, _ = run(params, X, key)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    assert_close(drawn, mean + np.exp(np.asarray(log_var) / 2) * noise, factor=64)


def test_the_log_variance_stays_between_minus_30_and_20():
    params = random_params(NET, X, scale=30.0)
    _, log_var = quick_jit(lambda p: NET.apply(p, X, method="encode"))(params)
    assert np.min(log_var) >= -30
    assert np.max(log_var) <= 20
    assert {-30.0, 20.0} & set(np.asarray(log_var).ravel().tolist())


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 6, 4, 2), r"divisible by 4 = 2\^levels"), ((8, 4, 2), r"got x of shape \(8, 4, 2\)"),
     ((1, 8, 4, 1), r"got 1 image channels, expected 2; set image_channels")],
)  # fmt: skip
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda k: NET.init(k, jnp.zeros(shape)), jax.random.key(0))


def test_widths_that_groups_do_not_divide_are_refused():
    net, x = Autoencoder(channels=(8, 12)), jnp.zeros((1, 4, 4, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"got 12 channels in \(8, 12\), expected multiples of 8"):
        jax.eval_shape(net.init, jax.random.key(0), x)

"""Descriptions become networks: what they are shown, what of their output counts, latent codecs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import fitting
from qdiffjax.networks import configs, denoisers
from qdiffjax.networks.configs import ModelConfig
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit, random_params

X = normal32(0, 2, 4, 4, 1)
DIT = ModelConfig((4, 4, 1), "dit", {"patch": 2, "width": 8, "depth": 1, "num_heads": 2})
CODEC = ModelConfig((8, 4, 2), "autoencoder", {"channels": (8,), "image_channels": 2})
IMAGES = np.asarray(normal32(0, 6, 8, 4, 2))


pytestmark = pytest.mark.usefixtures("standard_promotion")


def random_network(config):
    net = configs.build(config)
    return net, random_params(net, jnp.zeros((1, *config.shape), jnp.float32), jnp.float32(1))


@pytest.mark.parametrize("word", ["network", "prediction", "schedule"])
def test_an_unknown_word_is_refused_with_those_that_are_known(word):
    with pytest.raises(ValueError, match=rf"{word}: got 'other', expected one of \['"):
        ModelConfig((4, 4, 1), **{word: "other"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (4, 4)}, r"unet: got \(4, 4\), expected 3 positive .* \(height, width"),
        ({"shape": (4, 4, 1), "network": "video"}, r"video: got \(4, 4, 1\), expected 4 .*frames"),
        ({"network": "mlp"}, r"mlp: got \(4, 4, 1\), expected 1 positive numbers: \(n\)"),
        ({"num_classes": -1}, r"num_classes: got -1, expected at least 0"),
        ({"latent_scale": 0.0}, r"latent_scale: got 0\.0, expected a finite number above 0"),
    ],
)  # fmt: skip
def test_a_description_that_means_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"shape": (4, 4, 1), **changes})


def test_an_autoencoder_is_no_denoiser():
    with pytest.raises(ValueError, match="got an autoencoder, expected a denoiser; use"):
        configs.make_net_fn(CODEC)


def test_the_channels_of_a_learned_variance_are_left_out():
    config = dataclasses.replace(DIT, arguments={**DIT.arguments, "learn_sigma": True})
    (net, params), t = random_network(config), jnp.float32(3)
    both, eps = quick_jit(lambda p: (net.apply(p, X, t), configs.make_net_fn(config)(p, X, t)))(
        params
    )
    assert both.shape == (2, 4, 4, 2)
    np.testing.assert_array_equal(eps, both[..., :1])


@pytest.mark.parametrize(
    ("schedule", "prediction", "target"),
    [("linear", "x0", (1, 0)), ("cosine", "v", None), ("flow", "flow", (-1, 1))],
)
def test_eps_is_what_the_prediction_says_it_is(schedule, prediction, target):
    """x = alpha x_0 + sigma eps and net = p x_0 + q eps; times of processes are shown times T."""
    config = dataclasses.replace(DIT, schedule=schedule, prediction=prediction)
    net, params = random_network(config)
    unit = schedule == "flow"
    t = jnp.float32(0.4 if unit else 400.0)
    eps, out = quick_jit(
        lambda p: (
            denoisers.make_denoiser(config, p).eps_fn(p, X, t),
            net.apply(p, X, jnp.float32(400)),
        )
    )(params)
    level = configs.make_schedule(config)(t)
    p, q = target or (-level.sigma, level.alpha)
    x_0 = (X - level.sigma * eps) / level.alpha
    assert_close(p * x_0 + q * eps, out, factor=64)


@pytest.fixture(scope="module")
def autoencoder():
    with jax.numpy_dtype_promotion("standard"):
        return random_params(configs.build(CODEC), jnp.asarray(IMAGES), scale=0.1)


def test_latents_of_the_images_that_set_the_scale_have_unit_deviation(autoencoder):
    config = fitting.with_latent_scale(CODEC, autoencoder, IMAGES)
    latents = fitting.encode(denoisers.make_codec(autoencoder, config), IMAGES, batch_size=6)
    assert_close(latents.std(), np.float32(1.0), factor=64)
    again = fitting.with_latent_scale(config, autoencoder, IMAGES)
    assert_close(np.float32(again.latent_scale), np.float32(config.latent_scale), factor=64)


def test_a_reconstruction_does_not_depend_on_the_scale_of_the_latents(autoencoder):
    def reconstruct(scale):
        codec = denoisers.make_codec(autoencoder, dataclasses.replace(CODEC, latent_scale=scale))
        return codec.decode(codec.encode(IMAGES))

    plain, scaled, net = quick_jit(lambda: (
        reconstruct(1.0), reconstruct(7.0), configs.build(CODEC).apply(autoencoder, IMAGES)[0]
    ))()  # fmt: skip
    assert_close(plain, net)
    assert_close(scaled, plain, factor=256)


def test_a_latent_denoiser_brings_its_decoder(tmp_path, autoencoder):
    denoisers.save(tmp_path, random_network(DIT)[1], DIT)
    assert denoisers.load(tmp_path).codec is None
    denoisers.save(tmp_path / "autoencoder", autoencoder, CODEC)
    codec = denoisers.load(tmp_path).codec
    assert jax.eval_shape(codec.decode, jnp.zeros((3, 4, 2, 4), jnp.float32)).shape == (3, 8, 4, 2)
    with pytest.raises(ValueError, match=r"got dit, expected an autoencoder; use `load`"):
        denoisers.load_codec(tmp_path)


def test_a_constant_label_is_checked_while_the_rest_is_traced():
    net, params = random_network(dataclasses.replace(DIT, num_classes=2))

    def shape(label):
        t = jnp.float32(3)
        return jax.eval_shape(lambda p, x: net.apply(p, x, t, label), params, X).shape

    assert shape(jnp.asarray([2, 0])) == shape([2, 0]) == X.shape
    for wrong in (jnp.asarray([3, 0]), [3, 0]):
        with pytest.raises(ValueError, match="got labels from 0 to 3"):
            shape(wrong)


def test_a_conditioned_denoiser_has_its_class_bound_and_refuses_others():
    config = dataclasses.replace(DIT, num_classes=2)
    _, params = random_network(config)
    denoiser = denoisers.make_denoiser(config, params)
    label, t = np.array([2, 0]), jnp.float32(3)
    bound = denoiser.conditioned(label)
    np.testing.assert_array_equal(bound.cond, label)
    fn = configs.make_net_fn(config)
    eps, expected = quick_jit(
        lambda p: (bound.eps_fn(p, X, t, bound.cond), fn(p, X, t, jnp.asarray(label)))
    )(params)
    np.testing.assert_array_equal(eps, expected)
    for wrong in (3, -1, [0, 9]):
        with pytest.raises(ValueError, match=r"expected 0 \.\.\. 1, or 2 for no class"):
            denoiser.conditioned(wrong)
    with pytest.raises(ValueError, match="knows no classes; leave it out"):
        denoisers.make_denoiser(DIT, params).conditioned(0)

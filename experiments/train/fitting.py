"""Parts of `experiments.train`: descriptions of networks, their losses, and pictures."""

import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import image

from qdiffjax import _files, diffusion, training
from qdiffjax._looks import panels
from qdiffjax.denoiser import PREDICTIONS, Codec, Denoiser
from qdiffjax.diffusion import losses
from qdiffjax.networks import configs, data, denoisers
from qdiffjax.networks.classifiers import ImageClassifier

WEIGHTINGS = {"simple": None, "min-snr": losses.min_snr, "p2": losses.p2}
LABEL_DROPOUT = 0.1


def model_config(images, channels, num_blocks, num_classes=0) -> configs.ModelConfig:
    """Describe a UNet that fits `images` [n, h, w, c]: pixels folded 2x2 from 16 pixels on."""
    attention = (False,) * (len(channels) - 1) + (True,)
    patch = 2 if images.shape[1] >= 16 else 1
    arguments = {
        "channels": tuple(channels), "num_blocks": num_blocks, "attention": attention,
        "patch": patch,
    }  # fmt: skip
    return configs.ModelConfig(tuple(images.shape[1:]), "unet", arguments, num_classes=num_classes)


def transformer_config(network, images, width, depth, patch, num_classes=0) -> configs.ModelConfig:
    """Describe a "dit" that fits `images` [n, h, w, c], or a "video" of [n, f, h, w, c].

    Heads have 32 features or a few more.
    """
    num_heads = max(h for h in range(1, max(1, width // 32) + 1) if width % h == 0)
    arguments = {"patch": patch, "width": width, "depth": depth, "num_heads": num_heads}
    return configs.ModelConfig(tuple(images.shape[1:]), network, arguments, num_classes=num_classes)


def mlp_config(points, width, depth, num_classes=0) -> configs.ModelConfig:
    """Describe a network of vectors that fits `points` [n, k]."""
    arguments = {"width": width, "depth": depth}
    return configs.ModelConfig(tuple(points.shape[1:]), "mlp", arguments, num_classes=num_classes)


def autoencoder_config(images, channels, latent_channels) -> configs.ModelConfig:
    """Describe an autoencoder that fits `images` [n, h, w, c]."""
    arguments = {
        "channels": tuple(channels), "latent_channels": latent_channels,
        "image_channels": images.shape[-1],
    }  # fmt: skip
    return configs.ModelConfig(tuple(images.shape[1:]), "autoencoder", arguments)


def classifier_config(images, channels, num_features, num_classes) -> configs.ModelConfig:
    """Describe a classifier of `images` [n, h, w, c]."""
    arguments = {"channels": tuple(channels), "num_features": num_features}
    return configs.ModelConfig(tuple(images.shape[1:]), "classifier", arguments,
                               num_classes=num_classes)  # fmt: skip


def make_loss(config: configs.ModelConfig, *, weight_fn=None, dtype=jnp.float32):
    """Return loss_fn(params, key, batch); a batch is x_0 [b, ...] or (x_0, labels [b]).

    The network computes in `dtype`; parameters, targets and the loss are float32. A label is
    dropped with probability LABEL_DROPOUT, for classifier-free guidance.
    """
    if config.network == "autoencoder":
        apply = configs.build(config, dtype=dtype).apply
        return lambda params, key, x: losses.autoencoder_loss(apply, params, key, x)
    if config.network == "classifier":
        classify = configs.build(config, dtype=dtype).apply
        return lambda params, key, batch: cross_entropy(classify(params, batch[0])[1], batch[1])
    net_fn = configs.make_net_fn(config, dtype=dtype)
    schedule = configs.make_schedule(config)

    def loss_fn(params, key, batch):
        x_0: Any = batch
        condition: tuple[Any, ...] = ()
        if isinstance(batch, tuple):
            key, key_drop = jax.random.split(key)
            x_0, label = batch
            condition = (losses.drop_labels(key_drop, label, config.num_classes, LABEL_DROPOUT),)
        return losses.prediction_loss(
            lambda params, x, t: net_fn(params, x, t, *condition), params, key, x_0, schedule,
            prediction=PREDICTIONS[config.prediction], weight_fn=weight_fn,
        )  # fmt: skip

    return loss_fn


def cross_entropy(logits, labels):
    """Return the mean of -log softmax(logits)[label] in nats; logits [b, classes], labels [b]."""
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(own)


def train(images, config, settings, *, labels=None, weight_fn=None, dtype=jnp.float32, **kwargs):
    """Train and return the final `training.TrainState`; keyword arguments are those of `fit`."""
    params = configs.init_params(config, jax.random.key(settings.seed))
    loss_fn = make_loss(config, weight_fn=weight_fn, dtype=dtype)
    examples = (images, labels) if config.num_classes else images
    return training.fit(loss_fn, params, examples, settings, **kwargs)


def encode(codec: Codec, images, *, batch_size: int = 500) -> np.ndarray:
    """Return latents [n, h, w, d] of images, a batch at a time."""
    run = jax.jit(codec.encode)
    starts = range(0, len(images), batch_size)
    return np.concatenate([np.asarray(run(images[i : i + batch_size])) for i in starts])


def with_latent_scale(config, params, images) -> configs.ModelConfig:
    """Describe an autoencoder whose latents of `images` have standard deviation 1."""
    latents = encode(denoisers.make_codec(params, config), images)
    return dataclasses.replace(config, latent_scale=config.latent_scale / float(latents.std()))


def sample_grid(denoiser: Denoiser, *, num=64, num_steps=100, seed=0):
    """Return images [num, h, w, c] by DDIM, of the classes in turn."""
    x_T = jax.random.normal(jax.random.key(seed), (num, *denoiser.shape))
    codec, schedule, num_classes = denoiser.codec, denoiser.schedule, denoiser.config.num_classes
    label = jnp.arange(num) % num_classes if num_classes else None
    fn: Any = denoiser.eps_fn
    if isinstance(schedule, diffusion.Process):  # starts at alpha = 0, where eps says nothing
        fn, prediction = denoiser.net_fn, PREDICTIONS[denoiser.config.prediction]
        times = diffusion.power_times(1.0, 0.0, num_steps)
        steps = diffusion.dpmpp_1(schedule, times, prediction=prediction)
    else:
        steps = diffusion.ddim(schedule, num_steps)

    def run(params, x):
        x_0 = diffusion.sample(diffusion.bind(fn, params, label), x, steps).x_0
        return codec.decode(x_0) if codec else x_0

    return np.asarray(jax.jit(run)(denoiser.params, x_T))


def reconstructions(codec: Codec, images) -> np.ndarray:
    """Return images [2 n, h, w, c]: eight originals, eight reconstructions, and so on."""
    back = np.asarray(jax.jit(lambda x: codec.decode(codec.encode(x)))(images))
    rows = [a.reshape(-1, 8, *images.shape[1:]) for a in (images, back)]
    return np.stack(rows, axis=1).reshape(-1, *images.shape[1:])


def accuracy(config: configs.ModelConfig, params, dataset: data.Dataset, batch: int = 500) -> float:
    """Return the share of images whose most probable class is their label."""
    classes = jax.jit(lambda x: jnp.argmax(configs.build(config).apply(params, x)[1], axis=1))
    images, labels = dataset.images, np.asarray(dataset.labels)
    starts = range(0, len(images), batch)
    told = np.concatenate([np.asarray(classes(images[i : i + batch])) for i in starts])
    return float(np.mean(told == labels))


def classified(classifier: ImageClassifier, images, num: int = 2000) -> np.ndarray:
    """Return images [k^2, h, w, c], a class of k a column, the surest of `num` drawn by chance."""
    images = data.some(data.Dataset(images), num).images
    p = classifier.probabilities_fn(images)
    rows = min(p.shape[1], len(p))
    best = [np.argsort(-p[:, c], kind="stable")[:rows] for c in range(rows)]
    return np.asarray(images)[np.stack(best, axis=1).ravel()]


def draw(images, curve, log_every: int, path) -> None:
    """Draw samples.png and loss.png into the folder `path`."""
    if images.ndim == 2:
        draw_points(images, path)
    else:
        draw_grid(strips(images) if images.ndim == 5 else images, path)
    fig, ax = panels(1, 1, 3.0)
    ax.plot(log_every * np.arange(1, len(curve) + 1), curve, lw=0.8)
    ax.set(xlabel="training step", ylabel="training loss", yscale="log")
    _files.write_figure(path / "loss.png", fig, dpi=110)


def draw_grid(images, path) -> None:
    """Draw images [n, h, w, c], the square number of them, into samples.png."""
    side = int(np.sqrt(len(images)))
    rows = [np.concatenate(list(images[i * side : (i + 1) * side]), axis=1) for i in range(side)]
    grid = data.to_uint8(np.concatenate(rows, axis=0)).repeat(2, axis=0).repeat(2, axis=1)
    picture = io.BytesIO()
    image.imsave(picture, grid.squeeze(), cmap="gray", format="png")
    _files.write({path / "samples.png": picture.getvalue()})


def strips(videos) -> np.ndarray:
    """Return the frames of each video [n, f, h, w, c] side by side, then a grey line."""
    n, f, h, w, c = videos.shape
    rows = np.asarray(videos).swapaxes(1, 2).reshape(n, h, f * w, c)
    return np.pad(rows, [(0, 0), (0, 1), (0, 1), (0, 0)])


def draw_points(points, path) -> None:
    """Draw points [n, 2] into samples.png."""
    fig, ax = panels(1, 1, 3.0)
    ax.plot(*np.asarray(points).T[:2], ".", ms=1.5)
    ax.set(xlabel="x_1", ylabel="x_2", aspect="equal")
    _files.write_figure(path / "samples.png", fig, dpi=110)

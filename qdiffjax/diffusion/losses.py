"""The forward process and the training losses of eps-, x0-, v- and flow-prediction."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, EpsFn, Key, PyTree, float_dtype
from qdiffjax.diffusion.parameterizations import PredictionFn, eps_prediction
from qdiffjax.diffusion.schedules import NoiseLevel

WeightFn = Callable[[NoiseLevel], Array]


def add_noise(x_0, eps, level: NoiseLevel) -> Array:
    """Return x_t = alpha * x_0 + sigma * eps; Ho et al. 2020, eq. 4; survey, eq. 2.

    Args:
      x_0: data [batch, *shape].
      eps: standard normal noise [batch, *shape].
      level: leaves [batch] or [].

    Returns:
      x_t [batch, *shape] in float64 if x_0 is, else float32.
    """
    dtype = float_dtype(x_0)
    x_0, eps = jnp.asarray(x_0).astype(dtype), jnp.asarray(eps).astype(dtype)

    def like_x(leaf):
        leaf = jnp.asarray(leaf).astype(dtype)
        return leaf.reshape(leaf.shape + (1,) * (x_0.ndim - leaf.ndim))

    return like_x(level.alpha) * x_0 + like_x(level.sigma) * eps


def eps_gain(level: NoiseLevel, prediction: PredictionFn) -> Array:
    """Return d eps / d output at fixed x_t, alpha / (alpha q - sigma p) [*times].

    The squared error of eps is the squared error of the output p x_0 + q eps times the square of
    this; see `parameterizations.denoise`.
    """
    p, q = prediction(level)
    return level.alpha / (level.alpha * q - level.sigma * p)


def min_snr(level: NoiseLevel, *, gamma: float = 5.0) -> Array:
    """Return the weight min(snr, gamma) / snr of the squared error of eps [*times].

    snr = alpha^2 / sigma^2. In x_0 that is min(snr, gamma), in v min(snr, gamma) / (snr + 1);
    Hang et al. 2023, section 3.4.
    """
    return jnp.minimum(1.0, gamma * (level.sigma / level.alpha) ** 2)


def p2(level: NoiseLevel, *, k: float = 1.0, gamma: float = 1.0) -> Array:
    """Return the weight 1 / (k + snr)^gamma of the squared error of eps [*times].

    Choi et al. 2022, eq. 8, on the simple loss; snr = alpha^2 / sigma^2.
    """
    return (k + (level.alpha / level.sigma) ** 2) ** -gamma


def draw_times(key: Key, num: int, process, dtype) -> Array:
    """Draw times [num] uniformly: from {1 ... T} of a discrete schedule, else from (0, 1)."""
    num_train_steps = getattr(process, "num_train_steps", None)
    if num_train_steps is None:
        return jax.random.uniform(key, (num,), dtype, float(jnp.finfo(dtype).eps), 1.0)
    return jax.random.randint(key, (num,), 1, num_train_steps + 1).astype(dtype)


def drop_labels(key: Key, label, null: int, rate: float) -> Array:
    """Replace each label [batch] by `null` with probability `rate`; Ho & Salimans 2022, alg. 1."""
    dropped = jax.random.bernoulli(key, rate, label.shape)
    return jnp.where(dropped, jnp.asarray(null, label.dtype), label)


def prediction_loss(
    net_fn: EpsFn,
    params: PyTree,
    key: Key,
    x_0,
    process,
    *,
    prediction: PredictionFn = eps_prediction,
    weight_fn: WeightFn | None = None,
    times_fn: Callable = draw_times,
) -> Array:
    """Return the training loss of a network that predicts eps, x_0, v or the flow [].

        mean over the batch of w |p x_0 + q eps - net_fn(params, x_t, t)|^2 / num_elements,
        w = weight_fn(level) * eps_gain(level)^2

    With `weight_fn` errors of eps are weighed, whatever the network predicts; without, w = 1 on
    the network's own output: of eps it is the simple loss of Ho et al. 2020, eq. 14, divided by the
    number of elements, so that a network that answers zero has loss 1 at any image size.

    Args:
      net_fn: (params, x [batch, *shape], t [batch]) -> [batch, *shape].
      params: its parameters.
      key: of the times and the noise.
      x_0: data [batch, *shape].
      process: t -> level, a discrete schedule or a process in unit time.
      prediction: what net_fn predicts.
      weight_fn: None, `min_snr`, `p2`, or any function of the noise level.
      times_fn: (key, batch, process, dtype) -> times [batch].
    """
    dtype = float_dtype(x_0)
    x_0 = jnp.asarray(x_0).astype(dtype)
    key_t, key_eps = jax.random.split(key)
    t = times_fn(key_t, x_0.shape[0], process, dtype)
    eps = jax.random.normal(key_eps, x_0.shape, dtype)
    level = process(t)
    target = add_noise(x_0, eps, NoiseLevel(*prediction(level)))
    residual = target - net_fn(params, add_noise(x_0, eps, level), t).astype(dtype)
    errors = jnp.sum(residual**2, axis=tuple(range(1, residual.ndim)))
    if weight_fn is not None:
        errors = weight_fn(level) * eps_gain(level, prediction) ** 2 * errors
    return jnp.mean(errors) / math.prod(x_0.shape[1:])


def autoencoder_loss(autoencoder_fn, params: PyTree, key: Key, x, *, kl_weight=1e-4) -> Array:
    """Return the loss of a KL-regularised autoencoder, per element of x [].

        mean |x - x_hat|^2 + kl_weight * sum (mean^2 + exp(log_var) - 1 - log_var) / 2

    both divided by the number of elements of x; Kingma & Welling 2014, eq. 10, with the weight of
    Rombach et al. 2022, section 3.1. The sum is KL(N(mean, exp(log_var)) | N(0, 1)) in nats.

    Args:
      autoencoder_fn: (params, x, key) -> (x_hat like x, mean, log_var); draws the latent itself.
      params: its parameters.
      key: of the latent noise.
      x: data [batch, *shape].
      kl_weight: 0 is a plain autoencoder.
    """
    x_hat, mean, log_var = autoencoder_fn(params, x, key)
    kl = jnp.sum(mean**2 + jnp.expm1(log_var) - log_var) / 2
    return (jnp.sum((x - x_hat) ** 2) + kl_weight * kl) / math.prod(x.shape)

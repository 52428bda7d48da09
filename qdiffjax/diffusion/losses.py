"""The forward process and the training loss of eps-prediction."""

import math

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, EpsFn, Key, PyTree
from qdiffjax.diffusion.schedules import DiscreteSchedule, NoiseLevel, float_dtype


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


def squared_errors(eps_fn: EpsFn, params: PyTree, x_0, t, eps, schedule: DiscreteSchedule) -> Array:
    """Return |eps - eps_fn(params, x_t, t)|^2 of each sample [batch], the sum over its elements.

    The integrand of the survey, eq. 10, and of Ho et al. 2020, eq. 14. It is the sum, not the
    mean, that enters the likelihood bound.

    Args:
      eps_fn: (params, x [batch, *shape], t [batch]) -> eps [batch, *shape].
      params: its parameters.
      x_0: data [batch, *shape].
      t: times [batch].
      eps: the noise in x_t [batch, *shape].
      schedule: the forward process.
    """
    x_t = add_noise(x_0, eps, schedule(t))
    residual = jnp.asarray(eps).astype(x_t.dtype) - eps_fn(params, x_t, t).astype(x_t.dtype)
    return jnp.sum(residual**2, axis=tuple(range(1, residual.ndim)))


def eps_loss(eps_fn: EpsFn, params: PyTree, key: Key, x_0, schedule: DiscreteSchedule) -> Array:
    """Return the simple loss of DDPM, per element, for one draw of times and noise [].

        mean over the batch of |eps - eps_fn(params, x_t, t)|^2 / num_elements,  t ~ U{1 ... T}

    Ho et al. 2020, eq. 14, divided by the number of elements of a sample, so that a network that
    answers zero has loss 1 at any image size; the survey, eq. 10, is `squared_errors` averaged.
    """
    dtype = float_dtype(x_0)
    key_t, key_eps = jax.random.split(key)
    t = jax.random.randint(key_t, (x_0.shape[0],), 1, schedule.num_train_steps + 1)
    eps = jax.random.normal(key_eps, x_0.shape, dtype)
    errors = squared_errors(eps_fn, params, x_0, t.astype(dtype), eps, schedule)
    return jnp.mean(errors) / math.prod(x_0.shape[1:])

"""A network whose final sample after one step is affine in all weights: a sum of branches."""

import functools

import jax
import jax.numpy as jnp

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Denoiser
from tests import worlds

NAMES = ("a", "b", "c", "d")
SCHEDULE = diffusion.linear(40, 1e-3, 0.2)
ONE_STEP = diffusion.ddim(SCHEDULE, 1)
STEPS = diffusion.ddim(SCHEDULE, 4)


def net_fn(params, x, t):
    """eps = sum_k tanh(k x) w_k: products of activations that no weight has touched."""
    branches = [jnp.tanh((1 + k) * x) @ params[name] for k, name in enumerate(NAMES)]
    return sum(branches[1:], branches[0]) / 4


@functools.cache
def denoiser(dtype="float32"):
    params = {n: worlds.normal(i, 6, 6, dtype=dtype, scale=0.4) for i, n in enumerate(NAMES)}
    return Denoiser(net_fn, params, SCHEDULE, (6,))


@functools.cache
def calibrated(num_steps):
    steps = {1: ONE_STEP, 4: STEPS}[num_steps]
    return precision.calibrate(denoiser(), steps, jax.random.key(0), num_samples=4)

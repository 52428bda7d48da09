"""A small network in float64 whose recipes are tried in every way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qdiffjax import diffusion, precision, quant
from qdiffjax.denoiser import Denoiser
from tests import worlds

SCHEDULE = diffusion.linear(200)
INT = quant.IntFormat


@functools.cache
def denoiser():
    """A convolution, a product and a product of activations, [batch, 6, 6, 3] in float64."""
    params = {
        "conv": worlds.normal(1, 3, 3, 3, 5, scale=0.4), "in": worlds.normal(2, 5, 20, scale=0.5),
        "out": worlds.normal(3, 20, 3, scale=0.3),
    }  # fmt: skip

    def net_fn(p, x, t):
        h = jnp.tanh(worlds.convolve(x, p["conv"]))
        h = jnp.tanh(h @ p["in"])
        return h @ p["out"]

    return Denoiser(net_fn, params, SCHEDULE, (6, 6, 3))


STEPS = diffusion.ddim(SCHEDULE, 5)
X_T = worlds.normal(4, 4, 6, 6, 3)


@functools.cache
def calibrated():
    return precision.calibrate(denoiser(), STEPS, x_T=X_T)


def quantized(recipe, **options):
    return precision.quantize(calibrated(), recipe, sites=("*",), **options)


@jax.jit
def eps_of(q, x, call=None):
    per_call = q.calls(STEPS)
    inputs = None if call is None else jax.tree.map(lambda a: jnp.asarray(a)[call], per_call)
    return precision.quantized_call(q)(x, jnp.asarray(100.0), inputs)[0]


@functools.cache
def lowered_calibration():
    whole = denoiser()
    params = jax.tree.map(lambda a: a.astype(jnp.float32), whole.params)
    return precision.calibrate(dataclasses.replace(whole, params=params), STEPS,
                               x_T=X_T.astype(jnp.float32))  # fmt: skip

"""What `certificates` certifies: a tiny trained denoiser, its quantized versions, bad luck."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qdiffjax import diffusion, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.sites import transform

SCHEDULE = diffusion.linear()
MEANS = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.2]], np.float32)
STD = 0.3
NUM_CALIBRATION = 512


def eps_fn(params, x, t):
    """Return eps of a 2-h-h-2 tanh network with a skip: x + MLP(x, t / T, (t / T)^2) [batch, 2]."""
    s = jnp.full((x.shape[0], 1), t / SCHEDULE.num_train_steps, x.dtype)
    h = jnp.concatenate([x, s, s * s], axis=1)
    for layer in ("in", "mid"):
        h = jnp.tanh(h @ params[layer] + params[layer + "_bias"][None])
    return x + h @ params["out"] + params["out_bias"][None]


def initialize(key, width: int) -> dict[str, jax.Array]:
    """Draw initial parameters, float32."""
    sizes = {"in": (4, width), "mid": (width, width), "out": (width, 2)}
    params = {}
    for (name, size), k in zip(sizes.items(), jax.random.split(key, 3), strict=True):
        params[name] = jax.random.normal(k, size, jnp.float32) / np.float32(np.sqrt(size[0]))
        params[name + "_bias"] = jnp.zeros(size[1], jnp.float32)
    return params


def train(seed: int, *, width: int, num_steps: int, batch: int = 512):
    """Train on three Gaussians in the plane with AdamW; return (parameters, final loss)."""
    key = jax.random.key(seed)
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-2, num_steps), weight_decay=0.1)

    def loss_fn(params, key):
        k_mode, k_x, k_t, k_eps = jax.random.split(key, 4)
        x_0 = jnp.asarray(MEANS)[jax.random.randint(k_mode, (batch,), 0, len(MEANS))]
        x_0 = x_0 + np.float32(STD) * jax.random.normal(k_x, x_0.shape, jnp.float32)
        t = jax.random.randint(k_t, (batch,), 1, SCHEDULE.num_train_steps + 1)
        eps = jax.random.normal(k_eps, x_0.shape, jnp.float32)
        alpha, sigma = (v.astype(jnp.float32)[:, None] for v in SCHEDULE(t))
        one = lambda x, t: eps_fn(params, x[None], t)[0]  # noqa: E731
        predicted = jax.vmap(one)(alpha * x_0 + sigma * eps, t.astype(jnp.float32))
        return jnp.mean((predicted - eps) ** 2)

    def body(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, key)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    run = jax.jit(lambda c, keys: jax.lax.scan(body, c, keys))
    params = initialize(key, width)
    keys = jax.random.split(jax.random.fold_in(key, 1), num_steps)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedule divides integers
        (params, _), losses = run((params, optimizer.init(params)), keys)
    return params, float(losses[-max(1, num_steps // 20) :].mean())


class Subject(NamedTuple):
    """The network in float64 (its parameters are float32 numbers) with its sampler."""

    steps: diffusion.Steps
    calibration: precision.Calibration

    def quantized(self, weight_bits: int, activation_bits: int | None) -> precision.Quantized:
        """Round weights per channel, activations per tensor over the range of a calibration run."""
        recipe = precision.uniform(
            self.calibration.sites, weight_bits=weight_bits, activation_bits=activation_bits
        )
        return precision.quantize(self.calibration, recipe)


def prepare(params, num_steps: int, seed: int) -> Subject:
    """Measure what every width needs; call with float64 on."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    steps = diffusion.ddim(SCHEDULE, num_steps)
    key = jax.random.key(seed + 1_000_003)
    x_T = jax.random.normal(key, (NUM_CALIBRATION, 2), jnp.float64)
    return Subject(steps, precision.calibrate(Denoiser(eps_fn, params), steps, x_T=x_T))


def randomized(q: precision.Quantized, key) -> precision.Quantized:
    """Return the same with stochastic rounding of the activations."""
    inputs = {
        name: quantization._replace(
            activations=tuple(dataclasses.replace(a, key=key) for a in quantization.activations)
        )
        for name, quantization in q.site_inputs.items()
    }
    return precision.Quantized(q.denoiser, inputs)


def nudged(site, op, operands, inputs):
    """Commit given errors, in units of half a step, instead of rounding: a rule."""
    if inputs is None:
        return op(*operands), None
    quantization, nudges = inputs
    values = list(operands)
    if quantization.weight is not None:
        values[site.weight] = quantization.weight
    for i, grid, nudge in zip(site.activations, quantization.activations, nudges, strict=False):
        values[i] = values[i] + grid.scale / 2 * nudge
    return op(*values), None


def nudged_call(q: precision.Quantized):
    """Return call_fn(x, t, nudges by site) of the denoiser that commits these errors."""
    g = transform(q.eps_fn, nudged)

    def call_fn(x, t, nudges, state=()):
        inputs = {name: (v, nudges[name]) for name, v in q.site_inputs.items()}
        return g(q.params, x, t, site_inputs=inputs)[0], None, state

    return call_fn


def no_nudges(sites, lead: tuple[int, ...]) -> dict[str, tuple]:
    """Return zeros for `nudged_call` on [lead[-1], 2] inputs; axes before that are the steps."""
    return {
        site.name: tuple(jnp.zeros((*lead, *site.shapes[i][1:])) for i in site.activations)
        for site in sites
    }


def unlucky(final_fn, nudges, *, num_directions: int = 8, num_rounds: int = 2):
    """Return errors that take the result as far as signs of its gradient do, in several directions.

    A search for the worst rounding outcome: what it finds is a lower bound.

    Args:
      final_fn: nudges -> result [batch, 2] minus the full-precision one.
      nudges: zeros, in the structure that final_fn takes.

    Returns:
      The errors found [num_directions, batch, 2].
    """
    angles = np.arange(num_directions) * (2 * np.pi / num_directions)
    directions = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1))

    def one(direction):
        slope = jax.grad(lambda n: jnp.sum(final_fn(n) * direction[None]))
        worst = nudges
        for _ in range(num_rounds):
            worst = jax.tree.map(jnp.sign, slope(worst))
        return final_fn(worst)

    return jax.lax.map(one, directions)


def grid_boxes(half_width: float, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return corners [num^2, 1, 2] of the boxes that divide a square around zero, num a side."""
    edges = np.linspace(-half_width, half_width, num + 1)
    low, high = (np.stack(np.meshgrid(ends, ends, indexing="ij"), -1).reshape(-1, 1, 2)
                 for ends in (edges[:-1], edges[1:]))  # fmt: skip
    return low, high


def box_of(x, half_width: float, num: int) -> np.ndarray:
    """Return the index of the box of `grid_boxes` that holds each x [n, 2]."""
    cell = np.floor((np.asarray(x) + half_width) / (2 * half_width / num)).astype(int)
    cell = np.clip(cell, 0, num - 1)
    return cell[:, 0] * num + cell[:, 1]

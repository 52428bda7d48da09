"""CSDI, a diffusion model of time series that is not ours, as a plain function of its arrays.

Tashiro et al. 2021 (MIT licence): attention over times, then over features, of a gated residual
network; eps is predicted where nothing was observed. Weights keep the names and layouts of torch:
linear layers are transposed, the three projections of an attention are one product.

The trained weights are the file that QDIFFJAX_CSDI_NPZ names, or shared/data/models/
csdi_physionet.npz beside this repository.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax.denoiser import Denoiser
from qdiffjax.diffusion import DiscreteSchedule
from tests.networks import trained

NUM_FEATURES, NUM_TRAIN_STEPS, HEADS = 35, 50, 8
HOURS = 12  # of the 48 that it was trained on: attention does not mind
EMBEDDING = 128


def trained_arrays():
    return trained.trained_arrays("csdi_physionet.npz", "QDIFFJAX_CSDI_NPZ")


def tree(arrays):
    """Nested parameters of arrays with torch's names; kernels of one pixel lose that axis."""
    params = {}
    for name, value in arrays.items():
        *rooms, last = name.removeprefix("diffmodel.").split(".")
        place = params
        for room in rooms:
            place = place.setdefault(room, {})
        place[last] = jnp.asarray(value[..., 0] if value.ndim == 3 else value, jnp.float32)
    return params


def schedule():
    """Fifty quadratic betas from 1e-4 to .5."""
    betas = np.linspace(1e-4**0.5, 0.5**0.5, NUM_TRAIN_STEPS) ** 2
    return DiscreteSchedule(np.concatenate([np.ones(1), np.cumprod(1 - betas)]))


def dense(p, h):
    """h [..., in] -> [..., out]; the weight is [out, in], as torch keeps it."""
    return h @ p["weight"].T + p["bias"]


def norm(p, h):
    mean = h.mean(-1, keepdims=True)
    var = jnp.square(h - mean).mean(-1, keepdims=True)
    return (h - mean) * jax.lax.rsqrt(var + 1e-5) * p["weight"] + p["bias"]


def encoder(p, h):
    """A transformer layer that norms its sums, over the last axis but one: [..., n, c]."""
    own = p["self_attn"]
    q, k, v = jnp.split(h @ own["in_proj_weight"].T + own["in_proj_bias"], 3, axis=-1)
    heads = lambda a: a.reshape(*a.shape[:-1], HEADS, -1)  # noqa: E731
    scores = jnp.einsum("...qhd,...khd->...hqk", heads(q), heads(k)) / jnp.sqrt(
        jnp.float32(h.shape[-1] // HEADS)
    )
    mixed = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), heads(v))
    h = norm(p["norm1"], h + dense(own["out_proj"], mixed.reshape(h.shape)))
    inner = jax.nn.gelu(dense(p["linear1"], h), approximate=False)
    return norm(p["norm2"], h + dense(p["linear2"], inner))


def sines(values, num):
    """Sines and cosines of values [...] by turns [..., num]."""
    angles = values[..., None] * 10_000.0 ** (-jnp.arange(0, num, 2) / num)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*values.shape, num)


def step_embedding(p, t):
    half = EMBEDDING // 2
    angles = (t - 1) * 10.0 ** (jnp.arange(half) / (half - 1) * 4.0)  # rows are counted from 0
    h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
    return jax.nn.silu(dense(p["projection2"], jax.nn.silu(dense(p["projection1"], h))))


def csdi(params, x, t, *, observed, mask):
    """Predict eps [b, k, l] of series x [b, k, l] at step t [], given what was observed.

    Args:
      params: of `tree`.
      x, t: noisy series of k features at l hours, and the step.
      observed: values [b, k, l], read where mask [b, k, l] is 1.
    """
    b, k, num_hours = x.shape
    hours = sines(jnp.arange(num_hours, dtype=x.dtype), EMBEDDING)  # [l, 128]
    shape = (b, k, num_hours)
    side = jnp.concatenate([
        jnp.broadcast_to(hours, (*shape, EMBEDDING)),
        jnp.broadcast_to(params["embed_layer"]["weight"][:, None], (*shape, 16)), mask[..., None],
    ], -1)  # fmt: skip
    h = jnp.stack([mask * observed, (1 - mask) * x], -1)
    h = jax.nn.relu(dense(params["input_projection"], h))
    emb = step_embedding(params["diffusion_embedding"], t)
    skips = []
    layers = params["residual_layers"]
    for name in sorted(layers, key=int):
        p = layers[name]
        y = h + dense(p["diffusion_projection"], emb)
        y = encoder(p["time_layer"]["layers"]["0"], y)
        y = encoder(p["feature_layer"]["layers"]["0"], y.swapaxes(1, 2)).swapaxes(1, 2)
        y = dense(p["mid_projection"], y) + dense(p["cond_projection"], side)
        gate, values = jnp.split(y, 2, axis=-1)
        y = dense(p["output_projection"], jax.nn.sigmoid(gate) * jnp.tanh(values))
        rest, skip = jnp.split(y, 2, axis=-1)
        h = (h + rest) * 0.5**0.5
        skips.append(skip)
    h = sum(skips) * len(skips) ** -0.5
    h = jax.nn.relu(dense(params["output_projection1"], h))
    return dense(params["output_projection2"], h)[..., 0]


def conditions(key, num):
    """Smooth series of which half of the values were observed; `cond` of a `Denoiser`."""
    k_start, k_noise, k_mask = jax.random.split(key, 3)
    shape = (num, NUM_FEATURES, HOURS)
    start = jax.random.normal(k_start, (*shape[:2], 1), jnp.float32)
    walk = jnp.cumsum(0.3 * jax.random.normal(k_noise, shape, jnp.float32), -1)
    mask = jax.random.bernoulli(k_mask, 0.5, shape).astype(jnp.float32)
    return {"observed": (start + walk) * mask, "mask": mask}


def imputation(params, x, t, *, observed, mask):
    """`csdi` where nothing was observed, elsewhere the eps that leads to what was."""
    level = schedule()(t)
    known = (x - level.alpha * observed) / level.sigma
    return mask * known + (1 - mask) * csdi(params, x, t, observed=observed, mask=mask)


def denoiser():
    """The trained network, of 35 features at 12 hours; skips without its weights."""
    return Denoiser(imputation, tree(trained_arrays()), schedule(), (NUM_FEATURES, HOURS),
                    cond=conditions)  # fmt: skip

"""The worlds that tests share: noise, denoisers of every kind, an exact mixture, a checkpoint.

A denoiser is a `Network`: a function (params, x, t) -> eps with arguments to call it at.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qdiffjax import diffusion
from qdiffjax.diffusion import gaussian
from qdiffjax.hardware import costs
from qdiffjax.networks import configs, denoisers
from qdiffjax.networks.made import mixture
from qdiffjax.networks.models.adapters import from_nnx
from qdiffjax.networks.models.unet import UNet
from qdiffjax.quant import IntFormat, noise
from qdiffjax.sites import list_sites

# Compiles in a hurry: for tests of definitions, not of speed.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# ------------------------------------------------------------------ noise


def normal(seed, *shape, dtype=np.float64, scale=1.0):
    """Gaussian numbers from a seed."""
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


normal32 = functools.partial(normal, dtype=np.float32)


def randomized(shapes, seed=0, scale=0.3):
    """Parameters of given shapes with no zeros, so that every layer matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def random_params(net, *inputs, seed=0, scale=0.3, **kwargs):
    """Parameters of a linen network, drawn at random."""
    shapes = jax.eval_shape(lambda key: net.init(key, *inputs, **kwargs), jax.random.key(0))
    return randomized(shapes, seed, scale)


# Laws of numbers that are rounded, and a format that none of them saturates.
GAUSSIAN, LAPLACIAN = noise.Gaussian(), noise.Laplace()
HISTOGRAM = noise.Histogram(
    np.array([-6.0, -1.5, -0.5, 0.0, 0.25, 2.5]), np.array([0.05, 0.25, 0.2, 0.3, 0.2])
)
MANY = IntFormat(16)

# ------------------------------------------------------------------ a denoiser of each framework


class Network(NamedTuple):
    fn: Any
    params: Any
    x: Any
    t: Any

    @property
    def args(self):
        return self.params, self.x, self.t


@functools.cache
def linen_unet() -> Network:
    net = UNet(channels=(8, 16), attention=(False, False), patch=1)
    x, t = normal32(1, 1, 8, 8, 1), jnp.float32(3)
    return Network(net.apply, random_params(net, x, t), x, t)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.time = nnx.Linear(1, 8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, t):
        h = nnx.silu(self.norm(self.conv(x)))
        y = h.reshape(x.shape[0], -1, 8) + self.time(jnp.reshape(t, (1, 1, 1)))
        return self.out(y + self.attn(y)).reshape(x.shape)


@functools.cache
def nnx_net() -> Network:
    fn, shapes = from_nnx(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))))
    x = normal32(1, 2, 4, 4, 3)
    return Network(fn, randomized(shapes), x, jnp.float32(0.5))


class EqxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    time: eqx.nn.MLP
    attn: eqx.nn.MultiheadAttention
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0], dtype=jnp.float32)
        self.time = eqx.nn.MLP(1, 8, 4, 1, key=keys[1], dtype=jnp.float32)
        self.attn = eqx.nn.MultiheadAttention(2, 8, key=keys[2], dtype=jnp.float32)
        self.out = eqx.nn.Linear(8, 3, key=keys[3], dtype=jnp.float32)

    def __call__(self, x, t):
        h = self.conv(x.transpose(2, 0, 1)).reshape(8, -1).T
        h = jax.nn.silu(h + self.time(jnp.reshape(t, (1,)))[None])
        return jax.vmap(self.out)(h + self.attn(h, h, h)).reshape(x.shape)


@functools.cache
def eqx_net() -> Network:
    shapes, static = eqx.partition(
        eqx.filter_eval_shape(EqxNet, jax.random.key(0)),
        lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
    )
    x = normal32(1, 2, 4, 4, 3)
    return Network(
        lambda params, x, t: jax.vmap(eqx.combine(params, static), (0, None))(x, t),
        randomized(shapes), x, jnp.float32(0.5),
    )  # fmt: skip


def convolve(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def attend(params, y):
    """Single-head attention over [batch, tokens, channels]."""
    q, k, v = (y @ params[name]["kernel"] for name in ("query", "key", "value"))
    p = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) / np.sqrt(q.shape[-1]), axis=-1)
    return jnp.einsum("bqk,bkc->bqc", p, v)


def handwritten_fn(params, x, t):
    h = jnp.tanh(convolve(x, params["conv"]["kernel"]) + jnp.sin(t))
    y = h.reshape(h.shape[0], -1, h.shape[-1])
    y = y + attend(params["attn"], y)
    return (y @ params["out"]["kernel"]).reshape(x.shape)


@functools.cache
def handwritten() -> Network:
    """In float64: a convolution, attention and a dense layer, as a dict of params."""
    attn = {name: {"kernel": normal(i, 6, 6)} for i, name in enumerate(("query", "key", "value"))}
    params = {
        "conv": {"kernel": normal(5, 3, 3, 2, 6)},
        "attn": attn,
        "out": {"kernel": normal(6, 6, 2)},
    }
    return Network(handwritten_fn, params, normal(7, 2, 3, 3, 2), jnp.float64(0.4))


def layers_fn(params, x, t):
    """A scan over three stacked residual layers, then a dense layer."""

    def layer(h, w):
        return h + jnp.tanh(h @ w["kernel"] + t), None

    h, _ = jax.lax.scan(layer, x, params["layers"])
    return h @ params["out"]["kernel"]


@functools.cache
def layers() -> Network:
    params = {"layers": {"kernel": normal(1, 3, 4, 4)}, "out": {"kernel": normal(2, 4, 4)}}
    return Network(layers_fn, params, normal(3, 2, 4), jnp.float64(0.1))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, h, t):
        return h + nn.tanh(nn.Dense(8, name="dense")(h) + t), None


class LinenLayers(nn.Module):
    """`nn.scan` over `nn.remat` layers."""

    @nn.compact
    def __call__(self, x, t):
        layer = nn.scan(
            nn.remat(LinenLayer), variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=nn.broadcast, length=3,
        )  # fmt: skip
        h, _ = layer(name="layers")(x, t)
        return nn.Dense(8, name="out")(h)


@functools.cache
def linen_layers() -> Network:
    net, x, t = LinenLayers(), normal32(1, 2, 8), jnp.float32(0.2)
    return Network(net.apply, random_params(net, x, t), x, t)


NETWORKS = {
    f.__name__: f for f in (linen_unet, nnx_net, eqx_net, handwritten, layers, linen_layers)
}

# ------------------------------------------------------------------ networks of one product


def one_site(fn, *shapes, weight=None, seed=0):
    """A network of one operation: (fn, params, x, t) and its only site but the edges."""
    arrays = [normal32(seed + i, *shape) for i, shape in enumerate(shapes)]
    x, w = arrays
    if weight is None:  # both operands from the input, as in attention
        sizes = np.cumsum([x.size, w.size])

        def both(params, z, t):
            return fn(z[: sizes[0]].reshape(shapes[0]), z[sizes[0] :].reshape(shapes[1]))

        return Network(both, {}, jnp.concatenate([x.ravel(), w.ravel()]), jnp.float32(0))
    if weight == 0:
        return Network(lambda p, z, t: fn(p["w"], z), {"w": x}, w, jnp.float32(0))
    return Network(lambda p, z, t: fn(z, p["w"]), {"w": w}, x, jnp.float32(0))


DOTS = {
    "x w": (((3, 4, 8), (8, 6)), (((2,), (0,)), ((), ())), 1),
    "w x": (((6, 8), (4, 8, 3)), (((1,), (1,)), ((), ())), 0),
    "rows of w": (((5, 8), (6, 8)), (((1,), (1,)), ((), ())), 1),
    "two axes": (((3, 2, 4, 5), (4, 7, 2)), (((1, 2), (2, 0)), ((), ())), 1),
    "w in the middle": (((8, 5), (2, 8, 3)), (((0,), (1,)), ((), ())), 1),
    "batch of w": (((4, 3, 8), (4, 8, 5)), (((2,), (1,)), ((0,), (0,))), 1),
    "q k": (((2, 5, 3, 4), (2, 6, 3, 4)), (((3,), (3,)), ((0, 2), (0, 2))), None),
    "p v": (((2, 6, 3, 4), (2, 3, 5, 6)), (((1,), (3,)), ((0, 2), (0, 1))), None),
}


def dot(name):
    shapes, dims, weight = DOTS[name]
    return one_site(lambda a, b: jax.lax.dot_general(a, b, dims), *shapes, weight=weight)


# ------------------------------------------------------------------ products counted by hand


def shape(*axes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(axes, dtype)


def dense(params, x, t):
    """x [5, 3] through kernels [3, 7] and [7, 3]; the bias is no site."""
    h = x @ params["first"]["kernel"] + params["first"]["bias"]
    return h @ params["second"]["kernel"]


DENSE = {
    "first": {"kernel": shape(3, 7), "bias": shape(1, 7)}, "second": {"kernel": shape(7, 3)},
}  # fmt: skip


def tied(params, x, t):
    return (x @ params["kernel"]) @ params["kernel"]


def attention(params, x, t):
    """x [2, 5, 4] -> (q k) x: one product with a weight and two of activations."""
    q = jnp.einsum("bnd,de->bne", x, params["query"]["kernel"])
    scores = jnp.einsum("bnd,bmd->bnm", q, x)
    return jnp.einsum("bnm,bmd->bnd", scores, x)


def conv(padding):
    """A 3x3 convolution without groups, NHWC."""

    def fn(params, x, t):
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return fn


def product(m, k, n):
    """Counts of one product [m, k] x [k, n]."""
    columns = [[m * k * n], [k * n], [k * n], [n], [m * k], [m * n]]
    return costs.Counts(("kernel",), *(np.array(c, np.int64) for c in columns))


# ------------------------------------------------------------------ exact denoiser of a mixture

SCHEDULE = diffusion.linear(40, 1e-3, 0.2)
KEY = jax.random.key(7)
NUM_STEPS, BATCH = 6, 4
DDIM = diffusion.ddim(SCHEDULE, NUM_STEPS)
DDPM = diffusion.ddim(SCHEDULE, NUM_STEPS, eta=1.0)
X_T = normal(0, BATCH, 2)


EXACT = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), mixture())


def grid(x, scale=0.125):
    return scale * jnp.round(x / scale)


def rounded(x, t, inputs, state=()):
    """The exact denoiser between two roundings: discontinuous in x, zero derivative."""
    return grid(EXACT(grid(x), t, None)[0]), None, state


def fast(x, t, inputs, state=()):
    """A denoiser that compiles at once, for what holds for any denoiser."""
    return jnp.tanh(0.8 * x + jnp.flip(x, axis=-1) / 3 + t / 60), None, state


# ------------------------------------------------------------------ network of many kinds of sites


def net_fn(params, x, t):
    """eps(x [batch, 2], t): time embedding without batch axis, scan over layers, a q.k product."""
    features = jnp.stack([jnp.cos(t / 20), jnp.sin(t / 20), jnp.cos(t / 5)])
    emb = jnp.tanh(features @ params["time"])
    h = jnp.tanh(x @ params["in"] + emb[None])

    def layer(h, w):
        return h + jnp.tanh(h @ w) / 2, None

    h, _ = jax.lax.scan(layer, h, params["layers"])
    q, k = h @ params["query"], h @ params["key"]
    gate = jax.nn.sigmoid(jnp.einsum("bi,bi->b", q, k))
    return (h * (0.5 + gate[:, None])) @ params["out"]


WIDTH = 8
PARAMS = {
    "time": normal(1, 3, WIDTH),
    "in": normal(2, 2, WIDTH, scale=0.7),
    "layers": normal(3, 2, WIDTH, WIDTH, scale=0.5),
    "query": normal(4, WIDTH, WIDTH, scale=0.3),
    "key": normal(5, WIDTH, WIDTH, scale=0.3),
    "out": jnp.eye(WIDTH),
}


def fitted_out():
    """Last layer fitted to the exact denoiser at five times: a trained network, cheaply."""
    x_0 = gaussian.sample_mixture(KEY, mixture(), 200)
    times = jnp.arange(8.0, 41.0, 8.0)
    level = SCHEDULE(times)
    x_t = level.alpha[:, None, None] * x_0[None] + level.sigma[:, None, None] * normal(8, 5, 200, 2)
    features = quick_jit(jax.vmap(functools.partial(net_fn, PARAMS)))(x_t, times)
    targets = quick_jit(jax.vmap(lambda x, t: EXACT(x, t, None)[0]))(x_t, times)
    return jnp.linalg.lstsq(features.reshape(-1, WIDTH), targets.reshape(-1, 2))[0]


PARAMS["out"] = fitted_out()
SITES = list_sites(net_fn, PARAMS, X_T, jnp.float64(1))
NAMES = ("input", "time", "in", "layers[0]", "layers[1]", "query", "key", "dot_0", "out", "output")

# ------------------------------------------------------------------ a tiny checkpoint

TINY = configs.ModelConfig(
    shape=(8, 8, 1), network="unet", num_train_steps=50,
    arguments={"channels": (8,), "num_blocks": 1, "attention": (False,), "patch": 1},
)  # fmt: skip
TINY_DIT = dataclasses.replace(
    TINY, network="dit", arguments={"patch": 4, "width": 8, "depth": 1, "num_heads": 2}
)


def tiny_params(config=TINY):
    """Initial parameters plus small random numbers: kernels that begin at zero do something."""
    leaves, tree = jax.tree.flatten(configs.init_params(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + jnp.asarray(0.1, leaf.dtype) * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def save_tiny(path, config=TINY, values=None):
    """Write a checkpoint and return its folder."""
    denoisers.save(path, tiny_params(config) if values is None else values, config)
    return path

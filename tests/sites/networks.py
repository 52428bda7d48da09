"""Tiny denoisers of every kind: linen, nnx, Equinox, hand-written. All (params, x, t) -> eps."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qdiffjax.networks.models.adapters import from_nnx
from qdiffjax.networks.models.unet import UNet


class Network(NamedTuple):
    fn: Any
    params: Any
    x: Any
    t: Any

    @property
    def args(self):
        return self.params, self.x, self.t


def normal(seed, *shape, dtype=np.float64, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def randomized(shapes, seed=0, scale=0.3):
    """Parameters of given shapes with no zeros, so that every layer matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


@functools.cache
def linen_unet() -> Network:
    net = UNet(channels=(8, 16), attention=(False, False), patch=1)
    x, t = normal(1, 1, 8, 8, 1, dtype=np.float32), jnp.float32(3)
    shapes = jax.eval_shape(lambda key: net.init(key, x, t), jax.random.key(0))
    return Network(net.apply, randomized(shapes), x, t)


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
    x = normal(1, 2, 4, 4, 3, dtype=np.float32)
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
    x = normal(1, 2, 4, 4, 3, dtype=np.float32)
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
    remat: bool = False

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
    net, x, t = LinenLayers(), normal(1, 2, 8, dtype=np.float32), jnp.float32(0.2)
    shapes = jax.eval_shape(lambda key: net.init(key, x, t), jax.random.key(0))
    return Network(net.apply, randomized(shapes), x, t)

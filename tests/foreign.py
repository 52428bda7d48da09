"""Networks as others write them, each with one fault or habit: tiny, and every one a `Denoiser`."""

import functools

import jax
import jax.numpy as jnp

from qdiffjax import diffusion
from qdiffjax.denoiser import Denoiser
from tests.worlds import convolve, normal32

SCHEDULE = diffusion.linear(50)
STEPS = diffusion.ddim(SCHEDULE, 4)
WIDTH = 6
A, B = normal32(1, WIDTH, WIDTH, scale=0.3), normal32(2, WIDTH, WIDTH, scale=0.3)
IMAGE = (4, 4, 2)
KERNEL = normal32(3, 3, 3, 2, 2, scale=0.3)
FIR = jnp.asarray([1, 3, 3, 1], jnp.float32)[:, None, None, None] / 8


def of_vectors(net_fn, params=None, **options):
    return Denoiser(net_fn, {"a": A} if params is None else params, SCHEDULE, (WIDTH,), **options)


def of_images(net_fn, params=None, **options):
    return Denoiser(net_fn, {"k": KERNEL} if params is None else params, SCHEDULE, IMAGE, **options)


def sound(p, x, t):
    return jnp.tanh(x @ p["a"] + t / 50)


def one_time_each(p, x, t):
    return jnp.tanh(x @ p["a"] + t[:, None] / 50)


LABELS = jnp.arange(8) % 4
EMBEDDING = normal32(4, 4, WIDTH)


def labels_closed_over(p, x, t):
    return sound(p, x, t) + p["embedding"][LABELS[: x.shape[0]]]


def labels_of_one_batch(p, x, t):
    return sound(p, x, t) + p["embedding"][LABELS]


def takes_labels(p, x, t, label):
    return sound(p, x, t) + p["embedding"][label]


LABELLED = {"a": A, "embedding": EMBEDDING}


def batch_statistics(p, x, t):
    h = sound(p, x, t)
    return h - jnp.mean(h, axis=0, keepdims=True)


# ------------------------------------------------------------------ where weights come from

CONTEXT = normal32(5, 3, WIDTH)  # a prompt of three tokens, the same for all


def frozen_context(p, x, t):
    """Cross-attention to a closed-over context that is spread over the batch and normalized."""
    spread = jnp.broadcast_to(CONTEXT, (x.shape[0], *CONTEXT.shape))
    context = (spread - jnp.mean(spread, -1, keepdims=True)) * p["gain"][None, None]
    q, k, v = x @ p["cross"]["q"], context @ p["cross"]["k"], context @ p["cross"]["v"]
    weights = jax.nn.softmax(jnp.einsum("bc,bnc->bn", q, k), axis=-1)
    return jnp.einsum("bn,bnc->bc", weights, v) @ p["out"] + t / 50


CROSS = {"gain": normal32(6, WIDTH), "cross": {"q": A, "k": B, "v": A + B}, "out": B.T}


def spread_tokens(p, x, t):
    """Learned tokens, repeated for every sample before they are projected."""
    tokens = jnp.broadcast_to(p["tokens"], (x.shape[0], *p["tokens"].shape)) @ p["a"]
    return jnp.einsum("bc,bnc->bn", x, tokens) @ p["tokens"] + t / 50


def hidden_layer(p, x, t):
    return jnp.tanh(x @ B) @ p["a"] + t / 50


def hidden_scan(p, x, t):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["a"], jnp.stack([A, B]))[0]


def filtered(p, x, t):
    """A convolution, then a fixed low-pass filter over rows, channel by channel."""
    h = convolve(x, p["k"])
    return convolve(h, jnp.broadcast_to(FIR, (4, 1, 1, 2)), groups=2) + t / 50


def transposed(p, x, t):
    """Half the resolution and back, by a transposed convolution."""
    dims = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, p["down"], (2, 2), "SAME", dimension_numbers=dims)
    return jax.lax.conv_transpose(h, p["up"], (2, 2), "SAME", dimension_numbers=dims) + t / 50


def complex_weights(p, x, t):
    z = jax.lax.complex(x, jnp.zeros_like(x)) @ jax.lax.complex(p["a"], p["b"])
    return jnp.real(z) @ p["a"] + t / 50


# ------------------------------------------------------------------ products that are hidden


@jax.custom_vjp
def _kept(x, w):
    return x @ w


_kept.defvjp(lambda x, w: (x @ w, (x, w)), lambda res, u: (u @ res[1].T, res[0].T @ u))


def in_custom_vjp(p, x, t):
    return _kept(sound(p, x, t), p["a"])


def in_cond(p, x, t):
    return jax.lax.cond(t > 20, lambda h: h @ p["a"], lambda h: h, sound(p, x, t))


def in_while(p, x, t):
    def body(state):
        return state[0] + 1, jnp.tanh(state[1] @ p["a"])

    return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, sound(p, x, t)))[1]


# ------------------------------------------------------------------ results that are no prediction


def returns_tuple(p, x, t):
    return jnp.mean(x), sound(p, x, t)


def returns_dict(p, x, t):
    return {"loss": jnp.mean(x), "sample": sound(p, x, t)}


def twice_the_channels(p, x, t):
    h = convolve(x, p["k"])
    return jnp.concatenate([h, h + t / 50], axis=-1)


def undefined_at(step):
    """A network that divides by zero at one step of the sampler."""
    return lambda p, x, t: sound(p, x, t) / (t - STEPS.times(x)[step])


def counted(net_fn):
    """The network, and a list that grows with every trace."""
    traces: list[int] = []

    @functools.wraps(net_fn)
    def fn(*args):
        traces.append(1)
        return net_fn(*args)

    return fn, traces

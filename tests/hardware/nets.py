"""Small functions whose products can be counted by hand."""

import math

import jax
import jax.numpy as jnp


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


def size(*shapes):
    return sum(math.prod(s) for s in shapes)

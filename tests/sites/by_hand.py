"""Quantizers in NumPy, independent of the package: the reference for every rule."""

import jax.numpy as jnp
import numpy as np

from qdiffjax.quant import ActivationGrid, IntFormat


def affine(low, high, bits):
    """(scale, zero_point, qmin, qmax) of an unsigned grid over a range that holds zero."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, float(np.round(-low / scale)), 0.0, 2.0**bits - 1


def on_grid(x, scale, zero_point, qmin, qmax):
    codes = np.clip(np.round(np.asarray(x) / scale) + zero_point, qmin, qmax)
    return scale * (codes - zero_point)


def weight(w, bits, axes):
    """Symmetric rounding of a weight, one scale per slice over the summed `axes`."""
    w = np.asarray(w)
    qmax = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axes, keepdims=True) / qmax
    return scale * np.round(w / scale)


def how(grid, key=None):
    """The grid as the rule `quantize` wants it."""
    scale, zero_point, _, qmax = grid
    format = IntFormat(jnp.int32(np.log2(qmax + 1)), signed=False)
    return ActivationGrid(format, jnp.float64(scale), jnp.float64(zero_point), key)


def convolve(x, kernel):
    """Same-padded 3 x 3 convolution, NHWC and HWIO, as a sum of shifted products."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def handwritten(params, x, t, w=lambda name, value: value, a=lambda name, index, value: value):
    """`networks.handwritten_fn` with w and a applied to weight and activation operands."""
    x = a("input", 0, np.asarray(x))
    conv = w("conv/kernel", params["conv"]["kernel"])
    h = np.tanh(convolve(a("conv/kernel", 0, x), conv) + np.sin(float(t)))
    y = h.reshape(h.shape[0], -1, h.shape[-1])
    q, k, v = (
        a(f"attn/{n}/kernel", 0, y) @ w(f"attn/{n}/kernel", params["attn"][n]["kernel"])
        for n in ("query", "key", "value")
    )
    scores = a("attn/dot_0", 0, q) @ a("attn/dot_0", 1, k).transpose(0, 2, 1)
    p = softmax(scores / np.sqrt(q.shape[-1]))
    y = y + a("attn/dot_1", 0, p) @ a("attn/dot_1", 1, v)
    out = a("out/kernel", 0, y) @ w("out/kernel", params["out"]["kernel"])
    return a("output", 0, out.reshape(x.shape))

"""What every kernel computes, in a few lines of float32: dequantize, multiply, finish."""

import functools

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels.operands import quantized
from qdiffjax.quant import ActivationGrid, QTensor, dequantize, fake_quant, quantize, rounding

HIGHEST = jax.lax.Precision.HIGHEST


def matmul(x, w: QTensor, *, activation: ActivationGrid | None, bias, act_fn, out_dtype) -> Array:
    """Return act(x_hat w_hat + bias) [M, N] for x [M, K] and w [K, N]."""
    y = jnp.matmul(real(x, activation, axes=(1,)), dequantize(w), precision=HIGHEST)
    return finish(y, bias, act_fn, out_dtype)


def conv(
    x, w: QTensor, *, activation: ActivationGrid | None, window: dict, bias, act_fn, out_dtype
):
    """Return act(x_hat * w_hat + bias) [B, *out, N] for x [B, *space, K] and w [*window, K, N]."""
    x = real(x, activation, axes=tuple(range(1, x.ndim)))
    y = jax.lax.conv_general_dilated(x, dequantize(w), precision=HIGHEST, **window)
    return finish(y, bias, act_fn, out_dtype)


def rounded(x, scale, zero_point, *, format) -> Array:
    """Return Q(x) [*shape]: `quant.fake_quant`."""
    return fake_quant(x, scale, zero_point, format=format)


def stochastic_codes(x, scale, bits, *, format) -> Array:
    """Return codes of x [*shape], rounded at random by bits, uint32 [*shape]; no zero point.

    clip(floor(v + u), qmin, qmax),   v = x / scale,   u = (upper 24 bits) / 2^24
    """
    uniform = jax.lax.shift_right_logical(bits, jnp.uint32(8)).astype(jnp.float32) * 2.0**-24
    round_fn = functools.partial(rounding.stochastic, uniform=uniform)
    return quantize(x, scale, format=format, round_fn=round_fn).codes


def real(x, activation: ActivationGrid | None, axes: tuple[int, ...]) -> Array:
    """Return an operand in float32 as the kernel sees it: codes, or real numbers, rounded first."""
    if activation is not None:
        x = quantized(x, activation, axes)
    return dequantize(x) if isinstance(x, QTensor) else x.astype(jnp.float32)


def finish(y, bias, act_fn, out_dtype) -> Array:
    """Apply the epilogue: bias [N], elementwise function, output dtype; all in float32 before the
    cast.
    """
    if bias is not None:
        y = y + bias.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
    return (y if act_fn is None else act_fn(y)).astype(out_dtype)

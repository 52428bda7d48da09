"""Kernels as XLA fuses them: products of codes, then scales, bias and activation in one epilogue.

Integer sums are exact in int32. Scales of output channels and tokens multiply after the product;
scales of groups of inputs multiply partial sums.
"""

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels.operands import Activation, Native, is_integer, native, quantized, widened
from qdiffjax.kernels.reference import finish, rounded
from qdiffjax.quant import QTensor, dequantize

__all__ = ["conv", "matmul", "rounded"]


def matmul(x, w: QTensor, *, activation: Activation | None, bias, act_fn, out_dtype) -> Array:
    """As `reference.matmul`; codes of both operands multiply as codes."""
    x = x if activation is None else quantized(x, activation, (1,))
    if not isinstance(x, QTensor):
        return finish(_weight_only(x, w), bias, act_fn, out_dtype)
    if is_integer(x.format) != is_integer(w.format) or w.scale.shape[0] > 1:
        return finish(_grouped(x, w), bias, act_fn, out_dtype)
    a, b = native(x), native(w)
    y = a.scale * b.scale * _centered_dot(a, b).astype(jnp.float32)
    return finish(y, bias, act_fn, out_dtype)


def _centered_dot(a: Native, b: Native) -> Array:
    """sum_k (a - z_a)(b - z_b) [M, N]: int32 and exact, or float32 for 8-bit floats."""
    left, right = widened(a.values), widened(b.values)
    integer = left.dtype == jnp.int8
    sums = jnp.int32 if integer else jnp.float32
    y = jax.lax.dot(left, right, preferred_element_type=sums)
    if a.zero is not None:
        y = y - a.zero * jnp.sum(right.astype(sums), 0, keepdims=True)
    if b.zero is not None:
        y = y - b.zero * jnp.sum(left.astype(sums), 1, keepdims=True)
    if a.zero is not None and b.zero is not None:
        y = y + a.zero * b.zero * left.shape[1]
    return y


def _weight_only(x, w: QTensor) -> Array:
    """Real times codes; the scale of output channels after the product, that of groups before."""
    if w.scale.shape[0] > 1 or w.zero_point is not None:
        return _real_dot(x, dequantize(w, x.dtype))
    return w.scale * _real_dot(x, native(w).values.astype(x.dtype))


def _real_dot(x, w) -> Array:
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


def _grouped(x: QTensor, w: QTensor) -> Array:
    """One product for each group of inputs, each with its own scale, summed in float32."""
    if is_integer(x.format) != is_integer(w.format) or w.zero_point is not None:
        return _real_dot(dequantize(x), dequantize(w))
    a, b = native(x), native(w)
    groups = w.scale.shape[0]
    left = widened(a.values).reshape(a.values.shape[0], groups, -1)
    right = widened(b.values).reshape(groups, -1, b.values.shape[1])
    sums = jnp.int32 if left.dtype == jnp.int8 else jnp.float32
    y = jax.lax.dot_general(
        left, right, (((2,), (1,)), ((1,), (0,))), preferred_element_type=sums
    )  # [groups, M, N]
    if a.zero is not None:
        y = y - a.zero[None] * jnp.sum(right.astype(sums), 1, keepdims=True)
    return a.scale * jnp.sum(b.scale[:, None] * y.astype(jnp.float32), 0)


def conv(x, w: QTensor, *, activation: Activation | None, window: dict, bias, act_fn, out_dtype):
    """As `reference.conv`; codes of both operands multiply as codes.

    Codes are padded with the code of zero, so that borders need no correction.
    """
    x = x if activation is None else quantized(x, activation, tuple(range(1, x.ndim)))
    if not isinstance(x, QTensor):
        y = _real_conv(x, native(w).values.astype(x.dtype), window)
        return finish(w.scale.reshape(-1) * y, bias, act_fn, out_dtype)
    if is_integer(x.format) != is_integer(w.format):
        y = _real_conv(dequantize(x), dequantize(w), window)
        return finish(y, bias, act_fn, out_dtype)
    a, b = native(x), native(w)
    y = a.scale * b.scale.reshape(-1) * _centered_conv(a, b, window)
    return finish(y, bias, act_fn, out_dtype)


def _real_conv(x, w, window) -> Array:
    return jax.lax.conv_general_dilated(x, w, preferred_element_type=jnp.float32, **window)


def _centered_conv(a: Native, b: Native, window: dict) -> Array:
    """Convolution of (a - z_a) with b as float32; exact for integers up to its last conversion.

    The int32 result is converted at once: on a GPU, cuDNN has int8 -> float32 convolutions only,
    and XLA recognizes them by this conversion.
    """
    left, right = widened(a.values), widened(b.values)
    if left.dtype != jnp.int8:
        return _real_conv(left, right, window)
    if a.zero is not None:
        left, window = _padded(left, a.zero, right, window)
    y = jax.lax.conv_general_dilated(left, right, preferred_element_type=jnp.int32, **window)
    if a.zero is None:
        return y.astype(jnp.float32)
    taps = jnp.sum(right.astype(jnp.int32), tuple(range(right.ndim - 1)))
    return (y - a.zero * taps).astype(jnp.float32)


def _padded(x, zero, w, window: dict):
    """Pad codes [B, *space, K] with the code of zero; returns them and a window without padding."""
    low_high = paddings(x.shape, w.shape, window)
    widths = [(0, 0), *low_high, (0, 0)]
    config = [(low, high, 0) for low, high in widths]
    value = zero.reshape(-1)[0].astype(x.dtype)
    return jax.lax.pad(x, value, config), window | {"padding": [(0, 0)] * len(low_high)}


def paddings(x_shape, w_shape, window: dict) -> list[tuple[int, int]]:
    """Explicit (low, high) padding of each spatial axis."""
    padding = window["padding"]
    if not isinstance(padding, str):
        return list(padding)
    dilation = window.get("rhs_dilation") or (1,) * (len(w_shape) - 2)
    extents = [(k - 1) * d + 1 for k, d in zip(w_shape[:-2], dilation, strict=True)]
    return jax.lax.padtype_to_pads(x_shape[1:-1], extents, window["window_strides"], padding)

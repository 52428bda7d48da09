"""Kernels as XLA fuses them: products of codes, then scales, bias and activation in one epilogue.

Integer sums are exact in int32. Scales of output channels and tokens multiply after the product;
scales of groups of inputs multiply partial sums.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.kernels import integers, reference
from qdiffjax.kernels.operands import (
    Native,
    is_integer,
    native,
    quantized,
    rounded_codes,
    widened,
)
from qdiffjax.quant import ActivationGrid, QTensor, dequantize


def matmul(x, w: QTensor, *, activation: ActivationGrid | None, bias, act_fn, out_dtype) -> Array:
    """Multiply as `reference.matmul`; codes of both operands multiply as codes."""
    if activation is None and not isinstance(x, QTensor):
        return reference.finish(_weight_only(x, w), bias, act_fn, out_dtype)
    is_integral = is_integer(x.format if activation is None else activation.format)
    if is_integral != is_integer(w.format) or w.scale.shape[0] > 1:
        x = x if activation is None else quantized(x, activation, (1,))
        return reference.finish(_grouped(x, w), bias, act_fn, out_dtype)
    a, b = _codes(x, activation, (1,)), native(w)
    y = a.scale * b.scale * _centered_dot(a, b).astype(jnp.float32)
    return reference.finish(y, bias, act_fn, out_dtype)


def _codes(x, activation: ActivationGrid | None, axes: tuple[int, ...]) -> Native:
    return native(x) if activation is None else rounded_codes(x, activation, axes)


def _centered_dot(a: Native, b: Native) -> Array:
    """Return sum_k (a - z_a)(b - z_b) [M, N]: int32 and exact, or float32 for 8-bit floats."""
    left, right = widened(a.values), widened(b.values)
    if left.dtype != jnp.int8:
        return _real_dot(left, right)
    y = integers.dot_general(left, right)
    if a.zero is not None:
        y = y - a.zero * integers.sums(right, (0,))[None]
    if b.zero is not None:
        y = y - b.zero * jnp.sum(left, 1, jnp.int32, keepdims=True)
    if a.zero is not None and b.zero is not None:
        y = y + a.zero * b.zero * left.shape[1]
    return y


def _weight_only(x, w: QTensor) -> Array:
    """Multiply real numbers by codes; the scale of output channels after the product, that of
    groups before.
    """
    codes = native(w)
    if w.scale.shape[0] > 1 or codes.zero is not None:
        return _real_dot(x, dequantize(w, x.dtype))
    return codes.scale * _real_dot(x, codes.values.astype(x.dtype))


def _real_dot(x, w) -> Array:
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


def _grouped(x: QTensor, w: QTensor) -> Array:
    """Form one product for each group of inputs, each with its own scale, summed in
    float32.
    """
    if is_integer(x.format) != is_integer(w.format) or w.zero_point is not None:
        return _real_dot(dequantize(x), dequantize(w))
    a, b = native(x), native(w)
    groups = w.scale.shape[0]
    left = widened(a.values).reshape(a.values.shape[0], groups, -1)
    right = widened(b.values).reshape(groups, -1, b.values.shape[1])
    dims = (((2,), (1,)), ((1,), (0,)))
    if left.dtype != jnp.int8:
        y = jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.float32)
    else:
        y = integers.dot_general(left, right, dims)  # [groups, M, N]
    if a.zero is not None:
        y = y - a.zero[None] * integers.sums(right, (1,), (0,))[:, None]
    return a.scale * jnp.sum(b.scale[:, None] * y.astype(jnp.float32), 0)


def conv(
    x, w: QTensor, *, activation: ActivationGrid | None, window: dict, bias, act_fn, out_dtype
):
    """Convolve as `reference.conv`; codes of both operands multiply as codes, if 0 is a weight's
    code 0.
    """
    axes, codes = tuple(range(1, x.ndim)), native(w)
    if activation is None and not isinstance(x, QTensor):
        if codes.zero is not None:
            y = _real_conv(x, dequantize(w, x.dtype), window)
            return reference.finish(y, bias, act_fn, out_dtype)
        y = _real_conv(x, codes.values.astype(x.dtype), window)
        return reference.finish(codes.scale * y, bias, act_fn, out_dtype)
    is_integral = is_integer(x.format if activation is None else activation.format)
    if is_integral != is_integer(w.format) or codes.zero is not None:
        x = x if activation is None else quantized(x, activation, axes)
        y = _real_conv(dequantize(x), dequantize(w), window)
        return reference.finish(y, bias, act_fn, out_dtype)
    a = _codes(x, activation, axes)
    y = a.scale * codes.scale * _centered_conv(a, codes, window)
    return reference.finish(y, bias, act_fn, out_dtype)


def _real_conv(x, w, window) -> Array:
    return jax.lax.conv_general_dilated(x, w, preferred_element_type=jnp.float32, **window)


def _centered_conv(a: Native, b: Native, window: dict) -> Array:
    """Return the convolution of (a - z_a) with b as float32; exact for integers up to its last
    conversion.

    Padded with code 0, that is with z_a too little: where the window leaves the image, only the
    taps inside it count z_a. On a GPU the int32 result is converted at once: cuDNN has int8 ->
    float32 convolutions only, and XLA recognizes them by this conversion.
    """
    left, right = widened(a.values), widened(b.values)
    if left.dtype != jnp.int8:
        return _real_conv(left, right, window)
    y = integers.conv(left, right, window)
    if a.zero is None:
        return y.astype(jnp.float32)
    inside = a.zero.reshape((-1,) + (1,) * (y.ndim - 1)) * _taps_inside(left, right, window)
    if jax.default_backend() == "gpu":
        return y.astype(jnp.float32) - inside.astype(jnp.float32)
    return (y - inside).astype(jnp.float32)


def _taps_inside(x: Array, w: Array, window: dict) -> Array:
    """Return the sum of the weights that meet the image at every place [1, *out, N]: x = 1,
    convolved.
    """
    dilation = window.get("rhs_dilation") or (1,) * (w.ndim - 2)
    masks = [
        _meets(n, taps, stride, d, pads)
        for n, taps, stride, d, pads in zip(
            x.shape[1:-1], w.shape[:-2], window["window_strides"], dilation,
            integers.paddings(x.shape, w.shape, window), strict=True,
        )
    ]  # fmt: skip
    taps = integers.sums(w, (w.ndim - 2,), tuple(range(w.ndim - 2)))
    if all(mask.all() for mask in masks):
        return jnp.sum(taps, tuple(range(taps.ndim - 1)), jnp.int32, keepdims=True)[None]
    for mask in masks:  # one axis of the window after the other
        taps = jnp.tensordot(taps, jnp.asarray(mask, jnp.int32), ((0,), (1,)))
    return jnp.moveaxis(taps, 0, -1)[None]


def _meets(n: int, taps: int, stride: int, dilation: int, pads: tuple[int, int]) -> np.ndarray:
    """Whether tap j of output place i lies inside an axis of length n [places, taps]."""
    places = (n + sum(pads) - (taps - 1) * dilation - 1) // stride + 1
    at = np.arange(places)[:, None] * stride + np.arange(taps)[None] * dilation - pads[0]
    return (at >= 0) & (at < n)

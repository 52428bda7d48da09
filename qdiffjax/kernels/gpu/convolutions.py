"""Convolutions on Hopper as products of shifted rows of pixels; the rest goes the way of XLA."""

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.kernels import integers, xla
from qdiffjax.kernels.gpu import matrix_products, products
from qdiffjax.kernels.operands import Native, Summed, native, rounded_codes, widened
from qdiffjax.quant import ActivationGrid, QTensor


def conv(
    x, w: QTensor, *, activation: ActivationGrid | None, window: dict, bias, act_fn, out_dtype
):
    """Convolve as `reference.conv`.

    The kernel takes what `gpu.matmul` does, for strides of 1 and one group of channels, where
    rows of pixels are multiples of 8 and images of 128.
    """
    rest = {"bias": bias, "act_fn": act_fn, "out_dtype": out_dtype}
    is_coded = activation is not None or isinstance(x, QTensor)
    if is_coded and matrix_products.takes(x, w, activation) and _fits(x.shape, w.shape, window):
        a = native(x) if activation is None else rounded_codes(x, activation, (1, 2, 3))
        if a.scale.size in (1, x.shape[0]):
            return _by_taps(a, w, window, **rest)
    return xla.conv(x, w, activation=activation, window=window, **rest)


def _fits(x_shape, w_shape, window: dict) -> bool:
    is_plain = window["dimension_numbers"] == ("NHWC", "HWIO", "NHWC")
    is_one_group = all(window.get(f"{n}_group_count", 1) == 1 for n in ("feature", "batch"))
    if not (is_plain and is_one_group and tuple(window["window_strides"]) == (1, 1)):
        return False
    high, wide = _out_size(x_shape, w_shape, window)
    if high <= 0 or wide <= 0 or wide % 8 or (high * wide) % 128:
        return False
    sizes = x_shape[0] * high * wide, w_shape[3], w_shape[1] * w_shape[2]
    return matrix_products.tile_of(*sizes) is not None


def _dilation(window: dict) -> tuple[int, int]:
    down, right = window.get("rhs_dilation") or (1, 1)
    return down, right


def _out_size(x_shape, w_shape, window: dict) -> tuple[int, int]:
    pads, dilation = integers.paddings(x_shape, w_shape, window), _dilation(window)
    high, wide = (
        n + sum(pad) - (taps - 1) * d
        for n, pad, taps, d in zip(x_shape[1:3], pads, w_shape[:2], dilation, strict=True)
    )
    return high, wide


def _by_taps(a: Native, w: QTensor, window: dict, *, bias, act_fn, out_dtype) -> Array:
    """Taps along a row lie side by side in K, those down the image are shifts of whole rows.

        y[h, w] = sum_i x3[h + i, w] w3[i],   x3[h, w] = (x[h, w], x[h, w + 1], ...)

    Padded with the zero point, so that it counts alike everywhere.
    """
    values = widened(a.values)
    high, wide = _out_size(values.shape, w.shape, window)
    down, right = _dilation(window)
    pads = [(0, 0), *integers.paddings(values.shape, w.shape, window), (0, 0)]
    zero = 0 if a.zero is None else a.zero.reshape(-1)[0].astype(values.dtype)
    values = jnp.pad(values, pads, constant_values=zero)
    shifted = [values[:, :, j * right : j * right + wide] for j in range(w.shape[1])]
    rows = jnp.concatenate(shifted, -1)
    taps = products.Taps(w.shape[0], down * wide, high * wide, rows.shape[1] * wide)
    flat = a._replace(values=rows.reshape(-1, rows.shape[-1]))
    codes = native(w).values.reshape(-1, w.shape[3])
    sums = w.sums.reshape(1, -1) if isinstance(w, Summed) else None
    y = matrix_products.of_codes(
        flat, codes, w.scale, bias=bias, act_fn=act_fn, out_dtype=out_dtype, sums=sums, taps=taps
    )
    return y.reshape(a.values.shape[0], high, wide, w.shape[3])

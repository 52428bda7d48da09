"""Exact sums of products of int8 codes, by the instructions that the processor has.

x86 multiplies unsigned by signed bytes (VNNI): four to a lane, where two signed ones fit. So there

    sum_k l_k r_k = sum_k (l_k + 128) r_k - 128 sum_k r_k,

with the left codes moved up to unsigned, and a convolution as such products of shifted images. On
two cores of a Zen 5 a large product takes 0.25 of float32's time so, of two signed operands 0.6;
3 x 3 convolutions of 32 channels and more, rounding included, 0.4 to 0.6 instead of 0.7 to 1.0
(`bench_convolutions`). That is JAX 0.10. XLA of JAX 0.11 knows for products; a sampler still takes
0.88 of the time it takes without this.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array
from qdiffjax.kernels import unsigned
from qdiffjax.kernels.chip import multiplies_unsigned

Dims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
CONTRACT_ONE: Dims = (((1,), (0,)), ((), ()))


def dot_general(
    left: Array, right: Array, dims: Dims = CONTRACT_ONE, *, is_weight: bool = True
) -> Array:
    """Return int32 sums of products of two int8 arrays; axes in tuples as of `lax.dot_general`.

    `is_weight` says that right stays the same at every step of a sampler, see `sums`.
    """
    if not multiplies_unsigned():
        return _signed_dot(left, right, dims)
    return jax.lax.platform_dependent(
        left, right, cpu=lambda a, b: unsigned_dot(a, b, dims, is_weight),
        default=lambda a, b: _signed_dot(a, b, dims),
    )  # fmt: skip


def conv(left: Array, right: Array, window: dict) -> Array:
    """Return the int32 convolution [B, *out, N] of int8 arrays, channels last, padded with 0.

    Args:
      left: [B, *space, K].
      right: [*window, K / groups, N].
      window: keywords of `lax.conv_general_dilated`.
    """
    if not multiplies_unsigned() or window.get("feature_group_count", 1) != 1:
        return _signed_conv(left, right, window)
    return jax.lax.platform_dependent(
        left, right, cpu=lambda a, b: unsigned_conv(a, b, window),
        default=lambda a, b: _signed_conv(a, b, window),
    )  # fmt: skip


def sums(codes: Array, axes: tuple[int, ...], batch: tuple[int, ...] = ()) -> Array:
    """Return int32 sums of int8 codes over `axes` [*batch, *free].

    Weights are summed where activations have a zero point. On a CPU as products with eight rows of
    ones: of a plain sum, or of a product with one row, XLA moves the conversion to int32 out of a
    sampler's loop, where four times the weights then wait to be summed at every step.
    """
    return jax.lax.platform_dependent(
        codes, cpu=lambda c: _product_with_ones(c, axes, batch),
        default=lambda c: _plain_sums(c, axes, batch),
    )  # fmt: skip


def _product_with_ones(codes, axes, batch):
    n = len(batch)
    shape = [codes.shape[a] for a in (*batch, *axes)]
    ones = jnp.ones((*shape[:n], 8, *shape[n:]), jnp.int8)
    dims = (tuple(range(n + 1, ones.ndim)), axes), (tuple(range(n)), batch)
    return jax.lax.index_in_dim(_signed_dot(ones, codes, dims), 0, n, keepdims=False)


def _plain_sums(codes, axes, batch):
    summed = jnp.sum(codes, axes, jnp.int32)
    kept = [a for a in range(codes.ndim) if a not in axes]
    free = [a for a in kept if a not in batch]
    return summed.transpose([kept.index(a) for a in (*batch, *free)])


def _signed_dot(left, right, dims):
    return jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.int32)


def _signed_conv(left, right, window):
    return jax.lax.conv_general_dilated(left, right, preferred_element_type=jnp.int32, **window)


def unsigned_dot(left: Array, right: Array, dims: Dims, is_weight: bool) -> Array:
    """Compute `dot_general` by unsigned times signed bytes."""
    (contract, others), (batch, batch_there) = dims
    y = unsigned.dot_general(_moved_up(left), right, dims)
    summed = sums if is_weight else _plain_sums
    shifts = 128 * summed(right, others, batch_there)
    kept = left.ndim - len(contract) - len(batch)
    shape = (*shifts.shape[: len(batch)], *(1,) * kept, *shifts.shape[len(batch) :])
    return y - shifts.reshape(shape)


def unsigned_conv(left: Array, right: Array, window: dict) -> Array:
    """Compute `conv` as one product: rows of the image, for each row of the window, then moved and
    added.

    Images shifted along the last axis of space lie side by side. For the other axes the *results*
    are shifted, since copies of the image would take longer.
    Windows in groups of channels, or of dilated inputs, it does not do.
    """
    space, (k, n) = right.shape[:-2], right.shape[-2:]
    strides = tuple(window["window_strides"])
    dilation = window.get("rhs_dilation") or (1,) * len(space)
    image = _padded(materialized(_moved_up(left)), right, window)

    def shifted(x, axis, tap):
        start, stride = tap * dilation[axis - 1], strides[axis - 1]
        places = (image.shape[axis] - (space[axis - 1] - 1) * dilation[axis - 1] - 1) // stride
        return jax.lax.slice_in_dim(x, start, start + places * stride + 1, stride, axis)

    last = len(space)
    rows = jnp.concatenate([shifted(image, last, tap) for tap in range(space[-1])], -1)
    taps = [*itertools.product(*(range(m) for m in space[:-1]))]
    weights = jnp.concatenate([right[tap].reshape(-1, n) for tap in taps], -1)
    y = unsigned.dot_general(rows.reshape(-1, space[-1] * k), weights, CONTRACT_ONE)
    y = y.reshape(*rows.shape[:-1], -1)
    parts = []
    for i, tap in enumerate(taps):
        part = y[..., i * n : (i + 1) * n]
        for axis, at in enumerate(tap, 1):
            part = shifted(part, axis, at)
        parts.append(part)
    shifts = 128 * sums(right.reshape(-1, n), (0,))
    return functools.reduce(jnp.add, parts) - shifts.reshape((1,) * (last + 1) + (n,))


def _moved_up(codes: Array) -> Array:
    """Return the codes + 128 as uint8."""
    return jax.lax.bitcast_convert_type(codes ^ jnp.int8(-128), jnp.uint8)


def materialized(x: Array) -> Array:
    """Return x, computed once.

    XLA on a CPU drops optimization barriers before it fuses, and then computes x, rounding and
    normalization included, once for each of its users, element by element where they pad it. It
    keeps a conditional whose predicate it cannot see.
    """
    is_true = jax.lax.optimization_barrier(jnp.bool_(True))
    return jax.lax.cond(is_true, lambda x: x, jnp.zeros_like, x)


def _padded(image: Array, right: Array, window: dict) -> Array:
    """Return the unsigned image with the border that the window reads: 128, the signed code 0."""
    pads = paddings(image.shape, right.shape, window)
    return jax.lax.pad(image, np.uint8(128), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])


def paddings(x_shape, w_shape, window: dict) -> list[tuple[int, int]]:
    """Return the explicit (low, high) padding of each spatial axis."""
    padding = window["padding"]
    if not isinstance(padding, str):
        return list(padding)
    dilation = window.get("rhs_dilation") or (1,) * (len(w_shape) - 2)
    extents = [(k - 1) * d + 1 for k, d in zip(w_shape[:-2], dilation, strict=True)]
    return jax.lax.padtype_to_pads(x_shape[1:-1], extents, window["window_strides"], padding)

"""Two scales for one array: one for its negative, one for its positive numbers."""

import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant._granularity import (
    Shape,
    check_divides,
    check_finite,
    check_positive,
    compute_dtype,
    divide_small,
    expand,
    group,
)
from qdiffjax.quant.formats import Format
from qdiffjax.quant.ste import fake_quant


def fake_quant_dual(
    x: Array,
    negative_scale: Array,
    positive_scale: Array,
    *,
    format: Format,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> Array:
    """Round x to a grid whose step depends on the sign, and return it in real units.

        x_hat = s * clip(round(x / s), low, high),   s = negative_scale where x < 0,
                                                         positive_scale elsewhere

    For outputs of SiLU or GELU, whose negative numbers are few and small: twin uniform
    quantization, Yuan et al. 2022 (PTQ4ViT), eq. 6, there with power-of-two ratios. VJP, for a
    cotangent u [*shape]: that of `fake_quant` on either side,

        x_bar              = u                                inside,  0         outside
        negative_scale_bar = sum over x < 0  of  u * (round(v) - v)    inside,  u * low   outside
        positive_scale_bar = sum over x >= 0 of  u * (round(v) - v)    inside,  u * high  outside

    with v = x / s and the sums over elements that share a scale.

    Args:
      x: real array [*shape].
      negative_scale: positive steps for x < 0, in units of x [*groups].
      positive_scale: positive steps for x >= 0, in units of x [*groups].
      format: a grid with numbers of both signs; its fields may be traced.
      round_fn: as for `fake_quant`.

    Returns:
      Array [*shape], dtype of x. NaN gives NaN, infinities saturate.

    Raises:
      TypeError: x is not real.
      ValueError: shapes that do not divide, a concrete scale that is not positive, or a static
        format without negative numbers.
    """
    x = jnp.asarray(x)
    dtype = compute_dtype(x)
    _check_two_sided(format)
    scales = tuple(jnp.asarray(s) for s in (negative_scale, positive_scale))
    for scale in scales:
        check_divides(x.shape, scale.shape)
        check_positive(scale)
    if x.size == 0:  # a scale of its own for each of no elements is no scale
        return x
    negative, positive = (expand(s.astype(dtype), x.shape) for s in scales)
    scale = jnp.broadcast_to(jnp.where(x < 0, negative, positive), x.shape)
    return fake_quant(x, scale, format=format, round_fn=round_fn)


def dual_absmax(
    x: Array, *, format: Format, scale_shape: Shape | None = None
) -> tuple[Array, Array]:
    """Return (negative_scale, positive_scale) [*scale_shape] that just avoid clipping.

        negative_scale = min(x) / low,   positive_scale = max(x) / high

    each 1 where x has no numbers of that sign.

    Args:
      x: finite data [*shape].
      format: a grid with numbers of both signs.
      scale_shape: granularity; None = per tensor.

    Raises:
      TypeError: x is not real.
      ValueError: shapes that do not divide, NaN or infinity, or a static format without
        negative numbers.
    """
    x = jnp.asarray(x)
    dtype = compute_dtype(x)
    _check_two_sided(format)
    check_finite(x)
    parts, axes = group(x.astype(dtype), (1,) * x.ndim if scale_shape is None else scale_shape)
    ends = jnp.min(parts, axes, initial=0), jnp.max(parts, axes, initial=0)
    limits = (jnp.asarray(a).astype(dtype) for a in (format.low, format.high))
    negative, positive = (
        _or_one(divide_small(end, limit)) for end, limit in zip(ends, limits, strict=True)
    )
    return negative, positive


def _or_one(scale):
    return jnp.where(scale >= jnp.finfo(scale.dtype).tiny, scale, jnp.ones_like(scale))


def _check_two_sided(format: Format) -> None:
    if format.is_static and not format.low < 0 < format.high:
        raise ValueError(
            f"format: got {format}, with numbers {format.low}..{format.high}, expected both signs; "
            "use a signed format, or fake_quant with one scale."
        )

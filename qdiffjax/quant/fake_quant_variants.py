"""Two scales for one array: one for its negative, one for its positive numbers."""

import functools

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import calibration, rounding
from qdiffjax.quant.formats.integers import Format, IntFormat
from qdiffjax.quant.granularity import (
    Shape,
    check_divides,
    check_finite,
    check_positive,
    compute_dtype,
    divide_small,
    expand,
    group,
    inverse,
)
from qdiffjax.quant.qtensor import check_arguments
from qdiffjax.quant.straight_through import check_random, fake_quant, fake_quant_codes


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


def fake_quant_subtractive(
    x: Array, scale: Array, zero_point: Array | None, dither: Array, *, format: Format
) -> Array:
    """Add noise, round to the grid, and take the same noise away again.

        x_hat = scale * (clip(round(v + d) + zero_point, qmin, qmax) - zero_point - d)

    with v = x / scale, d = dither. For d uniform on [-1/2, 1/2] and v in the window of
    `fake_quant`, nothing saturates and e = x_hat - x is uniform on [-scale / 2, scale / 2],
    independent of x: mean 0, variance scale^2 / 12 (Schuchman 1964; Lipshitz, Wannamaker,
    Vanderkooy 1992, theorem 1). The result is in general not on the grid: whoever decodes must
    know d, so that there is no `quantize` for it. Triangular noise is uniform modulo one step
    and gives the same law, but already saturates half a step inside the window.

    VJP for a cotangent u, as `fake_quant` with round(v + d) for round(v), and dither a constant:

        x_bar     = u                               inside,  0                         outside
        scale_bar = sum u * (round(v + d) - d - v)  inside,  u * (q - zero_point - d)  outside

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups].
      zero_point: integers [*groups], or None for symmetric.
      dither: noise in steps [*shape]; see `rounding.rectangular_like`.
      format: integer codes; bits may be traced. Not binary.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: as `fake_quant`; a dither of another shape; a format that is not an integer
        grid or is binary (a step must be the same everywhere).
    """
    x, scale, dither = jnp.asarray(x), jnp.asarray(scale), jnp.asarray(dither)
    _check(x, dither, format)
    check_arguments(x, scale, zero_point, format)
    scale, noise = (a.astype(compute_dtype(x)) for a in (scale, dither))
    v = x.astype(scale.dtype) * expand(inverse(scale), x.shape)
    round_fn = functools.partial(rounding.dithered, dither=noise)
    # In steps, so that one product comes last: s q - s d would be fused or not, at a whim.
    codes = fake_quant(v, jnp.ones_like(scale), zero_point, format=format, round_fn=round_fn)
    return (expand(scale, x.shape) * (codes - noise)).astype(x.dtype)


def _check(x, dither, format):
    if not isinstance(format, IntFormat) or format.is_binary:
        raise ValueError(
            f"format: got {format!r}, expected IntFormat of 2 bits or more, or unsigned; only a "
            "grid of equal steps can be dithered and undithered."
        )
    if dither.shape != x.shape:
        raise ValueError(
            f"dither: got shape {dither.shape} for x of shape {x.shape}, expected the same; "
            "draw it with rectangular_like(key, x)."
        )


def quantize_gradient(
    x: Array,
    uniform: Array | None = None,
    *,
    format: IntFormat,
    scale_shape: Shape | None = None,
) -> Array:
    """Return x unchanged; quantize the cotangent on its way back.

        x_bar = Q(u),   scale = absmax(u) / qmax per granule

    with stochastic rounding if `uniform` is given (then E x_bar = u: Gupta et al. 2015),
    nearest otherwise. The map is not linear in u, so this is a `jax.custom_vjp` and forward
    mode raises: use it for training only.

    Args:
      x: real array [*shape].
      uniform: numbers in [0, 1) [*shape], or None.
      format: codes for the cotangent, signed; its bits may be traced. Not binary.
      scale_shape: granularity of the cotangent's scale; None = per tensor.

    Raises:
      TypeError: x is not real.
      ValueError: a format without both signs and zero, or a uniform of another shape.
    """
    compute_dtype(x)
    if uniform is not None:
        check_random("uniform", uniform, x)
    if format.is_binary or not format.signed:
        raise ValueError(f"format: got {format}, expected signed with at least 2 bits.")
    qmin, qmax = (jnp.asarray(q).astype(jnp.float32) for q in (format.qmin, format.qmax))
    shape = calibration.per_tensor(x) if scale_shape is None else scale_shape
    return _quantize_gradient(shape, x, qmin, qmax, uniform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantize_gradient(scale_shape, x, qmin, qmax, uniform):
    del scale_shape, qmin, qmax, uniform
    return x


def _quantize_gradient_fwd(scale_shape, x, qmin, qmax, uniform):
    del scale_shape
    return x, (qmin, qmax, uniform)


def _quantize_gradient_bwd(scale_shape, residuals, cotangent):
    qmin, qmax, uniform = residuals
    low, high = calibration.minmax_range(cotangent, scale_shape)
    scale, _ = calibration.scale_from_range(low, high, qmin=qmin, qmax=qmax, symmetric=True)
    round_fn = rounding.nearest_even
    if uniform is not None:
        round_fn = functools.partial(rounding.stochastic, uniform=uniform)
    x_bar = fake_quant_codes(cotangent, scale, None, qmin, qmax, round_fn=round_fn)
    return x_bar, None, None, None


_quantize_gradient.defvjp(_quantize_gradient_fwd, _quantize_gradient_bwd)

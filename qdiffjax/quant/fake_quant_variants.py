"""Fake quantization beyond one scale and one rounding; see `straight_through` for the rules.

fake_quant_dual            two scales: of the negative and of the positive numbers
fake_quant_subtractive     noise that is added before rounding and taken away again
fake_quant_codebook        levels that are learned
fake_quant_block           scales that neighbours share and compute from their own data
quantize_gradient          the identity, whose cotangent is quantized
"""

import functools

import jax
import jax.numpy as jnp

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant import calibration, qtensor, rounding
from qdiffjax.quant.calibration import ranges
from qdiffjax.quant.formats import (
    BlockFormat,
    CodebookFormat,
    Format,
    IntFormat,
    block_scale,
    check_equal_steps,
    level_index,
)
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.granularity import (
    Shape,
    check_like,
    compute_dtype,
    divide_small,
    expand,
    granules,
    in_steps,
    normal_or_one,
    saturated,
)
from qdiffjax.quant.straight_through import fake_quant, fake_quant_codes, with_value


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
    x, negative = qtensor.check_arguments(x, negative_scale)
    x, positive = qtensor.check_arguments(x, positive_scale)
    _check_two_sided(format)
    if x.size == 0:  # a scale of its own for each of no elements is no scale
        return x
    scales = (a.astype(compute_dtype(x)) for a in (negative, positive))
    negative, positive = (expand(a, x.shape) for a in scales)
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
    _check_two_sided(format)
    x, _ = ranges.prepare(x, scale_shape)
    parts, axes = granules(x, (1,) * x.ndim if scale_shape is None else scale_shape)

    def scale(end, limit):
        return normal_or_one(divide_small(end, jnp.asarray(limit).astype(parts.dtype)))

    negative = scale(jnp.min(parts, axes, initial=0), format.low)
    return negative, scale(jnp.max(parts, axes, initial=0), format.high)


def _check_two_sided(format: Format) -> None:
    check_number_format("format", format)
    require(
        not format.is_static or format.low < 0 < format.high, "format", got=format,
        expected="numbers of both signs",
        remedy="use a signed format, or fake_quant with one scale",
    )  # fmt: skip


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
    x, scale = qtensor.check_arguments(x, scale, zero_point, format)
    check_equal_steps(format, "only a grid of equal steps can be dithered and undithered")
    check_like("dither", dither, x, "draw it with rectangular_like(key, x)")
    scale, noise = (jnp.asarray(a).astype(compute_dtype(x)) for a in (scale, dither))
    v = in_steps(x, scale)
    round_fn = functools.partial(rounding.dithered, dither=noise)
    # In steps, so that one product comes last: s q - s d would be fused or not, at a whim.
    codes = fake_quant(v, jnp.ones_like(scale), zero_point, format=format, round_fn=round_fn)
    return saturated(expand(scale, x.shape) * (codes - noise), x.dtype)


def fake_quant_codebook(
    x: Array, scale: Array, levels: Array, *, round_fn: rounding.RoundFn = rounding.nearest_even
) -> Array:
    """Round x to a learned codebook and return it in real units.

        x_hat = scale * levels[j],   j the index of x / scale

    VJP, for a cotangent u [*shape], with v = x / scale and the window levels[0] <= v <= levels[-1]:

        x_bar         = u                               inside,  0               outside
        scale_bar     = sum u * (levels[j] - v)         inside,  u * levels[j]   outside
        levels_bar[k] = sum over elements with j = k of u * scale

    Levels as for the shared weights of Han et al. 2016 (Deep Compression), eq. 3; x and scale as
    for `fake_quant`, whose values these are. The map depends on scale * levels only, so learn
    one of the two or fix a gauge; the straight-through x_bar does not know of that symmetry.

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups].
      levels: ascending, in units of the scale [n]; after an update by a large step, sort them.
      round_fn: as for `CodebookFormat`.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      TypeError: x or levels not real.
      ValueError: shapes that do not divide, a concrete scale that is not positive, or concrete
        levels that do not ascend.
    """
    x, scale = qtensor.check_arguments(x, scale, format=CodebookFormat(jnp.asarray(levels)))
    scale, levels, wide = (jnp.asarray(a).astype(compute_dtype(x)) for a in (scale, levels, x))
    v, fixed = jax.lax.stop_gradient((in_steps(x, scale), levels))
    slack = 2 * jnp.finfo(v.dtype).eps * (fixed[-1] - fixed[0])  # as in `fake_quant`
    inside = (v >= fixed[0] - slack) & (v <= fixed[-1] + slack)
    # Inside, the map is x + scale * (levels[j] - v) with v held; NaN must not reach a product.
    scale, held = expand(scale, x.shape), jnp.where(inside, v, 0)
    looked_up = scale * levels[level_index(v, fixed, round_fn)]
    straight = jnp.where(inside, wide - held * scale, 0) + looked_up
    looked_up = saturated(looked_up, x.dtype).astype(wide.dtype)
    return with_value(straight, jnp.where(jnp.isnan(wide), wide, looked_up)).astype(x.dtype)


def fake_quant_block(
    x: Array,
    format: BlockFormat,
    *,
    axis: int = -1,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> Array:
    """Round x to a block format and return it in real units.

        x_hat = scale * clip(round(x / scale), low, high),   scale = block_scale(x)

    VJP: x_bar = u for every element, also the few that a rule such as OCP's clips, with the scale
    a constant (as NVIDIA Model-Optimizer does for MX). For zero outside instead, call
    `fake_quant(x, block_scale(x, format), format=format.element)`.

    Args:
      x: real array [*shape].
      format: the block format; its element may be traced.
      axis: the axis along which blocks lie.
      round_fn: as for `fake_quant`.

    Returns:
      Array [*shape], dtype of x. NaN gives NaN, infinities saturate.

    Raises:
      TypeError: x is not real.
      ValueError: block_size does not divide the axis.
    """
    x = jnp.asarray(x)
    scale = block_scale(x, format, axis=axis)
    x_hat = fake_quant(jax.lax.stop_gradient(x), scale, format=format.element, round_fn=round_fn)
    return with_value(x, x_hat)


def quantize_block(
    x: Array,
    format: BlockFormat,
    *,
    axis: int = -1,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> qtensor.QTensor:
    """Return x [*shape] as element codes [*shape] and scales [*groups]; see `fake_quant_block`.

    Raises:
      TypeError: x is not real, or a traced element format.
      ValueError: as `fake_quant_block`, and for concrete NaN.
    """
    scale = block_scale(x, format, axis=axis)
    return qtensor.quantize(x, scale, format=format.element, round_fn=round_fn)


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
        check_like("uniform", uniform, x, "draw it with uniform_like(key, x)")
    require(
        format.signed and not format.is_binary,
        "format",
        got=format,
        expected="signed with at least 2 bits",
        remedy="such as IntFormat(8)",
    )
    qmin, qmax = (jnp.asarray(q).astype(jnp.float32) for q in (format.qmin, format.qmax))
    shape = calibration.per_tensor(x) if scale_shape is None else scale_shape
    return _quantize_gradient(shape, x, qmin, qmax, uniform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantize_gradient(scale_shape, x, qmin, qmax, uniform):
    return x


def _quantize_gradient_fwd(scale_shape, x, qmin, qmax, uniform):
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

"""Learned grids beyond LSQ: LSQ+ with an offset, PACT with a clip, and widths that are learned.

Derivatives are exact in the sense of `straight_through`: each is that of one piecewise smooth
function, or says where the published rule is not. Damp the gradient of a parameter with
`scale_gradient`.
"""

import jax
import jax.numpy as jnp

from qdiffjax._checks import checked, require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.calibration import moments, ranges, search
from qdiffjax.quant.formats import MAX_BITS, IntFormat, check_equal_steps
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.formats.integers import usable_scale
from qdiffjax.quant.granularity import (
    Shape,
    check_divides,
    check_positive,
    compute_dtype,
    concrete_all,
    divide_small,
    expand,
    granules,
    group,
    normal_or_one,
    saturated,
)
from qdiffjax.quant.qtensor import check_arguments
from qdiffjax.quant.straight_through import fake_quant, fake_quant_codes, with_value


def fake_quant_lsq_plus(x: Array, scale: Array, beta: Array, *, format: IntFormat) -> Array:
    """Round x to a grid whose offset is learned in real units.

        x_hat = scale * round(clip((x - beta) / scale, qmin, qmax)) + beta

    LSQ+, Bhalgat et al. 2020, section 3.1. VJP, with v = (x - beta) / scale and q the end that
    clips, inside and outside as for `fake_quant`:

        x_bar     = u                        inside,  0      outside
        scale_bar = sum u * (round(v) - v)   inside,  u * q  outside
        beta_bar  = sum 0                    inside,  u      outside

    Zero is a grid point only if beta is a multiple of scale; an integer zero point is
    `fake_quant`.

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups].
      beta: offsets in units of x [*groups].
      format: integer codes; bits may be traced. Not binary.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: as `fake_quant`; a beta that does not divide x; a format without an integer
        grid.
    """
    x, beta = jnp.asarray(x), jnp.asarray(beta)
    check_equal_steps(format, ranges.UNSHIFTABLE)
    check_divides(x.shape, beta.shape)
    dtype = compute_dtype(x)
    shift = expand(beta.astype(dtype), x.shape)
    return saturated(fake_quant(x.astype(dtype) - shift, scale, format=format) + shift, x.dtype)


def fake_quant_pact(x: Array, alpha: Array, *, format: IntFormat) -> Array:
    """Clip to 0..alpha and round to an unsigned grid, with the published gradient.

        x_hat = s * round(clip(x, 0, alpha) / s),    s = alpha / qmax

        x_bar     = u  where 0 <= x < alpha,  else 0
        alpha_bar = sum of u over x >= alpha

    Choi et al. 2018, eqs. 1-3: the derivative of the clip alone. It leaves out that the steps
    grow with alpha; `fake_quant_pact_residual` does not.

    Args:
      x: real array [*shape].
      alpha: positive clips in units of x [*groups].
      format: unsigned integer codes; bits may be traced.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: as `fake_quant`, and for a signed format.
    """
    x, alpha = jnp.asarray(x), jnp.asarray(alpha)
    x_hat = fake_quant_pact_residual(*jax.lax.stop_gradient((x, alpha)), format=format)
    dtype = compute_dtype(x)
    wide, end = x.astype(dtype), expand(alpha.astype(dtype), x.shape)
    clipped = jnp.where(wide >= end, end, jnp.where(wide >= 0, wide, 0))
    return with_value(clipped, x_hat.astype(dtype)).astype(x.dtype)


def fake_quant_pact_residual(x: Array, alpha: Array, *, format: IntFormat) -> Array:
    """Round as `fake_quant_pact`, with the whole derivative in alpha.

        alpha_bar = sum u * (round(v) - v) / qmax   inside,  u  above,  0  below

    with v = x qmax / alpha: LSQ with scale = alpha / qmax (compared with PACT by Esser et al.
    2020, section 2.1). Arguments and errors as for `fake_quant_pact`.
    """
    require(
        isinstance(format, IntFormat) and not format.signed,
        "format",
        got=format,
        expected="IntFormat without sign",
        remedy="IntFormat(bits, signed=False)",
    )
    x, alpha = jnp.asarray(x), jnp.asarray(alpha)
    alpha = alpha.astype(compute_dtype(x))
    scale = divide_small(alpha, jnp.asarray(format.qmax).astype(alpha.dtype))
    return fake_quant(x, scale, format=format)


@checked(format=check_number_format)
def lsq_init(x: Array, *, format: IntFormat, scale_shape: Shape | None = None) -> Array:
    """Return the initial scale of LSQ [*scale_shape]: 2 mean|x| / sqrt(qmax); Esser et al. 2020,
    section 2.1.

    Arguments and errors as for `calibration.absmax`.
    """
    mean = moments.mean_magnitude(*ranges.prepare(x, scale_shape))
    root = jnp.sqrt(jnp.asarray(format.qmax).astype(mean.dtype))
    return usable_scale(divide_small(2 * mean, root), format)


@checked(format=check_number_format)
def lsq_plus_weight_init(x: Array, *, format: IntFormat, scale_shape: Shape | None = None) -> Array:
    """Return the initial scale of LSQ+ for weights [*scale_shape], which have no offset.

        scale = max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1)

    Bhalgat et al. 2020, section 3.2: three standard deviations meet the ends of a signed grid
    -2^(bits - 1) .. 2^(bits - 1) - 1. Arguments and errors as for `calibration.absmax`.
    """
    grouped, axes = granules(*ranges.prepare(x, scale_shape))
    end = jnp.abs(jnp.mean(grouped, axes)) + 3 * jnp.std(grouped, axes)
    codes = jnp.ldexp(jnp.ones((), end.dtype), jnp.asarray(format.bits).astype(jnp.int32) - 1)
    return usable_scale(divide_small(end, codes), format)


def lsq_plus_activation_init(
    x: Array, *, format: IntFormat, scale_shape: Shape | None = None, ratios=search.RATIOS
) -> tuple[Array, Array]:
    """Return the initial scale and beta of LSQ+ for activations [*scale_shape].

        argmin of mean (x_hat - x)^2,    low = qmin scale + beta,  high = qmax scale + beta

    Bhalgat et al. 2020, section 3.2, who descend the gradient from low, high = min x, max x.
    Here the upper end is searched first, then the lower one, each over fractions of the width,
    so that the result is never worse than min-max.

    Args:
      x: data [*shape].
      format: integer codes; bits may be traced. Not binary.
      scale_shape: granularity; None = per tensor.
      ratios: fractions of the width to try [num_ratios], beginning with 1.

    Raises:
      ValueError: as `calibration.minmax`.
    """
    x, shape = ranges.prepare(x, scale_shape)
    check_equal_steps(format, ranges.UNSHIFTABLE)
    low, high = ranges.minmax_range(x, shape)

    def error(low, high):
        scale, beta = _grid_between(low, high, format)
        errors = fake_quant_lsq_plus(x.astype(low.dtype), scale, beta, format=format) - x
        return jnp.mean(*group(errors**2, shape))

    width = high - low
    high = low + width * search.best_ratio(low, width, lambda _, w: error(low, low + w), ratios)
    width = high - low
    low = high - width * search.best_ratio(low, width, lambda _, w: error(high - w, high), ratios)
    return _grid_between(low, high, format)


def _grid_between(low, high, format):
    qmin, qmax = (jnp.asarray(q).astype(low.dtype) for q in (format.qmin, format.qmax))
    scale = normal_or_one(divide_small(high - low, qmax - qmin))
    return scale, low - qmin * scale


def fake_quant_fractional(x: Array, clip: Array, bits: Array, *, signed: bool = True) -> Array:
    """Interpolate between the grids of the two widths beside a real one.

        x_hat = (1 - f) Q_n(x) + f Q_(n+1)(x),    n = floor(bits),  f = bits - n
        d x_hat / d bits = Q_(n+1)(x) - Q_n(x)

    with Q_b of scale clip / qmax(b): the range is the same at every width. Continuous in bits,
    and at an integer exactly that quantizer, with the derivative from above (FracBits, Yang and
    Jin 2021). Derivatives in x and clip are those of `fake_quant`, interpolated.

    Args:
      x: real array [*shape].
      clip: positive half-widths of the range in units of x [*groups]; the upper end if unsigned.
      bits: real widths in 2..16 (1..16 if unsigned), scalar or [*groups].
      signed: whether the grid is -qmax..qmax or 0..qmax.

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: shapes that do not divide, a concrete clip that is not positive, or concrete
        bits out of range.
    """
    x, clip = check_arguments(x, clip)
    bits = jnp.asarray(bits)
    _check_bits(x, bits, least=2 if signed else 1)
    dtype = compute_dtype(x)
    clip, bits = clip.astype(dtype), bits.astype(dtype)
    below = jax.lax.stop_gradient(jnp.floor(bits))

    def quantize(width):
        exponent = width.astype(jnp.int32) - int(signed)
        qmax = jnp.ldexp(jnp.ones_like(width), exponent) - 1
        qmax = qmax.reshape((1,) * clip.ndim) if qmax.ndim == 0 else qmax
        scale = divide_small(*jnp.broadcast_arrays(clip, qmax))
        return fake_quant_codes(x.astype(dtype), scale, None, -qmax if signed else 0 * qmax, qmax)

    part = expand(bits - below, x.shape)
    return ((1 - part) * quantize(below) + part * quantize(below + 1)).astype(x.dtype)


def fake_quant_parametric(x: Array, scale: Array, clip: Array) -> Array:
    """Round x to multiples of scale up to a clip that is free of them; signed.

        x_hat = sign(x) * (scale * round(|x| / scale)   where |x| <= clip,   clip   elsewhere)

    Uhlich et al. 2020, the parametrization (d, q_max), their case U3, with ties away from zero.
    Learning scale and clip, not the width, keeps every gradient bounded. VJP for u, with
    v = x / scale:

        x_bar     = u                        inside,  0                outside
        scale_bar = sum u * (round(v) - v)   inside,  0                outside
        clip_bar  = sum 0                    inside,  u * sign(x)      outside

    The width is `bit_width(scale, clip)`. Held at a given real width by
    scale = `scale_at(clip, bits)`, autodiff gives d x_hat / d bits by the chain rule.

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups].
      clip: positive ends of the range in units of x [*groups].

    Returns:
      Array [*shape], dtype of x.

    Raises:
      ValueError: shapes that do not divide, or a concrete scale or clip that is not positive.
    """
    x, scale = check_arguments(x, scale)
    x, clip = check_arguments(x, clip)
    dtype = compute_dtype(x)
    wide, end = x.astype(dtype), expand(clip.astype(dtype), x.shape)
    no_end = jnp.asarray(jnp.inf, dtype)
    round_fn = rounding.half_away
    rounded = fake_quant_codes(wide, scale.astype(dtype), None, -no_end, no_end, round_fn=round_fn)
    outside = jnp.abs(wide) > end
    return jnp.where(outside, jnp.sign(wide) * end, rounded).astype(x.dtype)


def bit_width(scale: Array, clip: Array) -> Array:
    """Return the width that a signed grid of this step and end takes [*groups], straight-through.

        bits = ceil(log2(clip / scale + 1) + 1)

    Uhlich et al. 2020, section 3; the derivative is that without the ceiling, so that a penalty
    on the size of a network has a gradient.

    Raises:
      ValueError: a concrete scale or clip that is not positive.
    """
    check_positive(scale)
    check_positive(clip)
    real = jnp.log2(clip / scale + 1) + 1
    # log2 need not be exact at powers of two, where the ceiling would make of it a bit more.
    near = jnp.round(real)
    slack = 4 * jnp.finfo(real.dtype).eps * real
    whole = jnp.where(jnp.abs(real - near) <= slack, near, jnp.ceil(real))
    return real + jax.lax.stop_gradient(whole - real)


def scale_at(clip: Array, bits: Array) -> Array:
    """Return the step of a signed grid with a real width: clip / (2^(bits - 1) - 1); inverse of
    `bit_width`.

    Shapes broadcast; d scale / d bits = -scale ln(2) 2^(bits - 1) / (2^(bits - 1) - 1).

    Raises:
      ValueError: a concrete clip that is not positive, or concrete bits that are not above 1.
    """
    check_positive(clip)
    require(
        concrete_all(lambda b: b > 1, bits),
        "bits",
        got=bits,
        expected="more than 1",
        remedy="one bit is the sign's own",
    )
    return clip / (jnp.exp2(bits - 1) - 1)


def _check_bits(x, bits, least):
    if bits.ndim:
        check_divides(x.shape, bits.shape)
    require(
        concrete_all(lambda b: (b >= least) & (b <= MAX_BITS), bits),
        "bits",
        got=bits,
        expected=f"{least}..{MAX_BITS}",
        remedy="clip them there",
    )

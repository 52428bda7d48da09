"""Bit widths that have a gradient."""

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant._granularity import (
    check_divides,
    check_positive,
    compute_dtype,
    concrete_all,
    divide_small,
    expand,
)
from qdiffjax.quant.formats import MAX_BITS
from qdiffjax.quant.ste import fake_quant_codes


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
    x, clip, bits = jnp.asarray(x), jnp.asarray(clip), jnp.asarray(bits)
    _check_clip(x, clip)
    _check_bits(x, bits, least=2 if signed else 1)
    dtype = compute_dtype(x)
    clip, bits = clip.astype(dtype), bits.astype(dtype)
    below = jax.lax.stop_gradient(jnp.floor(bits))

    def quantize(width):
        exponent = width.astype(jnp.int32) - int(signed)
        qmax = jnp.ldexp(jnp.ones_like(width), exponent) - 1
        scale = divide_small(*jnp.broadcast_arrays(clip, _like_rank(qmax, clip)))
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
    x, scale, clip = jnp.asarray(x), jnp.asarray(scale), jnp.asarray(clip)
    for parameter in (scale, clip):
        _check_clip(x, parameter)
    dtype = compute_dtype(x)
    wide, end = x.astype(dtype), expand(clip.astype(dtype), x.shape)
    no_end = jnp.asarray(jnp.inf, dtype)
    round_fn = rounding.half_away
    rounded = fake_quant_codes(wide, scale.astype(dtype), None, -no_end, no_end, round_fn=round_fn)
    outside = jnp.abs(wide) > end
    return jnp.where(outside, jnp.sign(wide) * end, rounded).astype(x.dtype)


def bit_width(scale: Array, clip: Array) -> Array:
    """Width that a signed grid of this step and end takes [*groups], straight-through.

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
    """Step of a signed grid with a real width: clip / (2^(bits - 1) - 1); inverse of `bit_width`.

    Shapes broadcast; d scale / d bits = -scale ln(2) 2^(bits - 1) / (2^(bits - 1) - 1).

    Raises:
      ValueError: a concrete clip that is not positive, or concrete bits that are not above 1.
    """
    check_positive(clip)
    if not concrete_all(lambda b: b > 1, bits):
        raise ValueError(f"bits: got {bits}, expected more than 1, the sign's own.")
    return clip / (jnp.exp2(bits - 1) - 1)


def _like_rank(param, like):
    return param.reshape((1,) * like.ndim) if param.ndim == 0 else param


def _check_clip(x, clip):
    compute_dtype(x)
    check_divides(x.shape, clip.shape)
    check_positive(clip)


def _check_bits(x, bits, least):
    if bits.ndim:
        check_divides(x.shape, bits.shape)
    if not concrete_all(lambda b: (b >= least) & (b <= MAX_BITS), bits):
        raise ValueError(f"bits: got {bits}, expected {least}..{MAX_BITS}; clip them there.")

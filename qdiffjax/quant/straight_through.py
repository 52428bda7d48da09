"""Fake quantization and its derivative rules.

Every rule here is a `jax.custom_jvp` whose tangent is linear, so that both modes of autodiff and
their compositions work; transposing it gives the VJP stated in each docstring, for a cotangent
u [*shape], with v = x / scale and the window

    inside  =  low - zero_point <= v <= high - zero_point        (both ends included).

All rules are the derivatives of one piecewise smooth function,

    inside: x + scale * c,  c = round(v) - v held constant;   outside: scale * (q - zero_point),

so second derivatives are symmetric, and Euler's identity x dx_hat/dx + scale dx_hat/dscale =
x_hat holds, as it must for a map that is homogeneous in (x, scale).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from qdiffjax._checks import NOT_NEGATIVE, checked, optional, require
from qdiffjax._typing import Array
from qdiffjax.quant import qtensor, rounding
from qdiffjax.quant.formats import Format, IntFormat, is_binary
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.granularity import check_like, compute_dtype, concrete_all, expand, inverse


@checked(format=check_number_format)
def fake_quant(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    format: Format,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> Array:
    """Round x to the grid and return it in real units.

        x_hat = scale * (clip(round(x / scale) + zero_point, low, high) - zero_point)

    with the grid of `format` (low = qmin and high = qmax for integers). VJP, summed over the
    elements that share a scale (clipped straight-through in x, Bengio et al. 2013; scale as in LSQ,
    Esser et al. 2020, eq. 3; zero point as in LSQ+, Bhalgat et al. 2020, section 3.1, there for an
    offset beta = -scale * zero_point):

        x_bar          = u                          inside,  0                    outside
        scale_bar      = sum u * (round(v) - v)     inside,  u * (q - zero_point) outside
        zero_point_bar = sum 0                      inside,  -u * scale           outside

    with q = low or high, the value that clips. A zero point that is not an integer is rounded
    first, straight-through; one of an integer dtype is a constant. The binary format {-1, +1}
    has round = sign (sign(0) = +1) and window |x| <= scale.

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups]; same rank as x, each axis divides that of
        x. Its shape is the granularity: all ones = per tensor.
      zero_point: integers [*groups], or None for symmetric.
      format: the codes available; its bits may be traced.
      round_fn: real to integer, applied in units of the format's own spacing; may close over
        arrays, such as the random bits of `rounding.stochastic`.

    Returns:
      Array [*shape], dtype of x; arithmetic in float32 (float64 for float64 x). Inside,
      |x_hat - x| <= scale / 2. NaN gives NaN, infinities saturate, and so does what
      the dtype of x cannot hold.

    Raises:
      TypeError: x is not real.
      ValueError: shapes that do not divide, or a concrete scale that is not positive.
    """
    x, scale = qtensor.check_arguments(x, scale, zero_point, format)
    round_grid = functools.partial(format.round, round_fn=round_fn)
    return _fake_quant(x, scale, zero_point, round_grid, format.low, format.high)


def fake_quant_stochastic(
    x: Array, scale: Array, zero_point: Array | None, uniform: Array, *, format: Format
) -> Array:
    """Round x to the grid at random, without bias inside the window.

        x_hat = scale * (clip(floor(v + uniform) + zero_point, qmin, qmax) - zero_point)
        E x_hat = x,   Var x_hat = scale^2 f (1 - f),   f = v - floor(v)

    Gupta et al. 2015. The VJP is that of `fake_quant` with floor(v + uniform) for round(v).

    Args:
      x: real array [*shape].
      scale: positive steps [*groups].
      zero_point: integers [*groups], or None for symmetric.
      uniform: numbers in [0, 1) [*shape], a constant to autodiff; see `rounding.uniform_like`.
      format: the codes available; its bits may be traced. Not binary.

    Raises:
      ValueError: as `fake_quant`, for the binary format, and a uniform of another shape.
    """
    check_like("uniform", uniform, x, "draw it with uniform_like(key, x)")
    require(
        not is_binary(format),
        "format",
        got="{-1, +1}",
        expected="2 bits or unsigned to round at random",
        remedy="use fake_quant, which rounds by the sign",
    )
    round_fn = functools.partial(rounding.stochastic, uniform=uniform)
    return fake_quant(x, scale, zero_point, format=format, round_fn=round_fn)


@checked(grad_scale=optional(NOT_NEGATIVE))
def fake_quant_lsq(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    format: IntFormat,
    grad_scale: float | Array | None = None,
) -> Array:
    """Round as `fake_quant`, with the gradient of the scale damped as in LSQ.

        scale_bar = grad_scale * (that of fake_quant),    grad_scale = 1 / sqrt(n * qmax)

    Esser et al. 2020, eqs. 3-5 and section 2.2, where n counts the weights that share a scale
    or, for activations, the features. The default takes every element of x that shares a
    scale, which is right for weights; pass grad_scale for activations with a batch axis.

    Raises:
      ValueError: as `fake_quant`.
    """
    if grad_scale is None:
        num_shared = jnp.size(x) // jnp.size(scale)
        root = math.sqrt if format.is_static else jnp.sqrt
        grad_scale = 1 / root(num_shared * format.qmax)
    scale = jnp.asarray(scale)
    damped = scale_gradient(scale, jnp.asarray(grad_scale).astype(scale.dtype))
    return fake_quant(x, damped, zero_point, format=format)


def scale_gradient(x: Array, factor: Array) -> Array:
    """Return x [*shape] unchanged; VJP: x_bar = factor * u. The factor is a constant."""
    return with_value(x * jax.lax.stop_gradient(factor), x)


def fake_quant_codes(
    x: Array,
    scale: Array,
    zero_point: Array | None,
    qmin: int | Array,
    qmax: int | Array,
    *,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> Array:
    """Round as `fake_quant` to integers, with the code range as data: the form to vmap over bits.

    Args:
      x: real array [*shape].
      scale: positive steps [*groups].
      zero_point: integers [*groups], or None.
      qmin: smallest code, scalar or [*groups]; no derivative is taken.
      qmax: largest code, scalar or [*groups]; no derivative is taken.
      round_fn: real to integer; may close over arrays, such as random bits.

    Returns:
      Array [*shape], dtype of x, with the VJP of `fake_quant`.

    Raises:
      TypeError, ValueError: as `fake_quant`, or concrete codes with qmin > qmax.
    """
    x, scale = qtensor.check_arguments(x, scale, zero_point)
    require(
        isinstance(qmin, jax.core.Tracer) or concrete_all(lambda q: q >= qmin, qmax),
        "qmin, qmax",
        got=(qmin, qmax),
        expected="qmin <= qmax",
        remedy="swap them",
    )
    return _fake_quant(x, scale, zero_point, round_fn, qmin, qmax)


def _fake_quant(x, scale, zero_point, round_grid, low, high):
    """Round with round_grid, saturate at low and high, and attach the derivative rule."""
    dtype = compute_dtype(x)
    scale, low, high = (jnp.asarray(a).astype(dtype) for a in (scale, low, high))
    constants = jax.lax.stop_gradient((inverse(scale), low, high))
    zero = jnp.zeros((), dtype)
    if zero_point is not None:
        zero = _round_straight_through(jnp.asarray(zero_point).astype(dtype))
    scale, zero, inverse_scale, low, high = (expand(a, x.shape) for a in (scale, zero, *constants))
    wide = x.astype(dtype)
    # The grid is the rule's business only through the values it returns, so any format, with
    # fields traced or not, shares one rule.
    rounded = round_grid(jax.lax.stop_gradient(wide) * inverse_scale)
    largest = jnp.finfo(x.dtype).max.astype(dtype)
    return _to_grid(wide, scale, zero, inverse_scale, low, high, rounded, largest).astype(x.dtype)


@jax.custom_jvp
def _to_grid(x, scale, zero, inverse_scale, low, high, rounded, largest):
    """Return scale * clip(rounded, low - zero, high - zero), all broadcasting.

    The last half step may reach past the largest number of the result's dtype, and stays there.
    """
    return jnp.clip(scale * jnp.clip(rounded, low - zero, high - zero), -largest, largest)


def _to_grid_jvp(primals, tangents):
    x, scale, zero, inverse_scale, low, high, rounded, _ = primals
    dx, dscale, dzero = tangents[:3]
    v, low, high = x * inverse_scale, low - zero, high - zero
    # Without this slack the element that set scale = absmax / qmax would be inside or outside
    # by the luck of two floating-point divisions.
    slack = 2 * jnp.finfo(v.dtype).eps * (high - low)
    inside = (v >= low - slack) & (v <= high + slack)
    tangent = jnp.zeros_like(x)
    if not isinstance(dx, SymbolicZero):
        tangent += jnp.where(inside, dx, jnp.zeros_like(dx))
    if not isinstance(dscale, SymbolicZero):
        residual = jax.lax.stop_gradient(rounded - v)
        tangent += jnp.where(inside, residual, jnp.where(v < low, low, high)) * dscale
    if not isinstance(dzero, SymbolicZero):
        tangent -= jnp.where(inside, jnp.zeros_like(scale), scale) * dzero
    return _to_grid(*primals), tangent


_to_grid.defjvp(_to_grid_jvp, symbolic_zeros=True)


def _round_straight_through(x):
    return x + jax.lax.stop_gradient(jnp.round(x) - x)  # exact: round(x) - x is representable


@jax.custom_jvp
def with_value(x: Array, value: Array) -> Array:
    """Return value [*shape] with the derivative of x [*shape]; x + (value - x) would round."""
    return value


@with_value.defjvp
def _with_value_jvp(primals, tangents):
    return with_value(*primals), tangents[0]

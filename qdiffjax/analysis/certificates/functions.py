"""Scalar functions on forms, enclosed by their derivatives' ranges on pieces of the argument's."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.analysis.certificates.forms import (
    Form,
    U,
    add,
    bounds,
    scale,
    upward,
    widen,
)

# Of the library's functions, relative to 1 + |value|; measured: log1p is the worst, 2^-46.8.
ACCURACY = 2.0**-44
NUM_PIECES = 8


Range = Callable[[Array, Array], tuple[Array, Array]]


class Scalar(NamedTuple):
    """A function, its derivative, and the ranges of its first two derivatives over [low, high].

    `lowest`: f is defined above it.
    """

    value: Callable
    slope: Callable
    slope_range: Range
    curvature_range: Range
    lowest: float = -math.inf


def monotone(fn: Callable, *turns: float) -> Range:
    """Range, outwards, of a function that is monotone between its turns."""

    def over(low, high):
        ends = jnp.stack([fn(low), fn(high)])
        least, most = ends.min(0), ends.max(0)
        for turn in turns:
            at = fn(jnp.full((), turn))
            inside = (low <= turn) & (turn <= high)
            least = jnp.where(inside, jnp.minimum(least, at), least)
            most = jnp.where(inside, jnp.maximum(most, at), most)
        return _outwards(least, most)

    return over


def lipschitz(fn: Callable) -> Range:
    """Range, outwards, of a function that changes no faster than its argument."""

    def over(low, high):
        width = high - low
        return _outwards(fn(low) - width, fn(low) + width)

    return over


def _outwards(low, high):
    return low - ACCURACY * (1 + jnp.abs(low)), high + ACCURACY * (1 + jnp.abs(high))


class Line(NamedTuple):
    """f(x) = tilt (x - centre) + level + r,  |r| <= rad."""

    centre: Array
    tilt: Array
    level: Array
    rad: Array


def fit(value: Callable, slope_range: Range, low, high) -> Line:
    """Enclose f over [low, high] by the line with the slope of its secant.

    The rest e = f - line is bounded on NUM_PIECES pieces: on one of width d, where e has slopes in
    [p, q], e stays between its ends if these have one sign, and within min(-p, q) d of them else.
    """
    parts = jnp.arange(NUM_PIECES, dtype=low.dtype) / NUM_PIECES
    knots = jax.vmap(lambda part: jnp.clip(low + (high - low) * part, low, high))(parts)
    knots = jnp.concatenate([knots, high[None]])
    f = value(knots)
    p, q = slope_range(knots[:-1], knots[1:])
    half = (high - low) / 2
    is_point = half <= 0
    run = jnp.where(is_point, jnp.ones(()), half)
    tilt = jnp.where(is_point, (p[0] + q[0]) / 2, (f[-1] - f[0]) / (2 * run))
    centre = low + half
    e = f - tilt[None] * (knots - centre[None])
    # Rounding of these slopes is paid for below: they enter multiplied by a piece's width.
    over = jnp.clip(jnp.minimum(tilt[None] - p, q - tilt[None]), 0) * jnp.diff(knots, axis=0)
    most = (jnp.maximum(e[:-1], e[1:]) + over).max(0)
    least = (jnp.minimum(e[:-1], e[1:]) - over).min(0)
    size = 1 + jnp.abs(f).max(0) + jnp.abs(tilt) * half
    rad = upward((most - least) / 2 + 4 * ACCURACY * size, 4)
    return Line(centre, tilt, most / 2 + least / 2, rad)


def _known(value) -> Form:
    return Form(value, jnp.zeros((0, *value.shape)), jnp.zeros(value.shape))


def _on(line: Line, x: Form) -> Form:
    y = scale(add(x, _known(-line.centre)), line.tilt)
    return widen(add(y, _known(line.level)), line.rad)


def _defined(form: Form, low, lowest: float) -> Form:
    if lowest == -math.inf:
        return form
    rad = jnp.where(low > lowest, form.rad, jnp.full((), jnp.inf))
    return dataclasses.replace(form, rad=rad)


def apply(f: Scalar, x: Form) -> Form:
    """Return f(x), first order in the symbols of x; unknown where f is undefined."""
    low, high = bounds(x)
    return _defined(_on(fit(f.value, f.slope_range, low, high), x), low, f.lowest)


def mean_slope(f: Scalar, x: Form, dx: Form) -> Form:
    """Return the mean slope between x and x + dx, first order in the symbols of both.

        (f(x + dx) - f(x)) / dx = int_0^1 f'(x + u dx) du = tilt (x + dx/2 - centre) + level + r

    with the line that encloses f' over the hull of x and x + dx.
    """
    low, high = joint_bounds(x, dx)
    middle = add(x, scale(dx, jnp.full((), 0.5)))
    line = fit(f.slope, f.curvature_range, low, high)
    return _defined(_on(line, middle), low, f.lowest)


def joint_bounds(x: Form, dx: Form) -> tuple[Array, Array]:
    """Return bounds of the hull of x and x + dx."""
    ends = jnp.stack([*bounds(x), *bounds(add(x, dx))])
    return ends.min(0), ends.max(0)


def relu(x: Form) -> Form:
    """Return max(x, 0): x or 0 where decided, else the line through both ends' values."""
    low, high = bounds(x)
    a = jnp.where(low >= 0, jnp.ones(()), jnp.where(high <= 0, jnp.zeros(()), high / (high - low)))
    # f(x) - a x is between 0 at the kink and its value at the ends, -a low.
    top = jnp.where((low < 0) & (high > 0), -a * low, jnp.zeros(()))
    # 1 - a cancels where low is small beside high.
    half = jnp.where(top > 0, upward(top / 2 + 4 * U * high, 4), jnp.zeros(()))
    return widen(add(scale(x, a), _known(half)), half)


def relu_slope(x: Form, dx: Form) -> Form:
    """Return the mean slope of max(x, 0) between x and x + dx: 0, 1 or [0, 1]."""
    low, high = joint_bounds(x, dx)
    least = (low >= 0).astype(jnp.float64)
    most = jnp.maximum(least, (high > 0).astype(jnp.float64))
    unknown = jnp.where(jnp.isfinite(high - low), jnp.zeros(()), jnp.full((), jnp.inf))
    mid = (least + most) / 2
    return Form(mid, jnp.zeros((0, *mid.shape)), (most - least) / 2 + unknown)


def power(n: int) -> Scalar:
    """Return x^n, n >= 2."""
    return Scalar(
        lambda x: x**n, lambda x: n * x ** (n - 1), monotone(lambda x: n * x ** (n - 1), 0.0),
        monotone(lambda x: n * (n - 1) * x ** (n - 2), 0.0),
    )  # fmt: skip


def _sech2(x):
    return 1 / jnp.cosh(x) ** 2


_logistic = jax.lax.logistic


def _logistic_slope(x):
    return _logistic(x) * _logistic(-x)


def _bell(x):
    return 2 / math.sqrt(math.pi) * jnp.exp(-(x**2))


def _smooth(value, slope, curvature, *, slope_turns=(), curvature_turns=(), lowest=-math.inf):
    ranges = monotone(slope, *slope_turns), monotone(curvature, *curvature_turns)
    return Scalar(value, slope, *ranges, lowest)


# Curvatures turn where the third derivative is zero: tanh^2 = 1/3, (1 - 2 logistic)^2 = 1/3,
# 2 x^2 = 1.
_TURN = math.atanh(1 / math.sqrt(3))

SCALARS: dict[str, Scalar] = {
    "tanh": _smooth(
        jnp.tanh, _sech2, lambda x: -2 * jnp.tanh(x) * _sech2(x),
        slope_turns=(0.0,), curvature_turns=(-_TURN, _TURN),
    ),
    "logistic": _smooth(
        _logistic, _logistic_slope, lambda x: _logistic_slope(x) * (_logistic(-x) - _logistic(x)),
        slope_turns=(0.0,), curvature_turns=(-2 * _TURN, 2 * _TURN),
    ),
    "erf": _smooth(
        jax.lax.erf, _bell, lambda x: -2 * x * _bell(x),
        slope_turns=(0.0,), curvature_turns=(-math.sqrt(0.5), math.sqrt(0.5)),
    ),
    "sin": Scalar(jnp.sin, jnp.cos, lipschitz(jnp.cos), lipschitz(lambda x: -jnp.sin(x))),
    "cos": Scalar(
        jnp.cos, lambda x: -jnp.sin(x), lipschitz(lambda x: -jnp.sin(x)),
        lipschitz(lambda x: -jnp.cos(x)),
    ),
    "exp": _smooth(jnp.exp, jnp.exp, jnp.exp),
    "square": power(2),
    "log": _smooth(jnp.log, lambda x: 1 / x, lambda x: -1 / x**2, lowest=0.0),
    "log1p": _smooth(jnp.log1p, lambda x: 1 / (1 + x), lambda x: -1 / (1 + x) ** 2, lowest=-1.0),
    "sqrt": _smooth(
        jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x), lambda x: -0.25 / (x * jnp.sqrt(x)), lowest=0.0
    ),
    "rsqrt": _smooth(
        lambda x: 1 / jnp.sqrt(x), lambda x: -0.5 / (x * jnp.sqrt(x)),
        lambda x: 0.75 / (x * x * jnp.sqrt(x)), lowest=0.0,
    ),
    "reciprocal": _smooth(
        lambda x: 1 / x, lambda x: -1 / x**2, lambda x: 2 / x**3, lowest=0.0
    ),
}  # fmt: skip

"""Roundings of reals to integers. A quantizer takes one of these functions as an argument."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdiffjax._checks import NOT_NEGATIVE, check_key, checked
from qdiffjax._typing import Array, Key

RoundFn = Callable[[Array], Array]


def nearest_even(x: Array) -> Array:
    """Round x [*shape] to the nearest integer, ties to even; |error| <= 1/2, odd in x."""
    return jnp.round(x)


def half_away(x: Array) -> Array:
    """Round x [*shape] to the nearest integer, ties away from zero; |error| <= 1/2, odd in x.

        r = sign(x) * (n + [|x| - n >= 1/2]),    n = floor(|x|)

    The rule of C's `round` and of microxcaling. The usual floor(|x| + 1/2) sends the float
    below 1/2 to 1, since the sum rounds, and moves odd integers above 2^23 (float32); here the
    difference is exact. NaN, infinities and the sign of zero are kept.
    """
    size = jnp.abs(x)
    low = jnp.floor(size)
    return jnp.copysign(low + (size - low >= 0.5).astype(x.dtype), x)


def floor(x: Array) -> Array:
    """Round x [*shape] down: the literal survey, eq. 4.

    For an explicit choice only: its mean error is -1/2 of a step and its mean squared error
    four times that of `nearest_even` (1/3 against 1/12).
    """
    return jnp.floor(x)


def stochastic(x: Array, uniform: Array) -> Array:
    """Round x at random, without bias: floor(x + u), u uniform in [0, 1).

        E r = x,    Var r = f (1 - f),    f = x - floor(x)

    Gupta et al. 2015, section 3. Evaluated as floor(x) + [u >= 1 - f], because the sum x + u
    rounds in floating point and would move integers.

    Args:
      x: real array [*shape], in steps.
      uniform: numbers in [0, 1) [*shape], for example from `uniform_like`; bind them with
        `functools.partial(stochastic, uniform=u)` where a one-argument rounding is wanted.
    """
    low = jnp.floor(x)
    return low + (uniform.astype(x.dtype) >= 1 - (x - low)).astype(x.dtype)


def dithered(x: Array, dither: Array) -> Array:
    """Round after adding noise that is not taken away again: round(x + d), non-subtractive.

        d rectangular on [-1/2, 1/2]:  E e = 0,  E e^2 = f (1 - f),  f = x - floor(x)
        d triangular on [-1, 1]:       E e = 0,  E e^2 = 1/4 whatever x is

    with e = r - x: the rectangular law frees the mean of the error from x, the triangular law
    its variance too, and no law frees e altogether (Lipshitz, Wannamaker, Vanderkooy 1992,
    theorems 5 and 6; Wannamaker et al. 2000, section V). With rectangular noise this is
    `stochastic`. The theorem of the triangular law needs equal steps: on floats it holds within
    binades, at whose upper ends the noise is cut. Noise that is subtracted again is
    `fake_quant_subtractive`.

    Evaluated as n + round(x - n + d), n = round(x), where the difference is exact: the sum
    x + d rounds in floating point and would bias large x. Where x + d is a tie, n wins.

    Args:
      x: real array [*shape], in steps.
      dither: noise in steps [*shape], from `rectangular_like` or `triangular_like`; bind it
        with `functools.partial(dithered, dither=d)` where a one-argument rounding is wanted.
    """
    near = jnp.round(x)
    return near + jnp.where(jnp.isinf(x), 0, jnp.round(x - near + dither.astype(x.dtype)))


@checked(threshold=NOT_NEGATIVE)
def ternary(x: Array, threshold: Array) -> Array:
    """Return sign(x) [*shape] where |x| > threshold, else 0; NaN stays NaN.

    The dead zone of ternary weight networks (Li et al. 2016, eq. 3), in steps; nearest rounding
    to {-1, 0, 1} has threshold 1/2. Bind it with `functools.partial`.
    """
    return jnp.where(jnp.abs(x) <= threshold.astype(x.dtype), jnp.zeros_like(x), jnp.sign(x))


def binary(x: Array) -> Array:
    """Return the sign of x [*shape] as -1 or +1, zero (of either sign) to +1; NaN stays NaN."""
    one = jnp.ones_like(x)
    return jnp.where(x >= 0, one, jnp.where(x < 0, -one, x))


@checked(key=check_key)
def uniform_like(key: Key, x: Array) -> Array:
    """Draw the float32 randomness [*shape] that `stochastic` needs for x [*shape]."""
    return jax.random.uniform(key, jnp.shape(x), jnp.float32)


def rectangular_like(key: Key, x: Array) -> Array:
    """Draw float32 noise [*shape of x] uniform on [-1/2, 1/2): rectangular dither, in steps."""
    return uniform_like(key, x) - 0.5


@checked(key=check_key)
def triangular_like(key: Key, x: Array) -> Array:
    """Draw float32 noise [*shape of x] in (-1, 1) with density 1 - |d|: triangular dither.

    The difference of two independent uniforms, in steps.
    """
    one, other = jax.random.split(key)
    return uniform_like(one, x) - uniform_like(other, x)

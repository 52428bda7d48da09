"""Roundings of reals to integers. A quantizer takes one of these functions as an argument."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array, Key

RoundFn = Callable[[Array], Array]


def nearest_even(x: Array) -> Array:
    """Round x [*shape] to the nearest integer, ties to even; |error| <= 1/2, odd in x."""
    return jnp.round(x)


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


def binary(x: Array) -> Array:
    """Return the sign of x [*shape] as -1 or +1, zero (of either sign) to +1; NaN stays NaN."""
    one = jnp.ones_like(x)
    return jnp.where(x >= 0, one, jnp.where(x < 0, -one, x))


def uniform_like(key: Key, x: Array) -> Array:
    """Draw the float32 randomness [*shape] that `stochastic` needs for x [*shape]."""
    return jax.random.uniform(key, jnp.shape(x), jnp.float32)

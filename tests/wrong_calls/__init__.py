"""Wrong calls of public functions, as tables: a call with a hole, and what must not fill it.

A row is "function(argument)": (call of one value, wrong values). Rows are by room, as the library.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

NAN, INF = math.nan, math.inf
COUNT = (0, -1, 2.5, NAN, "3")  # where a count from 1 belongs
COUNT_FROM_0 = (-1, 2.5, NAN, "3")
FROM_2 = (0, 1, 2.5, NAN)
POSITIVE = (0.0, -1.0, NAN, INF, "x")
AT_LEAST_0 = (-1.0, NAN, INF, "x")
SHARE = (-0.1, 1.1, NAN, "x")  # where a number from 0 to 1 belongs
KEYS = (0, None, "seed", np.zeros(3))
FUNCTIONS = (None, "name", 3)
KEY = jax.random.key(0)


def holed(shape, value, dtype=np.float32):
    """Return small random numbers of a shape with one entry replaced."""
    numbers = np.random.default_rng(0).normal(size=shape).astype(dtype)
    numbers.flat[0] = value
    return jnp.asarray(numbers)


def not_finite(*shape):
    """Return arrays with a NaN, and with an infinity."""
    return tuple(holed(shape, value) for value in (NAN, INF))

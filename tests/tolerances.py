"""The one place where test tolerances are made, and what is compared by them."""

from decimal import Decimal

import chex
import jax
import jax.numpy as jnp
import numpy as np


def assert_close(actual, expected, *, factor: float = 16.0, scale: float | None = None):
    """Assert |actual - expected| <= factor * eps(dtype) * sqrt(n) * scale, elementwise.

    `eps` is that of the coarser dtype of the two, n the number of elements, and `scale` the
    magnitude of the numbers compared (default: the largest |expected|, at least 1e-300).
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    chex.assert_equal_shape([actual, expected])
    floats = [a.dtype for a in (actual, expected) if np.issubdtype(a.dtype, np.floating)]
    eps = max([np.finfo(d).eps for d in floats], default=np.finfo(np.float64).eps)
    if scale is None:
        scale = max(float(np.max(np.abs(expected), initial=0.0)), 1e-300)
    tolerance = factor * float(eps) * np.sqrt(max(actual.size, 1)) * scale
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance)


def last_digit(printed: str) -> float:
    """One unit of the last digit of a printed number."""
    return 10.0 ** Decimal(printed).as_tuple().exponent


def assert_digits(value, printed: str):
    """Assert that value, rounded to as many digits, is the printed number."""
    assert abs(value - float(printed)) <= 0.50001 * last_digit(printed), (value, printed)


def slope(sizes, values):
    """Least-squares slope of log value against log size."""
    return np.polyfit(np.log(np.asarray(sizes)), np.log(np.asarray(values)), 1)[0]


def both_modes(function, *primals):
    """Value, jvp along one direction and vjp of one cotangent."""
    tangents = jax.tree.map(lambda a: jnp.cos(7 * a + 1), primals)
    out, forward = jax.jvp(function, primals, tangents)
    return out, forward, jax.vjp(function, *primals)[1](jnp.sin(5 * out + 2))

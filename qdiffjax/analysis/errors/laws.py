"""How the final error scales with the number of steps N, and where stochastic rounding overtakes.

Each step's share of an error of the network shrinks as 1 / N. Errors that are the same at every
step add up to an integral, whatever N; fresh errors add up as squares and decay as N^(-1/2):

    MSE of nearest rounding      B^2 G_c + tau v G_i / N
    MSE of stochastic rounding   2 v G_i / N

B^2 G_c is what coherent errors leave, v the variance of nearest rounding (stochastic has twice
that), G_i / N the gain of incoherent errors, tau the `coherence` of what nearest rounding commits
beyond its coherent part.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import POSITIVE, SHARE, check_number, checked, require
from qdiffjax._typing import Array


class Exponent(NamedTuple):
    """Of value = prefactor * size^exponent, with the exponent's standard error; leaves [*shape]."""

    exponent: Array
    standard_error: Array
    prefactor: Array


class Floor(NamedTuple):
    """MSE = floor + slope / N, both with standard errors; leaves [*shape]."""

    floor: Array
    slope: Array
    floor_error: Array
    slope_error: Array


@checked(sizes=POSITIVE, values=POSITIVE)
def fit_exponent(sizes, values) -> Exponent:
    """Fit log value = log prefactor + exponent log size by least squares.

    The standard error is that of the slope under independent equal errors of the logarithms.

    Args:
      sizes: [M], positive, M >= 3.
      values: [M, *shape], positive.

    Raises:
      ValueError: fewer than three sizes, or sizes or values that are not positive.
    """
    sizes, values = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    _check_fit("sizes", sizes, values)
    design = np.stack([np.ones_like(sizes), np.log(sizes)], axis=1)
    (offset, slope), (_, error) = _least_squares(design, np.log(values))
    return Exponent(slope, error, np.exp(offset))


@checked(num_steps=POSITIVE, squared_errors=POSITIVE)
def fit_floor(num_steps, squared_errors) -> Floor:
    """Fit MSE = floor + slope / N by least squares of relative residuals.

    The floor is the coherent part B^2 G_c, the slope the incoherent part tau v G_i (nearest) or
    2 v G_i (stochastic); a pure power law has floor 0. Errors as in `fit_exponent`, relative.

    Args:
      num_steps: N [M], M >= 3.
      squared_errors: MSE [M], positive.
    """
    num_steps = np.asarray(num_steps, np.float64)
    squares = np.asarray(squared_errors, np.float64)
    _check_fit("num_steps", num_steps, squares)
    design = np.stack([1 / squares, 1 / (num_steps * squares)], axis=1)
    (floor, slope), (floor_error, slope_error) = _least_squares(design, np.ones_like(squares))
    return Floor(floor, slope, floor_error, slope_error)


def _check_fit(what: str, sizes: np.ndarray, values: np.ndarray) -> None:
    is_fit = values.shape[:1] == sizes.shape and np.unique(sizes).size >= 3
    require(is_fit, what, got=f"{sizes.size} for {values.shape} values",
            expected="at least three that differ, one for each value",
            remedy="two parameters and their errors need three")  # fmt: skip


def _least_squares(design, targets) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients [2, *shape] and their standard errors for targets [M, *shape]."""
    flat = targets.reshape(targets.shape[0], -1)
    fitted, *_ = np.linalg.lstsq(design, flat, rcond=None)
    residual = np.sum((flat - design @ fitted) ** 2, axis=0) / (design.shape[0] - 2)
    spread = np.sqrt(np.diag(np.linalg.inv(design.T @ design))[:, None] * residual)
    shape = (2, *targets.shape[1:])
    return fitted.reshape(shape), spread.reshape(shape)


@checked(scale=check_number, correlation=functools.partial(check_number, least=-1, most=1))
def guidance_gain(scale, correlation) -> Array:
    """Return E|d|^2 / E|d_branch|^2 of guided errors d = (1 - w) d_u + w d_c.

        (1 - w)^2 + w^2 + 2 w (1 - w) rho = 1 + 2 w (w - 1) (1 - rho)

    for branch errors of equal mean square and correlation rho. At w = 7.5 independent errors are
    amplified 98.5 times in power, equal ones not at all. Arguments of any shapes that broadcast;
    w = 1 is the conditional network.
    """
    w = jnp.asarray(scale)
    return 1 + 2 * w * (w - 1) * (1 - jnp.asarray(correlation))


@checked(fraction_u=SHARE, fraction_c=SHARE)
def shared_rounding_covariance(fraction_u, fraction_c) -> Array:
    """Return the covariance of two stochastic roundings with the same random bits, in steps^2.

        min(f_u, f_c) - f_u f_c

    since e = [u >= 1 - f] - f with one u uniform in [0, 1). Equal fractional parts f give the
    variance f (1 - f), rho = 1; unrelated ones, uniform and independent, an average of 1/12
    against the variance 1/6: rho = 1/2. So sharing bits and scales between the branches of
    guidance takes half of the gain beyond one away, 98.5 -> 49.75 at w = 7.5, even where their
    values have nothing in common. It is nonnegative, so with `guidance_gain` sharing helps where
    w > 1 (or w < 0) and hurts between, 0 < w < 1, where independent errors average out.
    """
    f_u, f_c = jnp.asarray(fraction_u), jnp.asarray(fraction_c)
    return jnp.minimum(f_u, f_c) - f_u * f_c

"""Scales from one moment of the data, and the scales of one- and two-bit formats."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import NOT_NEGATIVE, POSITIVE, checked, require
from qdiffjax._typing import Array
from qdiffjax.quant.calibration.ranges import Grid, grid_of, prepare
from qdiffjax.quant.formats import MAX_BITS, Format, IntFormat
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.formats.integers import usable_scale
from qdiffjax.quant.granularity import (
    Shape,
    check_positive,
    expand,
    granules,
    group,
    normal_or_least,
    normal_or_one,
)
from qdiffjax.quant.noise import Folded, Gaussian, Laplace, optimal_scale

GAUSSIAN, LAPLACE = Gaussian(), Laplace(math.sqrt(2))  # unit root mean square; unit mean magnitude


@checked(format=check_number_format, multiple=POSITIVE, overhang=NOT_NEGATIVE)
def rms(
    x: Array,
    *,
    format: Format,
    scale_shape: Shape | None = None,
    multiple: float | Array,
    overhang: float = 0.0,
) -> Grid:
    """Return the symmetric grid that ends at a multiple of the root mean square.

        scale = multiple * sqrt(mean x^2) / (high + overhang)

    Args:
      x: data [*shape].
      format: the numbers available, high the largest; its fields may be traced.
      scale_shape: granularity; None = per tensor.
      multiple: half-width of the range in units of the root mean square.
      overhang: see `scale_from_range`.

    Returns:
      scale [*scale_shape] in units of x, and None.

    Raises:
      ValueError: concrete data that are not finite, shapes that do not divide, or a concrete
        multiple that is not positive.
    """
    x, shape = prepare(x, scale_shape)
    end = _root_mean_square(x, shape)
    end = end * jnp.asarray(multiple).astype(end.dtype)
    return grid_of((-end, end), format, symmetric=True, overhang=overhang)


@checked(format=check_number_format)
def gaussian_clip(x: Array, *, format: Format, scale_shape: Shape | None = None) -> Grid:
    """Return the symmetric scale of least mean squared error for a Gaussian of the data's size.

        scale = s(format) * sqrt(mean x^2),    s = argmin over s of E (Q_s(n) - n)^2,  n ~ N(0, 1)

    with s = `noise.optimal_scale` (Max 1960 gives 4 digits of it, for mid-rise grids). An unsigned
    format takes half-normal data. The constants of traced integer widths are looked up in a table.

    Args:
      x: data [*shape], of mean zero or, for an unsigned format, not negative.
      format: static, or `IntFormat` with traced bits.
      scale_shape: granularity; None = per tensor.

    Returns:
      scale [*scale_shape] in units of x, and None.

    Raises:
      ValueError: as `rms`; more levels than 2^20, which nothing needs to clip.
      TypeError: traced fields of a format that is not an integer grid.
    """
    return _times_optimal(_root_mean_square(*prepare(x, scale_shape)), format, GAUSSIAN), None


@checked(format=check_number_format)
def laplace_clip(x: Array, *, format: Format, scale_shape: Shape | None = None) -> Grid:
    """Return the symmetric scale of least mean squared error for a Laplace law of the data's size.

        scale = s(format) * mean|x|,    s = argmin over s of E (Q_s(l) - l)^2,  l ~ exp(-|l|) / 2

    Banner et al. 2019 (ACIQ), section 3.1, where the error inside the range is approximated by
    step^2 / 12 and the clip so found (2.83, 3.89, 5.03 mean|x| at 2, 3, 4 bits) is that of a
    grid of 2^b equal cells; here the error of the actual grid is minimized. The mean |x| is
    about 0, not about the mean. Arguments and errors as for `gaussian_clip`; an unsigned format
    takes exponential data.
    """
    return _times_optimal(mean_magnitude(*prepare(x, scale_shape)), format, LAPLACE), None


def binary_fit(x: Array, *, scale_shape: Shape | None = None) -> Grid:
    """Return the scale of least squared error for the binary format: mean|x|.

    Rastegari et al. 2016, eq. 6. Arguments, results and errors as for `absmax`.
    """
    return normal_or_least(mean_magnitude(*prepare(x, scale_shape))), None


@checked(ratio=NOT_NEGATIVE)
def ternary_fit(
    x: Array, *, scale_shape: Shape | None = None, ratio: float = 0.7
) -> tuple[Array, Array]:
    """Return the scale and threshold of ternary weights scale * {-1, 0, 1}.

        threshold = ratio * mean|x|,    scale = mean of |x| over |x| > threshold

    Li et al. 2016, eqs. 5 and 6: the scale is optimal for its threshold, and the threshold
    about optimal for data between uniform (2/3) and Gaussian (about 0.75). In use

        round_fn = functools.partial(rounding.ternary, threshold=threshold / scale)
        fake_quant(x, scale, format=IntFormat(2), round_fn=round_fn)

    Args:
      x: data [*shape].
      scale_shape: granularity; None = per tensor.
      ratio: of the threshold to mean|x|.

    Returns:
      scale and threshold, in units of x [*scale_shape].

    Raises:
      ValueError: as `rms`, and for a negative ratio.
    """
    x, shape = prepare(x, scale_shape)
    mean = mean_magnitude(x, shape)
    threshold = mean * jnp.asarray(ratio, mean.dtype)
    size = jnp.abs(x)
    grouped, axes = granules(size, shape)
    kept, _ = group(size.astype(mean.dtype) > expand(threshold, x.shape), shape)
    total = jnp.sum(jnp.where(kept, grouped, 0), axes)
    return normal_or_one(total / jnp.maximum(jnp.sum(kept, axes, dtype=mean.dtype), 1)), threshold


def power_of_two(scale: Array, round_fn: Callable[[Array], Array] = jnp.ceil) -> Array:
    """Round scales [*groups] to powers of two: 2^round(log2 scale), exactly.

    Up (the default) clips nothing that the scale did not; `nearest_even` is nearest in log2,
    with its boundary at sqrt(2); `floor` goes down. Powers of two stay. The exponent comes from
    the bits of the scale, since log2 need not be exact.

    Args:
      scale: positive normal floats.
      round_fn: real to integer, applied to log2(scale) modulo 1.

    Raises:
      ValueError: a concrete scale that is not positive.
    """
    check_positive(scale)
    mantissa, exponent = jnp.frexp(scale)
    finfo = jnp.finfo(scale.dtype)
    part = jnp.clip(jnp.log2(2 * mantissa), finfo.tiny, 1 - finfo.epsneg)
    part = jnp.where(mantissa == 0.5, jnp.zeros_like(part), part)
    exponent = exponent - 1 + round_fn(part).astype(exponent.dtype)
    return jnp.ldexp(jnp.ones_like(scale), exponent)


@functools.lru_cache(maxsize=256)
def _unit_scale(format: Format, law: Gaussian | Laplace) -> float:
    """Return optimal scale for the law, or for that of |x| on a grid without negative numbers."""
    return optimal_scale(format, law if format.low < 0 else Folded(law))


def _constant(format: Any, law: Gaussian | Laplace) -> Array:
    """Return the optimal scale for the law, in the widest float there is, like format.bits."""
    if format.is_static:
        return jnp.asarray(_unit_scale(format, law))
    require(
        isinstance(format, IntFormat), "format", got=format, expected="static fields or IntFormat",
        remedy="use rms, whose multiple is given", error=TypeError,
    )  # fmt: skip
    widths = range(2, MAX_BITS + 1)
    scales = [_unit_scale(dataclasses.replace(format, bits=b), law) for b in widths]
    return jnp.asarray(np.asarray(scales))[format.bits - 2]


def _times_optimal(size: Array, format: Format, law: Gaussian | Laplace) -> Array:
    # The constant is hidden, lest the compiler merge it with that of a mean if it is static.
    constant = jax.lax.optimization_barrier(_constant(format, law).astype(size.dtype))
    return usable_scale(size * constant, format)


def _root_mean_square(x: Array, shape: Shape) -> Array:
    grouped, axes = granules(x, shape)
    largest = normal_or_one(jnp.max(jnp.abs(grouped), axes, keepdims=True))  # squares may overflow
    return jnp.sqrt(jnp.mean((grouped / largest) ** 2, axes)) * jnp.squeeze(largest, axes)


def mean_magnitude(x: Array, shape: Shape) -> Array:
    """Return the mean of |x| over each granule [*shape]."""
    grouped, axes = granules(jnp.abs(x), shape)
    return jnp.mean(grouped, axes)

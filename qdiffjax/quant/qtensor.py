"""Quantized arrays: integer codes with their scale and zero point."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_numbers, check_type, checked, require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding
from qdiffjax.quant.formats import Format, has_equal_steps
from qdiffjax.quant.formats.base import check_number_format
from qdiffjax.quant.granularity import (
    check_divides,
    check_positive,
    compute_dtype,
    concrete_all,
    expand,
    in_steps,
    saturated,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale", "zero_point"),
    meta_fields=("format",),
)
@dataclasses.dataclass(frozen=True)
class QTensor:
    """An array as codes: x ≈ scale * (codes - zero_point). A pytree; format is static.

    The shape of scale is the granularity: same rank as codes, each axis length divides that of
    codes (1 = shared along the axis, full = its own scale, d/g = groups of g neighbours).

    Attributes:
      codes: integers in qmin..qmax [*shape], in `format.storage_dtype`, whole bytes;
        `packing.pack` stores them densely.
      scale: positive steps, in units of x [*groups], float32 or float64.
      zero_point: the codes that mean 0.0, int32 [*groups], or None for symmetric.
      format: the codes that exist.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    format: Format

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that is represented."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """Rank of the array that is represented."""
        return self.codes.ndim


@checked(format=check_number_format)
def quantize(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    format: Format,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> QTensor:
    """Round x to codes (survey, eqs. 4 and 5, with nearest rounding and a zero point).

        codes = clip(round(x / scale) + zero_point, qmin, qmax)

    Infinities saturate. NaN has no code: under tracing it becomes the code of zero.

    Args:
      x: real array [*shape].
      scale: positive steps in units of x [*groups]; its shape is the granularity.
      zero_point: integers [*groups], or None for symmetric.
      format: the codes that exist; static bits only, since they fix the storage dtype.
      round_fn: real to integer; ignored by the binary format, whose rounding is the sign.

    Raises:
      TypeError: traced bits (use `fake_quant`), or x not real.
      ValueError: shapes that do not divide, a scale that is not positive, concrete NaN in x,
        or a zero point with the binary format.
    """
    require(
        format.is_static, "format", got="traced bits", expected="an int",
        remedy="use fake_quant for those", error=TypeError,
    )  # fmt: skip
    x, scale = check_arguments(x, scale, zero_point, format)
    require(
        concrete_all(lambda x: ~jnp.isnan(x), x),
        "x",
        got="NaN",
        expected="numbers",
        remedy="integer codes cannot hold NaN",
    )
    scale = scale.astype(compute_dtype(x))
    zero_point = None if zero_point is None else jnp.round(zero_point).astype(jnp.int32)
    zero = zero_like(zero_point, scale, x.shape)
    values = jnp.nan_to_num(steps(x, scale, zero, format, round_fn), nan=0.0) + zero
    return QTensor(format.encode(values), scale, zero_point, format)


def dequantize(q: QTensor, dtype=jnp.float32) -> Array:
    """Return scale * (codes - zero_point) [*shape] in units of x, as `dtype`.

    Codes are shifted and scaled in float32 (float64 if the scale is float64), then cast once; what
    dtype cannot hold is its largest number.
    """
    check_type("q", q, QTensor, remedy="quantize(x, scale, format=format)")
    zero = zero_like(q.zero_point, q.scale, q.shape)
    shifted = q.format.decode(q.codes, q.scale.dtype) - zero
    return saturated(expand(q.scale, q.shape) * shifted, dtype)


def quantization_error(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    format: Format,
    round_fn: rounding.RoundFn = rounding.nearest_even,
) -> Array:
    """Return e = Q(x) - x [*shape] in units of x (survey, eqs. 6 and 7).

    Arguments as for `quantize`, but bits may be traced and NaN gives NaN. The dtype is float32
    (float64 for float64 x): the error is not rounded to that of x.
    """
    x, scale = check_arguments(x, scale, zero_point, format)
    scale = scale.astype(compute_dtype(x))
    zero = zero_like(zero_point, scale, x.shape)
    grid = saturated(expand(scale, x.shape) * steps(x, scale, zero, format, round_fn), scale.dtype)
    return grid - x.astype(grid.dtype)


def steps(x: Array, scale: Array, zero: Array, format: Format, round_fn) -> Array:
    """Return clip(round(x / scale), low - zero, high - zero) [*shape]: x in steps from its zero."""
    low = expand(jnp.asarray(format.low).astype(scale.dtype), x.shape) - zero
    high = expand(jnp.asarray(format.high).astype(scale.dtype), x.shape) - zero
    return jnp.clip(format.round(in_steps(x, scale), round_fn), low, high)


def check_arguments(
    x: Array, scale: Array, zero_point: Array | None = None, format: Format | None = None
) -> tuple[Array, Array]:
    """Return x and scale as arrays.

    Raises:
      TypeError: x is not real.
      ValueError: a scale or zero point that does not fit x or the format.
    """
    check_numbers("x", x, least_size=0, finite=False)
    check_numbers("scale", scale, finite=False)
    if format is not None:
        check_number_format("format", format)
    x, scale = jnp.asarray(x), jnp.asarray(scale)
    compute_dtype(x)
    check_divides(x.shape, scale.shape)
    check_positive(scale)
    if zero_point is not None:
        check_numbers("zero_point", zero_point)
        check_divides(x.shape, jnp.shape(zero_point), "zero_point")
        require(
            format is None or has_equal_steps(format), "zero_point",
            got=f"one for {format}", expected="None",
            remedy="only integer grids shift, of at least 2 bits or IntFormat(1, signed=False), "
            "not the binary format {-1, +1}",
        )  # fmt: skip
    return x, scale


def zero_like(zero_point: Array | None, scale: Array, shape: tuple[int, ...]) -> Array:
    """Return the zero point, rounded, to broadcast against [*shape]; 0 for None."""
    if zero_point is None:
        return jnp.zeros((), scale.dtype)
    return expand(jnp.round(jnp.asarray(zero_point).astype(scale.dtype)), shape)

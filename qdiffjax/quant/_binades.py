"""Numbers as significand times a power of two, exactly, from the bits of float32 and float64."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array


class Carrier(NamedTuple):
    """Layout of the dtype that carries the arithmetic."""

    mantissa_bits: int
    bias: int
    integer: Any


def carrier_of(dtype) -> Carrier:
    """Layout of float32 or float64.

    Raises:
      TypeError: any other dtype.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return Carrier(23, 127, jnp.int32)
    if jnp.dtype(dtype) == jnp.float64:
        return Carrier(52, 1023, jnp.int64)
    raise TypeError(f"dtype: got {dtype}, expected float32 or float64; cast first.")


def power_of_two(exponent: int | Array, dtype) -> Array:
    """2^exponent [*shape] for exponents of normal numbers, built from bits; exp2 may round."""
    carrier = carrier_of(dtype)
    field = jnp.asarray(exponent).astype(carrier.integer) + carrier.bias
    return jax.lax.bitcast_convert_type(field << carrier.mantissa_bits, dtype)


def split(v: Array, mantissa_bits: int | Array, min_exponent: int | Array) -> tuple[Array, Array]:
    """Return (v / ulp [*shape], exponent [*shape]) with ulp = 2^(exponent - mantissa_bits).

        exponent = max(floor(log2 |v|), min_exponent)

    The exponent is read from the bits of v: log2 rounds, and frexp is wrong for subnormals.
    mantissa_bits and min_exponent are ints, or integer arrays that broadcast against v.
    """
    carrier = carrier_of(v.dtype)
    magnitude = jax.lax.bitcast_convert_type(jnp.abs(v), carrier.integer)
    exponent = (magnitude >> carrier.mantissa_bits) - carrier.bias
    exponent = jnp.clip(exponent, _integer(min_exponent, carrier), carrier.bias)
    # Two factors, 2^(1 - exponent) and 2^(m - 1), are normal numbers where 1 / ulp is not.
    scaled = v * power_of_two(1 - exponent, v.dtype)
    scaled *= power_of_two(_integer(mantissa_bits, carrier) - 1, v.dtype)
    if not _may_be_subnormal(min_exponent, v.dtype):
        return scaled, exponent
    unit = power_of_two(_integer(mantissa_bits, carrier) - carrier.mantissa_bits, v.dtype)
    exact = magnitude.astype(v.dtype) * unit
    is_subnormal = (exponent == 1 - carrier.bias) & (magnitude < 1 << carrier.mantissa_bits)
    return jnp.where(is_subnormal, _with_sign_of(v, exact), scaled), exponent


def join(
    significand: Array, exponent: Array, mantissa_bits: int | Array, min_exponent: int | Array
) -> Array:
    """Return significand * ulp [*shape], the inverse of `split`, for integer significands."""
    dtype = significand.dtype
    carrier = carrier_of(dtype)
    scaled = significand * power_of_two(-_integer(mantissa_bits, carrier), dtype)
    scaled *= power_of_two(exponent, dtype)
    if not _may_be_subnormal(min_exponent, dtype):
        return scaled
    places = carrier.mantissa_bits - _integer(mantissa_bits, carrier)
    bits = jnp.abs(significand).astype(carrier.integer) << places
    exact = _with_sign_of(significand, jax.lax.bitcast_convert_type(bits, dtype))
    return jnp.where(exponent == 1 - carrier.bias, exact, scaled)


def _may_be_subnormal(min_exponent, dtype) -> bool:
    """Whether subnormals of dtype may occur, which XLA's CPU arithmetic flushes to zero."""
    smallest = 1 - carrier_of(dtype).bias
    is_known = isinstance(min_exponent, int)
    return min_exponent <= smallest if is_known else jnp.dtype(dtype) == jnp.float32


def _with_sign_of(v, magnitude):
    return jnp.where(jnp.signbit(v), -magnitude, magnitude)


def _integer(number, carrier):
    return jnp.asarray(number).astype(carrier.integer)

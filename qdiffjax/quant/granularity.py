"""How the shape of a scale divides an array, and the checks every quantizer shares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array

Shape = tuple[int, ...]


def compute_dtype(x: Array) -> jnp.dtype:
    """Arithmetic dtype for x: float32, or float64 if x is float64.

    In bfloat16 arithmetic x / scale flips a few percent of the codes.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x: got {x.dtype}, expected a real floating dtype; cast x first.")
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def check_divides(shape: Shape, scale_shape: Shape) -> None:
    """Raise ValueError unless scale_shape has the rank of shape and each axis divides it."""
    if len(shape) != len(scale_shape) or any(
        g < 1 or n % g for n, g in zip(shape, scale_shape, strict=True)
    ):
        raise ValueError(
            f"scale: got shape {scale_shape} for x of shape {shape}, expected the same rank and "
            "every axis a divisor of that of x; use per_tensor, per_channel, per_group or "
            f"per_token (per tensor is {(1,) * len(shape)})."
        )


def check_positive(scale: Array) -> None:
    """Raise ValueError if a concrete scale has an entry that is not positive and finite."""
    if not concrete_all(lambda s: (s > 0) & jnp.isfinite(s), scale):
        raise ValueError(
            f"scale: got a smallest entry of {np.min(scale)} and a largest of {np.max(scale)}, "
            "expected positive finite steps; calibration returns 1 for an all-zero channel."
        )


def check_finite(x: Array) -> None:
    """Raise ValueError if a concrete x holds NaN or infinity."""
    if not concrete_all(jnp.isfinite, x):
        raise ValueError(
            "x: got NaN or infinity in calibration data, expected finite numbers; find the "
            "layer that overflows, or mask those samples out before calibrating."
        )


def concrete_all(test_fn, x: Any) -> bool:
    """Whether test_fn holds for every element of x; tracers are trusted."""
    if isinstance(x, jax.core.Tracer):
        return True
    with jax.ensure_compile_time_eval():  # a constant may be met while something else is traced
        return bool(jnp.all(test_fn(x)))


def inverse(scale: Array) -> Array:
    """Return 1 / scale [*groups], to multiply by.

    XLA turns a division by a broadcast or constant operand into this product, but not others,
    which would let a granularity, jit or a closed-over scale move ties. Written out, all agree;
    for a scale that is a power of two it is exact.
    """
    return 1 / scale


def divide_small(x: Array, y: Array) -> Array:
    """Return x / y [*groups], correctly rounded whether or not the compiler knows y."""
    return x / jax.lax.optimization_barrier(jnp.broadcast_to(y, x.shape))


def expand(param: Array, shape: Shape) -> Array:
    """Return param [*groups] so that it broadcasts against an array [*shape] of the same rank.

    Shared (1) and full axes stay as they are; only true groups are spelled out, by a broadcast
    and a reshape that XLA fuses into the consumer. Scalars pass.
    """
    if param.ndim == 0 or all(g in (1, n) for n, g in zip(shape, param.shape, strict=True)):
        return param
    pairs = [(g, 1 if g == 1 else n // g) for n, g in zip(shape, param.shape, strict=True)]
    column = param.reshape([size for g, _ in pairs for size in (g, 1)])
    wide = jnp.broadcast_to(column, [size for pair in pairs for size in pair])
    return wide.reshape([g * n for g, n in pairs])


def group(x: Array, scale_shape: Shape) -> tuple[Array, Shape]:
    """Split each axis n of x into (g, n / g); also return the axes to reduce for [*scale_shape]."""
    check_divides(x.shape, scale_shape)
    pairs = [(g, n // g) for n, g in zip(x.shape, scale_shape, strict=True)]
    return x.reshape([size for pair in pairs for size in pair]), tuple(range(1, 2 * x.ndim, 2))

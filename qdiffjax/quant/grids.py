"""The grid of an activation, whether its rounding is simulated or real."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant.calibration.ranges import scale_from_range
from qdiffjax.quant.formats import Format, IntFormat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActivationGrid:
    """The numbers to which a real operand is rounded before it is multiplied; a pytree.

        x ≈ scale * (codes - zero_point),  codes = clip(round(x / scale) + zero_point, qmin, qmax)

    Attributes:
      format: the codes. Bits that are an array are data: grids that differ in them share one
        compilation. Kernels need static bits.
      scale: [] or [*groups], in units of x; None: absmax / high of each token, that is of each row
        of a matrix product and of each sample of a convolution or at an edge (dynamic).
      zero_point: integer code that means 0.0, with the shape of scale, or None for symmetric.
      key: makes the rounding stochastic; None rounds to nearest.
    """

    format: Format
    scale: Any = None
    zero_point: Any = None
    key: Any = None

    def with_bits_as_data(self) -> "ActivationGrid":
        """Return the same grid, its bits an array of the shape of its scale."""
        format: Any = self.format
        bits = jnp.full_like(self.scale, format.bits, dtype=jnp.int32)
        return dataclasses.replace(self, format=dataclasses.replace(format, bits=bits))

    def parameters(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array | None]:
        """Return scale and zero point with the rank of x; `axes` share a dynamic scale."""

        def ranked(value):
            value = jnp.asarray(value)
            return value if value.ndim else value.reshape((1,) * x.ndim)

        scale = token_scale(x, self.format, axes) if self.scale is None else self.scale
        return ranked(scale), None if self.zero_point is None else ranked(self.zero_point)


def activation_grid(low: Array, high: Array, format: Format) -> ActivationGrid:
    """Return the grid of a format over a range, with the shape of the range.

    Integers without sign make an affine grid, which covers low, high and zero; other formats are
    symmetric about zero.
    """
    is_affine = isinstance(format, IntFormat) and not format.signed
    scale, zero_point = scale_from_range(
        low, high, qmin=format.low, qmax=format.high, symmetric=not is_affine
    )
    return ActivationGrid(format, scale, zero_point)


def token_scale(x: Array, format: Format, axes: tuple[int, ...]) -> Array:
    """Return absmax / high over `axes`, which are kept with length 1; 1 where x is 0."""
    absmax = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True)
    high = format.high
    scale, _ = scale_from_range(-absmax, absmax, qmin=-high, qmax=high, symmetric=True)
    return scale

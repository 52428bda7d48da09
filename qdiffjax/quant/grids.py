"""The grid of an activation, whether its rounding is simulated or real."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant.calibration.ranges import scale_from_range
from qdiffjax.quant.formats import Format, IntFormat
from qdiffjax.quant.rounding import RoundFn, nearest_even
from qdiffjax.quant.straight_through import fake_quant, with_value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActivationGrid:
    """The numbers to which a real operand is rounded before it is multiplied; a pytree.

        x ≈ scale * (codes - zero_point),  codes = clip(round(x / scale) + zero_point, qmin, qmax)

    Attributes:
      format: the codes. Bits that are an array are data: grids that differ in them share one
        compilation. Kernels need static bits.
      scale: [] or [*groups], in units of x; None: that of the range of each token (dynamic), that
        is of each row of a matrix product and of each sample of a convolution or an edge.
      zero_point: integer code that means 0.0, with the shape of scale, or None for symmetric; that
        of a dynamic grid comes with its scale.
      key: makes the rounding stochastic; None rounds to nearest.
    """

    format: Format
    scale: Any = None
    zero_point: Any = None
    key: Any = None

    def with_bits_as_data(self) -> "ActivationGrid":
        """Return the same grid, its bits an array of the shape of its scale."""
        format: Any = self.format
        shape = () if self.scale is None else jnp.shape(self.scale)
        bits = jnp.full(shape, format.bits, jnp.int32)
        return dataclasses.replace(self, format=dataclasses.replace(format, bits=bits))

    def parameters(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array | None]:
        """Return scale and zero point with the rank of x; `axes` share a dynamic grid, which is a
        constant in derivatives.
        """

        def ranked(value):
            value = jnp.asarray(value)
            return value if value.ndim else value.reshape((1,) * x.ndim)

        if self.scale is None:
            return jax.lax.stop_gradient(token_grid(x, self.format, axes))
        return ranked(self.scale), None if self.zero_point is None else ranked(self.zero_point)

    def round(self, x: Array, axes: tuple[int, ...], round_fn: RoundFn = nearest_even) -> Array:
        """Return x [*shape] rounded to the grid in real units, `fake_quant` with its derivative.

        A dynamic grid clips nothing, so that its derivative in x is the identity.
        """
        rounded = fake_quant(x, *self.parameters(x, axes), format=self.format, round_fn=round_fn)
        return with_value(x, rounded) if self.scale is None else rounded


def activation_grid(low: Array, high: Array, format: Format) -> ActivationGrid:
    """Return the grid of a format over a range, with the shape of the range.

    Integers without sign make an affine grid, which covers low, high and zero; other formats are
    symmetric about zero.
    """
    scale, zero_point = scale_from_range(
        low, high, qmin=format.low, qmax=format.high, symmetric=not is_affine(format)
    )
    return ActivationGrid(format, scale, zero_point)


def is_affine(format: Format) -> bool:
    """Return whether grids of a format have a zero point: integers without sign."""
    return isinstance(format, IntFormat) and not format.signed


def token_grid(x: Array, format: Format, axes: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Return scale and zero point of the range of x over `axes`, kept with length 1.

    Symmetric: absmax / high, and 1 where x is 0. Affine, for integers without sign: the grid from
    min(x, 0) to max(x, 0), which has all its codes also where x has one sign, as after SiLU.
    """
    if not is_affine(format):
        return token_scale(x, format, axes), None
    wide = x.astype(jnp.float32)
    ends = (reduce(wide, axes, keepdims=True) for reduce in (jnp.min, jnp.max))
    return scale_from_range(*ends, qmin=format.low, qmax=format.high, symmetric=False)


def token_scale(x: Array, format: Format, axes: tuple[int, ...]) -> Array:
    """Return absmax / high over `axes`, which are kept with length 1; 1 where x is 0."""
    absmax = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True)
    high = format.high
    scale, _ = scale_from_range(-absmax, absmax, qmin=-high, qmax=high, symmetric=True)
    return scale

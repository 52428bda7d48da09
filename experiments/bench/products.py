"""Matrix products and convolutions by their shapes, which benchmarks of kernels compare."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

NHWC = ("NHWC", "HWIO", "NHWC")


class Product(NamedTuple):
    """Shapes of x and w: two axes, or NHWC and HWIO of a convolution that keeps the size."""

    x: tuple[int, ...]
    w: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Return how many numbers the result has."""
        return math.prod(self.x[:-1]) * self.w[-1]

    @property
    def flops(self) -> float:
        """Return two operations for every product of numbers, borders included."""
        return 2.0 * self.outputs * math.prod(self.w[:-1])

    def bytes(self, x_bits: float, w_bits: float) -> float:
        """Return the bytes of the operands and of a bfloat16 result."""
        return math.prod(self.x) * x_bits / 8 + math.prod(self.w) * w_bits / 8 + 2.0 * self.outputs


def multiply(x, w, dtype=jnp.float32, precision=None):
    """Multiply or convolve arrays, with sums in `dtype`."""
    if x.ndim == 2:
        return jax.lax.dot(x, w, precision=precision, preferred_element_type=dtype)
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NHWC, precision=precision,
        preferred_element_type=dtype,
    )  # fmt: skip

"""What a product multiplies: the static parameters of a dot_general or a convolution."""

import math
from typing import Any, NamedTuple

Axes = tuple[int, ...]


class Dot(NamedTuple):
    """A `lax.dot_general`: result [*batch, *free of operand 0, *free of operand 1].

    contract, batch: axes of operands 0 and 1, paired in order; dtype: of the result.
    """

    contract: tuple[Axes, Axes]
    batch: tuple[Axes, Axes]
    dtype: Any

    def free(self, index: int, ndim: int) -> Axes:
        """Axes of an operand that the result keeps and does not share."""
        taken = (*self.contract[index], *self.batch[index])
        return tuple(a for a in range(ndim) if a not in taken)

    def sums_last(self, index: int, ndim: int) -> Axes:
        """Axes of an operand, those summed over at the end."""
        return (*self.batch[index], *self.free(index, ndim), *self.contract[index])


class Conv(NamedTuple):
    """A `lax.conv_general_dilated`.

    lhs, rhs, out: axes of each array as (batch, channels, *space), of the kernel as (out, in,
    *space); padding: (low, high) of each axis of space; dtype: of the result.
    """

    lhs: Axes
    rhs: Axes
    out: Axes
    strides: Axes
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Axes
    rhs_dilation: Axes
    feature_groups: int
    batch_groups: int
    dtype: Any

    def sums_last(self, index: int, ndim: int) -> Axes:
        """Axes of an operand, those summed over at the end and channels the very last."""
        outer, channels, *space = self.rhs if index else self.lhs
        return (outer, *space, channels)


def product_of(eqn) -> Dot | Conv:
    """Read the parameters of an equation that is a product."""
    params, dtype = eqn.params, eqn.outvars[0].aval.dtype
    dims = params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        contract, batch = (tuple(tuple(map(int, axes)) for axes in pair) for pair in dims)
        return Dot(contract, batch, dtype)  # type: ignore[arg-type]
    return Conv(
        tuple(dims.lhs_spec), tuple(dims.rhs_spec), tuple(dims.out_spec),
        tuple(params["window_strides"]), tuple(tuple(p) for p in params["padding"]),
        tuple(params["lhs_dilation"]), tuple(params["rhs_dilation"]),
        params["feature_group_count"], params["batch_group_count"], dtype,
    )  # fmt: skip


def contract_axes(product: Dot | Conv, shapes) -> tuple[Axes, ...]:
    """For each operand, its axes that are summed over."""
    if isinstance(product, Dot):
        return product.contract
    lhs = tuple(a for a in range(len(shapes[0])) if a != product.lhs[0])
    rhs = tuple(a for a in range(len(shapes[1])) if a != product.rhs[0])
    return lhs, rhs


def macs_of(product: Dot | Conv, shapes, out_shape) -> int:
    """Multiply-accumulates of one product, those with padding among them.

    Not among them are products with the zeros that a transposed convolution inserts between the
    elements of its input, and those of channels of other groups. Along an axis they are at most
    its elements times its taps, which no padding can exceed.
    """
    if isinstance(product, Dot):
        return math.prod(out_shape) * math.prod(shapes[0][a] for a in product.contract[0])
    (batch, channels, *space), (_, inputs, *window) = product.out, product.rhs
    macs = out_shape[batch] * out_shape[channels] * shapes[1][inputs]
    for i, (axis, taps) in enumerate(zip(space, window, strict=True)):
        (low, _), apart = product.padding[i], product.lhs_dilation[i]
        meetings = sum(
            (place * product.strides[i] + tap * product.rhs_dilation[i] - low) % apart == 0
            for place in range(out_shape[axis])
            for tap in range(shapes[1][taps])
        )
        macs *= min(meetings, shapes[0][product.lhs[i + 2]] * shapes[1][taps])
    return macs

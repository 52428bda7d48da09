"""Codes of a weight whose groups end inside of the axes that are summed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from qdiffjax._typing import Array
from qdiffjax.quant import AlternatingCodes, QTensor, dequantize
from qdiffjax.quant.grids import grouped


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("held",), meta_fields=("shape", "axes")
)
@dataclasses.dataclass(frozen=True)
class RowCodes:
    """Codes of a weight as rows of neighbours, each with a scale, which no kernel multiplies.

    Such as NVFP4 of a 3 x 3 convolution of 24 channels, where a group of 16 neighbours begins in
    one channel's window and ends in another's. They are stored as they are and unpacked at a call.

    Attributes:
      held: the codes [*kept, groups, size], the last group filled up; or those that alternate.
      shape: of the weight; static.
      axes: of the weight that are flattened into rows, in order; static.
    """

    held: QTensor | AlternatingCodes
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def alternates(self) -> bool:
        """Whether codes change from call to call."""
        return isinstance(self.held, AlternatingCodes)

    def at(self, call: Any) -> "RowCodes":
        """Return the codes at a call []."""
        held = self.held
        if not isinstance(held, AlternatingCodes):
            return self
        return dataclasses.replace(self, held=held.at(call))

    def unpacked(self, dtype) -> Array:
        """Return the numbers that the codes stand for, as the site sees them [*shape]."""
        like = jnp.zeros(self.shape, bool)  # of which the way back is all that is read
        _, back = grouped(like, self.held.shape[-1], self.axes, None)
        assert isinstance(self.held, QTensor)
        return back(dequantize(self.held, dtype))

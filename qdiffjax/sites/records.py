"""What is said of a network's sites: one record each, and all of them as a tuple."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from qdiffjax.sites.printing import sites_table
from qdiffjax.sites.products import Conv, Dot
from qdiffjax.sites.values import KINDS


@dataclasses.dataclass(frozen=True)
class Site:
    """One operation of a network that can be given its own precision.

    Attributes:
      name: path of its weight, or common path of the sites upstream plus `dot_0`, `dot_1`, ...;
        `const@file.py:12`, its source line, if the weight is no parameter; `[i]` is the iteration
        of a scan over layers, `#2` the second use of one name.
      kind: "dot", "conv", "input", "output" or "mark"; on request "residual", "skip", "softmax",
        "norm" or "named", see `sites.with_values`.
      weight: which operand is the weight, 0 or 1; None if all operands are activations.
      weight_path: path of the parameter the weight comes from; tied sites share it. The name
        without `[i]` if the weight is no parameter.
      shapes: of the operands.
      out_shape: of the result.
      contract_axes: for each operand, its axes that are summed over.
      macs: multiply-accumulates of one call at the shapes it was listed with.
      parameters: number of elements of the weight operand.
      loops: lengths of the scans around it, outermost first.
      product: which axes multiply and how, or None if it is no product.
      is_constant: whether the weight comes from constants of the function alone, such as a filter
        that resizes images, or weights that a closure hides.
      dtype: of the result.
      weight_size: number of elements of the parameter at `weight_path`.
      part: the slices of that parameter that the weight is, one after the other, () for all of it,
        as where three projections are columns of one kernel; None if an index is computed.
      pieces: lengths of the values of different branches that its activation is a concatenation of,
        along the channels that are summed, as behind a UNet's skips; () if it is none.
    """

    name: str
    kind: str
    weight: int | None
    weight_path: str | None
    shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    contract_axes: tuple[tuple[int, ...], ...]
    macs: int = 0
    parameters: int = 0
    loops: tuple[int, ...] = ()
    product: Dot | Conv | None = None
    is_constant: bool = False
    dtype: str = "float32"
    weight_size: int = 0
    part: tuple | None = ()
    pieces: tuple[int, ...] = ()

    @property
    def activations(self) -> tuple[int, ...]:
        """Indices of the operands that are activations."""
        return tuple(i for i in range(len(self.shapes)) if i != self.weight)

    @property
    def is_value(self) -> bool:
        """Whether it is a value that is a site on request, see `sites.with_values`."""
        return self.kind in KINDS

    @property
    def is_result(self) -> bool:
        """Whether the value at hand is the result of the operation, and not its operands."""
        return self.is_value and self.kind != "skip"

    @property
    def is_real(self) -> bool:
        """Whether its numbers are real: others cannot be rounded."""
        return bool(jnp.issubdtype(self.dtype, jnp.floating))


class Sites(tuple[Site, ...]):
    """All sites of a network in the order of evaluation; a tuple of `Site`.

    Attributes:
      opaque: products that no rule can reach, each entry saying what hides which at which line of
        source; empty is good. It takes no part in comparisons.
    """

    opaque: tuple[str, ...]

    def __new__(cls, sites: Iterable[Site] = (), opaque: Iterable[str] = ()) -> "Sites":
        """Make the tuple."""
        self = super().__new__(cls, sites)
        self.opaque = tuple(opaque)
        return self

    def __repr__(self) -> str:
        return str(sites_table(self, self.opaque))

    def _repr_html_(self) -> str:
        return sites_table(self, self.opaque)._repr_html_()

    def to_dataframe(self):
        """Return a row for each site as a pandas data frame.

        Raises:
          ImportError: pandas is not installed.
        """
        return sites_table(self, self.opaque).to_dataframe()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self), self.opaque)

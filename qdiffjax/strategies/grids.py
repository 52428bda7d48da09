"""A weight with the numbers to which it is to be rounded, before it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from qdiffjax import precision
from qdiffjax.quant import expand
from qdiffjax.sites import Site


class Grid(NamedTuple):
    """A weight and the numbers to which it is to be rounded.

    w: in its basis, without its branch, the operand's shape; scale, zero_point, format: as for
    `quant.fake_quant`; num_scales: that are stored, None for those of `scale`.
    """

    w: Any
    scale: Any
    zero_point: Any
    format: Any
    num_scales: int | None = None

    @classmethod
    def joined(cls, parts: "Sequence[Grid]", axis: int) -> "Grid":
        """Return the grid of a weight whose parts along an axis have grids of their own."""

        def whole(values):
            if values[0] is None:
                return None
            spread = []
            for value, part in zip(values, parts, strict=True):
                shape = tuple(part.w.shape[a] if a == axis else n
                              for a, n in enumerate(value.shape))  # fmt: skip
                spread.append(jnp.broadcast_to(expand(value, shape), shape))
            return jnp.concatenate(spread, axis)

        scale, zero = (whole([part[i] for part in parts]) for i in (1, 2))
        num = sum(part.scale.size for part in parts)
        return cls(whole([part.w for part in parts]), scale, zero, parts[0].format, num)


def whole_grid(site: Site, weight):
    """Return a weight's grid, those of its pieces as one; anything else as it is."""
    if not isinstance(weight, tuple) or isinstance(weight, Grid):
        return weight
    axis = precision.group_axis(site, site.weight or 0)
    assert axis is not None
    return Grid.joined(weight, axis)


def noted(site: Site, w, scale, zero_point, format) -> Grid:
    """Return a weight and its grid in place of rounding it: a `round_fn`."""
    return Grid(w, scale, zero_point, format)

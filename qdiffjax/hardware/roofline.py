"""T(b): the least time that a chip needs, by its peak rate and its memory; Williams et al. 2009."""

from typing import Any, NamedTuple

import numpy as np

from qdiffjax.hardware import costs
from qdiffjax.hardware.chips import INTEGER, Chip, rate_table
from qdiffjax.labels import Kind


class Roofline(NamedTuple):
    """Times of the sites of one call on one chip [..., S].

    Attributes:
      compute, memory: seconds to multiply, seconds to move the operands.
      intensity: operations per byte.
    """

    compute: Any
    memory: Any
    intensity: Any

    @property
    def kind(self) -> Kind:
        """A model of a machine."""
        return Kind.PREDICTED

    @property
    def seconds(self):
        """The longer of the two [..., S]: they overlap."""
        return costs.numpy_of(self.compute).maximum(self.compute, self.memory)

    @property
    def is_memory_bound(self):
        """Whether memory decides [..., S]."""
        return self.memory > self.compute

    @property
    def total(self):
        """Seconds of the network's products, one after another [...]."""
        return self.seconds.sum(-1)


def predict_times(counts: costs.Counts, w: costs.Widths, chip: Chip, *, family=INTEGER) -> Roofline:
    """Time of every product at its widths.

        T_l(b) = max(2 MACs_l / rate(b), traffic_l(b) / bandwidth)

    The survey's T(b) (section on evaluation) as Williams et al. 2009 bound it. Peaks are never
    reached, and nothing between the products is counted, so real times are longer.

    Args:
      counts: of the network.
      w: widths [..., S].
      chip: the machine.
      family: of the codes, `chips.INTEGER` or `chips.FLOAT`.
    """
    moved = costs.traffic(counts, w)
    bits = costs.operand_bits(counts, w)
    rates = rate_table(chip, full=w.full, family=family)
    index = costs.numpy_of(moved).ceil(bits).astype(np.int32)  # codes need whole bits
    ops = costs.like(2 * counts.macs, moved)
    compute = ops / costs.like(rates, moved)[index]
    return Roofline(compute, moved / chip.bandwidth, ops / moved)

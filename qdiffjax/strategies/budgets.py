"""Budgets in other units than bits: what a choice costs at a site, additive over sites.

    stored_bytes(40_000)                 codes and scales of the weights
    bit_operations("W4A8")               products of single bits in a call
    seconds(2e-6, "H200", batch=64)      predicted for a named chip, conversions included
    joules("W4A8")                       of a stated model of energy
    Budget(most, price, unit)            any other: price(site, choice) -> number

A budget is a number in its unit, or a choice such as "W4A8": what that takes at all sites. It is of
the sites that are offered choices; what the others cost is not in it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from qdiffjax._checks import check_count, check_number, check_type, require
from qdiffjax.precision import SiteBits, width_of
from qdiffjax.sites import Site
from qdiffjax.strategies.choices import Choices, bits_of

if TYPE_CHECKING:
    from qdiffjax.hardware import Chip, EnergyModel

Price = Callable[[Site, SiteBits], float]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a recipe may cost, and how a choice is priced.

    Attributes:
      most: in units, or a choice: what it costs at all sites.
      price: (site, choice) -> units; not negative, infinite for what cannot be had.
      unit: in words.
      batch: samples of the call whose sites are priced.
      is_stored: whether sites that share a weight pay once, as for memory; else each pays.

    Raises:
      ValueError: a budget that is not positive, no samples.
    """

    most: float | str
    price: Price
    unit: str
    batch: int = 1
    is_stored: bool = False

    def __post_init__(self):
        if not isinstance(self.most, str):
            check_number("budget", self.most, above=0)
        require(callable(self.price), "price", got=type(self.price).__name__,
                expected="a function (site, choice) -> number",
                remedy="see strategies.budgets", error=TypeError)  # fmt: skip
        check_count("batch", self.batch)

    def priced(self, choices: Choices) -> Choices:
        """Return the choices with their costs in this unit.

        Raises:
          ValueError: a price that is negative or NaN, a site without a choice that can be had.
        """
        check_type("choices", choices, Choices, remedy="offer(calibration, steps, choices)")
        sites = {s.name: s for s in choices.calibration.denoiser.sites(self.batch)}
        costs = np.full(choices.bits.shape, np.inf)
        for row, site in enumerate(choices.sites):
            payers = choices.members[site][:1] if self.is_stored else choices.members[site]
            for column in np.flatnonzero(np.isfinite(choices.bits[row])):
                entry = choices.entries[choices.names[column]]
                paid = [float(self.price(sites[name], entry)) for name in payers]
                require(min(paid) >= 0, f"price of {choices.names[column]} at {site}",
                        got=min(paid), expected="a number from 0",
                        remedy="write infinity for what cannot be had")  # fmt: skip
                costs[row, column] = math.fsum(paid)
            require(np.isfinite(costs[row]).any(), site, got=f"no choice of finite {self.unit}",
                    expected="at least one",
                    remedy="offer another format there")  # fmt: skip
        return dataclasses.replace(choices, costs=costs, unit=self.unit)


def stored_bytes(most: float | str) -> Budget:
    """Return a budget of bytes: the codes of the weights, their scales and zero points.

    Each stored weight once; scales of float32, also where there is one for every group.
    """
    return Budget(most, lambda site, bits: bits_of(site, bits.weight) / 8, "bytes", is_stored=True)


def bit_operations(most: float | str, *, batch: int = 1) -> Budget:
    """Return a budget of bit-operations of a call: the survey's C(b), MACs b_w b_a.

    An operand in full precision has 32 bits.
    """
    from qdiffjax import hardware

    def price(site: Site, bits: SiteBits) -> float:
        w, a = (32 if b is None else width_of(b) for b in bits)
        found = hardware.bops(
            hardware.count([site]), hardware.Widths(np.array([w]), np.array([a]), 32)
        )
        return float(found[0])

    return Budget(most, price, "bit-operations", batch)


def seconds(
    most: float | str, chip: "Chip | str", *, batch: int = 1, full: int = 16
) -> Budget:  # fmt: skip
    """Return a budget of predicted seconds of a call on a chip; see `hardware.site_seconds`.

    Args:
      most: seconds, or a choice.
      chip: the machine, or its name, such as "H200" or "v5e".
      batch: samples of a call.
      full: width of full precision, 16 or 32, which products of real numbers have.

    Raises:
      ValueError: a chip that is not known.
    """
    from qdiffjax import hardware

    found = hardware.find_chip(chip) if isinstance(chip, str) else chip
    require(found is not None, "chip", got=repr(chip),
            expected=f"one of {', '.join(c.name for c in hardware.CHIPS)}",
            remedy="or a hardware.Chip of your own")  # fmt: skip
    assert found is not None
    check_type("chip", found, hardware.Chip, remedy="hardware.find_chip(name)")
    hardware.check_full("full", full)
    return Budget(most, lambda site, bits: hardware.site_seconds(site, bits, found, full=full),
                  f"seconds on {found.name}", batch)  # fmt: skip


def joules(
    most: float | str, model: "EnergyModel | None" = None, *, batch: int = 1, full: int = 16
) -> Budget:
    """Return a budget of predicted joules of a call; see `hardware.predict_energy`.

    Operands that no kernel multiplies as they are stored, or of two kinds, multiply in full
    precision.

    Args:
      most: joules, or a choice.
      model: of energy; None is `hardware.HOROWITZ`.
      batch: samples of a call.
      full: width of full precision, 16 or 32.
    """
    from qdiffjax import hardware

    hardware.check_full("full", full)
    used = hardware.HOROWITZ if model is None else model

    def price(site: Site, bits: SiteBits) -> float:
        w, a = (full if b is None else width_of(b) for b in bits)
        kinds = [hardware.family_of(b) for b in bits]
        is_real = kinds[0] != kinds[1] or hardware.OTHER in kinds
        widths = hardware.Widths(np.array([w]), np.array([full if is_real else a]), full)
        family = hardware.FLOAT if kinds[0] == hardware.FLOAT else hardware.INTEGER
        counts = hardware.count([site])
        return float(hardware.predict_energy(counts, widths, used, family=family).total)

    return Budget(most, price, "joules", batch)

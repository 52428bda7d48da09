"""How a chip runs the formats of a site, and the seconds of that: product and conversions.

Execution           what is multiplied, and why it is not what the recipe asks for
site_seconds        of one site, additive over sites: what an allocation of bits minimizes
times_on_chips      recipes beside chips: one chosen for one chip, priced on another
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qdiffjax._checks import check_type, require
from qdiffjax._tables import Table
from qdiffjax.hardware import costs
from qdiffjax.hardware.chips import CHIPS, FLOAT, FULL, INTEGER, Chip, check_full, multiplied_as
from qdiffjax.labels import Kind
from qdiffjax.precision import OperandFormat, Recipe, SiteBits, width_of
from qdiffjax.quant import BlockFormat, IntFormat
from qdiffjax.sites import Site

PRODUCTS = ("dot", "conv")
OTHER = "other"  # formats that no kernel multiplies: their codes become real numbers first


class Execution(NamedTuple):
    """How a chip runs a site.

    product: the format that is multiplied, one of `chips.FORMATS`; fallback: why it is not that of
    the codes, None where it is, or where nothing else was asked for; unpacks: whether the weight is
    written as real numbers before the product.
    """

    product: str
    fallback: str | None
    unpacks: bool


def family_of(entry: Any) -> Any:
    """Return INTEGER, FLOAT or OTHER for what one operand is, None for full precision.

    INTEGER: up to 8 bits; FLOAT: 8-bit floats; OTHER: what no kernel multiplies as it is stored,
    such as codebooks, block formats and scales in groups of an activation.
    """
    if entry is None:
        return None
    format = entry.format if isinstance(entry, OperandFormat) else IntFormat(int(entry))
    if not isinstance(format, IntFormat):
        from qdiffjax.kernels import is_multiplied  # late: a ledger loads no kernel

        return FLOAT if is_multiplied(format) else OTHER
    return INTEGER if format.is_static and format.bits <= 8 and not format.is_binary else OTHER


def run_as(bits: SiteBits, chip: Chip, *, full: int = 16) -> Execution:
    """Return how a chip runs the formats of a site.

    Codes of one family multiply in the narrowest format of the family that the chip has
    (`multiplied_as`). All else multiplies in full precision: a weight alone, whose integers or
    8-bit floats kernels make real as they read them; formats that no kernel multiplies, unpacked
    before; and codes that the chip has no units for, which are then simulated.

    Args:
      bits: of the site.
      chip: the machine.
      full: width of full precision, 16 or 32.
    """
    check_type("bits", bits, SiteBits, remedy="SiteBits(weight=4, activation=8)")
    check_type("chip", chip, Chip, remedy="find_chip(name)")
    check_full("full", full)
    weight, activation = map(family_of, bits)
    real = next(f for f in FULL[full] if f in chip.rates)
    unpacks = weight == OTHER
    if activation is None:
        return Execution(real, "weights unpacked" if unpacks else None, unpacks)
    if OTHER in (weight, activation) or isinstance(
        getattr(bits.activation, "granularity", None), int
    ):
        return Execution(real, "no kernel for the format", unpacks)
    if weight != activation:
        return Execution(real, "operands of two kinds", unpacks)
    wide = max(int(width_of(bits.weight)), int(width_of(bits.activation)))
    product = multiplied_as(chip, wide, full=full, family=weight)
    is_real = product == real
    kind = "int8" if weight == INTEGER else "8-bit float"
    return Execution(product, f"no {kind} units" if is_real else None, False)


def site_seconds(site: Site, bits: SiteBits, chip: Chip, *, full: int = 16) -> float:
    """Return the seconds that a chip needs for a site at least, with what makes codes of numbers.

        T = max(2 MACs / rate, traffic / bandwidth) + conversions / bandwidth

    The product as in `predict_times`, at the rate of `run_as`. Conversions are bytes of passes
    of their own: an activation is read, twice where its scale is found at run time, and written as
    codes, or as real numbers where the product is real; a weight that is unpacked is written and
    read as real numbers. Fused passes take less, real kernels more.

    Args:
      site: its shapes hold the batch; other than a product takes no time.
      bits: its formats; None is full precision.
      chip: the machine.
      full: width of full precision, 16 or 32.
    """
    check_type("site", site, Site, remedy="denoiser.sites()")
    if site.kind not in PRODUCTS:
        return 0.0
    way = run_as(bits, chip, full=full)
    counts = costs.count([site])
    w, a = (full if b is None else width_of(b) for b in bits)
    is_real = way.product in FULL[full]
    stored = np.array([costs.stored_width(bits.weight, full)])
    read = costs.Widths(np.array([w]), np.array([full if is_real else a]), full, stored)
    compute = 2 * site.macs / chip.rates[way.product]
    product = max(compute, float(costs.traffic(counts, read)[0]) / chip.bandwidth)
    moved = 0.0
    if bits.activation is not None:
        elements = int(counts.activations[0])
        reads = 2 if _is_dynamic(bits.activation) else 1
        moved += elements * (reads * full + (full if is_real else a)) / 8
    if way.unpacks:
        moved += 2 * int(counts.weights[0]) * full / 8
    return product + moved / chip.bandwidth


def _is_dynamic(entry: Any) -> bool:
    """Return whether the scales of an activation are found at run time; a plain width's are not."""
    if not isinstance(entry, OperandFormat):
        return False
    return isinstance(entry.format, BlockFormat) or entry.scales in (None, "dynamic")


@dataclasses.dataclass(frozen=True, repr=False)
class ChipTimes:
    """Predicted seconds of recipes on chips.

    Attributes:
      recipes: names; the first is what ratios are to.
      chips: names.
      seconds: of a call of the network's products [recipes, chips].
      fallbacks: {(recipe, chip): {why: number of sites}}, only where there are some.
      full: width of full precision.
    """

    recipes: tuple[str, ...]
    chips: tuple[str, ...]
    seconds: np.ndarray
    fallbacks: Mapping[tuple[str, str], Mapping[str, int]]
    full: int

    @property
    def kind(self) -> Kind:
        """A model of machines."""
        return Kind.PREDICTED

    def table(self) -> Table:
        """Return seconds over those of the first recipe; * where sites fall back."""
        ratios = self.seconds / self.seconds[0]
        rows = tuple(
            (name, *(f"{ratio:.2f}" + ("*" if (name, chip) in self.fallbacks else "")
                     for chip, ratio in zip(self.chips, row, strict=True)))
            for name, row in zip(self.recipes, ratios, strict=True)
        )  # fmt: skip
        notes = tuple(
            f"* {name} on {chip}: " + ", ".join(f"{why} ({n} sites)" for why, n in found.items())
            for (name, chip), found in self.fallbacks.items()
        )
        return Table(f"Predicted seconds of a call, over those of {self.recipes[0]}",
                     ("recipe", *self.chips), rows, notes)  # fmt: skip

    def __repr__(self):
        return str(self.table())


def times_on_chips(
    sites: Sequence[Site], recipes: Mapping[str, Recipe], chips: Sequence[Chip] = CHIPS, *,
    full: int = 16,
) -> ChipTimes:  # fmt: skip
    """Return what recipes take on chips, each beside full precision, conversions included.

    What a chip does not multiply is priced on the path that it falls back to, and counted there,
    see `run_as`.

    Args:
      sites: of `denoiser.sites(batch)`, all of the network.
      recipes: by name, such as the chip for which each was chosen.
      chips: the machines.
      full: width of full precision, 16 or 32.

    Raises:
      ValueError: a recipe by step, or sites of another network.
    """
    check_full("full", full)
    costs.count(sites)  # refuses what are no sites
    names = {site.name for site in sites}
    seconds = [[_seconds(sites, {}, chip, full) for chip in chips]]
    fallbacks: dict[tuple[str, str], dict[str, int]] = {}
    for name, recipe in recipes.items():
        check_type(name, recipe, Recipe, remedy="precision.uniform(sites, ...)")
        require(not recipe.phases, name, got="a recipe by step", expected="one for all steps",
                remedy="Recipe(table) for each table of recipe.tables")  # fmt: skip
        require(set(recipe.bits) <= names, name, got=f"{sorted(set(recipe.bits) - names)[:1]}",
                expected="sites of this network",
                remedy="denoiser.sites(batch)")  # fmt: skip
        seconds.append([_seconds(sites, recipe.bits, chip, full) for chip in chips])
        for chip in chips:
            whys = [run_as(recipe.bits[s.name], chip, full=full).fallback
                    for s in sites if s.name in recipe.bits and s.kind in PRODUCTS]  # fmt: skip
            found = {why: whys.count(why) for why in dict.fromkeys(whys) if why is not None}
            if found:
                fallbacks[name, chip.name] = found
    return ChipTimes((f"{full} bits", *recipes), tuple(chip.name for chip in chips),
                     np.array(seconds), fallbacks, full)  # fmt: skip


def _seconds(sites, bits: Mapping[str, SiteBits], chip: Chip, full: int) -> float:
    plain = SiteBits()
    return math.fsum(
        site_seconds(site, bits.get(site.name, plain), chip, full=full) for site in sites
    )

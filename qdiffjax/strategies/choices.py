"""What each site's weight may be: quantized once for every choice, in one structure.

    offer(calibration, steps, ("W4", "W6", "W4 mse")) -> Choices
    choices.recipe(pick), choices.quantized(pick), choices.total(pick)     of any pick

A pick is an index of a choice for each site, so that one compiled program runs every recipe.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qdiffjax import precision
from qdiffjax._checks import check_names, check_type, require
from qdiffjax.diffusion import Steps
from qdiffjax.precision import OperandFormat, Quantized, Recipe, SiteBits, SiteQuant
from qdiffjax.precision.calibration import Calibration
from qdiffjax.precision.formats import DYNAMIC, SUMS
from qdiffjax.precision.refusals import check_steps
from qdiffjax.precision.settings import SITES
from qdiffjax.quant import IntFormat, RoundingSequence
from qdiffjax.sites import Site, match, stored_elements

STORED, MULTIPLIED = "stored", "multiplied"
BITS = "bits"
Offered = Sequence[str | int] | Mapping[str, Sequence[str | int]]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Choices:
    """Sites with weights, and what each of them may be.

    Attributes:
      calibration: of the network.
      steps: the sampler.
      sites: names; sites that share a stored weight are one.
      names: of the choices, in words, one for each column.
      entries: {choice: SiteBits}.
      bits: of a choice at a site [sites, choices]; infinite where it is not offered.
      costs: what a budget counts [sites, choices]: bits, or in another `unit`, see `budgets`.
      unit: of the costs.
      num_weights: elements stored at each site [sites].
      weight_rmse: RMS of what a choice does to the weight [sites, choices]; infinite where it is
        not offered, NaN where the weight changes from call to call.
      members: {site: all sites that share its weight, itself first}.
      tables: what the rule is given {choice: {site: SiteQuant}}, weights alone and with the
        activations that the choice rounds, all in one structure; full precision under None.
    """

    calibration: Calibration
    steps: Steps
    sites: tuple[str, ...]
    names: tuple[str, ...]
    entries: dict[str, SiteBits]
    bits: np.ndarray
    costs: np.ndarray
    unit: str
    num_weights: np.ndarray
    weight_rmse: np.ndarray
    members: dict[str, tuple[str, ...]]
    tables: dict[Any, dict[str, SiteQuant]]

    @property
    def least(self) -> float:
        """Cost of the cheapest recipe."""
        return float(self.costs.min(1).sum())

    def pick(self, name: str | int) -> np.ndarray:
        """Return the pick of one choice at all sites.

        Raises:
          ValueError: no such choice, or a site that is not offered it.
        """
        name = _words(name)
        check_names("choice", (name,), self.names)
        column = self.names.index(name)
        for site, bits in zip(self.sites, self.bits[:, column], strict=True):
            require(np.isfinite(bits), site, got=f"no {name!r}", expected="it among its choices",
                    remedy="offer it at all sites")  # fmt: skip
        return np.full(len(self.sites), column)

    def checked(self, pick) -> np.ndarray:
        """Return a pick, or refuse what is none.

        Raises:
          ValueError: another number of sites, or a choice that a site is not offered.
        """
        pick = np.asarray(pick)
        is_pick = (
            pick.shape == (len(self.sites),)
            and pick.dtype.kind in "iu"
            and (bool(np.all((pick >= 0) & (pick < len(self.names)))))
        )
        require(is_pick, "pick", got=f"{pick.dtype} {list(pick.shape)}",
                expected=f"{len(self.sites)} indices below {len(self.names)}",
                remedy="choices.pick(name), or what `choose_together` found")  # fmt: skip
        for site, bits in zip(self.sites, self.bits[np.arange(len(pick)), pick], strict=True):
            require(np.isfinite(bits), site, got="a choice that it is not offered",
                    expected="one of its own", remedy="offer it there too")  # fmt: skip
        return pick

    def total(self, pick) -> float:
        """Return the cost of all sites."""
        return float(self.costs[np.arange(len(self.sites)), self.checked(pick)].sum())

    def mean_bits(self, pick) -> float:
        """Return the bits of a weight, on average."""
        bits = self.bits[np.arange(len(self.sites)), self.checked(pick)].sum()
        return float(bits) / float(self.num_weights.sum())

    def recipe(self, pick) -> Recipe:
        """Return the recipe, as `quantize` takes and `Recipe.to_json` writes it."""
        return Recipe({member: self.entries[self.names[k]]
                       for site, k in zip(self.sites, pick, strict=True)
                       for member in self.members[site]})  # fmt: skip

    def quantized(self, pick, *, activations: bool = True) -> Quantized:
        """Return the denoiser under a pick; None at a site leaves it in full precision.

        activations: whether those that a choice rounds are rounded.
        """
        inputs = {member: self.tables[None if k is None else (self.names[k], activations)][member]
                  for site, k in zip(self.sites, pick, strict=True)
                  for member in self.members[site]}  # fmt: skip
        return Quantized(self.calibration.denoiser, inputs)

    @functools.cached_property
    def rounds_activations(self) -> np.ndarray:
        """Whether each choice rounds activations [choices]."""
        return np.array([self.entries[name].activation is not None for name in self.names])


def offer(
    calibration: Calibration,
    steps: Steps,
    choices: Offered = (2, 3, 4, 5, 6, 8),
    *,
    sites: Sequence[str] = SITES,
    counted: str = STORED,
) -> Choices:
    """Round every weight in every way that is offered.

    Args:
      calibration: see `calibrate`.
      steps: the sampler.
      choices: widths, or words of a recipe's line such as "W4", "W4g32 mse", "W6 nearest", "W4A8";
        for all sites, or by glob, the later before the earlier. Integers are rounded such that the
        sums of channels stay unless a rounding is named, as by `quantize` of words.
      sites: globs of the sites, see `sites.match`; those without a weight are left out.
      counted: "stored" bits, with float32 scales and zero points, 32 for a weight that changes from
        call to call; or "multiplied": the width of what the products see, which is the cost of
        arithmetic.

    Raises:
      ValueError: words that are no such line, a site without a choice, or a format that it cannot
        take; names the site.
    """
    check_type("calibration", calibration, Calibration, remedy="calibrate(denoiser, steps, key)")
    check_steps(calibration.denoiser, steps)
    require(counted in (STORED, MULTIPLIED), "counted", got=repr(counted),
            expected=f"{STORED!r} or {MULTIPLIED!r}",
            remedy="memory is what is stored")  # fmt: skip
    members = _members(calibration, match(calibration.sites, sites))
    own = _by_site(calibration.sites, choices, members)
    names = tuple(dict.fromkeys(name for offered in own.values() for name in offered))
    entries = {name: entry_of(name) for name in names}
    made: dict[Any, dict[str, SiteQuant]] = {
        None: {n: SiteQuant(calibration.weights[n]) for group in members.values() for n in group}
    }
    bits = np.full((len(members), len(names)), np.inf)
    rmse = bits.copy()
    by_name = {site.name: site for site in calibration.sites}
    for column, (name, entry) in enumerate(entries.items()):
        takers = [site for site in members if name in own[site]]
        rows = [m for site in takers for m in members[site]]
        plain = entry._replace(activation=None)
        for is_whole, rounded_as in ((False, plain), (True, entry)):
            if is_whole and rounded_as == plain:
                made[name, True] = made[name, False]
                continue
            recipe = Recipe(dict.fromkeys(rows, rounded_as))
            made[name, is_whole] = made[None] | precision.quantize(calibration, recipe).site_inputs
        for row, site in enumerate(members):
            if site in takers:
                bits[row, column] = bits_of(by_name[site], entry.weight, counted)
                rounded = made[name, False][site].weight
                rmse[row, column] = _apart(rounded, calibration.weights[site])
    alike = precision.alike(
        [Quantized(calibration.denoiser, inputs) for inputs in made.values()], steps
    )
    tables = {which: q.site_inputs for which, q in zip(made, alike, strict=True)}
    num_weights = np.array([calibration.weights[site].size for site in members], np.float64)
    return Choices(calibration, steps, tuple(members), names, entries, bits, bits, BITS,
                   num_weights, rmse, members, tables)  # fmt: skip


def _words(choice: str | int) -> str:
    """Return a choice in words; a width is that of the weight."""
    is_width = isinstance(choice, int | np.integer) and not isinstance(choice, bool)
    require(is_width or isinstance(choice, str), "choices", got=repr(choice),
            expected="a width or the words of a recipe", remedy="such as 4 or 'W4g32 mse'",
            error=TypeError)  # fmt: skip
    return f"W{choice}" if is_width else " ".join(str(choice).split())


def entry_of(name: str) -> SiteBits:
    """Return how a choice rounds, with what `quantize` of words takes by default written out."""
    lines = precision.parse_recipe(name)
    require(len(lines) == 1 and lines[0][:2] == ((), ()) and lines[0].bits.weight is not None,
            "choices", got=repr(name), expected="one line, of a weight, for all sites and steps",
            remedy="such as 'W4g32 mse'")  # fmt: skip
    weight, activation = lines[0].bits
    if not isinstance(weight, OperandFormat):
        weight = OperandFormat(IntFormat(int(weight)))
    if weight.rounding is None and isinstance(weight.format, IntFormat) and weight.bits > 1:
        weight = dataclasses.replace(weight, rounding=SUMS)
    if activation is not None and not isinstance(activation, OperandFormat):
        activation = OperandFormat(IntFormat(int(activation), signed=False), scales=DYNAMIC)
    return SiteBits(weight, activation)


def _by_site(all_sites, choices: Offered, members) -> dict[str, tuple[str, ...]]:
    """Return the choices of each site.

    Raises:
      ValueError: a site that has none, or one that comes twice.
    """
    tables = choices if isinstance(choices, Mapping) else {"*": choices}
    own: dict[str, tuple[str, ...]] = {}
    for globs, offered in tables.items():
        require(not isinstance(offered, str | int), "choices", got=repr(offered),
                expected="a tuple of them", remedy=f"({offered!r},)", error=TypeError)  # fmt: skip
        names = tuple(map(_words, offered))
        require(names and len(set(names)) == len(names), "choices", got=names or "none",
                expected="at least one, each once", remedy="such as ('W3', 'W4')")  # fmt: skip
        own |= dict.fromkeys(match(all_sites, globs.split()), names)
    for site in members:
        require(site in own, site, got="no format", expected="at least one choice",
                remedy="add a glob that matches it, or leave it out of `sites`")  # fmt: skip
    return own


def _members(calibration: Calibration, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return sites with a weight, and with each those that read the same stored one."""
    sites = [s for s in calibration.sites
             if s.name in calibration.weights and s.is_real and not s.is_constant]  # fmt: skip
    stored = dict(zip((s.name for s in calibration.sites), stored_elements(calibration.sites),
                      strict=True))  # fmt: skip
    first: dict[Any, str] = {}
    members: dict[str, tuple[str, ...]] = {}
    for site in sites:
        if site.name not in names:
            continue
        is_tied = stored[site.name] == 0 and site.weight_path in first
        owner = first[site.weight_path] if is_tied else site.name
        first.setdefault(site.weight_path, site.name)
        members[owner] = (*members.get(owner, ()), site.name)
    require(members, "sites", got="none with a weight", expected="at least one",
            remedy="see `list_sites`")  # fmt: skip
    return members


def _apart(rounded, weight) -> float:
    """Return the RMS of what rounding does to a weight."""
    if isinstance(rounded, RoundingSequence):
        return float("nan")
    return float(np.sqrt(np.mean(np.square(np.asarray(rounded - weight, np.float64)))))


def bits_of(site: Site, weight: OperandFormat, counted: str = STORED) -> float:
    """Return the bits that a weight costs at a site, see `offer`."""
    if counted == STORED:
        return precision.weight_bits(site, weight)
    assert site.weight is not None
    return float(weight.bits) * math.prod(site.shapes[site.weight])

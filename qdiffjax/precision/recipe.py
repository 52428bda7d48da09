"""Recipes: how the numbers of every site are rounded, at every step."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qdiffjax._checks import check_count, check_names, require
from qdiffjax._tables import data_frame
from qdiffjax.precision.formats import OperandFormat, check_bits, parse_operand, width_of
from qdiffjax.precision.printing import recipe_table
from qdiffjax.sites import Site, match

HASH, PHASES, RANGES = "sha256", "@steps", "@ranges"  # in the JSON of a recipe, beside the sites


class SiteBits(NamedTuple):
    """Widths or formats at one site; None leaves full precision.

    Of widths alone, weights are signed narrow, activations unsigned affine; an `OperandFormat` says
    more. `activation` is for every operand that is one.

    Example:
      >>> import qdiffjax as qd
      >>> qd.SiteBits(weight=4, activation=8)
      SiteBits(weight=4, activation=8)
    """

    weight: Any = None
    activation: Any = None


class Phase(NamedTuple):
    """What is different at some of the sampler's network calls.

    steps: their numbers, counted from the noise end; bits: by site, in place of the recipe's own.
    """

    steps: tuple[int, ...]
    bits: dict[str, SiteBits]


@dataclasses.dataclass(frozen=True, repr=False)
class Recipe:
    """Widths or formats by site; sites not named stay in full precision.

    Attributes:
      bits: `SiteBits` by site, at every call of the sampler that no phase names.
      phases: what is different at some of its calls.
      ranges: of static activations, as those of a `Calibration`, in place of which they are used;
        None where they are the calibration's.

    Example:
      >>> import qdiffjax as qd
      >>> recipe = qd.Recipe({"conv_in/kernel": qd.SiteBits(8, 8), "head/kernel": qd.SiteBits(4)})
      >>> recipe.bits["head/kernel"].activation is None
      True
    """

    bits: dict[str, SiteBits]
    phases: tuple[Phase, ...] = ()
    ranges: dict[str, tuple] | None = None

    def __post_init__(self):
        taken: dict[int, int] = {}
        for number, phase in enumerate(self.phases):
            require(isinstance(phase, Phase) and phase.steps, "recipe", got=repr(phase)[:60],
                    expected="a Phase with at least one step",
                    remedy="Phase((0, 1, 2), {site: SiteBits(8, 8)})", error=TypeError)  # fmt: skip
            for step in phase.steps:
                check_count("steps of a phase", step, least=0)
                require(step not in taken, "steps of a phase",
                        got=f"{step} in two phases" if taken.get(step) != number else
                        f"{step} twice", expected="each step in one", remedy="merge them",
                        )  # fmt: skip
                taken[step] = number
        for table in self.tables:
            for name, bits in table.items():
                require(isinstance(name, str) and isinstance(bits, SiteBits), "recipe",
                        got=f"{name!r}: {bits!r}", expected="a name and its SiteBits",
                        remedy=f"{{{name!r}: SiteBits(weight=8, activation=8)}}",
                        error=TypeError)  # fmt: skip
                for entry in bits:
                    if not isinstance(entry, OperandFormat):
                        check_bits(entry)

    @property
    def tables(self) -> tuple[dict[str, SiteBits], ...]:
        """`SiteBits` by site: those of all steps, then those of each phase."""
        return (self.bits, *(phase.bits for phase in self.phases))

    @property
    def names(self) -> tuple[str, ...]:
        """Sites that are rounded at some step."""
        return tuple(dict.fromkeys(name for table in self.tables for name in table))

    def at(self, step: int) -> dict[str, SiteBits]:
        """Return `SiteBits` by site at one call of the sampler."""
        own = [phase.bits for phase in self.phases if step in phase.steps]
        return self.bits | own[0] if own else self.bits

    def choices(self, name: str) -> tuple[SiteBits, ...]:
        """Return what a site has at some step: first of all steps, then of each phase."""
        base = self.bits.get(name, SiteBits())
        return (base, *(phase.bits.get(name, base) for phase in self.phases))

    def which(self, num_calls: int) -> np.ndarray:
        """Return which of `choices` each call of the sampler takes, int32 [num_calls].

        Raises:
          ValueError: a phase that names a step beyond the last; steps of which nothing is said.
        """
        which = np.zeros(num_calls, np.int32)
        for number, phase in enumerate(self.phases, 1):
            require(max(phase.steps) < num_calls, "steps of a phase", got=max(phase.steps),
                    expected=f"0..{num_calls - 1}, the calls of this sampler",
                    remedy="steps count from the noise end")  # fmt: skip
            which[list(phase.steps)] = number
        missing = [int(step) for step in np.flatnonzero(which == 0)]
        require(self.bits or not self.phases or not missing, "steps of the phases",
                got=f"nothing for {len(missing)} of {num_calls} steps, such as {missing[:3]}",
                expected="every step in a phase, or what holds at all others",
                remedy="a line of its own such as 'W8A8' or 'float'")  # fmt: skip
        return which

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        mine, theirs = self.ranges or {}, other.ranges or {}
        return (self.bits, self.phases, self.ranges is None, mine.keys()) == (
            other.bits, other.phases, other.ranges is None, theirs.keys()
        ) and all(np.array_equal(mine[name], theirs[name]) for name in mine)  # fmt: skip

    def __repr__(self):
        return str(recipe_table(self))

    def _repr_html_(self) -> str:
        return recipe_table(self)._repr_html_()

    def to_dataframe(self):
        """Return a row for each site as a pandas data frame: site, weight, activation, steps.

        Raises:
          ImportError: pandas is not installed.
        """
        steps = ["all others" if self.phases else "all", *(p.steps for p in self.phases)]
        rows = [(name, *map(_plain, bits), when)
                for when, table in zip(steps, self.tables, strict=True)
                for name, bits in table.items()]  # fmt: skip
        columns = ("site", "weight", "activation", "steps")
        return data_frame({c: [row[i] for row in rows] for i, c in enumerate(columns)})

    def widths(self) -> dict[str, SiteBits]:
        """Return the widths at the steps that no phase names as arrays, which are data."""
        return {name: SiteBits(*map(_as_data, bits)) for name, bits in self.bits.items()}

    def to_json(self) -> str:
        """Write the recipe as JSON, and its hash: {site: {"weight": ..., "activation": ...}}.

        Each is bits, null, or what `parse_operand` reads; phases and ranges, if any, follow.

        Raises:
          ValueError: a format or calibration without a name.
        """
        return self._json(None)

    def _json(self, formats: Any) -> str:
        table: dict[str, Any] = _written(self.bits, formats)
        if self.phases:
            table[PHASES] = [{"steps": list(phase.steps), "sites": _written(phase.bits, formats)}
                             for phase in self.phases]  # fmt: skip
        if self.ranges is not None:
            table[RANGES] = {name: [[_numbers(end) for end in pair] for pair in operands]
                             for name, operands in self.ranges.items()}  # fmt: skip
        digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()
        return json.dumps({HASH: digest, **table}, indent=1)

    @classmethod
    def from_json(cls, text: str, sites: Sequence[Site], formats: Any = None) -> "Recipe":
        """Read what `to_json` wrote, or the same without a hash, for a network with these sites.

        Args:
          text: the JSON.
          sites: of the network.
          formats: your own formats by name.

        Raises:
          ValueError: a name that is no site or comes twice, a key that is no width, bits outside
            1..16, or a text that was changed after its hash was written.
        """
        table = _table_of(text)
        is_hashed = isinstance(table.get(HASH), str)
        if is_hashed:
            del table[HASH]
        phases, ranges = table.pop(PHASES, []), table.pop(RANGES, None)
        names = [site.name for site in sites]
        require(isinstance(phases, list) and all(
            isinstance(p, dict) and set(p) == {"steps", "sites"} and isinstance(p["steps"], list)
            for p in phases
        ), f"recipe, {PHASES}", got=repr(phases)[:60], expected="a list of {steps, sites}",
            remedy="write it with Recipe.to_json()")  # fmt: skip
        recipe = cls(
            _read(table, names, formats),
            tuple(Phase(tuple(p["steps"]), _read(p["sites"], names, formats)) for p in phases),
            None if ranges is None else _read_ranges(ranges, names),
        )
        require(not is_hashed or text.strip() == recipe._json(formats), "recipe",
                got="a text that was damaged or changed", expected=f"one that its {HASH} fits",
                remedy=f"write it again, or delete {HASH} if the change is meant")  # fmt: skip
        return recipe


def _plain(entry: Any, formats: Any = None) -> Any:
    return entry.words(formats) if isinstance(entry, OperandFormat) else entry


def _written(table: dict[str, SiteBits], formats: Any) -> dict[str, Any]:
    for name, bits in table.items():
        for entry in bits:
            is_known = not isinstance(entry, OperandFormat) or _reads_back(entry, formats)
            require(is_known, name, got=str(entry), expected="formats and calibrations that have "
                    "a name", remedy="give your format an attribute `name` of small letters and "
                    "digits, or precision.FORMATS[name] = ...")  # fmt: skip
    return {name: {k: _plain(v, formats) for k, v in bits._asdict().items()}
            for name, bits in table.items()}  # fmt: skip


def _reads_back(entry: OperandFormat, formats: Any) -> bool:
    name = getattr(entry.format, "name", None)
    own = formats or ({name: entry.format} if name else None)
    try:
        return parse_operand(entry.words(own), own) == entry
    except ValueError:
        return False


def _read(table: Any, names: Sequence[str], formats: Any) -> dict[str, SiteBits]:
    require(isinstance(table, dict), "recipe", got=repr(table)[:60], expected="an object of sites",
            remedy="write it with Recipe.to_json()")  # fmt: skip
    bits = {}
    for name, entry in table.items():
        check_names("recipe", (name,), names)
        require(isinstance(entry, dict), "recipe", got=f"{name!r}: {entry!r}",
                expected="an object of weight and activation",
                remedy="write it with Recipe.to_json()")  # fmt: skip
        check_names(f"recipe, {name}", entry, SiteBits._fields)
        values = [entry.get(k) for k in SiteBits._fields]
        bits[name] = SiteBits(*(
            parse_operand(v, formats) if isinstance(v, str) and not v.isdigit() else check_bits(v)
            for v in values
        ))  # fmt: skip
    return bits


def _numbers(array: Any) -> dict[str, Any]:
    values = np.asarray(array)
    return {"dtype": values.dtype.name, "values": values.tolist()}


def _array(entry: Any) -> np.ndarray:
    return np.asarray(entry["values"], entry["dtype"])


def _read_ranges(ranges: Any, names: Sequence[str]) -> dict[str, tuple]:
    check_names(f"recipe, {RANGES}", ranges, names)
    try:
        return {
            name: tuple(tuple(_array(end) for end in pair) for pair in operands)
            for name, operands in ranges.items()
        }
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        require(False, f"recipe, {RANGES}", got=f"no numbers ({error})",
                expected="[low, high] of each activation",
                remedy="write it with Recipe.to_json()")  # fmt: skip
        raise


def _table_of(text: str) -> dict[str, Any]:
    """Read {site: {...}} from JSON, each name once."""

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        require(len(table) == len(pairs), "recipe", got=[name for name, _ in pairs],
                expected="each name once", remedy="delete the others")  # fmt: skip
        return table

    remedy = "write it with Recipe.to_json()"
    try:
        table = json.loads(text, object_pairs_hook=each_once)
    except (json.JSONDecodeError, TypeError) as error:
        require(False, "recipe", got=f"no JSON ({error})", expected="an object of sites",
                remedy=remedy)  # fmt: skip
    require(isinstance(table, dict), "recipe", got=type(table).__name__,
            expected="an object of sites", remedy=remedy)  # fmt: skip
    return table


def _as_data(entry):
    bits = width_of(entry)
    if isinstance(bits, int):
        return np.asarray(bits, np.int32)
    return np.asarray(bits, np.float32) if isinstance(bits, float) else bits


def uniform(
    sites: Sequence[Site],
    *,
    weight_bits: Any,
    activation_bits: Any,
    globs: Iterable[str] = ("*",),
) -> Recipe:
    """One pair of widths, or formats, at every site that matches the globs; see `match`.

    The sites `input` and `output` have activations only: they are the survey's Q(x_t) and
    Q(eps), eq. 11. Leave them out with the globs "*", "!input", "!output". Products with constants
    are left out, unless a glob that begins with "const" names them; so are those of numbers that
    are not real.

    Raises:
      TypeError: globs in one text.
      ValueError: a glob that matches nothing, or names a site whose numbers are not real; nothing
        is left.
    """
    bits = SiteBits(*(b if isinstance(b, OperandFormat) else check_bits(b)
                      for b in (weight_bits, activation_bits)))  # fmt: skip
    globs = globs if isinstance(globs, str) else tuple(globs)
    matched = set(match(sites, globs))
    if bits.activation is not None and all(s.weight is None for s in sites if s.name in matched):
        bits = bits._replace(weight=None)  # a width for all sites says nothing where there is none
    recipe = Recipe(at_sites(sites, bits, globs))
    check_recipe(recipe, sites)
    return recipe


def at_sites(sites: Sequence[Site], bits: SiteBits, globs: Iterable[str]) -> dict[str, SiteBits]:
    """Return the same bits at every site that the globs match and that is rounded by default."""
    globs = globs if isinstance(globs, str) else tuple(globs)
    matched = set(match(sites, globs))
    chosen = [s for s in sites if s.name in matched and (_is_usual(s) or _is_named(s, globs))]
    require(chosen or not matched, "recipe", got=f"globs {globs}, which match {sorted(matched)}",
            expected="a site that is rounded unless it is named",
            remedy='a constant is named by a glob that begins with "const"')  # fmt: skip
    _check_weight(bits, chosen)
    return {s.name: bits if s.weight is not None else bits._replace(weight=None) for s in chosen}


def check_scales_of_weight(entry: Any) -> None:
    """Refuse to say of a weight when its scales are found.

    Raises:
      ValueError: it is said.
    """
    said = getattr(entry, "scales", None)
    require(said is None, "recipe", got=f"{said!r} of a weight",
            expected="no word of it: the scales of a weight are found once",
            remedy=f"say it of activations, such as 'W4 A8 {said}'")  # fmt: skip


def _check_weight(bits: SiteBits, chosen: Sequence[Site]) -> None:
    """Refuse the width of a weight for nothing but edges, values and products without one."""
    check_scales_of_weight(bits.weight)
    names = [s.name for s in chosen if s.weight is None]
    require(bits.weight is None or not names or len(names) < len(chosen), "recipe",
            got=f"a width of weights for {', '.join(names[:3])}",
            expected="one of activations alone: an edge, a product of activations or a stored "
            "value has no weight",
            remedy="such as 'residual: A8' or 'input: A8'")  # fmt: skip


def _is_usual(site: Site) -> bool:
    return site.is_real and not site.is_constant


def _is_named(site: Site, globs: Sequence[str]) -> bool:
    return site.name in globs or (
        site.is_constant and site.is_real and any(glob.startswith("const") for glob in globs)
    )


def check_recipe(recipe: Recipe, sites: Iterable[Site]) -> None:
    """Refuse a recipe that names no site, or rounds numbers which cannot be.

    Raises:
      ValueError: a name that is no site; a site whose numbers are not real.
    """
    sites = tuple(sites)
    check_names("recipe", recipe.names, [site.name for site in sites])
    for site in sites:
        is_plain = all(bits == SiteBits() for bits in recipe.choices(site.name))
        require(
            site.is_real or is_plain, site.name, got=f"a product of {site.dtype}",
            expected="real numbers, which can be rounded", remedy="leave it out of the recipe, "
            "or let the network multiply real and imaginary parts",
        )  # fmt: skip
        for bits in recipe.choices(site.name):
            _check_weight(bits, [site])

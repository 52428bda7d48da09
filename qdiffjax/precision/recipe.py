"""Recipes: the widths of every site, as data."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qdiffjax._checks import check_names, concrete, require
from qdiffjax._tables import data_frame
from qdiffjax.precision.printing import recipe_table
from qdiffjax.quant import MAX_BITS, MIN_BITS
from qdiffjax.sites import Site, match

HASH = "sha256"  # in the JSON of a recipe


class SiteBits(NamedTuple):
    """Widths at one site; None leaves full precision.

    Weights are signed narrow, activations unsigned affine.

    Example:
      >>> import qdiffjax as qd
      >>> qd.SiteBits(weight=4, activation=8)
      SiteBits(weight=4, activation=8)
    """

    weight: int | None = None
    activation: int | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Recipe:
    """Widths by site; sites not named stay in full precision.

    What varies by step as well (scales, switches) is data of the sampler's calls: see
    `Quantized` and `quantized_call`.

    Example:
      >>> import qdiffjax as qd
      >>> recipe = qd.Recipe({"conv_in/kernel": qd.SiteBits(8, 8), "head/kernel": qd.SiteBits(4)})
      >>> recipe.bits["head/kernel"].activation is None
      True
    """

    bits: dict[str, SiteBits]

    def __post_init__(self):
        for name, bits in self.bits.items():
            require(isinstance(name, str) and isinstance(bits, SiteBits), "recipe",
                    got=f"{name!r}: {bits!r}", expected="a name and its SiteBits",
                    remedy=f"{{{name!r}: SiteBits(weight=8, activation=8)}}",
                    error=TypeError)  # fmt: skip
            for width in bits:
                check_bits(width)

    def __repr__(self):
        return str(recipe_table(self.bits))

    def _repr_html_(self) -> str:
        return recipe_table(self.bits)._repr_html_()

    def to_dataframe(self):
        """Return a row for each site as a pandas data frame: site, weight, activation.

        Raises:
          ImportError: pandas is not installed.
        """
        weights, activations = zip(*self.bits.values(), strict=True) if self.bits else ((), ())
        return data_frame({"site": list(self.bits), "weight": weights, "activation": activations})

    def widths(self) -> dict[str, SiteBits]:
        """Return the widths as arrays, which a program may take as data."""
        return {name: SiteBits(*map(_as_data, bits)) for name, bits in self.bits.items()}

    def to_json(self) -> str:
        """Write the recipe as JSON: {site: {"weight": bits, "activation": bits}}, and its hash."""
        table = {name: b._asdict() for name, b in self.bits.items()}
        digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()
        return json.dumps({HASH: digest, **table}, indent=1)

    @classmethod
    def from_json(cls, text: str, sites: Sequence[Site]) -> "Recipe":
        """Read what `to_json` wrote, or the same without a hash, for a network with these sites.

        Raises:
          ValueError: a name that is no site or comes twice, a key that is no width, bits outside
            1..16, or a text that was changed after its hash was written.
        """
        table = _table_of(text)
        is_hashed = isinstance(table.get(HASH), str)
        if is_hashed:
            del table[HASH]
        names, bits = [s.name for s in sites], {}
        for name, entry in table.items():
            check_names("recipe", (name,), names)
            require(isinstance(entry, dict), "recipe", got=f"{name!r}: {entry!r}",
                    expected="an object of weight and activation",
                    remedy="write it with Recipe.to_json()")  # fmt: skip
            check_names(f"recipe, {name}", entry, SiteBits._fields)
            bits[name] = SiteBits(*(check_bits(entry.get(k)) for k in SiteBits._fields))
        recipe = cls(bits)
        require(not is_hashed or text.strip() == recipe.to_json(), "recipe",
                got="a text that was damaged or changed", expected=f"one that its {HASH} fits",
                remedy=f"write it again, or delete {HASH} if the change is meant")  # fmt: skip
        return recipe


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


def _as_data(bits):
    return np.asarray(bits, np.int32) if isinstance(bits, int) else bits


def check_bits(bits: int | None, what: str = "bits") -> int | None:
    """Return `bits` if it is a width, traced, or None; raise ValueError otherwise."""
    values = None if bits is None else concrete(bits)
    require(
        values is None or (values.dtype.kind in "iu" and bool(
            np.all((values >= MIN_BITS) & (values <= MAX_BITS))
        )), what, got=f"{bits!r} bits", expected=f"{MIN_BITS}..{MAX_BITS}, or none for float",
        remedy="wider formats are not quantized at all",
    )  # fmt: skip
    return bits


def uniform(
    sites: Sequence[Site],
    *,
    weight_bits: int | None,
    activation_bits: int | None,
    globs: Iterable[str] = ("*",),
) -> Recipe:
    """One pair of widths at every site that matches the globs; see `match` for their syntax.

    The sites `input` and `output` have activations only: they are the survey's Q(x_t) and
    Q(eps), eq. 11. Leave them out with the globs "*", "!input", "!output". Products with constants
    are left out, unless a glob that begins with "const" names them; so are those of numbers that
    are not real.

    Raises:
      ValueError: a glob that matches nothing, or names a site whose numbers are not real; nothing
        is left.
    """
    bits, globs = SiteBits(check_bits(weight_bits), check_bits(activation_bits)), tuple(globs)
    matched = set(match(sites, globs))
    chosen = [s for s in sites if s.name in matched and (_is_usual(s) or _is_named(s, globs))]
    require(chosen or not matched, "recipe", got=f"globs {globs}, which match {sorted(matched)}",
            expected="a site that is rounded unless it is named",
            remedy='a constant is named by a glob that begins with "const"')  # fmt: skip
    recipe = Recipe({s.name: bits if s.weight is not None else bits._replace(weight=None)
                     for s in chosen})  # fmt: skip
    check_recipe(recipe, sites)
    return recipe


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
    check_names("recipe", recipe.bits, [site.name for site in sites])
    for site in sites:
        bits = recipe.bits.get(site.name, SiteBits())
        require(
            site.is_real or bits == SiteBits(), site.name, got=f"a product of {site.dtype}",
            expected="real numbers, which can be rounded", remedy="leave it out of the recipe, "
            "or let the network multiply real and imaginary parts",
        )  # fmt: skip


def parse_shorthand(text: str) -> SiteBits:
    """Read W4A8, W4 or A8.

    Raises:
      ValueError: anything else.
    """
    form = r"(?=.)(?:W(\d+))?(?:A(\d+))?"
    widths = re.fullmatch(form, text.strip().upper()) if isinstance(text, str) else None
    require(widths, "recipe", got=repr(text), expected="a form like W4A8, W4 or A8",
            remedy="pass a Recipe for widths by site")  # fmt: skip
    assert widths is not None
    return SiteBits(*(None if b is None else check_bits(int(b), "recipe") for b in widths.groups()))

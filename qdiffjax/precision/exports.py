"""Recipes beside each other, and as the rules of other tools."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qdiffjax._checks import check_names, require
from qdiffjax._tables import Table, number
from qdiffjax.precision.formats import OperandFormat, check_bits, width_of
from qdiffjax.precision.printing import BYTES, steps_text, width
from qdiffjax.precision.recipe import Recipe, SiteBits, check_recipe
from qdiffjax.quant import E4M3FN, E5M2, BlockFormat, FloatFormat, IntFormat
from qdiffjax.quant.formats import nf4
from qdiffjax.sites import Site, stored_elements

# Names that qwix gives to types of numbers.
QWIX_FORMATS: dict[str, Any] = {"float8_e4m3fn": E4M3FN, "float8_e5m2": E5M2, "nf4": nf4()}
MODULE_PATH = "module_path"
_WORDS = ("weight_qtype", "act_qtype")


def differences(before: Recipe, after: Recipe, sites: Sequence[Site]) -> Table:
    """Return a table of the sites at which two recipes differ, and what their weights take.

    Bytes are those of the weights at the steps that no phase names, at their formats' bits, with
    the scales of block formats and without other scales; 4 for a number in full precision.
    """
    for recipe in (before, after):
        check_recipe(recipe, sites)
    rows = []
    for name in dict.fromkeys((*before.names, *after.names)):
        texts = [_text(recipe, name) for recipe in (before, after)]
        if texts[0] != texts[1]:
            rows.append((name, *texts))
    sizes = [number(weight_bytes(recipe, sites) / BYTES) for recipe in (before, after)]
    return Table("What differs", ("site", "before", "after"), tuple(rows),
                 (f"Weights take {sizes[0]} MB before, {sizes[1]} MB after.",))  # fmt: skip


def _text(recipe: Recipe, name: str) -> str:
    first, *others = (f"W {width(b.weight)} A {width(b.activation)}" for b in recipe.choices(name))
    told = [first]
    for phase, text in zip(recipe.phases, others, strict=True):
        if text != first:
            told.append(f"steps {steps_text(phase.steps)}: {text}")
    return "; ".join(told)


def weight_bytes(recipe: Recipe, sites: Sequence[Site]) -> float:
    """Return the bytes of all weights, each parameter once."""
    products = [s for s in sites if s.weight is not None]
    widths = [width_of(recipe.bits.get(s.name, SiteBits()).weight) for s in products]
    return sum(
        n * (32 if bits is None else float(bits)) / 8
        for n, bits in zip(stored_elements(products), widths, strict=True)
    )


def skipped(recipe: Recipe, sites: Sequence[Site]) -> list[str]:
    """Return the modules whose weights stay in full precision at all steps.

    As `modules_to_not_convert` of diffusers and transformers, or a list of layers to skip.
    """
    check_recipe(recipe, sites)
    return [_module(s.name) for s in sites if s.weight is not None and not s.is_constant
            and all(b.weight is None for b in recipe.choices(s.name))]  # fmt: skip


def to_qwix(recipe: Recipe, sites: Sequence[Site]) -> list[dict[str, Any]]:
    """Return the keyword arguments of one `qwix.QuantizationRule` for each kind of site.

    Products of activations are no modules, and are left out; so is what a rule cannot say.

    Raises:
      ValueError: a recipe by step, or a format that qwix has no name for.
    """
    check_recipe(recipe, sites)
    require(not recipe.phases, "recipe", got="one by step", expected="one for all steps",
            remedy="export Recipe(table) of each of recipe.tables")  # fmt: skip
    modules = {s.name: _module(s.name) for s in sites if s.weight is not None}
    groups: dict[SiteBits, list[str]] = {}
    for name, bits in recipe.bits.items():
        if name in modules and bits != SiteBits():
            groups.setdefault(bits, []).append(modules[name])
    rules = []
    for bits, names in groups.items():
        rule: dict[str, Any] = {MODULE_PATH: "|".join(map(re.escape, names))}
        for word, entry in zip(_WORDS, bits, strict=True):
            if entry is not None:
                rule[word] = _qwix_type(entry)
        size = getattr(bits.weight, "granularity", None)
        if isinstance(size, int):
            rule["tile_size"] = size
        rules.append(rule)
    return rules


def from_qwix(rules: Iterable[Mapping[str, Any]], sites: Sequence[Site]) -> Recipe:
    """Return the recipe that qwix's rules mean; the first that matches a module counts.

    Args:
      rules: keyword arguments of `qwix.QuantizationRule`: module_path, weight_qtype, act_qtype,
        tile_size; others are refused.
      sites: of the network.
    """
    table: dict[str, SiteBits] = {}
    for rule in rules:
        check_names("rule", rule, (MODULE_PATH, *_WORDS, "tile_size"))
        for site in sites:
            path = _module(site.name)
            is_ours = site.weight is not None and site.name not in table and not site.is_constant
            if is_ours and re.fullmatch(rule.get(MODULE_PATH, ".*"), path):
                size = rule.get("tile_size")
                weight, activation = (_entry(rule.get(word)) for word in _WORDS)
                if size is not None and weight is not None:
                    format = IntFormat(weight) if isinstance(weight, int) else weight.format
                    weight = OperandFormat(format, size)
                table[site.name] = SiteBits(weight, activation)
    recipe = Recipe(table)
    check_recipe(recipe, sites)
    return recipe


def _module(name: str) -> str:
    return name.rpartition("/")[0] or name


def _qwix_type(entry: Any) -> str:
    format = entry.format if isinstance(entry, OperandFormat) else IntFormat(entry)
    if isinstance(format, IntFormat):
        return f"int{format.bits}"
    for name, known in QWIX_FORMATS.items():
        if type(known) is type(format) and known == format:
            return name
    is_block = isinstance(format, BlockFormat)
    require(isinstance(format, FloatFormat) and not is_block, "format", got=str(entry),
            expected="integers, floats or nf4",
            remedy="qwix has its own name for others")  # fmt: skip
    return f"float{format.bits}_e{format.exponent_bits}m{format.mantissa_bits}"


def _entry(word: Any) -> Any:
    if word is None:
        return None
    text = getattr(word, "__name__", str(word))
    if found := re.fullmatch(r"u?int(\d+)", text):
        return check_bits(int(found[1]), "qtype")
    if text in QWIX_FORMATS:
        return OperandFormat(QWIX_FORMATS[text])
    found = re.fullmatch(r"float\d+_e(\d)m(\d+)", text)
    require(found, "qtype", got=repr(text), expected=f"int4, int8 or one of {[*QWIX_FORMATS]}",
            remedy="name the format by `precision.parse_operand`")  # fmt: skip
    assert found is not None
    return OperandFormat(FloatFormat(int(found[1]), int(found[2])))

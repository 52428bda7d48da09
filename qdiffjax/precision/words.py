"""Recipes in words."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from qdiffjax._checks import require
from qdiffjax.precision.formats import check_bits, parse_operand
from qdiffjax.precision.recipe import (
    Phase,
    Recipe,
    SiteBits,
    at_sites,
    check_recipe,
    check_scales_of_weight,
)
from qdiffjax.sites import Site


class Line(NamedTuple):
    """One line of a recipe in words: steps () for all, globs () for the usual sites."""

    steps: tuple[int, ...]
    globs: tuple[str, ...]
    bits: SiteBits


def parse_recipe(text: str, formats: Any = None) -> tuple[Line, ...]:
    """Read a recipe in words, lines apart by ";" or a line's end, the later before the earlier.

        W4A8                                weights of 4 bits, activations of 8
        W:nvfp4 A:mxfp8                     any format, see `formats`
        W4g32 mse A8 token                  groups of 32, a calibration, a granularity
        attn/* !attn/out/*: W8A8            at some sites, see `sites.match`
        steps 0-3,47-49: W8A16              at some calls of the sampler
        steps 0-3 head/*: float             full precision

    Raises:
      ValueError: anything else.
    """
    require(isinstance(text, str), "recipe", got=repr(text), expected="a form like W4A8",
            remedy="pass a Recipe for widths by site")  # fmt: skip
    lines = [line.strip() for line in re.split(r"[;\n]", text)]
    parsed = tuple(_line(line, formats) for line in lines if line)
    require(parsed, "recipe", got=repr(text), expected="a form like W4A8, W4 or A8",
            remedy="pass a Recipe for widths by site")  # fmt: skip
    return parsed


def _line(text: str, formats: Any) -> Line:
    where, _, operands = text.rpartition(": ")
    steps: tuple[int, ...] = ()
    if found := re.match(r"steps\s+(\S+)\s*", where):
        steps, where = _steps(found[1]), where[found.end() :]
    return Line(steps, tuple(where.split()), _operands(operands.strip(), formats))


def _steps(text: str) -> tuple[int, ...]:
    steps: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        require(first <= last, "steps", got=repr(text), expected="a form like 0-3,47-49",
                remedy="numbers count from the noise end, from 0")  # fmt: skip
        steps += range(first, last + 1)
    return tuple(steps)


def _operands(text: str, formats: Any) -> SiteBits:
    if text.lower() == "float":
        return SiteBits()
    spaced = re.sub(r"(?i)^(w\d+(?:g\d+)?)(a[\d:])", r"\1 \2", text)
    form = r"(?i)(?=.)(?:w((?:\d|:).*?))?(?:(?:^|\s+)a((?:\d|:).*))?"
    parts = re.fullmatch(form, spaced)
    require(parts, "recipe", got=repr(text),
            expected="a form like W4A8, W4 or A8, or W:nvfp4 A:e4m3",
            remedy="pass a Recipe for widths by site")  # fmt: skip
    assert parts is not None
    entries = [
        None if part is None else check_bits(int(part), "recipe") if part.strip().isdigit()
        else parse_operand(part, formats, signed=is_weight)
        for part, is_weight in zip(parts.groups(), (True, False), strict=True)
    ]  # fmt: skip
    check_scales_of_weight(entries[0])
    return SiteBits(*entries)


def parse_shorthand(text: str) -> SiteBits:
    """Read W4A8, W4 or A8.

    Raises:
      ValueError: anything else.
    """
    lines = parse_recipe(text)
    is_one = len(lines) == 1 and lines[0][:2] == ((), ()) and lines[0].bits != SiteBits()
    require(is_one and all(b is None or isinstance(b, int) for b in lines[0].bits), "recipe",
            got=repr(text), expected="a form like W4A8, W4 or A8",
            remedy="pass a Recipe for widths by site")  # fmt: skip
    return lines[0].bits


def recipe_of(
    text: str, sites: Sequence[Site], globs: Iterable[str], formats: Any = None
) -> Recipe:
    """Return the recipe that words mean at the sites of a network, those `globs` where none are
    named.
    """
    tables: dict[tuple[int, ...], dict[str, SiteBits]] = {(): {}}
    for line in parse_recipe(text, formats):
        table = tables.setdefault(line.steps, {})
        table |= at_sites(sites, line.bits, line.globs or globs)
    base = tables.pop(())
    recipe = Recipe(base, tuple(Phase(steps, bits) for steps, bits in tables.items()))
    check_recipe(recipe, sites)
    return recipe

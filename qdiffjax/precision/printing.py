"""Recipes, calibrations and quantized denoisers as tables."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qdiffjax._tables import Table, number, numbers_of
from qdiffjax.precision.formats import OperandFormat
from qdiffjax.precision.rules import Series, quantize_site
from qdiffjax.quant import AlternatingCodes, RoundingSequence
from qdiffjax.quant.grids import is_affine
from qdiffjax.sites import Site, stored_elements
from qdiffjax.sites.printing import counts, out_of_reach

BYTES = 1e6  # of a megabyte


def recipe_table(recipe) -> Table:
    """Return the widths or formats of every site that a recipe names, by phase if it has any."""
    notes = (f"Bits; - is full precision, as is every site not named. {widths(recipe.bits)}.",)
    columns = ("site", "weight", "activation")
    if not recipe.phases:
        return Table("Recipe", columns, tuple(map(_recipe_row, recipe.bits.items())), notes)
    when = ["others", *(steps_text(phase.steps) for phase in recipe.phases)]
    tables = zip(when, recipe.tables, strict=True)
    rows = tuple((*_recipe_row(row), steps) for steps, table in tables for row in table.items())
    return Table("Recipe", (*columns, "steps"), rows, notes)


def _recipe_row(row) -> tuple[str, str, str]:
    name, bits = row
    return name, width(bits.weight), width(bits.activation)


def steps_text(steps: Sequence[int]) -> str:
    """Write numbers of steps as ranges: 0-3, 47-49."""
    starts = [s for s in sorted(steps) if s - 1 not in steps]
    ends = [s for s in sorted(steps) if s + 1 not in steps]
    parts = (str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return ", ".join(parts)


def width(bits) -> str:
    """Write a width: its bits, - for none, ? where it is traced, or the words of a format."""
    if isinstance(bits, OperandFormat):
        return str(bits).removeprefix(":")
    known = None if bits is None else numbers_of(bits)
    if bits is None or known is None:
        return "-" if bits is None else "?"
    values = sorted({int(b) for b in known.ravel()})
    return str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}"


def widths(bits: Mapping[str, Any]) -> str:
    """Write how many sites have which widths, the most frequent first: W8A8: 36 sites, A8: 8."""
    names = collections.Counter(_pair_text(pair) for pair in bits.values())
    listed = [f"{name or 'full precision'}: {num}" for name, num in names.most_common()]
    if not listed:
        return "no sites"
    listed[0] += " sites"
    return ", ".join(listed)


def _pair_text(pair) -> str:
    parts = [letter + (str(b) if isinstance(b, OperandFormat) else width(b))
             for letter, b in zip("WA", pair, strict=True) if b is not None]  # fmt: skip
    is_short = not any(isinstance(b, OperandFormat) for b in pair)
    return ("" if is_short else " ").join(parts)


def calibration_table(sites: tuple[Site, ...], ranges: Mapping[str, tuple]) -> Table:
    """Return the sites of a calibration, with the range of each activation over all steps."""
    rows = tuple(
        (s.name, s.kind, *counts(s), ", ".join(map(range_text, ranges.get(s.name, ()))))
        for s in sites
    )
    return Table(f"Calibration: {len(sites)} sites and the ranges of their activations",
                 ("site", "kind", "MACs", "parameters", "range"), rows,
                 out_of_reach(getattr(sites, "opaque", None)))  # fmt: skip


def range_text(bounds) -> str:
    """Write the widest range over all steps of (low [N], high [N])."""
    low, high = map(numbers_of, bounds)
    if low is None or high is None:
        return "?"
    return f"{number(float(low.min()))} .. {number(float(high.max()))}"


def quantized_table(q) -> Table:
    """Return a summary of a quantized denoiser: widths, what is left out, weights, rounding."""
    bits = {name: b for name, b in (q.widths or {}).items() if name in q.site_inputs}
    is_simulated = q.rule is quantize_site
    arithmetic = "rounded numbers multiply as floats" if is_simulated else "codes multiply codes"
    dtypes = {s.dtype for s in _sites(q) or () if s.name in q.site_inputs}
    if is_simulated and (narrow := sorted(dtypes & {"bfloat16", "float16"})):
        arithmetic += f", of which {' and '.join(narrow)} keep less: codes (`lower`) do not"
    rows = [
        ("arithmetic", f"{'simulated' if is_simulated else 'lowered'}: {arithmetic}"),
        ("widths", widths(bits) if bits else f"not recorded, {len(q.site_inputs)} sites"),
        ("left out", left_out(q)),
        ("weights", weights_text(q, bits)),
        ("activations", roundings(q.site_inputs)),
    ]
    if q.settings.name:
        rows += [
            (f"{what}, chosen", text) for what, text in q.settings.rows() if what != "left out"
        ]
    return Table("Quantized denoiser", ("what", "is"), tuple(row for row in rows if row[1]))


def left_out(q) -> str:
    """Name the sites that stay in full precision; nothing where the network cannot be traced."""
    if (sites := _sites(q)) is None:
        return ""
    names = [s.name for s in sites if s.name not in q.site_inputs]
    if not names:
        return f"none of {len(sites)} sites"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{len(names)} of {len(sites)} sites: {', '.join(names[:4])}{more}"


def _sites(q) -> tuple[Site, ...] | None:
    if q.denoiser.shape is None:
        return None
    try:
        return q.denoiser.sites()
    except (TypeError, ValueError):  # a network of another dtype than float32
        return None


def weights_text(q, bits: Mapping[str, Any]) -> str:
    """Say how many parameters are quantized, and their size at their widths and in float32.

    Each parameter counts once, however many sites share it, where the network can be traced.
    """
    full = {name for name, b in bits.items() if b.weight is None}  # perhaps in another basis
    weights = {name: 0 if name in full and hasattr(weight, "dtype") else _size(weight)
               for name, inputs in q.site_inputs.items()
               for weight in (getattr(inputs, "weight", None),)}  # fmt: skip
    sites = [s for s in _sites(q) or () if weights.get(s.name)]
    weights |= {s.name: n for s, n in zip(sites, stored_elements(sites), strict=True)}
    num = sum(weights.values())
    known = {name: numbers_of(b.weight) for name, b in bits.items() if b.weight is not None}
    held = [size * float(b.max()) / 8 for name, size in weights.items()
            if size and (b := known.get(name)) is not None]  # fmt: skip
    is_known = len(held) == sum(size > 0 for size in weights.values())
    size = f"{number(sum(held) / BYTES)} MB at their widths, " if is_known and num else ""
    return f"{num:,} quantized, {size}{number(4 * num / BYTES)} MB in float32{_anew(q)}"


def _anew(q) -> str:
    """Say what weights that are rounded anew at every call take, which their widths do not."""
    weights = [getattr(inputs, "weight", None) for inputs in q.site_inputs.values()]
    parts = [getattr(p, "held", p) for w in weights for p in getattr(w, "alternatives", (w,))]
    codes = sum(math.prod(p.shape) * (p.format.bits + p.extra_bits) / 8
                for p in parts if isinstance(p, AlternatingCodes))  # fmt: skip
    fine = f"; codes that alternate are stored in {number(codes / BYTES)} MB" if codes else ""
    is_whole = any(isinstance(p, RoundingSequence) for p in parts)
    return fine + ("; those rounded anew at every call are stored as they are" if is_whole else "")


def _size(weight) -> int:
    if weight is None:
        return 0
    codes = getattr(getattr(weight, "held", weight), "codes", None)  # stored, or codes as they are
    return math.prod(np.shape(weight if codes is None else codes))


def roundings(site_inputs: Mapping[str, Any]) -> str:
    """Say how activations are rounded, and how many of them: the most frequent first."""
    grids = [grid for inputs in site_inputs.values()
             for operand in getattr(inputs, "activations", ())
             for grid in getattr(operand, "alternatives", (operand,))
             if grid is not None]  # fmt: skip
    ways = collections.Counter(map(rounding_text, grids))
    return "; ".join(f"{num} {way}" for way, num in ways.most_common()) or "in full precision"


def rounding_text(grid) -> str:
    """Describe a grid: static or dynamic, its granularity, with or without a zero point."""
    if isinstance(grid, Series):
        return f"by step: {rounding_text(grid.values)}"
    size = getattr(grid.format, "block_size", grid.group_size)
    if grid.scale is None:
        shares = {None: "token or sample", 0: "operand"}.get(size, f"{size} neighbours")
        kind = f"dynamic, one scale a {shares}" if not size else f"dynamic, one scale for {shares}"
    else:
        num = math.prod(np.shape(grid.scale))
        kind = "static, " + ("one scale" if num == 1 else f"{num} scales")
    is_shifted = grid.zero_point is not None or (grid.scale is None and is_affine(grid.format))
    kind += f" and each of {len(grid.pieces)} parts" if grid.pieces else ""
    sign = "with zero point" if is_shifted else "symmetric"
    return f"{kind} {sign}, rounded {'to nearest' if grid.key is None else 'at random'}"

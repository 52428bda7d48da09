"""Cycles of an operation from its instructions, one bundle of them a cycle.

The compiler estimates no time for a Pallas kernel, but it can print the bundles that the chip will
issue, in order, one a cycle unless it waits for memory; its own operations have the same form. So
a step of the grid takes as many cycles as the body of the loop over the grid has bundles, less the
parts that are jumped over.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_BUNDLE = re.compile(r"^ *(?:0x)?([0-9a-f]+) +(?:[A-Z]{2} *)?: +(>*) ?\{")
_JUMP = re.compile(r"sbr\.rel \((!?)%p\w+\) target = \$region(\d+)")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_GRID = re.compile(r"iteration_bounds: \(([0-9, ]+)\)")
_EXIT = re.compile(r"scmp\.ge\S* %\w+, (\d+) /\* loop exit test \*/")
_PUSH = re.compile(r"vmatmul\.(?:msk\.)?(\w+)\S*\.(mxu\d)")
NOTHING: Mapping[str, float] = {}
# Trips of the loop over the grid in which its first step is loaded and its last one stored.
AROUND = 2


def counted_cycles(folder: Path, push: Mapping[str, float] = NOTHING) -> dict[str, float]:
    """Cycles of each operation printed into `folder`, by its name; push as in `cycles_of`."""
    files = sorted(folder.glob("*final_bundles.txt"))
    named = [(re.match(r"\d+-(.+?)-\d+-final_bundles", f.name), f) for f in files]
    return {name[1]: cycles_of(f.read_text(), push) for name, f in named if name}


def cycles_of(text: str, push: Mapping[str, float] = NOTHING) -> float:
    """Cycles of all steps of the grid of one operation.

        steps * (bundles of the loop - bundles of its parts) + steps / innermost * (its parts)

    where a part is what a step may jump over and that has no matrix product in it (`pl.when` of a
    prologue or an epilogue): it is taken to run once in a pass over the innermost grid axis.
    Loops inside a step of a kernel count once (copies of ragged blocks); those that hold products,
    and those of other operations, give NaN.
    Where the compiler prints no axes of the grid, as for operands that are in vector memory
    already, the parts are taken to run in each step. No matrix unit works faster than its
    instructions, each `push` cycles by dtype of the left operand; other waits, as for memory, are
    not counted.
    """
    lines = [(found, line) for line in text.splitlines() if (found := _BUNDLE.match(line))]
    nested = [line for found, line in lines if len(found[2]) > 1]
    if any("vmatmul" in line for line in nested) or (nested and " = fusion(" in text):
        return math.nan
    inside = [line for found, line in lines if found[2]]
    outside, (steps, innermost) = len(lines) - len(inside), _grid(text)
    parts = _skipped(inside)
    bundles = outside + steps * (len(inside) - parts) + steps // innermost * parts
    products = _pushed((line for found, line in lines if not found[2]), push)
    return max(bundles, products + steps * _pushed(inside, push))


def _pushed(lines: Iterable[str], push: Mapping[str, float]) -> float:
    """Cycles of the busiest matrix unit."""
    units: dict[str, float] = collections.defaultdict(float)
    for line in lines:
        for dtype, unit in _PUSH.findall(line):
            units[unit] += push.get(dtype, 0)
    return max(units.values(), default=0)


def _grid(text: str) -> tuple[int, int]:
    """Steps of the grid, and how many of them are along its innermost axis, at least."""
    bounds = [[int(n) for n in found.split(",") if n.strip()] for found in _GRID.findall(text)]
    if bounds:
        grid = max(bounds, key=math.prod)
        return math.prod(grid), grid[-1]
    return max((int(n) - AROUND for n in _EXIT.findall(text)), default=1), 1


def _skipped(lines: list[str]) -> int:
    """Bundles in parts without a matrix product that a forward jump may leave out."""
    starts: dict[int, int] = {}
    for i, line in enumerate(lines):
        for number in _REGION.findall(line):
            starts.setdefault(int(number), i)
    has_product = ["vmatmul" in line or "vmatpush" in line for line in lines]
    if not any(has_product):
        return 0
    left_out = set()
    for i, line in enumerate(lines):
        for _, region in _JUMP.findall(line):
            end = starts.get(int(region), i)
            if end > i and not any(has_product[i + 1 : end]):
                left_out |= set(range(i + 1, end))
    return len(left_out)

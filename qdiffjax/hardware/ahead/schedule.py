"""Cycles of each operation of a program scheduled for a TPU.

The compiler says how many cycles it expects of its own operations. It estimates no time for a
Pallas kernel, but it can print the bundles that the chip will issue, in order, one a cycle unless
it waits for memory; its own operations have the same form. So a step of the grid takes as many
cycles as the body of the loop over the grid has bundles, less the parts that are jumped over.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from qdiffjax.hardware.ahead.hlo import Instruction, count_bytes, read_computations

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r" while\(.*condition=%([\w.\-<>]+), body=%([\w.\-<>]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r" = s32\[\].* constant\((\d+)\)")
_CALLED = re.compile(r" call\(.*to_apply=%([\w.\-<>]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-<>]+)")
_KERNEL = re.compile(r'"body":"([^"]*)"')
_USED = re.compile(r"%([\w.\-]+)")
_NEAR = "S(1)"  # of a layout: the array is in vector memory already
_NAMES = re.compile(r"%[\w.\-]+|metadata=\{[^}]*\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BUNDLE = re.compile(r"^ *(?:0x)?([0-9a-f]+) +(?:[A-Z]{2} *)?: +(>*) ?\{")
_JUMP = re.compile(r"sbr\.rel \((!?)%p\w+\) target = \$region(\d+)")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_GRID = re.compile(r"iteration_bounds: \(([0-9, ]+)\)")
_EXIT = re.compile(r"scmp\.ge\S* %\w+, (\d+) /\* loop exit test \*/")
_PUSH = re.compile(r"vmatmul\.(?:msk\.)?(\w+)\S*\.(mxu\d)")
NOTHING: Mapping[str, float] = {}
# Trips of the loop over the grid in which its first step is loaded and its last one stored.
AROUND = 2
# Cycles that the compiler's schedule gives the smallest fusion; a kernel starts no faster.
START = 1800


class Op(NamedTuple):
    """One operation of a compiled program.

    name: of the HLO instruction; source: op_name of the JAX operation that it came from; kind:
    "schedule" if cycles are the compiler's estimate, "bundles" if they are counted from the
    instructions of a Pallas kernel; calls: how often it runs; cycles: of one run; issued: cycles of
    one run counted from the instructions whatever it is, or its `cycles` where none were printed.
    """

    name: str
    source: str
    kind: str
    calls: int
    cycles: float
    issued: float


def operations(
    text: str, counted: Mapping[str, float], bytes_per_cycle: float = math.inf
) -> list[Op]:
    """Return the operations of a scheduled HLO module that cost cycles.

    Bodies of loops count as often as they run, or once where the number is not known; of the
    branches of a conditional, all.

    Args:
      text: of the module.
      counted: cycles of instructions, by the name of their operation; the compiler prints one of
        the operations that are alike.
      bytes_per_cycle: that memory moves; nothing that is counted is faster than what it takes from
        memory and leaves there.
    """
    computations, entry = read_computations(text)
    instructions = (i for block in computations.values() for i in block)
    alike = {_alike(i): counted[i.name] for i in instructions if i.name in counted}

    def issued(i: Instruction, sizes: dict[str, float]) -> float:
        cycles, scheduled = alike.get(_alike(i), math.nan), _cycles(i)
        start = START if scheduled is None else min(START, scheduled)
        return start + max(cycles, _moved(i, sizes) / bytes_per_cycle)

    return list(_walk(computations, entry, 1, issued))


def _moved(i: Instruction, sizes: dict[str, float]) -> float:
    """Return the bytes in memory of the operands and the result of an instruction."""
    operands = i.line.partition(f" {i.opcode}(")[2].partition(")")[0]
    return count_bytes(i.result, _NEAR) + sum(sizes.get(n, 0.0) for n in _USED.findall(operands))


def _alike(i: Instruction) -> str:
    """Return the program of a Pallas kernel as it was sent to the compiler; others without their
    names.
    """
    kernel = _KERNEL.search(i.line)
    return kernel[1] if kernel else _NAMES.sub("", i.line).strip()


def _walk(computations, name, calls, issued):
    block = computations.get(name, ())
    sizes = {i.name: count_bytes(i.result, _NEAR) for i in block}
    for i in block:
        for inner, times in _inner(i.line, computations):
            yield from _walk(computations, inner, calls * times, issued)
        cycles, counted, kind = _cycles(i), issued(i, sizes), "schedule"
        if '"tpu_custom_call"' in i.line:
            cycles, kind = counted, "bundles"
        if cycles is not None:
            source = _OP_NAME.search(i.line)
            counted = cycles if math.isnan(counted) else counted
            yield Op(i.name, source[1] if source else "", kind, calls, cycles, counted)


def _inner(line: str, computations) -> list[tuple[str, int]]:
    """Return the computations that an instruction runs, and how often."""
    if loop := _LOOP.search(line):
        return [(loop[2], _trips(line, computations.get(loop[1], [])))]
    if called := _CALLED.search(line):
        return [(called[1], 1)]
    if " conditional(" in line:
        names = [a or b for a, b in _BRANCHES.findall(line)]
        return [(n.strip().lstrip("%"), 1) for group in names for n in group.split(",")]
    return []


def _trips(line: str, condition: list[Instruction]) -> int:
    """Return trips of a loop: as written, or the one limit of its condition; JAX counts from 0."""
    if written := _TRIPS.search(line):
        return int(written[1])
    limits = [limit[1] for i in condition if (limit := _LIMIT.search(i.line))]
    return int(limits[0]) if len(limits) == 1 else 1


def _cycles(i: Instruction) -> float | None:
    cycles = _CYCLES.search(i.line)
    return float(cycles[1]) if cycles else None


def counted_cycles(folder: Path, push: Mapping[str, float] = NOTHING) -> dict[str, float]:
    """Return the cycles of each operation printed into `folder`, by its name; push as in
    `cycles_of`.
    """
    files = sorted(folder.glob("*final_bundles.txt"))
    named = [(re.match(r"\d+-(.+?)-\d+-final_bundles", f.name), f) for f in files]
    return {name[1]: cycles_of(f.read_text(), push) for name, f in named if name}


def cycles_of(text: str, push: Mapping[str, float] = NOTHING) -> float:
    """Return the cycles of all steps of the grid of one operation.

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
    lines = [(head[2], line) for line in text.splitlines() if (head := _BUNDLE.match(line))]
    nested = [line for depth, line in lines if len(depth) > 1]
    if any("vmatmul" in line for line in nested) or (nested and " = fusion(" in text):
        return math.nan
    inside = [line for depth, line in lines if depth]
    outside, (steps, innermost) = len(lines) - len(inside), _grid(text)
    parts = _skipped(inside)
    bundles = outside + steps * (len(inside) - parts) + steps // innermost * parts
    products = _pushed((line for depth, line in lines if not depth), push)
    return max(bundles, products + steps * _pushed(inside, push))


def _pushed(lines: Iterable[str], push: Mapping[str, float]) -> float:
    """Return the cycles of the busiest matrix unit."""
    units: dict[str, float] = collections.defaultdict(float)
    for line in lines:
        for dtype, unit in _PUSH.findall(line):
            units[unit] += push.get(dtype, 0)
    return max(units.values(), default=0)


def _grid(text: str) -> tuple[int, int]:
    """Return the steps of the grid, and how many of them are along its innermost axis, at least."""
    bounds = [[int(n) for n in axes.split(",") if n.strip()] for axes in _GRID.findall(text)]
    if bounds:
        grid = max(bounds, key=math.prod)
        return math.prod(grid), grid[-1]
    return max((int(n) - AROUND for n in _EXIT.findall(text)), default=1), 1


def _skipped(lines: list[str]) -> int:
    """Return the bundles in parts without a matrix product that a forward jump may leave out."""
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

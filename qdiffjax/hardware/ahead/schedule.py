"""Reading what the TPU compiler writes: cycles of each operation of a scheduled program."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-<>]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%([\w.\-<>]+) = ")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r" while\(.*condition=%([\w.\-<>]+), body=%([\w.\-<>]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r" = s32\[\].* constant\((\d+)\)")
_CALLED = re.compile(r" call\(.*to_apply=%([\w.\-<>]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-<>]+)")
_KERNEL = re.compile(r'"body":"([^"]*)"')
_USED = re.compile(r"%([\w.\-]+)")
_TYPE = re.compile(r" = (\(.*?\)|\S+) [\w\-]+\(([^()]*)\)")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_NEAR = "S(1)"  # of a layout: the array is in vector memory already
_NAMES = re.compile(r"%[\w.\-]+|metadata=\{[^}]*\}")
_BITS = re.compile(r"(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')

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
    blocks, entry = _blocks(text)
    named = ((_NAME.match(line), line) for line in text.splitlines())
    alike = {_alike(line): counted[name[1]] for name, line in named if name and name[1] in counted}

    def issued(line: str, sizes: dict[str, float]) -> float:
        cycles, scheduled = alike.get(_alike(line), math.nan), _cycles(line)
        start = START if scheduled is None else min(START, scheduled)
        return start + max(cycles, _moved(line, sizes) / bytes_per_cycle)

    return list(_walk(blocks, entry, 1, issued))


def _moved(line: str, sizes: dict[str, float]) -> float:
    """Bytes in memory of the operands and the result of an instruction."""
    found = _TYPE.search(line)
    operands = _USED.findall(found[2]) if found else ()
    return _size(line) + sum(sizes.get(name, 0.0) for name in operands)


def _size(line: str) -> float:
    """Bytes of the result of an instruction that are in the chip's memory."""
    found = _TYPE.search(line)
    arrays = _ARRAY.findall(found[1]) if found else ()
    return sum(_bytes(dtype, shape) for dtype, shape, layout in arrays if _NEAR not in layout)


def _bytes(dtype: str, shape: str) -> float:
    bits = 8 if dtype == "pred" else int("".join(_BITS.findall(dtype)[:1]) or 0)
    return bits / 8 * math.prod(int(n) for n in shape.split(",") if n)


def _alike(line: str) -> str:
    """The program of a Pallas kernel as it was sent to the compiler; others without their names."""
    found = _KERNEL.search(line)
    return found[1] if found else _NAMES.sub("", line).strip()


def _blocks(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry."""
    blocks: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            blocks[name] = []
            entry = name if found[1] else entry
        elif name:
            blocks[name].append(line)
    return blocks, entry


def _walk(blocks, computation, calls, issued):
    lines = blocks.get(computation, ())
    sizes = {found[1]: _size(line) for line in lines if (found := _NAME.match(line))}
    for line in lines:
        found = _NAME.match(line)
        if not found:
            continue
        for inner, times in _inner(line, blocks):
            yield from _walk(blocks, inner, calls * times, issued)
        cycles, counted, kind = _cycles(line), issued(line, sizes), "schedule"
        if '"tpu_custom_call"' in line:
            cycles, kind = counted, "bundles"
        if cycles is not None:
            source = _OP_NAME.search(line)
            counted = cycles if math.isnan(counted) else counted
            yield Op(found[1], source[1] if source else "", kind, calls, cycles, counted)


def _inner(line: str, blocks) -> list[tuple[str, int]]:
    """Computations that an instruction runs, and how often."""
    if loop := _LOOP.search(line):
        return [(loop[2], _trips(line, blocks.get(loop[1], [])))]
    if called := _CALLED.search(line):
        return [(called[1], 1)]
    if " conditional(" in line:
        names = [a or b for a, b in _BRANCHES.findall(line)]
        return [(n.strip().lstrip("%"), 1) for group in names for n in group.split(",")]
    return []


def _trips(line: str, condition: list[str]) -> int:
    """Trips of a loop: as written, or the one limit of its condition; JAX counts from 0."""
    if written := _TRIPS.search(line):
        return int(written[1])
    limits = [found[1] for text in condition if (found := _LIMIT.search(text))]
    return int(limits[0]) if len(limits) == 1 else 1


def _cycles(line: str) -> float | None:
    found = _CYCLES.search(line)
    return float(found[1]) if found else None

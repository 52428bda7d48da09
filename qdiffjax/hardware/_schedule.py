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
_ARRAY = re.compile(r"^\s+(?:ROOT )?%[\w.\-<>]+ = ([a-z]+[0-9a-z]*)\[([0-9,]*)\]")
_BITS = re.compile(r"(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')

# Cycles that the compiler's schedule gives the smallest operation; a kernel starts no faster.
START = 1800


class Op(NamedTuple):
    """One operation of a compiled program.

    name: of the HLO instruction; source: op_name of the JAX operation that it came from; kind:
    "schedule" if cycles are the compiler's estimate, "bundles" if they are counted from the
    instructions of a Pallas kernel; calls: how often it runs; cycles: of one run.
    """

    name: str
    source: str
    kind: str
    calls: int
    cycles: float


def operations(
    text: str, kernels: Mapping[str, float], bytes_per_cycle: float = math.inf
) -> list[Op]:
    """Return the operations of a scheduled HLO module that cost cycles.

    Bodies of loops count as often as they run, or once where the number is not known; of the
    branches of a conditional, all.

    Args:
      text: of the module.
      kernels: cycles of a run of Pallas kernels, by the name of their instruction; the compiler
        prints one of those that are alike.
      bytes_per_cycle: that memory moves; a kernel is no faster than its operands and result.
    """
    blocks, entry = _blocks(text)
    named = ((_NAME.match(line), line) for line in text.splitlines() if _KERNEL.search(line))
    by_body = {_body(line): kernels[name[1]] for name, line in named if name and name[1] in kernels}

    def kernel(line: str, sizes: dict[str, float]) -> float:
        cycles = by_body.get(_body(line), math.nan)
        return START + max(cycles, _moved(line, sizes) / bytes_per_cycle)

    return list(_walk(blocks, entry, 1, kernel))


def _moved(line: str, sizes: dict[str, float]) -> float:
    """Bytes of the operands and the result of an instruction."""
    name = _NAME.match(line)
    operands = line.partition(" custom-call(")[2].partition(")")[0]
    return sum(sizes.get(n, 0.0) for n in [name[1] if name else "", *_USED.findall(operands)])


def _size(line: str) -> float:
    """Bytes of the result of an instruction; 0 for tuples."""
    found = _ARRAY.search(line)
    if not found:
        return 0.0
    bits = int(_BITS.search(found[1])[1]) if found[1] != "pred" else 8  # type: ignore[index]
    return bits / 8 * math.prod(int(n) for n in found[2].split(",") if n)


def _body(line: str) -> str:
    """The program of a Pallas kernel, as it was sent to the compiler."""
    found = _KERNEL.search(line)
    return found[1] if found else ""


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


def _walk(blocks, computation, calls, kernel):
    lines = blocks.get(computation, ())
    sizes = {found[1]: _size(line) for line in lines if (found := _NAME.match(line))}
    for line in lines:
        found = _NAME.match(line)
        if not found:
            continue
        for inner, times in _inner(line, blocks):
            yield from _walk(blocks, inner, calls * times, kernel)
        cycles, kind = _cycles(line), "schedule"
        if '"tpu_custom_call"' in line:
            cycles, kind = kernel(line, sizes), "bundles"
        if cycles is not None:
            source = _OP_NAME.search(line)
            yield Op(found[1], source[1] if source else "", kind, calls, cycles)


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

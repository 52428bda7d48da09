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
_OP_NAME = re.compile(r'op_name="([^"]*)"')


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


def operations(text: str, kernels: Mapping[str, float]) -> list[Op]:
    """Return the operations of a scheduled HLO module that cost cycles.

    Bodies of loops count as often as they run, or once where the number is not known; of the
    branches of a conditional, all.

    Args:
      text: of the module.
      kernels: cycles of a run of each Pallas kernel, by the name of its instruction.
    """
    blocks, entry = _blocks(text)
    return list(_walk(blocks, entry, 1, kernels))


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


def _walk(blocks, computation, calls, kernels):
    for line in blocks.get(computation, ()):
        found = _NAME.match(line)
        if not found:
            continue
        for inner, times in _inner(line, blocks):
            yield from _walk(blocks, inner, calls * times, kernels)
        cycles, kind = _cycles(line), "schedule"
        if '"tpu_custom_call"' in line:
            cycles, kind = kernels.get(found[1], math.nan), "bundles"
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

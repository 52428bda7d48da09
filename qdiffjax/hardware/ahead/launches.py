"""Reading of a GPU program's HLO: what it launches, once and in its loops."""

import math
import re
from typing import NamedTuple

SMALL = 64 * 1024
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all",
    "optimization-barrier",
}  # fmt: skip
BITS = {"pred": 8, "bf16": 16}
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
OPERATION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


class Launches(NamedTuple):
    """Numbers of operations that a program launches, by kind; each is in one of the first four.

    Attributes:
      fusions: passes that XLA wrote, products of its own among them.
      calls: kernels of others: ours, and libraries'.
      copies: of whole arrays.
      others: operations on their own.
      transposes: of the above, those that move an array to another order, alone or on the way.
      small: of the above, those whose results take less than 64 KiB: what they cost is the launch.
    """

    fusions: int
    calls: int
    copies: int
    others: int
    transposes: int
    small: int


def launches(text: str) -> tuple[Launches, Launches]:
    """Return what the entry computation of compiled HLO launches, and what its loops' bodies do."""
    computations = _computations(text)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    turning = {name for name, ops in computations.items() if any(o == "transpose" for o, _ in ops)}
    loops = [op for name in bodies for op in computations[name]]
    return _counted(computations["ENTRY"], turning), _counted(loops, turning)


def _computations(text: str) -> dict[str, list[tuple[str, str]]]:
    """Operations of every computation, as (opcode, line)."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            name = "ENTRY" if head.group(1) else head.group(2)
            found[name] = []
        elif name and (op := OPERATION.match(line)):
            found[name].append((op.group(3), line))
    return found


def _counted(ops: list[tuple[str, str]], turning: set[str]) -> Launches:
    ops = [(op, line) for op, line in ops if op not in FREE]
    kinds = [op for op, _ in ops]
    fusions, calls, copies = (kinds.count(kind) for kind in ("fusion", "custom-call", "copy"))
    return Launches(
        fusions, calls, copies, len(ops) - fusions - calls - copies,
        transposes=sum(_turns(op, line, turning) for op, line in ops),
        small=sum(_result_bytes(line) < SMALL for _, line in ops),
    )  # fmt: skip


def _turns(op: str, line: str, turning: set[str]) -> bool:
    called = re.search(r"calls=%?([\w.\-]+)", line)
    return op == "transpose" or (op == "fusion" and called is not None and called[1] in turning)


def _result_bytes(line: str) -> float:
    found = OPERATION.match(line)
    assert found is not None
    return sum(
        math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) / 8
        for dtype, dims in ARRAY.findall(found.group(2))
    )


def _bits(dtype: str) -> int:
    number = re.search(r"\d+", dtype)
    return BITS.get(dtype) or (int(number[0]) if number else 8)

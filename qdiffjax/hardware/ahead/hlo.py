"""Reading of compiled HLO: its computations, their instructions, and how large results are."""

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-<>]+) = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_BITS = re.compile(r"\d+")


class Instruction(NamedTuple):
    """One instruction: its name, the type of its result as written, its opcode, and its line."""

    name: str
    result: str
    opcode: str
    line: str


def read_computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of each computation by its name, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            word, result, opcode = instruction.groups()
            computations[name].append(Instruction(word, result, opcode, line))
    return computations, entry


def count_bytes(types: str, skipped_space: str | None = None) -> float:
    """Return the bytes of all arrays of a type, but those whose layout names the skipped space."""
    return sum(
        _bits(dtype) / 8 * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape, layout in _ARRAY.findall(types)
        if skipped_space is None or skipped_space not in layout
    )


def _bits(dtype: str) -> int:
    width = _BITS.search(dtype)
    return 8 if dtype == "pred" else int(width[0]) if width else 0

"""Reading of a GPU program's HLO: what it launches, once and in its loops."""

import re
from typing import NamedTuple

from qdiffjax.hardware.ahead.hlo import Instruction, count_bytes, read_computations

SMALL = 64 * 1024
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all",
    "optimization-barrier",
}  # fmt: skip


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


def count_launches(text: str) -> tuple[Launches, Launches]:
    """Return what the entry computation of compiled HLO launches, and what its loops' bodies do."""
    computations, entry = read_computations(text)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    turning = {name for name, ops in computations.items() if "transpose" in {o.opcode for o in ops}}
    loops = [op for name in bodies for op in computations[name]]
    return _counted(computations[entry], turning), _counted(loops, turning)


def _counted(operations: list[Instruction], turning: set[str]) -> Launches:
    operations = [op for op in operations if op.opcode not in FREE]
    opcodes = [op.opcode for op in operations]
    fusions, calls, copies = (opcodes.count(o) for o in ("fusion", "custom-call", "copy"))
    return Launches(
        fusions, calls, copies, len(operations) - fusions - calls - copies,
        transposes=sum(_turns(op, turning) for op in operations),
        small=sum(count_bytes(op.result) < SMALL for op in operations),
    )  # fmt: skip


def _turns(op: Instruction, turning: set[str]) -> bool:
    called = re.search(r"calls=%?([\w.\-]+)", op.line)
    is_turning = called is not None and called[1] in turning
    return op.opcode == "transpose" or (op.opcode == "fusion" and is_turning)

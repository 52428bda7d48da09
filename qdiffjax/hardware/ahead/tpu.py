"""What a function would cost on a TPU, from its compiler alone: no TPU is needed.

`libtpu` compiles ahead of time for any of its chips. It schedules every operation and says how many
cycles it expects of each; for a Pallas kernel it prints the instructions, which `schedule` counts,
to which the smallest operation's cycles are added, and on a v5e no less than its operands need to
cross the memory. `cycles` mixes the two; `issued` counts the instructions of all operations alike.
They differ most for passes over arrays that stay in vector memory: the schedule charges them as if
they crossed the memory. Such numbers are estimates of a compiler, not measurements: trust ratios
between programs on one chip, not times.
"""

import importlib.metadata
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qdiffjax.hardware.ahead import process
from qdiffjax.hardware.ahead.schedule import Op, counted_cycles, operations

CHIPS = {
    "v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2",
    "v7x": "tpu7x:2x2x1",
}  # fmt: skip
# Of memory, where the clock is known: 819 GB/s at 1.5 GHz.
BYTES_PER_CYCLE = {"TPU v5 lite": 545.0}
# Of a matrix unit, for one instruction, by dtype of the left operand: 8, 16 or 32 rows of it. The
# peak of 4 units of 128 x 128 at 1.5 GHz follows from the number of these instructions.
PUSH = {"TPU v5 lite": {"f32": 8, "bf16": 16, "s8": 16}}
NEEDS = ("libtpu", "flatbuffers")
MEMORY = ("argument", "output", "temp", "generated_code")
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}  # fmt: skip


class TpuCost(NamedTuple):
    """Estimated cost of a compiled function on one TPU core.

    Attributes:
      cycles: of all operations, one after the other; NaN if a kernel's are not known.
      issued: the same, every operation counted by its instructions; see `Op`.
      ops: the operations that cost cycles, in order; see `Op`.
      flops, bytes: that the HLO counts; it sees neither into kernels nor trips of loops.
      memory: bytes of arguments, outputs, temporaries and code.
      device: kind of the device.
      compiler: version of libtpu.
      text: of the scheduled HLO.
    """

    cycles: float
    issued: float
    ops: tuple[Op, ...]
    flops: float
    bytes: float
    memory: dict[str, int]
    device: str
    compiler: str
    text: str


def missing() -> list[str]:
    """Return the packages that ahead-of-time compilation needs and that are not installed."""
    return process.lacking(NEEDS)


def tpu_cost(fn: Callable, *shapes, topology: str = "v5e") -> TpuCost:
    """Compile fn(*shapes) for a TPU and return what its compiler expects it to cost.

    Args:
      fn: any function that jax.jit takes; closures too.
      shapes: pytrees of arrays or of jax.ShapeDtypeStruct; arguments are not constants, which the
        compiler could fold.
      topology: a chip of `CHIPS`, or a name that libtpu knows, such as "v5e:2x2"; one core of its
        first chip is compiled for.

    Raises:
      ModuleNotFoundError: no libtpu.
      RuntimeError: the compiler failed; holds the end of what it said.
    """
    process.check_packages(NEEDS, "aot")
    exported, name = process.export(fn, *shapes, platform="tpu"), CHIPS.get(topology, topology)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        flags = f"--xla_jf_dump_to={folder}/bundles --xla_jf_dump_llo_text=true "
        flags += "--xla_jf_dump_llo_pass_label_regex=final_bundles"
        text, analysis = process.compile_exported(
            exported, folder, {"platform": "tpu", "topology_name": name}, target=name,
            environment=_ENVIRONMENT | {"LIBTPU_INIT_ARGS": flags},
        )  # fmt: skip
        counted = counted_cycles(folder / "bundles", PUSH.get(analysis["device"], {}))
    ops = operations(text, counted, BYTES_PER_CYCLE.get(analysis["device"], math.inf))
    return TpuCost(
        cycles=sum(op.calls * op.cycles for op in ops),
        issued=sum(op.calls * op.issued for op in ops),
        ops=tuple(ops),
        flops=analysis["cost"].get("flops", 0.0),
        bytes=analysis["cost"].get("bytes accessed", 0.0),
        memory={name: analysis["memory"][name] for name in MEMORY},
        device=analysis["device"],
        compiler=f"libtpu {importlib.metadata.version('libtpu')}",
        text=text,
    )

"""What a function would take on a Hopper GPU, from its compiler alone: no GPU is needed.

XLA compiles for a GPU that it knows by a few numbers. On a GPU it times products and chooses; here
it takes its defaults, so that the program is another one where it would choose otherwise. Peaks of
memory for a DiT-XL/2 (jaxlib 0.10.2) came out 0 to 3 % below those of programs compiled on an H200
(0.11.2). Nothing here says how long anything takes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export

from qdiffjax._checks import require
from qdiffjax.hardware.ahead import process
from qdiffjax.hardware.ahead.launches import Launches, count_launches
from qdiffjax.hardware.compiled import CompiledCost

NEEDS = ("jax_cuda12_plugin", "flatbuffers")
# Read from xla/backends/gpu/target_config/specs in github.com/openxla/xla (h100_sxm, h200); names
# are those of its GpuTargetConfigProto.
HOPPER = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49152, "shared_memory_per_core": 233472,
    "shared_memory_per_block_optin": 232448, "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536, "core_count": 132, "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024, "thread_dim_limit_y": 1024, "thread_dim_limit_z": 64,
    "l2_cache_size": 52428800, "clock_rate_ghz": 1.98, "device_address_bits": 64,
}  # fmt: skip
CHIPS = {
    "H100": {"memory_bandwidth": 3352320000000, "device_memory_size": 84942979072},
    "H200": {"memory_bandwidth": 4800000000000, "device_memory_size": 151397597184},
}
VERSIONS = {
    "driver": "12.8.0", "runtime": "12.8.0", "compile_time_toolkit": "12.8.0", "dnn": "9.10.0",
}  # fmt: skip


class GpuCost(NamedTuple):
    """What a compiled function takes on one GPU.

    Attributes:
      compiled: bytes, and operations as XLA counts them.
      entry: what the program launches once.
      loops: what one pass through every loop launches, all loops together.
      chip: that it was compiled for.
      compiler: version of jaxlib.
      text: of the scheduled HLO.
    """

    compiled: CompiledCost
    entry: Launches
    loops: Launches
    chip: str
    compiler: str
    text: str


def missing() -> list[str]:
    """Return packages that ahead-of-time compilation for GPUs needs and that are not installed."""
    return process.lacking(NEEDS)


def gpu_cost(
    fn: Callable, *shapes, chip: str = "H200", options: dict[str, Any] | None = None
) -> GpuCost:
    """Compile fn(*shapes) for a GPU and return what it takes there.

    Functions of `kernels` need `path=kernels.GPU`: the default is that of this machine. Set
    JAX_PLATFORMS=cpu where there is no GPU.

    Args:
      fn: any function that jax.jit takes; closures too.
      shapes: pytrees of arrays or of jax.ShapeDtypeStruct; arguments are not constants.
      chip: of `CHIPS`.
      options: of the compiler, as `compiler_options` of jax.jit.

    Raises:
      ModuleNotFoundError: no compiler for GPUs.
      ValueError: a chip that is not known.
      RuntimeError: the compiler failed; holds the end of what it said.
    """
    process.check_packages(NEEDS, "aot-gpu")
    # JAX promises no stability of Triton's kernels over time; these live for a minute.
    triton = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    exported = process.export(fn, *shapes, platform="cuda", disabled_checks=[triton])
    topology = {"platform": "cuda", "target_config": target(chip), "topology": "1x1x1"}
    with tempfile.TemporaryDirectory() as name:
        text, analysis = process.compile_exported(
            exported, Path(name), topology, target=chip, environment={"JAX_PLATFORMS": "cpu"},
            options=options,
        )  # fmt: skip
    cost, memory = analysis["cost"], analysis["memory"]
    compiled = CompiledCost(
        cost.get("flops", 0.0), cost.get("bytes accessed", 0.0), memory["argument"],
        memory["output"], memory["temp"], memory["alias"], "cuda",
    )  # fmt: skip
    return GpuCost(compiled, *count_launches(text), chip, f"jaxlib {analysis['jaxlib']}", text)


def target(chip: str) -> str:
    """Return the text of a GpuTargetConfigProto."""
    require(
        chip in CHIPS,
        "chip",
        got=repr(chip),
        expected=f"one of {', '.join(CHIPS)}",
        remedy="name one that the compiler knows",
    )
    numbers = [f"{name}: {value}" for name, value in (HOPPER | CHIPS[chip]).items()]
    versions = [f'{name}_version: "{value}"' for name, value in VERSIONS.items()]
    lines = [
        "gpu_device_info {", *numbers, *versions, f'name: "{chip}"',
        'device_vendor: "NVIDIA Corporation"',
        "cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }", "}",
        'platform_name: "CUDA"', f'device_description_str: "{chip}"',
        "dnn_version_info { major: 9 minor: 10 patch: 0 }",
    ]  # fmt: skip
    return "\n".join(lines)

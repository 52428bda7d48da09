"""Compile an exported function for TPUs that are not there: a script, run by `aot` in a process.

    python child.py <topology> <folder>

reads <folder>/exported, writes <folder>/compiled.txt and <folder>/analysis.json. It is a process of
its own because the compiler ends its process when it fails.
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

MEMORY = ("argument", "output", "temp", "generated_code")


def main(topology: str, folder: Path) -> None:
    """Compile and write what the compiler says about the result."""
    devices: list = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    exported = jax.export.deserialize(bytearray((folder / "exported").read_bytes()))
    on_chip = SingleDeviceSharding(devices[0])
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_chip) for a in exported.in_avals]
    compiled = jax.jit(exported.call).lower(*shapes).compile()
    (folder / "compiled.txt").write_text(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    analysis = {
        "device": devices[0].device_kind,
        "cost": compiled.cost_analysis(),
        "memory": {name: getattr(memory, f"{name}_size_in_bytes") for name in MEMORY},
    }
    (folder / "analysis.json").write_text(json.dumps(analysis))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

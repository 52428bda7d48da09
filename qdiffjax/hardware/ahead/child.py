"""Compile an exported function for a chip that is not there: a script, run in a process of its own.

    python child.py <folder>

reads <folder>/exported and job.json (keywords of the topology, options of the compiler), writes
<folder>/compiled.txt and analysis.json. It is a process of its own because the compiler ends its
process when it fails.
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
import jaxlib
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

MEMORY = ("argument", "output", "temp", "alias", "generated_code")


def main(folder: Path) -> None:
    """Compile and write what the compiler says about the result."""
    job = json.loads((folder / "job.json").read_text())
    devices: list = topologies.get_topology_desc(**job["topology"]).devices
    on_chip = SingleDeviceSharding(devices[0])
    exported = jax.export.deserialize(bytearray((folder / "exported").read_bytes()))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_chip) for a in exported.in_avals]
    compiled = jax.jit(exported.call).lower(*shapes).compile(job["options"] or None)
    (folder / "compiled.txt").write_text(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    analysis = {
        "device": devices[0].device_kind,
        "jaxlib": jaxlib.__version__,
        "cost": compiled.cost_analysis() or {},
        "memory": {name: getattr(memory, f"{name}_size_in_bytes") for name in MEMORY},
    }
    (folder / "analysis.json").write_text(json.dumps(analysis))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Compile an exported function for a GPU that is not there: a script, run by `aot_gpu`.

    python gpu_child.py <folder>

reads <folder>/exported, target and options, writes <folder>/compiled.txt and analysis.json. It is a
process of its own because the compiler ends its process when it fails.
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
import jaxlib
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

MEMORY = ("argument", "output", "temp", "alias")


def main(folder: Path) -> None:
    """Compile and write what the compiler says about the result."""
    found = topologies.get_topology_desc(
        platform="cuda", target_config=(folder / "target").read_text(), topology="1x1x1"
    )
    on_chip = SingleDeviceSharding(found.devices[0])
    exported = jax.export.deserialize(bytearray((folder / "exported").read_bytes()))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_chip) for a in exported.in_avals]
    options = json.loads((folder / "options").read_text())
    compiled = jax.jit(exported.call).lower(*shapes).compile(options or None)
    (folder / "compiled.txt").write_text(compiled.as_text() or "")
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    analysis = {name: getattr(memory, f"{name}_size_in_bytes") for name in MEMORY}
    analysis |= {
        "flops": cost.get("flops", 0.0), "accessed": cost.get("bytes accessed", 0.0),
        "jaxlib": jaxlib.__version__,
    }  # fmt: skip
    (folder / "analysis.json").write_text(json.dumps(analysis))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What compiling ahead of time takes for any chip: packages, a program, a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export

from qdiffjax._checks import require


def lacking(needs: Sequence[str]) -> list[str]:
    """Return the packages that are needed and not installed."""
    return [name for name in needs if importlib.util.find_spec(name) is None]


def check_packages(needs: Sequence[str], extra: str) -> None:
    """Raise ModuleNotFoundError, which names the extra to install, where a package is missing."""
    absent = lacking(needs)
    require(
        not absent, "packages", got=f"no {' and no '.join(absent)}",
        expected="what compiles ahead of time", remedy=f"pip install 'qdiffjax[{extra}]'",
        error=ModuleNotFoundError,
    )  # fmt: skip


def export(fn: Callable, *shapes, platform: str, disabled_checks=()) -> bytes:
    """Return the serialized StableHLO of fn for a platform, flat."""
    leaves, tree = jax.tree.flatten(shapes)

    def flat(*leaves):
        return tuple(jax.tree.leaves(fn(*jax.tree.unflatten(tree, leaves))))

    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]
    exported = jax.export.export(
        jax.jit(flat), platforms=[platform], disabled_checks=disabled_checks
    )
    return bytes(exported(*specs).serialize())


def compile_exported(
    exported: bytes, folder: Path, topology: dict[str, str], *, target: str,
    environment: dict[str, str], options: dict[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Compile in a process of its own, by `child.py`.

    Args:
      exported: of `export`.
      folder: for what the two processes tell each other.
      topology: keywords of `jax.experimental.topologies.get_topology_desc`.
      target: name of the chip, for errors.
      environment: variables of the process.
      options: of the compiler.

    Returns:
      The scheduled HLO; and the device, the version of jaxlib, `cost` and `memory`.

    Raises:
      RuntimeError: the compiler failed; holds the end of what it said.
    """
    (folder / "exported").write_bytes(exported)
    (folder / "job.json").write_text(json.dumps({"topology": topology, "options": options}))
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("child.py")), str(folder)],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(
            f"compilation for {target}: exit code {run.returncode}\n{run.stderr[-4000:]}"
        )
    analysis = json.loads((folder / "analysis.json").read_text())
    return (folder / "compiled.txt").read_text(), analysis

"""What compiling ahead of time takes for any chip: packages, a program, a process of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.export


def lacking(needs: Sequence[str]) -> list[str]:
    """Packages that are needed and not installed."""
    return [name for name in needs if importlib.util.find_spec(name) is None]


def require(needs: Sequence[str], extra: str) -> None:
    """Raise ModuleNotFoundError, which names the extra to install, where a package is missing."""
    if absent := lacking(needs):
        raise ModuleNotFoundError(
            f"{', '.join(absent)}: not installed, expected for compiling ahead of time; "
            f"pip install 'qdiffjax[{extra}]'."
        )


def export(fn: Callable, *shapes, platform: str, disabled_checks=()) -> bytes:
    """Serialized StableHLO of fn for a platform, flat."""
    leaves, tree = jax.tree.flatten(shapes)

    def flat(*leaves):
        return tuple(jax.tree.leaves(fn(*jax.tree.unflatten(tree, leaves))))

    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]
    exported = jax.export.export(
        jax.jit(flat), platforms=[platform], disabled_checks=disabled_checks
    )
    return bytes(exported(*specs).serialize())


def run_script(script: str, *arguments: str, environment: dict[str, str], target: str) -> None:
    """Run a script of this folder; raises RuntimeError with the end of what it said if it fails."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(
            f"compilation for {target}: exit code {run.returncode}\n{run.stderr[-4000:]}"
        )

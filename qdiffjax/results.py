"""Results on disk: the only reader and writer. Needs NumPy, not JAX.

<folder>/config.json    what was run, and with what (commit, versions, device, seconds)
<folder>/arrays.npz     the numbers
<folder>/summary.json   a list of rows
<folder>/parts/         finished parts of a run that was interrupted
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from qdiffjax._checks import require

Finished = tuple[dict[str, Any], dict[str, np.ndarray], list[dict[str, Any]]]


def check_writable(folder) -> Path:
    """Create `folder` and prove that files can be written there.

    Raises:
      OSError: they cannot; says where.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write results to {folder}: {error.strerror or error}") from error
    return folder


@contextlib.contextmanager
def replacing(path):
    """Open a file for writing so that a reader sees the old one or the whole new one.

    Whatever goes wrong inside leaves the old file, and nothing else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
        try:
            yield f
            f.flush()
            os.chmod(f.name, 0o644)
            os.replace(f.name, path)
        except BaseException:
            os.unlink(f.name)
            raise


def save_json(path, value) -> None:
    """Write JSON atomically; infinities and NaN become null, arrays lists."""
    text = json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"
    with replacing(path) as f:
        f.write(text.encode())


def save_arrays(path, arrays: dict[str, Any]) -> None:
    """Write a compressed npz atomically."""
    with replacing(path) as f:
        np.savez_compressed(f, **arrays)


def load(folder, *, remedy: str = "save a run there first") -> Finished:
    """Read (config, arrays, rows) of a finished run.

    Args:
      folder: that `save` wrote.
      remedy: what to do about missing results, for the error.

    Raises:
      FileNotFoundError: no results there.
    """
    folder = Path(folder)
    require((folder / "arrays.npz").is_file(), "results", got=f"no arrays.npz in {folder}",
            expected="a finished run", remedy=remedy, error=FileNotFoundError)  # fmt: skip
    with np.load(folder / "arrays.npz") as data:
        arrays = dict(data)
    rows = folder / "summary.json"
    config = json.loads((folder / "config.json").read_text())
    return config, arrays, json.loads(rows.read_text()) if rows.exists() else []


def save(folder, config: dict, arrays: dict, rows: list, **provenance_of_run) -> None:
    """Write a finished run: arrays, rows, and the config with its provenance."""
    folder = Path(folder)
    save_arrays(folder / "arrays.npz", arrays)
    save_json(folder / "summary.json", rows)
    save_json(folder / "config.json", {**config, "provenance": provenance() | provenance_of_run})


def fingerprint(*values) -> str:
    """Short hash of JSON-like values and arrays: two runs with the same one are the same run."""
    digest = hashlib.sha256()
    for value in values:
        is_array = isinstance(value, np.ndarray)
        text = "" if is_array else json.dumps(_plain(value), sort_keys=True)
        digest.update(value.tobytes() if is_array else text.encode())
    return digest.hexdigest()[:16]


def save_part(folder, name: str, mark: str, arrays: dict, row: dict) -> None:
    """Keep a finished part of a run, marked with the run's fingerprint."""
    save_arrays(Path(folder) / "parts" / f"{name}.npz", arrays)
    save_json(Path(folder) / "parts" / f"{name}.json", {"mark": mark, "row": row})


def load_part(folder, name: str, mark: str) -> tuple[dict, dict] | None:
    """Read (arrays, row) of a part that the same run finished earlier, else None."""
    base = Path(folder) / "parts"
    try:
        saved = json.loads((base / f"{name}.json").read_text())
        if saved["mark"] != mark:
            return None
        with np.load(base / f"{name}.npz") as data:
            return dict(data), saved["row"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def provenance() -> dict[str, Any]:
    """Commit, versions and processor of this run."""
    versions: dict[str, str | None] = {}
    for package in ("jax", "jaxlib", "flax", "numpy", "qdiffjax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this file is in; None where it is installed."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # a repository above site-packages is not ours
        return None
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True
        )
        return run.stdout.strip() or None
    except OSError:
        return None


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value

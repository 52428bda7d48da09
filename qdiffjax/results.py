"""Results on disk: the only reader and writer. Needs NumPy, not JAX.

<folder>/config.json    what was run, and with what (commit, versions, device, seconds)
<folder>/arrays.npz     the numbers
<folder>/summary.json   a list of rows
<folder>/parts/         finished parts of runs: <fingerprint of the run>/<name>.npz

A part is one file, which holds its run's fingerprint beside its numbers, and shows when it is
damaged; config.json knows the hashes of the other two, so that files of two runs are not mixed.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from qdiffjax import _files
from qdiffjax._checks import require

Finished = tuple[dict[str, Any], dict[str, np.ndarray], list[dict[str, Any]]]
ABOUT = "about this part"  # what it is called in the archive of its arrays
LONGEST = 150  # characters of a part's name that its file's name repeats


def load(folder, *, remedy: str = "save a run there first") -> Finished:
    """Read (config, arrays, rows) of a finished run.

    Args:
      folder: that `save` wrote.
      remedy: what to do about missing results, for the error.

    Raises:
      FileNotFoundError: no results there.
      ValueError: files that are damaged, or of two runs.
    """
    folder = Path(folder)
    for name in ("arrays.npz", "config.json"):
        require((folder / name).is_file(), "results", got=f"no {name} in {folder}",
                expected="a finished run", remedy=remedy, error=FileNotFoundError)  # fmt: skip
    config = _json(folder / "config.json", dict, remedy)
    for name, value in config.get("provenance", {}).get("sha256", {}).items():
        path = folder / name
        require(path.is_file() and _files.digest(path) == value, str(path),
                got="a file that is damaged, or of another run than config.json",
                expected="what was saved with it", remedy=remedy)  # fmt: skip
    arrays = _arrays(folder / "arrays.npz", (folder / "arrays.npz").read_bytes(), remedy)
    rows = folder / "summary.json"
    return config, arrays, _json(rows, list, remedy) if rows.exists() else []


def save(folder, config: dict, arrays: dict, rows: list, **provenance_of_run) -> None:
    """Write a finished run: arrays, rows, and the config with its provenance.

    Raises:
      OSError: they cannot be written; says which.
    """
    folder = Path(folder)
    files = {"arrays.npz": _archive(arrays), "summary.json": _text(rows)}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    about = {**config, "provenance": provenance() | provenance_of_run | {"sha256": hashes}}
    files["config.json"] = _text(about)
    _files.write({folder / name: data for name, data in files.items()})


def fingerprint(*values) -> str:
    """Short hash of JSON-like values and arrays: two runs with the same one are the same run."""
    digest = hashlib.sha256()
    for value in values:
        is_array = isinstance(value, np.ndarray)
        about = [value.dtype.name, value.shape] if is_array else value
        digest.update(json.dumps(plain(about), sort_keys=True).encode() + b"\n")
        digest.update(value.tobytes() if is_array else b"")
    return digest.hexdigest()[:16]


def part_path(folder, name: str, mark: str) -> Path:
    """Return the file of a part, in `folder` whatever the name is."""
    return Path(folder) / "parts" / mark / f"{file_name(name)}.npz"


def file_name(name: str) -> str:
    """Return a name for a file, without its suffix, that says `name` and is no path."""
    file = quote(name, safe=" +,=()")
    return file if len(file) <= LONGEST else f"{file[:LONGEST]}-{fingerprint(name)}"


def save_part(folder, name: str, mark: str, arrays: dict, row: dict) -> None:
    """Keep a finished part of a run with the run's fingerprint, beside those of other runs.

    Raises:
      OSError: it cannot be written; says which.
    """
    about = json.dumps({"name": name, "mark": mark, "row": plain(row)}, allow_nan=False)
    archive = _archive(arrays | {ABOUT: np.asarray(about)})
    _files.write({part_path(folder, name, mark): _files.sealed(archive)})


def load_part(folder, name: str, mark: str) -> tuple[dict, dict] | None:
    """Read (arrays, row) of a part that the same run finished earlier, else None.

    A damaged one is as good as none, but for a word.
    """
    path = part_path(folder, name, mark)
    if not path.is_file():
        return None
    try:
        arrays = _arrays(path, _files.check_sealed(path.read_bytes()), "measure it again")
        about = json.loads(str(arrays.pop(ABOUT)))
    except (OSError, ValueError, KeyError):
        _files.say(f"{path} is damaged; measured again")
        return None
    if (about["name"], about["mark"]) != (name, mark):
        _files.say(f"{path} is of another run; measured again")
        return None
    return arrays, about["row"]


def _archive(arrays: dict[str, Any]) -> bytes:
    """Return a compressed npz."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _arrays(path: Path, archive: bytes, remedy: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(archive)) as data:
            return dict(data)
    except Exception as error:  # whatever zip, zlib and NumPy make of damaged bytes
        raise _damaged(path, error, remedy) from error


def _text(value) -> bytes:
    """Return JSON; infinities and NaN become null, arrays lists."""
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode()


def _json(path: Path, kind: type, remedy: str):
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error, remedy) from error
    require(isinstance(value, kind), str(path), got=type(value).__name__,
            expected=f"a {kind.__name__}", remedy=remedy)  # fmt: skip
    return value


def _damaged(path: Path, error: Exception, remedy: str) -> ValueError:
    return ValueError(f"{path}: got a damaged file ({error}), expected saved results; {remedy}.")


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


def plain(value):
    """Return what a reader of JSON will find: lists, and null for infinities and NaN."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value

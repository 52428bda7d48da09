"""Files that are whole or not there: written at once, by one writer, and checked when read.

write        all files of one thing, each old or new and never half
writer       the folder of a run, which no other process may write to meanwhile
sealed       bytes that show every change made to them afterwards
seal, check  the same for a folder, in the format of sha256sum
"""

import contextlib
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from qdiffjax._checks import require

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".unfinished-"  # how names of temporary files begin
SUMS = "SHA256SUMS"


def say(words: str) -> None:
    """Print a word that is no result."""
    print(f"note: {words}", file=sys.stderr)


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


def write(files: Mapping[Path, bytes]) -> None:
    """Write files so that a reader sees each old one or the whole new one.

    All are on the disk before the first takes its place, in the order given. Whatever goes wrong
    before that leaves the old files, and nothing else.

    Raises:
      OSError: a file cannot be written; says which.
    """
    pending: list[tuple[str, Path]] = []
    path = Path()
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=UNFINISHED, delete=False
            ) as file:
                pending.append((file.name, path))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
        for name, path in pending:
            os.replace(name, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for name, _ in pending:
            Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def writer(folder) -> Iterator[Path]:
    """Own a folder while a run writes there, and remove what killed writers left half written.

    The lock is the system's own, on the folder itself: it ends with its process, however that ends.

    Raises:
      OSError: the folder cannot be written to, or another process writes there.
    """
    folder = check_writable(folder)
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            _lock(descriptor, folder)
        for pattern in (f"{UNFINISHED}*", f"parts/**/{UNFINISHED}*"):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        yield folder
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(
            f"cannot write results to {folder}: another process does; "
            "wait until it ends, or choose another --output."
        ) from error
    except OSError as error:  # some network file systems
        say(f"{folder} cannot be locked ({error.strerror}); let no other run write there")


def sealed(archive: bytes) -> bytes:
    """Return a zip archive without comment with its own SHA-256 as the comment."""
    body = archive[:-2] + (64).to_bytes(2, "little")
    return body + hashlib.sha256(body).hexdigest().encode()


def check_sealed(archive: bytes) -> bytes:
    """Return what `sealed` made.

    Raises:
      ValueError: it is not what `sealed` made.
    """
    whole = hashlib.sha256(archive[:-64]).hexdigest().encode() == archive[-64:]
    require(
        whole,
        got="damaged bytes",
        expected="those that were written",
        remedy="delete the file, and make it again",
    )
    return archive


def write_figure(path: Path, figure, **options) -> None:
    """Write a figure of matplotlib in the format of its suffix, as `write`."""
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix[1:], **options)
    write({path: file.getvalue()})


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return {path in the folder: SHA-256} of files, and of all files below folders, by name.

    Hidden files, which others leave everywhere, do not count.
    """
    files = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))
             if path.is_file() and not path.name.startswith(".")]  # fmt: skip
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(files)}


def listed(hashes: Mapping[str, str]) -> bytes:
    """Return the text of SHA256SUMS, which `sha256sum -c` reads too."""
    return "".join(f"{value}  {name}\n" for name, value in hashes.items()).encode()


def check_sums(folder: Path, names: tuple[str, ...], remedy: str) -> bool:
    """Return whether a folder has sums; raises ValueError where its files are not those summed.

    Args:
      folder: that holds `names` and SHA256SUMS.
      names: of all files and folders that are summed.
      remedy: what to do about damage, for the error.
    """
    if not (folder / SUMS).is_file():
        return False
    found, text = sums(folder, names), (folder / SUMS).read_bytes()
    if listed(found) != text:
        kept = {line[66:]: line[:64] for line in text.decode(errors="replace").splitlines()}
        changed = [n for n in sorted({*found, *kept}) if found.get(n) != kept.get(n)] or [SUMS]
        raise ValueError(f"{folder / changed[0]}: got a file that was damaged or changed, expected "
                         f"the one that {folder / SUMS} lists; {remedy}.")  # fmt: skip
    return True

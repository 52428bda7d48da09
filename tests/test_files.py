"""Files that are whole or not there, folders with one writer, and sums that show damage."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from qdiffjax import _files, results


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("failing", ["write", "fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   KeyboardInterrupt()])  # fmt: skip
def test_a_write_that_fails_leaves_the_old_files_and_nothing_else(
    tmp_path, monkeypatch, failing, error
):
    results.save(tmp_path, {"seed": 1}, {"a": np.ones(3)}, [])
    before = files(tmp_path)

    def fail(*_, **__):
        raise error

    if failing == "write":
        made = _files.tempfile.NamedTemporaryFile

        def full(**options):
            file = made(**options)
            file.write = fail
            return file

        monkeypatch.setattr(_files.tempfile, "NamedTemporaryFile", full)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error), match=r"cannot write .*No space left|^$"):
        results.save(tmp_path, {"seed": 2}, {"a": np.zeros(3)}, [])
    assert files(tmp_path) == before


def test_a_figure_is_written_as_matplotlib_does(tmp_path):
    figure = Figure((1, 1))
    figure.savefig(tmp_path / "theirs.png", dpi=50)
    _files.write_figure(tmp_path / "ours.png", figure, dpi=50)
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


HOLD = """
import sys, time
from qdiffjax import _files
with _files.writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_has_died_however_it_did(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match="another process does; wait until it ends, or choose"):
            _files.writer(tmp_path).__enter__()
        other.kill()
    with _files.writer(tmp_path) as folder:
        assert folder == tmp_path
        with pytest.raises(OSError, match="another process does"):
            _files.writer(tmp_path).__enter__()
    with _files.writer(tmp_path):
        pass


def test_what_a_dead_writer_left_half_written_is_removed_and_nothing_else(tmp_path):
    results.save_part(tmp_path, "W8A8", "mark", {"a": np.ones(2)}, {})
    (tmp_path / "notes.txt").write_text("mine")
    before = files(tmp_path)
    for folder in (tmp_path, tmp_path / "parts" / "mark"):
        (folder / f"{_files.UNFINISHED}abc").write_bytes(b"half")
    with _files.writer(tmp_path):
        assert files(tmp_path) == before


def test_a_folder_that_is_a_file_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match=r"cannot write results to"):
        _files.writer(tmp_path / "file").__enter__()


def test_sums_are_those_of_sha256sum_and_show_every_change(tmp_path):
    (tmp_path / "data" / "d").mkdir(parents=True)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "data" / "d" / "b").write_bytes(bytes(range(256)))
    names = ("a.json", "data")
    assert not _files.check_sums(tmp_path, names, "remedy")
    (tmp_path / _files.SUMS).write_bytes(_files.listed(_files.sums(tmp_path, names)))
    subprocess.run(["sha256sum", "-c", "--quiet", _files.SUMS], cwd=tmp_path, check=True)
    (tmp_path / "data" / ".hidden").write_text("of a file manager")
    assert _files.check_sums(tmp_path, names, "remedy")
    for path in (tmp_path / "a.json", tmp_path / "data" / "d" / "b", tmp_path / _files.SUMS):
        good = path.read_bytes()
        for wrong in (b"", good[:-1], good + b"x", bytes([good[0] ^ 4]) + good[1:]):
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=r"damaged or changed, expected .* remedy"):
                _files.check_sums(tmp_path, names, "remedy")
        path.unlink()
        if path.name != _files.SUMS:
            with pytest.raises(ValueError, match=path.name):
                _files.check_sums(tmp_path, names, "remedy")
        path.write_bytes(good)

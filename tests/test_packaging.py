"""The wheel: it holds the library and its checkpoints, and works from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qdiffjax

ROOT = Path(__file__).parents[1]
ROOM = ROOT / "qdiffjax"

INSTALLED = """
import importlib.metadata, importlib.util, pathlib, sys
import qdiffjax as qd
site = pathlib.Path(sys.argv[1])
assert pathlib.Path(qd.__file__).is_relative_to(site), qd.__file__
for name in qd.__all__:
    getattr(qd, name)
found = qd.networks.find_checkpoint("fashion_dit")
assert pathlib.Path(found).is_relative_to(site), found
denoiser = qd.load("fashion_dit").conditioned([3])
assert len(denoiser.sites()) > 10
(installed,) = importlib.metadata.distributions(name="qdiffjax", path=[str(site)])
assert installed.version == qd.__version__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of a copy that has tests and experiments as well."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("qdiffjax", "experiments", "paper_figures", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), "."]
    subprocess.run(pip, cwd=source, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_its_checkpoints_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    files = {p for p in ROOM.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    data = {p for p in files if ROOM / "networks" / "checkpoints" in p.parents}
    written = {p for p in files if p.suffix in (".py", ".pyi") or p.name == "py.typed"}
    assert data
    assert held == {p.relative_to(ROOT).as_posix() for p in written | data}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_works_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)

    def output(*command):
        env = os.environ | {"PYTHONPATH": str(site)}
        run = subprocess.run(
            command, cwd=elsewhere, env=env, check=False, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    output(sys.executable, "-c", INSTALLED, str(site))
    assert "usage: " in output(sys.executable, "-m", "qdiffjax", "--help")
    assert "usage: " in output(str(site / "bin" / "qdiffjax"), "--help")
    assert qdiffjax.__version__ in wheel.name

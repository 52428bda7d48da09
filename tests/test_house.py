"""The house itself: lint, types, who imports whom, the README's example."""

import ast
import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = pytest.mark.slow
PACKAGES = ("qdiffjax", "experiments", "paper_figures")
CHECKS = {
    "ruff": [sys.executable, "-m", "ruff", "check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import contracts": [
        sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name == "mypy" else ()) for name in CHECKS]
)
def test_the_code_passes(name):
    run = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_is_for_the_second_stage_is_there_once_and_in_order():
    names = (ROOT / "tests" / "second_stage.txt").read_text().splitlines()
    assert names == sorted(set(names))
    for name in names:
        path, function = name.split("[")[0].split("::")
        assert f"\ndef {function}(" in (ROOT / path).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md", "docs/cures.md"])
def test_examples_of_the_pages_run_as_printed(page, users_defaults, compile_fast):
    result = doctest.testfile(str(ROOT / page), module_relative=False)
    assert result.attempted >= 9
    assert result.failed == 0


HEAVY = ("qdiffjax.kernels", "flax", "optax", "orbax", "equinox", "matplotlib")
LIGHT = {
    "formats": "import qdiffjax, qdiffjax.quant",
    "analysis": "import qdiffjax.analysis, qdiffjax.analysis.errors.ledger",
    "the door of networks": "import qdiffjax.networks, qdiffjax.denoiser",
    "a ledger": """
import jax, jax.numpy as jnp
from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import ledger
from qdiffjax.denoiser import Denoiser

eps_fn, x_T = lambda params, x, t: x @ params["w"], jnp.ones((1, 2))
steps = diffusion.ddim(diffusion.linear(), 2)
calibration = precision.calibrate(Denoiser(eps_fn, {"w": jnp.eye(2)}), steps, x_T=x_T)
recipe = precision.uniform(calibration.sites, weight_bits=8, activation_bits=8)
q = precision.quantize(calibration, recipe)
jax.jit(lambda q: ledger.attribution(q, x_T, steps))(q)
""",
}


NAMES_IN_ORDER = """
import importlib, json, sys
order, modules, doors = sys.argv[1], *map(json.loads, sys.argv[2:])
def load():
    for module in modules:
        importlib.import_module(module)
def listed():
    found = {door: importlib.import_module(door) for door in doors}
    return {(door, n): getattr(found[door], n) for door, names in doors.items() for n in names}
if order == "modules first":
    load()
before = listed()
load()
after = listed()
changed = [key for key in before if before[key] is not after[key]]
sys.exit(f"modules hide {changed}" if changed else 0)
"""


def names_of_door(path: Path) -> set[str]:
    """Names that an `__init__`, or its stub if it is lazy, takes from modules of the package."""
    stub = path.with_suffix(".pyi")
    tree = ast.parse((stub if stub.exists() else path).read_text())
    room = ".".join(path.parent.relative_to(ROOT).parts)
    lists = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    ours = [n for n in lists if n.level or (n.module.startswith("qdiffjax.") and n.module != room)]
    return {a.asname or a.name for n in ours for a in n.names}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["doors first", "modules first"])
def test_no_module_bears_the_name_of_what_the_door_of_its_room_lists(order):
    doors = {}
    for path in (ROOT / "qdiffjax").rglob("__init__.py"):
        names = names_of_door(path)
        assert not names & {module.stem for module in path.parent.glob("*.py")}, path
        doors[".".join(path.parent.relative_to(ROOT).parts)] = sorted(names)
    files = [p.relative_to(ROOT) for p in (ROOT / "qdiffjax").rglob("*.py")]
    modules = [".".join(p.with_suffix("").parts) for p in files if not p.stem.startswith("__")]
    run = subprocess.run(
        [sys.executable, "-c", NAMES_IN_ORDER, order, json.dumps(modules), json.dumps(doors)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_file_is_one_idea_of_at_most_400_lines():
    for path in (p for room in (*PACKAGES, "tests") for p in (ROOT / room).rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path
        assert not path.stem.endswith("_parts"), path


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_what_lowers_nothing_loads_no_kernel_no_framework_and_no_plots(name):
    code = LIGHT[name] + f"\nimport sys\nsys.exit(str([m for m in {HEAVY} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.strip() == "[]"


def test_what_is_lowered_loads_the_kernels():
    code = (
        "import sys, qdiffjax.precision as p; p.lower; sys.exit('qdiffjax.kernels' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 1


@pytest.mark.slow
def test_the_first_command_of_the_readme_ends_with_its_table(tmp_path):
    line = next(s for s in (ROOT / "README.md").read_text().splitlines() if s.startswith("python3"))
    command = line.split(".venv/bin/python ")[-1].split()
    assert command[:2] == ["-m", "experiments.error_bounds"]
    run = subprocess.run(
        [sys.executable, *command, "--quick", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "W8A8" in run.stdout
    assert (tmp_path / "summary.json").exists()

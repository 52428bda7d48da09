"""The front door: every name has an example that runs, and importing it is light."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qdiffjax as qd

ROOT = Path(__file__).parents[1]
LISTED = [
    alias.asname or alias.name
    for node in ast.parse((ROOT / "qdiffjax" / "__init__.pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]
NAMES = [name for name in LISTED if not inspect.ismodule(getattr(qd, name))]
HEAVY = (
    "flax", "optax", "orbax", "equinox", "matplotlib", "pandas", "rich", "scipy", "sklearn", "PIL",
    "jax.experimental.pallas.tpu",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_front_door_has_an_example_that_runs_as_printed(
    name, users_defaults, compile_fast
):
    text = inspect.getdoc(getattr(qd, name))
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, "no >>> in the docstring"
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_front_door_loads_no_framework_no_plots_and_no_tables():
    code = (
        "import sys, qdiffjax as qd\n"
        "loaded = [getattr(qd, name) for name in qd.__all__]\n"
        f"sys.exit(str([name for name in {HEAVY} if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.strip() == "[]"

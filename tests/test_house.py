"""The house itself: lint, types, who imports whom, the README's example."""

import doctest
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff": [sys.executable, "-m", "ruff", "check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import contracts": [
        sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_code_passes(name):
    run = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_example_of_the_readme_runs_as_printed():
    x64 = jax.config.jax_enable_x64
    promotion = jax.config.jax_numpy_dtype_promotion
    ranks = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_enable_x64", False)  # a reader's defaults, not the tests'
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    finally:
        jax.config.update("jax_enable_x64", x64)
        jax.config.update("jax_numpy_dtype_promotion", promotion)
        jax.config.update("jax_numpy_rank_promotion", ranks)
    assert result.attempted > 10
    assert result.failed == 0


def test_the_core_works_without_a_network_framework():
    code = (
        "import sys, qdiffjax.quant, qdiffjax.sites, qdiffjax.diffusion;"
        "import qdiffjax.analysis.errors.ledger, qdiffjax.precision.calibration;"
        "sys.exit(any(m in sys.modules for m in ('flax', 'optax', 'equinox', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

"""Theorems in float64: LLVM's optimizations would cost more than they save."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_fast(compile_fast):
    """Every file of this room."""

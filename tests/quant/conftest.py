"""Fixtures of the tests of numbers."""

import jax
import pytest


@pytest.fixture(scope="module")
def compile_fast():
    """For tests that compile much and compute little, and claim nothing about bits."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

"""All tests run in float64-capable JAX with strict promotion, so that slips are errors."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# What one worker or child process has compiled, the others read; set it to keep it between runs.
OWN_CACHE = None
LONG = set((Path(__file__).parent / "second_stage.txt").read_text().splitlines())
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OWN_CACHE = tempfile.mkdtemp(prefix="qdiffjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = OWN_CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", OWN_CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_configure(config):
    config.option.loadscopereorder = False  # files of few tests are the longest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What takes seconds is for the second stage; what takes longest begins first.

    So the first stage keeps to its ten minutes, and no worker ends alone.
    """
    for item in items:
        if LONG & {item.nodeid, item.nodeid.split("[")[0]}:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "experiments" not in item.path.parts[-3:-1])


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: no collection needs to look at it again


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """A worker forgets its programs between files and after long tests, lest it die of them."""
    from qdiffjax import compiling  # not before what is set above

    if nextitem is None or nextitem.path != item.path or item.get_closest_marker("slow"):
        compiling.forget_programs(8000)  # two gigabytes or so


def pytest_unconfigure():
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="module")
def compile_fast():
    """For tests that compile much and compute little, and claim nothing about bits."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def standard_promotion():
    """For Flax's norms and Optax, which mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def users_defaults():
    """JAX as a user finds it."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield

"""Blocks cover an array, within their limits and the memory of the chip."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from qdiffjax import kernels
from qdiffjax.kernels.tpu.grid import Blocks, fitted
from qdiffjax.kernels.tpu.matrix_products import Job, _block
from qdiffjax.quant import IntFormat
from tests.kernels.paths import DYNAMIC, exact, exact_operand, weight
from tests.tolerances import assert_close
from tests.worlds import normal32, quick_jit


@given(st.integers(1, 8), st.integers(1, 5000), st.sampled_from([32, 128]))
def test_a_block_is_the_whole_or_an_aligned_part(parts, length, unit):
    size = fitted(parts * unit, length, unit)
    assert size == length or (size % unit == 0 and size <= parts * unit)
    assert size <= max(length, parts * unit)


def test_blocks_do_not_change_the_product():
    x, w = normal32(0, 70, 40), weight((40, 150))
    expected = exact_operand(x, DYNAMIC, (1,)) @ exact(w)
    for blocks in (Blocks(32, 128, 2**20), Blocks(32, 128, 2**12)):
        path = kernels.tpu_path(interpret=True, blocks=blocks)  # the last one holds nothing: XLA
        run = quick_jit(lambda x, path=path: kernels.matmul(x, w, activation=DYNAMIC, path=path))
        assert_close(run(x), expected)


def test_one_block_holds_all_columns_while_memory_does():
    x = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16)
    w, job = weight((1024, 512)), Job(True, IntFormat(8), IntFormat(8), None)
    held = [_block(x, w, job, Blocks(512, 512, 2**n)) for n in (24, 23, 22, 21, 10)]
    assert held == [(512, 512), (256, 512), (128, 512), (128, 256), None]


@pytest.mark.slow
def test_memory_that_nobody_wrote_does_not_reach_the_product():
    x, w = normal32(0, 40, 24), weight((24, 150))
    params = pltpu.InterpretParams(uninitialized_memory="nan")
    path = kernels.tpu_path(interpret=params, blocks=Blocks(32, 128, 2**22))
    expected = exact_operand(x, DYNAMIC, (1,)) @ exact(w)
    assert_close(kernels.matmul(x, w, activation=DYNAMIC, path=path), expected)

"""Reading of what the TPU compiler writes; and, where it is installed, the compiler itself."""

import math

import jax
import jax.numpy as jnp
import pytest

from qdiffjax import kernels
from qdiffjax.hardware.ahead import tpu
from qdiffjax.hardware.ahead.schedule import START, cycles_of, operations
from qdiffjax.kernels.tpu.grid import TABLE
from qdiffjax.quant import ActivationGrid, IntFormat, QTensor

needs_compiler = pytest.mark.skipif(
    bool(tpu.missing()), reason="no libtpu: pip install 'qdiffjax[aot]'"
)
COST = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
KERNEL = 'custom_call_target="tpu_custom_call", backend_config={"body":"%s"}'
MODULE = f"""HloModule m, is_scheduled=true

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %f.1 = f32[8]{{0}} fusion(%p), calls=%c, metadata={{op_name="jit(f)/mul"}}, {COST % 10}
}}

%cond.1 (p: (s32[], f32[8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(7)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main.2 (a: f32[8]) -> f32[8] {{
  %x = s8[100,100]{{1,0}} parameter(0)
  %w.1 = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1
  %k.1 = f32[10,10]{{1,0}} custom-call(%x), {KERNEL % "AB"}
  %k.2 = f32[10,10]{{1,0}} custom-call(%x), {KERNEL % "AB"}
  %k.3 = f32[10,10]{{1,0}} custom-call(%x), {KERNEL % "CD"}
  ROOT %f.2 = f32[8]{{0}} fusion(%w.1), calls=%c, {COST % 100}
}}
"""


def test_a_loop_counts_its_trips_and_kernels_that_are_alike_cost_the_same():
    ops = {op.name: op for op in operations(MODULE, {"k.1": 500.0})}
    assert (ops["f.1"].calls, ops["f.1"].cycles) == (7, 10)
    assert ops["f.1"].source == "jit(f)/mul"
    assert ops["f.2"].calls * ops["f.2"].cycles == 100
    assert ops["k.1"].cycles == ops["k.2"].cycles == START + 500
    assert math.isnan(ops["k.3"].cycles)
    assert [op.kind for op in ops.values()].count("bundles") == 3


def test_a_kernel_is_no_faster_than_memory_for_what_is_not_in_vector_memory():
    ops = {op.name: op for op in operations(MODULE, {"k.1": 500.0}, bytes_per_cycle=2.0)}
    assert ops["k.1"].cycles == START + (100 * 100 * 1 + 10 * 10 * 4) / 2
    near = MODULE.replace("s8[100,100]{1,0}", "s8[100,100]{1,0:T(8,128)S(1)}")
    ops = {op.name: op for op in operations(near, {"k.1": 100.0}, bytes_per_cycle=2.0)}
    assert ops["k.1"].cycles == START + 10 * 10 * 4 / 2


def test_all_operations_are_counted_alike_where_their_instructions_are_printed():
    ops = {op.name: op for op in operations(MODULE, {"f.2": 5.0, "k.1": 500.0})}
    assert (ops["f.2"].cycles, ops["f.2"].issued) == (100, 100 + 5)  # it starts in at most 100
    assert ops["f.1"].issued == ops["f.1"].cycles == 10  # not printed
    assert ops["k.2"].issued == ops["k.2"].cycles


def kernel_text(product: str) -> str:
    """Two bundles before a loop of 7, three of which a step may jump over; a grid of 4 x 5."""
    lines = ["{ %a = smov 0 }", "{ %b = smov 0 /* iteration_bounds: (4, 5) */ }",
             "> { %c = smov 0 }", "> { %d = sbr.rel (%p1) target = $region9 }",
             "> { %e = vst }", "> { %f = vst }", "> { %g = vst }",
             "> { %h = vld } /* Start region 9 */", f"> {{ %i = {product} }}"]  # fmt: skip
    return "\n".join(f"  0x{i:x}   : {line}" for i, line in enumerate(lines))


def test_what_a_step_jumps_over_runs_once_in_a_pass_over_the_last_axis():
    assert cycles_of(kernel_text("vmatmul.s8")) == 2 + 20 * (7 - 3) + 4 * 3
    assert cycles_of(kernel_text("vadd.f32")) == 2 + 20 * 7  # no product: everything is the work


def test_steps_are_the_trips_of_the_loop_where_no_axes_are_printed():
    text = kernel_text("vmatmul.s8").replace("iteration_bounds: (4, 5)", "")
    exit_test = "> { %p = scmp.ge.s32.totalorder %s1_s2, 22 /* loop exit test */ }"
    assert cycles_of(f"{text}\n  0x9   : {exit_test}") == 2 + 20 * 8
    assert cycles_of(text) == 2 + 7  # no loop: one step


def test_no_matrix_unit_works_faster_than_its_instructions():
    text = kernel_text("vmatmul.s8.gmra.mxu0 %v1  ;;  %j = vmatmul.msk.f32.gmra.mxu1 %v2")
    assert cycles_of(text, {"s8": 16, "f32": 8}) == 20 * 16
    assert cycles_of(text, {"s8": 4, "f32": 3}) == cycles_of(text) == 2 + 20 * 4 + 4 * 3


@pytest.mark.skipif(not tpu.missing(), reason="libtpu is installed")
def test_without_the_compiler_the_error_says_how_to_get_it():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'qdiffjax\[aot\]'"):
        tpu.tpu_cost(jnp.sin, jax.ShapeDtypeStruct((8,), jnp.float32))


@needs_compiler
def test_a_fused_product_of_codes_takes_at_most_six_tenths_of_bfloat16():
    shape = jax.ShapeDtypeStruct
    x, bf16 = shape((4096, 1280), jnp.bfloat16), shape((1280, 1280), jnp.bfloat16)
    codes, scale = shape((1280, 1280), jnp.int8), shape((1, 1280), jnp.float32)
    path = kernels.tpu_path(blocks=TABLE["v5e"])
    with jax.enable_x64(False):
        real = tpu.tpu_cost(lambda x, w: x @ w, x, bf16)
        fused = tpu.tpu_cost(
            lambda x, codes, s, step: kernels.matmul(
                x, QTensor(codes, s, None, IntFormat(8)), out_dtype=jnp.bfloat16, path=path,
                activation=ActivationGrid(IntFormat(8), step),
            ),
            x, codes, scale, shape((), jnp.float32),
        )  # fmt: skip
    assert fused.cycles <= 0.6 * real.cycles
    assert real.memory["argument"] == 2 * (4096 + 1280) * 1280


@needs_compiler
def test_a_failing_compiler_is_an_error_that_holds_its_words():
    with pytest.raises(RuntimeError, match="nonsense"):
        tpu.tpu_cost(jnp.sin, jax.ShapeDtypeStruct((8,), jnp.float32), topology="nonsense")

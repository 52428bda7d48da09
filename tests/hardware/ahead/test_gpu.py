"""Reading of what the GPU compiler writes; and, where it is installed, the compiler itself."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from qdiffjax import kernels, precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.hardware.ahead import gpu
from qdiffjax.hardware.ahead.launches import Launches, count_launches
from qdiffjax.quant import E4M3FN, ActivationGrid, IntFormat
from qdiffjax.sites import list_sites

needs_compiler = pytest.mark.skipif(
    bool(gpu.missing()), reason="no compiler for GPUs: pip install 'qdiffjax[aot-gpu]'"
)
shape = jax.ShapeDtypeStruct
MODULE = """HloModule m, is_scheduled=true

%turn (p: bf16[512,256]) -> bf16[256,512] {
  %p = bf16[512,256]{1,0} parameter(0)
  ROOT %t.1 = bf16[256,512]{1,0} transpose(%p), dimensions={1,0}
}

%scale (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %m = f32[8]{0} multiply(%p, %p)
}

%body.1 (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0}) parameter(0)
  %g.1 = f32[8]{0} get-tuple-element(%a), index=1
  %f.1 = f32[8]{0} fusion(%g.1), kind=kLoop, calls=%scale
  %k.1 = (s4[512,256]{1,0:E(4)}, u8[0]{0}) custom-call(%f.1), custom_call_target="mosaic_gpu_v2"
  %f.2 = bf16[256,512]{1,0} fusion(%k.1), kind=kInput, calls=%turn, metadata={op_name="a/transpose"}
  ROOT %r = (s32[], f32[8]{0}) tuple(%g.0, %f.1)
}

ENTRY %main.2 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %c.1 = f32[8]{0} copy(%x)
  %s.1 = f32[4096,4096]{1,0} sort(%x), dimensions={0}
  %w.1 = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body.1
  ROOT %o = f32[8]{0} get-tuple-element(%w.1), index=1
}
"""


def test_launches_are_what_a_program_runs_once_and_what_its_loop_runs():
    once, loop = count_launches(MODULE)
    assert once == Launches(fusions=0, calls=0, copies=1, others=1, transposes=0, small=1)
    # s4[512, 256] fills 64 KiB, and f32[8] does not.
    assert loop == Launches(fusions=2, calls=1, copies=0, others=0, transposes=1, small=1)


def test_a_chip_that_is_not_known_is_refused():
    assert "device_memory_size: 151397597184" in gpu.target("H200")
    with pytest.raises(ValueError, match="expected one of H100, H200"):
        gpu.target("V100")


@pytest.mark.skipif(not gpu.missing(), reason="the compiler is installed")
def test_without_the_compiler_the_error_says_how_to_get_it():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'qdiffjax\[aot-gpu\]'"):
        gpu.gpu_cost(jnp.sin, shape((8,), jnp.float32))


IMAGE = (2, 16, 16, 128)
WAYS = {
    "W8A8": (IntFormat(8), ActivationGrid(IntFormat(8, signed=False), 0.02, 77), 256),
    "W4A16, many tokens": (IntFormat(4), None, 256),
    "W8A16, many tokens": (IntFormat(8), None, 256),
    "W4A16, one token": (IntFormat(4), None, 1),
    "fp8": (E4M3FN, ActivationGrid(E4M3FN, 0.01), 256),
    "fp8 weights, one token": (E4M3FN, None, 1),
    "W8A8, images": (IntFormat(8), ActivationGrid(IntFormat(8, signed=False), 0.02, 77), IMAGE),
    "fp8, small images": (E4M3FN, ActivationGrid(E4M3FN, 0.01), (2, 8, 8, 128)),
}


def steps(q, x):
    """A loop of a product and a function, as a sampler's."""
    call = precision.quantized_call(q)
    return jax.lax.scan(lambda x, _: (call(x, jnp.float32(0), None)[0], None), x, None, 4)[0]


def scan_cost(name: str, path):
    format, how, size = WAYS[name]
    is_image = isinstance(size, tuple)
    x = shape(size if is_image else (size, 1152), jnp.bfloat16)
    w = shape((3, 3, size[-1], size[-1]) if is_image else (1152, 1152), jnp.bfloat16)

    def fn(params, x, t):
        if is_image:
            dims = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=dims)
        else:
            y = jnp.matmul(x, params["w"])
        return jnp.tanh(y)

    def quantized(w):
        calibration = precision.Calibration(
            Denoiser(fn, {"w": w}), sites, {"w": w}, {"w": ((0.0, 0.0),)}
        )
        return precision.lower(
            calibration, recipe, path=path, format_fn=lambda _: format, grid_fn=lambda *_: how
        )

    sites = list_sites(fn, {"w": w}, x, 0.0)
    recipe = precision.uniform(sites, weight_bits=8, activation_bits=8, globs=["w"])
    q = jax.eval_shape(quantized, w)
    return gpu.gpu_cost(steps, precision.drop_weights(q, x, 0.0), x)


@needs_compiler
@pytest.mark.parametrize("name", WAYS)
def test_no_product_on_a_gpu_moves_a_stored_weight(name):
    with jax.enable_x64(False):
        found = scan_cost(name, kernels.GPU)
    assert found.entry.transposes == found.loops.transposes == 0
    assert "1152,1152]{0,1" not in found.text
    assert found.loops.calls + found.loops.fusions > 1


@needs_compiler
def test_a_weight_that_is_not_stored_so_is_moved_and_kept_twice():
    path = dataclasses.replace(kernels.GPU, sums_last=False)
    with jax.enable_x64(False):
        costs = [scan_cost("W8A8", p) for p in (path, kernels.GPU)]
    assert costs[0].entry.transposes + costs[0].loops.transposes == 1
    moved = costs[0].compiled.temporaries - costs[1].compiled.temporaries
    assert moved >= 1152 * 1152
    sums = costs[1].compiled.arguments - costs[0].compiled.arguments
    assert sums == 4 * 1152


@needs_compiler
def test_a_failing_compiler_is_an_error_that_holds_its_words():
    with pytest.raises(RuntimeError, match="nonsense"):
        gpu.gpu_cost(jnp.sin, shape((8,), jnp.float32), options={"nonsense": True})

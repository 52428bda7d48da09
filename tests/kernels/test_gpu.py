"""Kernels for Hopper: numbers on such a GPU; elsewhere what they take, and that they lower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import kernels
from qdiffjax.kernels import XLA, backends, chip
from qdiffjax.kernels.gpu import few_tokens, tiles
from qdiffjax.kernels.gpu.products import check_tile
from qdiffjax.quant import E4M3B11FNUZ, E4M3FN, E5M2, ActivationGrid
from tests.kernels.paths import (
    AFFINE,
    DYNAMIC,
    FP8,
    FP8_DYNAMIC,
    INT4,
    INT8,
    STATIC,
    UINT8,
    exact,
    exact_operand,
    weight,
)
from tests.worlds import normal, normal32

needs_hopper = pytest.mark.skipif(not chip.is_hopper(), reason="JAX runs on no Hopper GPU here")
MOSAIC, TRITON, PLAIN = "mosaic_gpu", "triton", "XLA alone"
FP8_TOKENS, OTHER_FP8 = ActivationGrid(E4M3FN), ActivationGrid(E4M3B11FNUZ)
BF16 = jnp.bfloat16

# name: (tokens, K, N, how x becomes codes, format of w, groups of inputs, zeros of w, compiler)
MATMULS = {
    "W8A8 dynamic": (256, 256, 256, DYNAMIC, INT8, 1, False, MOSAIC),
    "W8A8 static": (256, 192, 128, STATIC, INT8, 1, False, MOSAIC),
    "W8A8 affine, ragged tokens": (300, 1152, 320, AFFINE, INT8, 1, False, MOSAIC),
    "W4A8": (128, 384, 192, DYNAMIC, INT4, 1, False, MOSAIC),
    "e4m3, static": (256, 256, 128, FP8, E4M3FN, 1, False, MOSAIC),
    "e4m3, dynamic, ragged": (200, 1152, 64, FP8_TOKENS, E4M3FN, 1, False, MOSAIC),
    "e5m2": (256, 256, 256, FP8_DYNAMIC, E5M2, 1, False, MOSAIC),
    "W4A16, 16 tokens": (16, 1024, 256, None, INT4, 1, False, TRITON),
    "W4A16, 5 tokens": (5, 1152, 64, None, INT4, 1, False, TRITON),
    "W8A16, 40 tokens": (40, 1152, 96, None, INT8, 1, False, TRITON),
    "W8A16, 1 token": (1, 512, 64, None, INT8, 1, False, TRITON),
    "W4A16, many tokens": (128, 256, 64, None, INT4, 1, False, PLAIN),
    "W4A16 in groups": (16, 256, 64, None, INT4, 4, False, PLAIN),
    "W4A8 in groups": (128, 256, 64, DYNAMIC, INT4, 4, False, PLAIN),
    "W8A8 both affine": (128, 256, 64, AFFINE, INT8, 1, True, PLAIN),
    "e4m3b11fnuz": (128, 256, 64, OTHER_FP8, E4M3B11FNUZ, 1, False, PLAIN),
    "fp8 mixed": (128, 256, 64, FP8_DYNAMIC, E4M3FN, 1, False, PLAIN),
    "ragged channels": (128, 256, 40, DYNAMIC, INT8, 1, False, PLAIN),
    "W8A8, few tokens": (16, 256, 64, DYNAMIC, INT8, 1, False, PLAIN),
    "W8A16 unsigned": (16, 256, 64, None, UINT8, 1, False, PLAIN),
    "W8A8, w unsigned": (128, 256, 64, DYNAMIC, UINT8, 1, False, PLAIN),
}
# name: (x, w, how x becomes codes, format of w, stride, dilation, compiler)
CONVS = {
    "dynamic": ((2, 16, 16, 128), (3, 3, 128, 192), DYNAMIC, INT8, 1, None, MOSAIC),
    "affine": ((2, 16, 16, 64), (3, 3, 64, 320), AFFINE, INT8, 1, None, MOSAIC),
    "e4m3": ((1, 16, 16, 128), (3, 3, 128, 128), FP8, E4M3FN, 1, None, MOSAIC),
    "pointwise": ((2, 16, 8, 128), (1, 1, 128, 64), STATIC, INT8, 1, None, MOSAIC),
    "dilated": ((2, 16, 16, 64), (3, 3, 64, 64), STATIC, INT8, 1, (2, 2), MOSAIC),
    "stride 2": ((2, 16, 16, 64), (3, 3, 64, 64), STATIC, INT8, 2, None, PLAIN),
    "small images": ((2, 8, 8, 64), (3, 3, 64, 64), STATIC, INT8, 1, None, PLAIN),
}


def operands(case):
    tokens, k, n, how, format, groups, zeros, _ = case
    return normal(0, tokens, k, dtype=BF16), weight((k, n), format, (groups, n), zeros), how


def matmul(x, w, how, bias=None, act_fn=None):
    return kernels.matmul(x, w, activation=how, bias=bias, act_fn=act_fn, path=backends.GPU)


def conv(x, w, how, stride, dilation):
    return kernels.conv(
        x, w, activation=how, strides=(stride, stride), rhs_dilation=dilation, path=backends.GPU
    )


def compiler(fn, *args) -> str:
    """Which compiler of kernels the program for a GPU calls, if any."""
    try:
        text = jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:
        if "No supported GPU" in str(error):
            pytest.skip(f"this JAX lowers Triton only beside a GPU: {error}")
        raise
    return next((name for name in (MOSAIC, TRITON) if name in text), PLAIN)


def relative_error(y, expected) -> float:
    y = np.asarray(y, np.float64)
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def allowed(format, how=None) -> float:
    """Relative error of a product: float32's own where integers are summed.

    The tensor cores sum 8-bit floats to about 14 bits of the largest product, which weighs more
    the wider the format: 0.0029 (e4m3) and 0.0065 (e5m2) measured on an H200. A dynamic scale is
    a division, which a GPU rounds to two units in the last place, so that a few codes in a
    thousand fall otherwise: 0.0005.
    """
    if format in (E4M3FN, E5M2, E4M3B11FNUZ):
        return 1e-2
    return 2e-3 if how is not None and how.scale is None else 3e-6


@needs_hopper
@pytest.mark.parametrize("name", MATMULS)
def test_gpu_multiplies_what_the_codes_stand_for(name):
    x, w, how = operands(MATMULS[name])
    expected = exact_operand(x, how, (1,)) @ exact(w)
    y = jax.jit(matmul)(x, w, how)
    limit = allowed(w.format, how)
    # XLA's products with the real numbers of groups multiply them as bfloat16 or tf32.
    is_real = MATMULS[name][-1] == PLAIN and (how is None or how.format != w.format)
    assert relative_error(y, expected) < (1e-2 if is_real else limit)


@needs_hopper
@pytest.mark.parametrize("name", ["W8A8 affine, ragged tokens", "W4A16, 5 tokens", "e5m2"])
@pytest.mark.parametrize("act_fn", [jax.nn.gelu, jax.nn.silu, jnp.tanh])
def test_gpu_adds_the_bias_and_applies_the_function(name, act_fn):
    x, w, how = operands(MATMULS[name])
    bias = normal32(3, *w.shape[1:])
    sums = exact_operand(x, how, (1,)) @ exact(w) + np.asarray(bias, np.float64)
    expected = np.asarray(act_fn(jnp.asarray(sums)))
    y = jax.jit(lambda *a: matmul(*a, act_fn=act_fn))(x, w, how, bias)
    # Fast tanh and exp; tanh itself is steeper than its sums' relative error.
    assert relative_error(y, expected) < 3 * allowed(E5M2)
    linear = jax.jit(matmul)(x, w, how, bias)
    assert relative_error(linear, sums) < allowed(w.format, how)


@needs_hopper
@pytest.mark.parametrize("name", CONVS)
def test_gpu_convolves_what_the_codes_stand_for(name):
    shape, w_shape, how, format, stride, dilation, _ = CONVS[name]
    x, w = normal(0, *shape, dtype=BF16), weight(w_shape, format)
    expected = jax.lax.conv_general_dilated(
        exact_operand(x, how, (1, 2, 3)), exact(w), (stride, stride), "SAME",
        rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    y = jax.jit(conv, static_argnums=(3, 4))(x, w, how, stride, dilation)
    assert relative_error(y, np.asarray(expected)) < allowed(format)


@pytest.mark.slow
@pytest.mark.parametrize("name", MATMULS)
def test_each_product_takes_the_kernel_made_for_it(name):
    assert compiler(matmul, *operands(MATMULS[name])) == MATMULS[name][-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVS)
def test_each_convolution_takes_the_kernel_made_for_it(name):
    shape, w_shape, how, format, stride, dilation, expected = CONVS[name]
    x, w = normal(0, *shape, dtype=BF16), weight(w_shape, format)
    assert compiler(lambda *a: conv(*a, stride, dilation), x, w, how) == expected


def test_float32_tokens_are_not_rounded_to_bfloat16():
    x, w, _ = operands(MATMULS["W4A16, 5 tokens"])
    assert compiler(lambda x, w: matmul(x, w, None), x.astype(jnp.float32), w) == PLAIN


@pytest.mark.parametrize(
    "shape", [(4096, 4096, 4096), (8192, 1152, 4608), (512, 320, 960), (128, 64, 64), (7, 96, 128)]
)
def test_a_chosen_tile_divides_its_product_and_fits_the_shared_memory(shape):
    tile = tiles.choose(*shape, 132)
    m = shape[0] + -shape[0] % tile.cluster[0]
    check_tile((m, *shape[1:]), tile)
    assert (tile.rows + tile.columns) * tile.depth * tile.stages <= tiles.SHARED
    assert tile.stages >= 2


def test_no_tile_is_chosen_where_none_divides():
    assert tiles.choose(256, 40, 128, 132) is None
    assert tiles.choose(256, 128, 96, 132) is None
    with pytest.raises(ValueError, match="expected divisors; pad"):
        check_tile((100, 256, 128), tiles.Tile())


def test_one_wave_of_narrow_blocks_beats_two_of_wide_ones():
    # 16 x 4 blocks of 256 leave half of 132 processors idle; 16 x 8 of 128 are one wave too.
    assert tiles.choose(2048, 1024, 1024, 132).columns == 128
    assert tiles.choose(4096, 4096, 4096, 132).columns == 256


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.int8])
@pytest.mark.parametrize("k", [4096, 1152, 14336, 64])
@pytest.mark.parametrize("m", [1, 16, 64])
def test_a_chosen_stripe_divides_the_weight(m, k, dtype):
    stripe = few_tokens.choose(m, 96, k, dtype)
    num_bytes = k // 2 if dtype == jnp.int4 else k
    assert stripe is not None
    assert stripe.divides(96, num_bytes)
    assert few_tokens.choose(m, 33, k, dtype) is None


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [("gpu", "9.0", "gpu"), ("gpu", "8.0", "xla"), ("gpu", "10.0", "xla"), ("cpu", None, "xla")],
)
def test_only_hopper_gets_its_kernels_by_default(monkeypatch, platform, capability, expected):
    device = type("Device", (), {"compute_capability": capability, "core_count": 114})()
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert backends.default().name == expected
    assert chip.num_cores() == (114 if expected == "gpu" else 132)


@pytest.mark.slow
def test_what_falls_back_is_what_xla_computes():
    x, w, how = operands(MATMULS["ragged channels"])
    ours = matmul(x, w, how)
    np.testing.assert_array_equal(ours, kernels.matmul(x, w, activation=how, path=XLA))

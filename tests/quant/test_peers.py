"""qwix and AQT quantize as ours do, bit for bit; where they do not, the difference is stated.

Runs where the peers are installed (qwix 0.1.8, aqtp 0.9.0), and skips elsewhere.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.quant import IntFormat, absmax, fake_quant, quantize
from qdiffjax.quant.fake_quant_variants import fake_quant_block
from qdiffjax.quant.formats.blocks import (
    MXFP4,
    MXFP8_E4M3,
    NVFP4,
    block_scale,
    ceil_scale,
    e4m3_scale,
    floor_scale,
)
from qdiffjax.quant.formats.codebooks import nf4
from qdiffjax.quant.formats.floats import E4M3FN, E5M2
from tests.tolerances import assert_close

X = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
ABSMAX = np.abs(X).max(1, keepdims=True)


@contextlib.contextmanager
def _peers_settings():
    """JAX's defaults, on which the peers rely."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def _qwix(x, qtype, **kwargs):
    """Codes or values as qwix stores them, its dequantized array, scale and zero point."""
    qwix = pytest.importorskip("qwix")
    with _peers_settings():
        q = qwix.quantize(jnp.asarray(x), qtype, **kwargs)
        real = qwix.dequantize(q)
    zero_point = None if q.zero_point is None else np.asarray(q.zero_point).astype(np.int32)
    return np.asarray(q.qvalue), np.asarray(real), np.asarray(q.scale), zero_point


def _assert_scale(scale, bound):
    """The peers' absmax / bound, which XLA compiles to a product with the rounded 1 / bound."""
    np.testing.assert_array_max_ulp(scale, (ABSMAX / np.float32(bound)).reshape(scale.shape), 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_qwix_integers_are_the_full_grid_at_absmax_over_qmax_and_a_half(bits):
    qtype = {8: jnp.int8, 4: jnp.int4}.get(bits, f"int{bits}")
    codes, real, scale, _ = _qwix(X, qtype, channelwise_axes=(0,))
    format = IntFormat(bits, narrow=False)
    _assert_scale(scale, format.qmax + 0.5)
    q = quantize(jnp.asarray(X), jnp.asarray(scale), format=format)
    np.testing.assert_array_equal(q.codes, codes.astype(np.int32))
    out = jax.jit(lambda x: fake_quant(x, jnp.asarray(scale), format=format))(X)
    np.testing.assert_array_equal(out, real)


def test_qwix_integers_are_not_odd_and_lose_the_largest_number():
    """-absmax has the code -8, absmax 7; ours by default has +-7, exactly at +-absmax."""
    x = np.float32([-7.5, -1, 7.5])
    codes, real, _, _ = _qwix(x, jnp.int4)
    np.testing.assert_array_equal(codes.astype(int), [-8, -1, 7])
    np.testing.assert_array_equal(real, [-8, -1, 7])
    scale, _ = absmax(jnp.asarray(x), format=IntFormat(4))
    ours = fake_quant(jnp.asarray(x), scale, format=IntFormat(4))
    assert_close(ours, np.float32([-7.5, -7.5 / 7, 7.5]))


@pytest.mark.parametrize("bits", [4, 8])
def test_qwix_minmax_codes_are_ours_at_its_scale_and_zero_point(bits):
    qtype = {4: jnp.int4, 8: jnp.int8}[bits]
    x = X + np.float32(0.3)
    codes, _, scale, zero = _qwix(x, qtype, channelwise_axes=(0,), calibration_method="minmax")
    format = IntFormat(bits, narrow=False)
    q = quantize(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(zero), format=format)
    np.testing.assert_array_equal(q.codes, codes.astype(np.int32))


def test_qwix_rounds_after_adding_the_zero_point_so_ties_differ_where_it_is_odd():
    """x / s = 1/2 at z = -1: round(-1/2) = 0 is the code of 1; ours is round(1/2) + z, of 0."""
    x = np.float32([-7.0, 0.5, 8.0])
    codes, _, scale, zero = _qwix(x, jnp.int4, calibration_method="minmax")
    assert (scale.item(), zero.item()) == (1.0, -1)
    format = IntFormat(4, narrow=False)
    q = quantize(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(zero), format=format)
    np.testing.assert_array_equal(codes.astype(int), [-8, 0, 7])
    np.testing.assert_array_equal(q.codes, [-8, -1, 7])


def test_qwix_nf4_is_ours_off_ties_and_takes_the_lower_index_at_them():
    codes, real, _, _ = _qwix(X, "nf4", channelwise_axes=(0,))
    q = quantize(jnp.asarray(X), jnp.asarray(ABSMAX), format=nf4())
    np.testing.assert_array_equal(q.codes, codes.astype(np.uint8))
    out = jax.jit(lambda x: fake_quant(x, jnp.asarray(ABSMAX), format=nf4()))(X)
    np.testing.assert_array_equal(out, real)
    tie = np.float32([nf4().levels()[8] / 2, 1.0])  # between levels 7 (zero) and 8
    assert _qwix(tie, "nf4")[0].astype(int)[0] == 7
    assert quantize(jnp.asarray(tie), jnp.ones(1, jnp.float32), format=nf4()).codes[0] == 8


@pytest.mark.parametrize("format", [E4M3FN, E5M2])
def test_qwix_fp8_is_ours_at_absmax_over_the_largest_number(format):
    qtype = jnp.float8_e4m3fn if format is E4M3FN else jnp.float8_e5m2
    _, real, scale, _ = _qwix(X, qtype, channelwise_axes=(0,))
    _assert_scale(scale, format.high)
    out = jax.jit(lambda x: fake_quant(x, jnp.asarray(scale), format=format))(X)
    np.testing.assert_array_equal(out, real)


@pytest.mark.parametrize(("qtype", "ocp"), [("mxfp8", MXFP8_E4M3), ("mxfp4", MXFP4)])
def test_qwix_mx_is_ours_with_the_ceil_rule_and_not_that_of_ocp(qtype, ocp):
    _, real, scale, _ = _qwix(X, qtype, channelwise_axes=(0,), tiled_axes={1: 32})
    format = dataclasses.replace(ocp, scale_fn=ceil_scale)
    run = jax.jit(lambda x: (block_scale(x, format), fake_quant_block(x, format)))
    for got, want in zip(run(X), (scale, real), strict=True):
        np.testing.assert_array_equal(got, want)
    floor = np.asarray(jax.jit(lambda x: block_scale(x, ocp))(X))
    np.testing.assert_array_equal(np.unique(scale / floor), [1, 2])


def test_qwix_mx_scale_is_one_of_two_at_exact_powers_of_two():
    """Its ceil(log2) goes through a logarithm that may round up; ours compares exactly."""
    exponents = np.arange(-60, 60)
    x = np.zeros((exponents.size, 32), np.float32)
    x[:, 0] = 448 * 2.0**exponents
    _, _, scale, _ = _qwix(x, "mxfp8", channelwise_axes=(0,), tiled_axes={1: 32})
    ours = ceil_scale(jnp.asarray(x[:, 0]), E4M3FN)
    np.testing.assert_array_equal(ours, 2.0**exponents)
    np.testing.assert_array_equal(floor_scale(jnp.asarray(x[:, 0]), E4M3FN), 2.0**exponents)
    assert set(scale[:, 0] / np.asarray(ours)) <= {1.0, 2.0}


def test_qwix_nvfp4_is_ours_without_the_scale_of_the_tensor():
    _, real, scale, _ = _qwix(X, "nvfp4", channelwise_axes=(0,), tiled_axes={1: 16})
    format = dataclasses.replace(NVFP4, scale_fn=e4m3_scale)
    run = jax.jit(lambda x: (block_scale(x, format), fake_quant_block(x, format)))
    for got, want in zip(run(X), (scale, real), strict=True):
        np.testing.assert_array_equal(got, want)


def test_qwix_nvfp4_loses_small_tensors_which_two_levels_keep():
    """Without a scale for the tensor, e4m3 block scales end at 2^-9."""
    x = 1e-4 * X[:, :16]
    _, real, _, _ = _qwix(x, "nvfp4", channelwise_axes=(0,), tiled_axes={1: 16})
    ours = np.asarray(jax.jit(lambda x: fake_quant_block(x, NVFP4))(x))
    assert not np.any(np.abs(real) > 0)  # zeros, or NaN from 0 / 0
    assert np.mean((ours - x) ** 2) < 0.02 * np.mean(x**2)


def _aqt(x, bits, preserve_max_val):
    aqt_quantizer = pytest.importorskip("aqt.jax.v2.aqt_quantizer")
    with _peers_settings():
        quantizer = aqt_quantizer.quantizer_make(bits, preserve_max_val=preserve_max_val)
        q, _ = quantizer.quant(jnp.asarray(x), calibration_axes=[1])
        return np.asarray(q.dequant()), np.asarray(q.scale[0])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("preserve_max_val", [False, True])
def test_aqt_integers_are_the_narrow_grid_at_either_bound(bits, preserve_max_val):
    expected, scale = _aqt(X, bits, preserve_max_val)
    format = IntFormat(bits)
    _assert_scale(scale, format.qmax + (0 if preserve_max_val else 0.5))
    out = jax.jit(lambda x: fake_quant(x, jnp.asarray(scale), format=format))(X)
    np.testing.assert_array_equal(out, expected)


def test_aqt_one_bit_is_the_binary_format_at_half_of_absmax():
    out = jax.jit(lambda x: fake_quant(x, jnp.asarray(ABSMAX / 2), format=IntFormat(1)))(X)
    np.testing.assert_array_equal(out, _aqt(X, 1, False)[0])

"""What is finite stays finite: grids that reach past the largest number of a dtype."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import quant
from qdiffjax.kernels import TPU_INTERPRETED, rounded
from qdiffjax.quant import IntFormat, dequantize, fake_quant, quantize
from qdiffjax.quant.formats import blocks

U8, I8 = IntFormat(8, signed=False), IntFormat(8)
MX = {
    name: blocks.BlockFormat(element, 8, scale_fn)
    for element in (quant.E4M3FN, quant.E2M1, I8)
    for scale_fn in (blocks.floor_scale, blocks.ceil_scale, blocks.ceil_log_scale,
                     blocks.nearest_scale)
    for name in [f"{element}, {scale_fn.__name__}"]
}  # fmt: skip
GRIDS = {
    "absmax": (lambda x: quant.absmax(x, format=I8), I8),
    "minmax": (lambda x: quant.minmax(x, format=U8), U8),
    "minmax of one bit": (
        lambda x: quant.minmax(x, format=IntFormat(1, signed=False)),
        IntFormat(1, signed=False),
    ),
    "minmax without zero": (lambda x: quant.minmax(x, format=U8, include_zero=False), U8),
    "percentile": (lambda x: quant.percentile(x, format=U8, quantile=1.0, symmetric=False), U8),
    "lp": (lambda x: quant.lp(x, format=U8, symmetric=False), U8),
    **{name: (lambda x, f=f: (quant.block_scale(x, f), None), f.element) for name, f in MX.items()},
}


def largest(dtype):
    """Numbers of both signs up to the largest of a dtype."""
    x = np.asarray([-1.0, -0.996, -0.7, 0.0, 1e-3, 0.5, 0.999, 1.0]) * float(jnp.finfo(dtype).max)
    return jnp.asarray(x, dtype).reshape(1, 8)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", GRIDS)
def test_finite_numbers_stay_finite(name, dtype):
    grid_fn, format = GRIDS[name]
    x = largest(dtype)
    scale, zero = grid_fn(x)
    assert np.isfinite(np.asarray(scale)).all()
    x_hat = fake_quant(x, scale, zero, format=format)
    q = quantize(x, scale, zero, format=format)
    errors = quant.quantization_error(x, scale, zero, format=format)
    for values in (x_hat, dequantize(q, dtype), errors):
        assert np.isfinite(np.asarray(values, np.float64)).all()
    np.testing.assert_array_equal(x_hat, dequantize(q, dtype))
    # What the dtype cannot hold is its largest number: the exact grid, clipped, in float64.
    codes = np.asarray(format.decode(q.codes, jnp.float32), np.float64)
    exact = np.asarray(scale, np.float64) * (codes - (0 if zero is None else np.asarray(zero)))
    top = float(jnp.finfo(dtype).max)
    np.testing.assert_allclose(
        np.asarray(x_hat, np.float64), np.clip(exact, -top, top), rtol=float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_tpu_kernel_saturates_as_the_reference(dtype):
    x = largest(dtype)
    scale, zero = quant.minmax(x, format=U8)
    kernel = functools.partial(rounded, x, scale, zero, format=U8)
    np.testing.assert_array_equal(kernel(path=TPU_INTERPRETED), kernel())


def test_minmax_of_the_largest_floats_has_all_its_codes():
    top = float(jnp.finfo(jnp.float32).max)
    scale, zero = quant.minmax(jnp.asarray([-top, top], jnp.float32), format=U8)
    np.testing.assert_allclose(scale, 2 * top / 255, rtol=1e-6)
    assert int(zero[0]) in (127, 128)
    x = jnp.asarray([0.9999 * top, top], jnp.float32)  # as many steps from zero as data can be
    scale, zero = quant.minmax(x, format=IntFormat(4, signed=False), include_zero=False)
    np.testing.assert_allclose(scale, (x[1:] - x[:1]) / 15, rtol=1e-3)


def test_infinite_and_missing_numbers_are_not_made_finite_by_saturation():
    x = jnp.asarray([np.nan, np.inf, -np.inf, 1.0], jnp.float16)
    x_hat = fake_quant(x, jnp.ones(1, jnp.float32), format=I8)
    np.testing.assert_array_equal(x_hat, [np.nan, 127, -127, 1])

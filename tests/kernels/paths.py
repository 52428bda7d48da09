"""The paths that every test of kernels runs, and operands for it."""

import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax.kernels import REFERENCE, TPU_INTERPRETED, XLA, narrow
from qdiffjax.kernels.operands import FLOAT8
from qdiffjax.quant import E4M3FN, E5M2, ActivationGrid, IntFormat, QTensor

PATHS = [XLA, TPU_INTERPRETED]
fast_paths = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
all_paths = pytest.mark.parametrize("path", [REFERENCE, *PATHS], ids=lambda path: path.name)

INT8, INT4, UINT8 = IntFormat(8), IntFormat(4), IntFormat(8, signed=False)
STATIC = ActivationGrid(INT8, jnp.float32(0.02))
DYNAMIC = ActivationGrid(INT8)
AFFINE = ActivationGrid(UINT8, jnp.float32(0.02), jnp.int32(77))
TOKENS = ActivationGrid(UINT8)  # affine and dynamic
FP8 = ActivationGrid(E4M3FN, jnp.float32(0.005))
FP8_DYNAMIC = ActivationGrid(E5M2)


def by_numpy(x, scale, zero, format) -> QTensor:
    """`quant.quantize` written again for NumPy [*shape], which has nothing to compile."""
    scale = np.asarray(scale, np.float32)
    v = np.asarray(x, np.float32) * spread(1 / scale, np.shape(x))
    if format in FLOAT8:
        codes = np.clip(v, format.low, format.high).astype(FLOAT8[format]).view(np.uint8)
        return QTensor(jnp.asarray(codes), jnp.asarray(scale), None, format)
    shift = 0 if zero is None else spread(np.asarray(zero), np.shape(x))
    codes = np.clip(np.round(v) + shift, format.qmin, format.qmax).astype(format.storage_dtype)
    zero = None if zero is None else jnp.asarray(zero, jnp.int32)
    return QTensor(jnp.asarray(codes), jnp.asarray(scale), zero, format)


def spread(granules: np.ndarray, shape) -> np.ndarray:
    """Granules [*groups] repeated to [*shape]."""
    for axis, n in enumerate(shape):
        granules = np.repeat(granules, n // granules.shape[axis], axis)
    return granules


def weight(shape, format=INT8, scale_shape=None, zeros: bool = False) -> QTensor:
    """A quantized Gaussian; 4 bits are stored in 4."""
    rng = np.random.default_rng(1)
    scale_shape = scale_shape or (1,) * (len(shape) - 1) + shape[-1:]
    high = 2.0 ** (format.bits - 1) if isinstance(format, IntFormat) else format.high
    scale = rng.uniform(2, 4, scale_shape) / high
    zero = rng.integers(-5, 5, scale_shape) if zeros else None
    return narrow(by_numpy(rng.standard_normal(shape), scale, zero, format))


def exact(q: QTensor) -> np.ndarray:
    """The numbers that codes stand for, in float64."""
    codes = np.asarray(q.codes)
    values = codes.view(FLOAT8[q.format]) if q.format in FLOAT8 else codes
    zero = 0 if q.zero_point is None else spread(np.asarray(q.zero_point), q.shape)
    return spread(np.asarray(q.scale, np.float64), q.shape) * (values.astype(np.float64) - zero)


def exact_operand(x, how: ActivationGrid | None, axes: tuple[int, ...]) -> np.ndarray:
    """What a kernel makes of x, in float64; a dynamic scale is absmax / high over axes, or without
    sign (max - min) / high with zero in the range.
    """
    if isinstance(x, QTensor):
        return exact(x)
    if how is None:
        return np.asarray(x, np.float64)
    scale, ones = how.scale, (1,) * x.ndim
    if scale is None and how.format == UINT8:
        wide = np.asarray(x, np.float32)
        low, high = (np.minimum(wide.min(axes, keepdims=True), 0),
                     np.maximum(wide.max(axes, keepdims=True), 0))  # fmt: skip
        scale = np.where(high > low, (high - low) / np.float32(255), np.float32(1))
        return exact(by_numpy(x, scale, np.clip(np.round(-low / scale), 0, 255).astype(int), UINT8))
    if scale is None:
        high = how.format.qmax if isinstance(how.format, IntFormat) else how.format.high
        absmax = np.abs(np.asarray(x, np.float32)).max(axes, keepdims=True)
        scale = np.where(absmax > 0, absmax / np.float32(high), np.float32(1))
    scale = np.asarray(scale, np.float32)
    zero = None if how.zero_point is None else np.asarray(how.zero_point).reshape(ones)
    return exact(by_numpy(x, scale if scale.ndim else scale.reshape(ones), zero, how.format))

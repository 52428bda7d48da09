"""Numbers: formats, roundings, quantized arrays, fake quantization, calibration.

Knows nothing of networks. Conventions, said once:

* x ≈ scale * (codes - zero_point); the shape of scale is the granularity: same rank as x, each
  axis length divides that of x (1 = shared, full = per channel, d / g = groups of g).
* Symmetric (zero_point None): scale = absmax / qmax on codes -qmax..qmax. Affine: the range
  includes zero and the zero point is an integer code, so that 0.0 is always exact.
* Ties round to even. x / scale is rounded before the zero point is added, and is computed as
  x * (1 / scale) throughout (exact for scales that are powers of two).
* The error is e = Q(x) - x.
* Arithmetic is float32 whatever the dtype of x; float64 only for float64 x.
* Randomness comes in as data; keys are split by the caller.
* NaN stays NaN in `fake_quant`, is refused by `quantize` and calibration when concrete, and is
  the code of zero in a traced `quantize`; infinities saturate.
"""

from qdiffjax.quant.calibration import (
    absmax,
    minmax,
    minmax_range,
    mse,
    per_channel,
    per_group,
    per_tensor,
    per_token,
    percentile,
    quantile_range,
    scale_from_range,
)
from qdiffjax.quant.formats import IntFormat, effective_bits
from qdiffjax.quant.gradients import quantize_gradient
from qdiffjax.quant.qtensor import QTensor, dequantize, quantization_error, quantize
from qdiffjax.quant.rounding import binary, floor, nearest_even, stochastic, uniform_like
from qdiffjax.quant.ste import (
    fake_quant,
    fake_quant_codes,
    fake_quant_lsq,
    fake_quant_stochastic,
    scale_gradient,
)

__all__ = [
    "IntFormat",
    "QTensor",
    "absmax",
    "binary",
    "dequantize",
    "effective_bits",
    "fake_quant",
    "fake_quant_codes",
    "fake_quant_lsq",
    "fake_quant_stochastic",
    "floor",
    "minmax",
    "minmax_range",
    "mse",
    "nearest_even",
    "per_channel",
    "per_group",
    "per_tensor",
    "per_token",
    "percentile",
    "quantile_range",
    "quantization_error",
    "quantize",
    "quantize_gradient",
    "scale_from_range",
    "scale_gradient",
    "stochastic",
    "uniform_like",
]

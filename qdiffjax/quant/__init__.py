"""Numbers: formats, roundings, quantized arrays, fake quantization, calibration.

    formats      IntFormat, FloatFormat (E4M3FN, E2M1, ...), LogFormat, CodebookFormat, and
                 BlockFormat (MXFP4, NVFP4, ...), which is one of them and a rule for the scale
    quantizers   fake_quant and its kin: real numbers in and out, with a derivative rule
    storage      quantize -> QTensor -> pack -> PackedQTensor; footprint
    calibration  data -> (scale, zero_point); observers collect ranges call by call
    noise        `quant.noise`: the predicted error of all of these

Knows nothing of networks. Conventions, said once:

* x ≈ scale * (codes - zero_point); the shape of scale is the granularity: same rank as x, each
  axis length divides that of x (1 = shared, full = per channel, d / g = groups of g).
* A format is a grid of numbers in units of the scale; every format saturates at its ends.
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

from qdiffjax.quant.adaround import (
    adaround_init,
    adaround_regularizer,
    adaround_schedule,
    fake_quant_adaround,
    rectified_sigmoid,
)
from qdiffjax.quant.bitwidth import (
    bit_width,
    fake_quant_fractional,
    fake_quant_parametric,
    scale_at,
)
from qdiffjax.quant.block_scales import (
    absmax_scale,
    ceil_log_scale,
    ceil_scale,
    e4m3_scale,
    even_scale,
    floor_scale,
    nearest_scale,
    nvfp4_scale,
    nvfp4_tensor_scale,
)
from qdiffjax.quant.blocks import (
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
    block_float,
    block_scale,
    fake_quant_block,
    quantize_block,
)
from qdiffjax.quant.calibration import (
    absmax,
    best_ratio,
    binary_fit,
    covering,
    gaussian_clip,
    kl,
    kl_ratio,
    laplace_clip,
    lp,
    minmax,
    minmax_range,
    mse,
    per_channel,
    per_group,
    per_tensor,
    per_token,
    percentile,
    power_of_two,
    quantile_range,
    rms,
    scale_from_range,
    ternary_fit,
)
from qdiffjax.quant.codebook_fits import (
    GAUSSIAN,
    LAPLACE,
    kmeans_codebook,
    lloyd_max,
    quantile_codebook,
)
from qdiffjax.quant.codebooks import (
    CodebookFormat,
    fake_quant_codebook,
    nf4,
)
from qdiffjax.quant.dither import (
    fake_quant_subtractive,
)
from qdiffjax.quant.dual import (
    dual_absmax,
    fake_quant_dual,
)
from qdiffjax.quant.floats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3B11FNUZ,
    E4M3FN,
    E5M2,
    FP16,
    TF32,
    FloatFormat,
)
from qdiffjax.quant.formats import (
    Format,
    IntFormat,
    effective_bits,
)
from qdiffjax.quant.gradients import (
    quantize_gradient,
)
from qdiffjax.quant.histograms import (
    HistogramState,
    histogram_observer,
    kl_range,
    mse_range,
    percentile_range,
)
from qdiffjax.quant.learned import (
    fake_quant_lsq_plus,
    fake_quant_pact,
    fake_quant_pact_residual,
    lsq_init,
    lsq_plus_activation_init,
    lsq_plus_weight_init,
)
from qdiffjax.quant.logarithmic import (
    E8M0,
    LogFormat,
    ScaleFormat,
)
from qdiffjax.quant.observers import (
    Observer,
    RangeState,
    ema_minmax,
    running_minmax,
)
from qdiffjax.quant.packing import (
    Footprint,
    PackedQTensor,
    footprint,
    pack,
    pack_codes,
    unpack,
    unpack_codes,
)
from qdiffjax.quant.qtensor import (
    QTensor,
    dequantize,
    quantization_error,
    quantize,
)
from qdiffjax.quant.rounding import (
    binary,
    dithered,
    floor,
    half_away,
    nearest_even,
    rectangular_like,
    stochastic,
    ternary,
    triangular_like,
    uniform_like,
)
from qdiffjax.quant.ste import (
    fake_quant,
    fake_quant_codes,
    fake_quant_lsq,
    fake_quant_stochastic,
    scale_gradient,
)

__all__ = [
    "BF16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3B11FNUZ",
    "E4M3FN",
    "E5M2",
    "E8M0",
    "FP16",
    "GAUSSIAN",
    "LAPLACE",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NVFP4",
    "TF32",
    "BlockFormat",
    "CodebookFormat",
    "FloatFormat",
    "Footprint",
    "Format",
    "HistogramState",
    "IntFormat",
    "LogFormat",
    "Observer",
    "PackedQTensor",
    "QTensor",
    "RangeState",
    "ScaleFormat",
    "absmax",
    "absmax_scale",
    "adaround_init",
    "adaround_regularizer",
    "adaround_schedule",
    "best_ratio",
    "binary",
    "binary_fit",
    "bit_width",
    "block_float",
    "block_scale",
    "ceil_log_scale",
    "ceil_scale",
    "covering",
    "dequantize",
    "dithered",
    "dual_absmax",
    "e4m3_scale",
    "effective_bits",
    "ema_minmax",
    "even_scale",
    "fake_quant",
    "fake_quant_adaround",
    "fake_quant_block",
    "fake_quant_codebook",
    "fake_quant_codes",
    "fake_quant_dual",
    "fake_quant_fractional",
    "fake_quant_lsq",
    "fake_quant_lsq_plus",
    "fake_quant_pact",
    "fake_quant_pact_residual",
    "fake_quant_parametric",
    "fake_quant_stochastic",
    "fake_quant_subtractive",
    "floor",
    "floor_scale",
    "footprint",
    "gaussian_clip",
    "half_away",
    "histogram_observer",
    "kl",
    "kl_range",
    "kl_ratio",
    "kmeans_codebook",
    "laplace_clip",
    "lloyd_max",
    "lp",
    "lsq_init",
    "lsq_plus_activation_init",
    "lsq_plus_weight_init",
    "minmax",
    "minmax_range",
    "mse",
    "mse_range",
    "nearest_even",
    "nearest_scale",
    "nf4",
    "nvfp4_scale",
    "nvfp4_tensor_scale",
    "pack",
    "pack_codes",
    "per_channel",
    "per_group",
    "per_tensor",
    "per_token",
    "percentile",
    "percentile_range",
    "power_of_two",
    "quantile_codebook",
    "quantile_range",
    "quantization_error",
    "quantize",
    "quantize_block",
    "quantize_gradient",
    "rectangular_like",
    "rectified_sigmoid",
    "rms",
    "running_minmax",
    "scale_at",
    "scale_from_range",
    "scale_gradient",
    "stochastic",
    "ternary",
    "ternary_fit",
    "triangular_like",
    "uniform_like",
    "unpack",
    "unpack_codes",
]

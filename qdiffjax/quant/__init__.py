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
from qdiffjax.quant.calibration import (
    HistogramState,
    Observer,
    RangeState,
    absmax,
    best_ratio,
    binary_fit,
    covering,
    ema_minmax,
    gaussian_clip,
    histogram_observer,
    kl,
    kl_range,
    kl_ratio,
    laplace_clip,
    lp,
    minmax,
    minmax_range,
    mse,
    mse_range,
    percentile,
    percentile_range,
    power_of_two,
    quantile_range,
    rms,
    running_minmax,
    scale_from_range,
    ternary_fit,
)
from qdiffjax.quant.fake_quant_variants import (
    dual_absmax,
    fake_quant_block,
    fake_quant_codebook,
    fake_quant_dual,
    fake_quant_subtractive,
    quantize_block,
    quantize_gradient,
)
from qdiffjax.quant.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3B11FNUZ,
    E4M3FN,
    E5M2,
    E8M0,
    FP16,
    GAUSSIAN,
    LAPLACE,
    MAX_BITS,
    MIN_BITS,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    TF32,
    BlockFormat,
    CodebookFormat,
    FloatFormat,
    Format,
    IntFormat,
    LogFormat,
    ScaleFormat,
    absmax_scale,
    block_float,
    block_scale,
    ceil_log_scale,
    ceil_scale,
    e4m3_scale,
    effective_bits,
    even_scale,
    floor_scale,
    kmeans_codebook,
    lloyd_max,
    nearest_scale,
    nf4,
    nvfp4_scale,
    nvfp4_tensor_scale,
    quantile_codebook,
    stored_scales,
)
from qdiffjax.quant.granularity import (
    expand,
    inverse,
    per_channel,
    per_group,
    per_tensor,
    per_token,
)
from qdiffjax.quant.grids import ActivationGrid, activation_grid
from qdiffjax.quant.learned import (
    bit_width,
    fake_quant_fractional,
    fake_quant_lsq_plus,
    fake_quant_pact,
    fake_quant_pact_residual,
    fake_quant_parametric,
    lsq_init,
    lsq_plus_activation_init,
    lsq_plus_weight_init,
    scale_at,
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
    check_arguments,
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
from qdiffjax.quant.sequences import (
    AlternatingCodes,
    RoundingSequence,
    ToggleFn,
    alternating_codes,
    fresh_bits,
    golden_ratio,
    noble_ratios,
    rounding_sequence,
    sigma_delta,
)
from qdiffjax.quant.straight_through import (
    fake_quant,
    fake_quant_codes,
    fake_quant_lsq,
    fake_quant_stochastic,
    scale_gradient,
)
from qdiffjax.quant.sums import keep_sums

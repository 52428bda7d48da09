"""Number formats: which codes exist. A new one goes here; `Format` says what it must answer.

integers       IntFormat: consecutive codes
floats         FloatFormat: any split into exponent and mantissa; E4M3FN, E2M1, BF16, ...
logarithmic    LogFormat: powers of 2 or of its root; E8M0, in which scales are stored
codebooks      CodebookFormat: any levels, fixed (NF4), fitted (codebook_fits) or learned
blocks         BlockFormat: one of these, and a rule for the scale; MXFP4, NVFP4, ...
"""

from qdiffjax.quant.formats.base import Format, check_static_integer
from qdiffjax.quant.formats.blocks import (
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
    absmax_scale,
    block_float,
    block_scale,
    ceil_log_scale,
    ceil_scale,
    e4m3_scale,
    even_scale,
    floor_scale,
    nearest_scale,
    nvfp4_scale,
    nvfp4_tensor_scale,
    stored_scales,
)
from qdiffjax.quant.formats.codebook_fits import (
    GAUSSIAN,
    LAPLACE,
    kmeans_codebook,
    lloyd_max,
    quantile_codebook,
)
from qdiffjax.quant.formats.codebooks import CodebookFormat, level_index, nf4
from qdiffjax.quant.formats.floats import (
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
from qdiffjax.quant.formats.integers import (
    MAX_BITS,
    MIN_BITS,
    IntFormat,
    check_equal_steps,
    effective_bits,
    has_equal_steps,
    is_binary,
)
from qdiffjax.quant.formats.logarithmic import E8M0, LogFormat, ScaleFormat

"""From data to (scale, zero_point).

Every calibrator is `fn(x, *, format, scale_shape=None, ...) -> (scale, zero_point | None)`, both
[*scale_shape], so that `fake_quant(x, *absmax(x, format=f), format=f)` reads as it works. The
granularity is the shape of the scale that is wanted; `per_tensor` and its kin compute it.
A range observed once serves every width: `minmax_range`, then `scale_from_range`.

Symmetric grids serve every `Format`: qmax is its `high`. Affine grids are for `IntFormat`.
Two arguments cover the conventions in use:

    overhang      0: the range ends on the last codes; 1/2: on the outer decision thresholds,
                  scale = absmax / (qmax + 1/2), as in qwix, AQT and torchao; AQT also has 1.
    include_zero  False: an affine grid spends no codes outside the data, and its zero point
                  may then fall outside the codes.

What clips, and how: `percentile` by rank; `mse`, `lp`, `kl` by search over the data;
`gaussian_clip`, `laplace_clip`, `rms` by one moment of it.
"""

from qdiffjax.quant.calibration.moments import (
    binary_fit,
    gaussian_clip,
    laplace_clip,
    power_of_two,
    rms,
    ternary_fit,
)
from qdiffjax.quant.calibration.observers import (
    HistogramState,
    Observer,
    RangeState,
    ema_minmax,
    histogram_observer,
    kl_range,
    mse_range,
    percentile_range,
    running_minmax,
)
from qdiffjax.quant.calibration.ranges import (
    Grid,
    absmax,
    covering,
    minmax,
    minmax_range,
    percentile,
    quantile_range,
    scale_from_range,
)
from qdiffjax.quant.calibration.search import RATIOS, best_ratio, kl, kl_ratio, lp, mse
from qdiffjax.quant.granularity import per_channel, per_group, per_tensor, per_token

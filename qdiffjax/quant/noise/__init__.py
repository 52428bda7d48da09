"""The theory of one rounding: predicted statistics of e = Q(x) - x, without sampling.

    noise.predict(format, scale, noise.Gaussian())              a law of the input
    noise.predict_error(x, scale, format=format)                data, through a histogram
    noise.predict_blocks(MXFP4, noise.Gaussian())               scales set by blocks
    noise.optimal_scale(format, noise.Laplace())                the scale of least error

Analysis at set-up time, in float64 NumPy: nothing here is traced.
"""

from qdiffjax.quant.noise.closed_forms import panter_dite_mse, shannon_mse
from qdiffjax.quant.noise.distributions import Distribution, Folded, Gaussian, Laplace, Moments
from qdiffjax.quant.noise.empirical import Histogram, histogram
from qdiffjax.quant.noise.laws import (
    Law,
    Pieces,
    floor,
    nearest,
    stochastic,
    subtractive_dither,
    triangular_dither,
)
from qdiffjax.quant.noise.prediction import (
    ErrorStats,
    optimal_scale,
    predict,
    predict_blocks,
    predict_error,
)

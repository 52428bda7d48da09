"""What a step, a sampler or a flow multiplies errors by.

steps     spectral norms of the steps' Jacobians, at states and between two runs
spectra   singular values of steps and of the sampler, sample by sample; rates of growth
flows     bounds of the exact flow on data of a known class
"""

from qdiffjax.analysis.gains.flows import log_concave_flow_bound, mixture_flow_gain
from qdiffjax.analysis.gains.spectra import (
    LogNorms,
    Singular,
    log_norms,
    probed_log_volumes,
    sampler_spectrum,
    singular_values,
    squared_frobenius,
    step_spectra,
    stretches,
)
from qdiffjax.analysis.gains.steps import (
    Gains,
    SpectralNorm,
    log_norm_gains,
    segment_gains,
    spectral_norm,
    step_gains,
    symmetric_extremes,
)

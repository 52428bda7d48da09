"""Bounds of the accumulated error, each with its assumption.

pathwise   along the run that was measured, or for every run on data of a known class
laws       of W2 between the laws of the samples
"""

from qdiffjax.analysis.bounds.laws import minkowski_bound, score_error_bound, score_rate
from qdiffjax.analysis.bounds.pathwise import (
    gains_between_nodes,
    gronwall,
    log_concave_bound,
    log_concave_posterior,
    mixture_posterior,
    posterior_gains,
    remainder_bound,
)

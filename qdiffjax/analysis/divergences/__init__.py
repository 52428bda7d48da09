"""What quantization costs the distribution: KL, W2, MMD, each with its uncertainty; KL in nats.

intervals         estimates, CLT and bootstrap intervals, the noise floor
kl                from log-densities, nearest neighbours, histograms; total variation
transport         W2: Gaussian, on the line, assignment, sliced, the two-sided bracket
sinkhorn          the Sinkhorn divergence (ott-jax)
kernels           MMD and the energy distance, unbiased
paths             KL of the path laws of stochastic samplers, step by step
likelihood_bound  the survey's Delta L (eq. 12), both terms, with the weights of the likelihood
girsanov          KL of reverse SDEs in continuous time
flows             how fast the KL grows between two deterministic flows
projections       the KL of low-dimensional projections, a lower bound
"""

from qdiffjax.analysis.divergences.elbo import LossGap, elbo_gaps, loss_gap
from qdiffjax.analysis.divergences.kl import (
    gaussian_projected_kl,
    histogram_kl,
    knn_kl,
    log_ratio_kl,
    mixture_kl,
    projected_kl,
    total_variation_bounds,
)
from qdiffjax.analysis.divergences.mmd import (
    energy_distance,
    median_distance,
    mmd_squared,
    negative_distance,
    rbf_mixture,
)
from qdiffjax.analysis.divergences.paths import (
    elbo_weights,
    flow_kl_rate,
    gaussian_flow_kl_rate,
    girsanov_kl,
    girsanov_weights,
    kl_weights,
    local_kl,
    path_kl,
    quadrature,
)
from qdiffjax.analysis.divergences.transport import (
    Bracket,
    assignment_w2_squared,
    gaussian_w2,
    gelbrich_squared,
    orthonormal_frames,
    random_directions,
    sinkhorn_divergence,
    sliced_w2_squared,
    w2_bracket,
    w2_coupling,
    w2_lower,
    w2_squared_1d,
)
from qdiffjax.diffusion.gaussian import gaussian_kl, gaussian_w2_squared
from qdiffjax.estimates import (
    BesideFloor,
    Estimate,
    beside_floor,
    block_mean,
    bootstrap,
    mean_interval,
)

__all__ = [
    "BesideFloor",
    "Bracket",
    "Estimate",
    "LossGap",
    "assignment_w2_squared",
    "beside_floor",
    "block_mean",
    "bootstrap",
    "elbo_gaps",
    "elbo_weights",
    "energy_distance",
    "flow_kl_rate",
    "gaussian_flow_kl_rate",
    "gaussian_kl",
    "gaussian_projected_kl",
    "gaussian_w2",
    "gaussian_w2_squared",
    "gelbrich_squared",
    "girsanov_kl",
    "girsanov_weights",
    "histogram_kl",
    "kl_weights",
    "knn_kl",
    "local_kl",
    "log_ratio_kl",
    "loss_gap",
    "mean_interval",
    "median_distance",
    "mixture_kl",
    "mmd_squared",
    "negative_distance",
    "orthonormal_frames",
    "path_kl",
    "projected_kl",
    "quadrature",
    "random_directions",
    "rbf_mixture",
    "sinkhorn_divergence",
    "sliced_w2_squared",
    "total_variation_bounds",
    "w2_bracket",
    "w2_coupling",
    "w2_lower",
    "w2_squared_1d",
]

"""What quantization costs the distribution: KL, W2, MMD, each with its uncertainty; KL in nats.

kl          from log-densities, nearest neighbours, histograms, projections; total variation
transport   W2: Gaussian, on the line, assignment, sliced, Sinkhorn, the two-sided bracket
mmd         MMD and the energy distance, unbiased
paths       KL of the path laws of stochastic samplers, step by step, and of reverse SDEs
elbo        the survey's Delta L (eq. 12), both terms, with the weights of the likelihood bound
rounding    what biased, unbiased and absorbed rounding cost one step
"""

from qdiffjax.analysis.divergences.elbo import LossGap, elbo_gaps, loss_gap
from qdiffjax.analysis.divergences.kl import (
    gaussian_projected_kl,
    histogram_kl,
    knn_kl,
    log_ratio_kl,
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

"""What quantization costs the distribution: KL, W2, MMD, each with its uncertainty; KL in nats.

kl          from log-densities, nearest neighbours, histograms, projections; total variation
transport   W2: Gaussian, on the line, assignment, sliced, Sinkhorn, the two-sided bracket
mmd         MMD, KID and the energy distance, unbiased
frechet     the bias of the Frechet distance in 1 / N, and its limit
named_pairs W1 and total variation of Gaussians, Laplace and uniform laws on the line
paths       KL of the path laws of stochastic samplers, step by step, and of reverse SDEs
elbo        the survey's Delta L (eq. 12), both terms, with the weights of the likelihood bound
rounding    what biased, unbiased and absorbed rounding cost one step
"""

from qdiffjax.analysis.divergences.elbo import LossGap, elbo_gaps, loss_gap
from qdiffjax.analysis.divergences.frechet import frechet_bias, frechet_limit
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
    kid,
    median_distance,
    mmd_squared,
    negative_distance,
    rbf_mixture,
)
from qdiffjax.analysis.divergences.named_pairs import (
    gaussian_shift_total_variation,
    gaussian_total_variation,
    gaussian_w1,
    laplace_scale_total_variation,
    laplace_shift_total_variation,
    laplace_w1,
    uniform_total_variation,
    uniform_w1,
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
    w1_1d,
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

"""Where errors arise, how they travel, which add up: the sites and steps of one sampler.

runs            two runs on one noise, the local errors, the loop over their steps
propagation     from local errors to the final error: first order, fan, second order
prediction      the final error from the full-precision run alone
ledger          contributions of every (site, step) to the error that happened
ablation        what quantizing one (site, step) alone would do
random_errors   random local errors: variance and bias of the final sample
site_variances  the same of the roundings at each site
feedback        where activations gain by what one call hands on to the next
coherence       which errors add up and which cancel; shares of weights and activations
laws            in the number of steps, of stochastic rounding, of guidance
flips           samples that end in another mode
evidence        what rounding explains beside what an implementation does, by site and step
"""

from qdiffjax.analysis.errors.ablation import forecast, rerun
from qdiffjax.analysis.errors.coherence import (
    Conflict,
    EndShares,
    coherence_factor,
    conflict,
    end_shares,
    error_profile,
    gram,
    probed_gram,
    split_error,
    weights_only,
)
from qdiffjax.analysis.errors.evidence import (
    Evidence,
    forecast_evidence,
    measured_evidence,
    site_squares,
)
from qdiffjax.analysis.errors.feedback import FeedbackCriterion, feedback_criterion
from qdiffjax.analysis.errors.flips import Flips, mode_flips, nearest
from qdiffjax.analysis.errors.laws import (
    Exponent,
    Floor,
    fit_exponent,
    fit_floor,
    guidance_gain,
    shared_rounding_covariance,
)
from qdiffjax.analysis.errors.ledger import (
    Functional,
    Ledger,
    as_table,
    attribution,
    defect,
    inject,
    squared_error_share,
    total,
    warn_of_defect,
)
from qdiffjax.analysis.errors.prediction import (
    predict_errors,
    predict_first_order,
    root_mean_square,
)
from qdiffjax.analysis.errors.propagation import (
    SecondOrder,
    fan,
    predicted_failure,
    propagate,
    propagate_mean_value,
    propagate_second_order,
    propagate_trapezoid,
    propagate_with_remainders,
    run_suffix,
)
from qdiffjax.analysis.errors.random_errors import Variance, final_variance, mean_bias
from qdiffjax.analysis.errors.runs import (
    Coupled,
    Path,
    Probed,
    adjoints,
    along,
    couple,
    local_errors,
    noises,
    norms,
    probed,
    signs,
    step_map,
)
from qdiffjax.analysis.errors.sequences import (
    sequence_bias,
    sequence_variances,
    variances_of_sequences,
)
from qdiffjax.analysis.errors.site_variances import (
    activation_variances,
    average_variance,
    weight_variances,
)

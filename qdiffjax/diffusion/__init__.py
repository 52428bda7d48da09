"""Diffusion processes, samplers, losses and exact Gaussian oracles; no quantization, no models.

Conventions, said once. x_t = alpha * x_0 + sigma * eps with eps ~ N(0, I). A process is read as
process(t) -> (alpha, sigma) and process.exact(times) in NumPy float64. Times of a
`DiscreteSchedule` are integers 0 (data) ... T (noise), so Ho et al.'s beta_t is the variance of
step t-1 -> t, alpha_bar[0] = 1, and a diffusers timestep k is our time k + 1; times of a `Process`
are real. Sampling goes from t to s < t. The network predicts eps, the *total* noise in x_t; its
optimum is E[eps | x_t] = -sigma * score. Networks that predict something else go through `as_eps`,
or keep their own output with `prediction=`; clipping and guidance are wrappers of the network.

A sampler is a table of coefficients (`Steps`): method(process, times, ...) -> Steps, with times
from `grids`. A step is x_s = x * x_t + eps * eps_fn(x_t, t) + noise * z, or the same with
matrices on a few slots. The caller draws x_T at the level of `steps.t[0]`: N(0, I) if the process
preserves variance, N(0, sigma^2 I) for VE and EDM. Schedules and samplers compute in float32, or
in float64 when their inputs are float64, whatever the dtype of the network.
"""

from qdiffjax.diffusion.grids import (
    default_times,
    ending_at,
    karras_times,
    leading_times,
    linspace_times,
    log_snr_times,
    multistep_leading_times,
    multistep_linspace_times,
    power_times,
    quadratic_times,
    to_zero,
    trailing_times,
)
from qdiffjax.diffusion.learned_schedule import (
    Learned,
    LogSNRParams,
    init_log_snr,
    learned_level,
    learned_log_snr,
)
from qdiffjax.diffusion.likelihood import (
    LogLikelihood,
    bits_per_dim,
    log_likelihood,
)
from qdiffjax.diffusion.loop import (
    Point,
    SlotCoeffs,
    StepCoeffs,
    Steps,
    Trajectory,
    as_point,
    bind,
    sample,
    stack,
    step_noise,
)
from qdiffjax.diffusion.ode import (
    diffrax_solver,
    pf_ode,
    rk4,
    solve_pf_ode,
)
from qdiffjax.diffusion.parameterizations import (
    Denoised,
    as_eps,
    clipped,
    clipped_x0,
    convert,
    denoise,
    dynamic_threshold,
    eps_prediction,
    flow_prediction,
    guided,
    level_like,
    score_prediction,
    thresholded,
    thresholded_x0,
    v_prediction,
    x0_prediction,
)
from qdiffjax.diffusion.processes import (
    EDM,
    VE,
    VP,
    Cosine,
    Flow,
    Interpolated,
    Process,
    Rates,
    SubVP,
    half_log_snr,
)
from qdiffjax.diffusion.samplers.adams import deis, in_log_rho, in_rho, in_time, plms, pndm
from qdiffjax.diffusion.samplers.first_order import (
    ddim,
    ddim_coeffs,
    ddim_linspace,
    ddpm,
    ddpm_coeffs,
    forward_variance,
    make_steps,
    posterior_variance,
)
from qdiffjax.diffusion.samplers.langevin import (
    CLD,
    cld_eps_fn_for,
    cld_euler_maruyama,
    cld_loss,
    cld_marginal,
    sscs,
)
from qdiffjax.diffusion.samplers.multistep import (
    dpmpp_1,
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_multistep,
    heun_weight,
    midpoint_weight,
    published_quadratic_weight,
    quadratic_weight,
)
from qdiffjax.diffusion.samplers.singlestep import (
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2s,
    euler,
    heun,
)
from qdiffjax.diffusion.samplers.stochastic import (
    ancestral,
    consistency,
    edm,
    edm_heun,
    euler_maruyama,
    from_coeffs,
    langevin_coeffs,
    one_step,
    predictor_corrector,
    reverse_diffusion,
    reverse_diffusion_coeffs,
)
from qdiffjax.diffusion.samplers.table import (
    Call,
    Interval,
    assemble,
    basis,
    intervals,
    nfe,
    pad,
    transfer,
)
from qdiffjax.diffusion.samplers.unified import Scale, bh1, bh2, unipc
from qdiffjax.diffusion.schedules import (
    DiscreteSchedule,
    NoiseLevel,
    cosine,
    linear,
    scaled_linear,
    sigmoid,
    sigmoid_betas,
    sqrt,
    uniform_times,
    zero_terminal_snr,
)

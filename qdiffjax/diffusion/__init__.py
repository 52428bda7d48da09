"""Diffusion processes, samplers, losses and exact Gaussian oracles; no quantization, no models.

Conventions, said once. x_t = alpha * x_0 + sigma * eps with eps ~ N(0, I). Times are integers
0 (data) ... T (noise) and sampling goes from t to s < t, so Ho et al.'s beta_t is the variance of
step t-1 -> t and alpha_bar[0] = 1. The network predicts eps, the *total* noise in x_t; its optimum
is E[eps | x_t] = -sigma * score. A sampler is a table of coefficients (`Steps`), a sampler step is
x_s = x * x_t + eps * eps_fn(x_t, t) + noise * z. Schedules and samplers compute in float32, or in
float64 when their inputs are float64, whatever the dtype of the network.
"""

from qdiffjax.diffusion.samplers import (
    ddim,
    ddim_coeffs,
    ddpm,
    ddpm_coeffs,
    forward_variance,
    make_steps,
    posterior_variance,
)
from qdiffjax.diffusion.sampling import (
    SlotCoeffs,
    StepCoeffs,
    Steps,
    Trajectory,
    bind,
    commit,
    current,
    num_slots,
    read,
    sample,
    start,
    step,
    step_noise,
)
from qdiffjax.diffusion.schedules import (
    DiscreteSchedule,
    NoiseLevel,
    cosine,
    float_dtype,
    linear,
    uniform_times,
)

__all__ = [
    "DiscreteSchedule",
    "NoiseLevel",
    "SlotCoeffs",
    "StepCoeffs",
    "Steps",
    "Trajectory",
    "bind",
    "commit",
    "cosine",
    "current",
    "ddim",
    "ddim_coeffs",
    "ddpm",
    "ddpm_coeffs",
    "float_dtype",
    "forward_variance",
    "linear",
    "make_steps",
    "num_slots",
    "posterior_variance",
    "read",
    "sample",
    "start",
    "step",
    "step_noise",
    "uniform_times",
]

"""Wrong calls of schedules, processes, grids, samplers, likelihoods and Gaussian laws."""

import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion
from qdiffjax.diffusion import gaussian
from tests.wrong_calls import (
    AT_LEAST_0,
    COUNT,
    COUNT_FROM_0,
    FUNCTIONS,
    INF,
    KEY,
    KEYS,
    NAN,
    POSITIVE,
    SHARE,
    holed,
    not_finite,
)

LINEAR, FLOW, VP = diffusion.linear(), diffusion.Flow(), diffusion.VP()
STEPS = diffusion.ddim(LINEAR, 4)
NUM = (*COUNT, 1001)  # steps of a schedule of 1000
BETAS = (0.0, -0.1, 1.0, NAN, "x")
TIMES = ((0, 500, 1000), (1000.0,), (1000, NAN, 0), (1001, 500, 0), (500, 500, 0), "x", (), None)
SCHEDULES = (None, "linear", 1000)
X = holed((3, 2), 0.5)


def call(x, t, inputs, state):
    return x, None, state


def eps_fn(params, x, t):
    return x


SAMPLERS = ("dpmpp_1", "dpmpp_2m", "dpmpp_3m", "deis", "unipc", "plms", "pndm", "dpm_solver_1",
            "ancestral", "reverse_diffusion")  # fmt: skip
PROCESS_SAMPLERS = ("euler", "heun", "edm_heun", "dpm_solver_2", "dpm_solver_3", "dpmpp_2s",
                    "euler_maruyama", "edm")  # fmt: skip
MEAN, COV = jnp.zeros(2), jnp.eye(2)
MATRICES = (holed((2, 2), NAN), jnp.eye(3), "x", -jnp.eye(2))
ROWS = {
    "linear(num_train_steps)": (diffusion.linear, COUNT),
    "linear(beta_min)": (lambda v: diffusion.linear(10, v), BETAS),
    "linear(beta_max)": (lambda v: diffusion.linear(10, 1e-4, v), BETAS),
    "scaled_linear(beta_max)": (lambda v: diffusion.scaled_linear(10, 1e-4, v), BETAS),
    "cosine(num_train_steps)": (diffusion.cosine, COUNT),
    "cosine(offset)": (lambda v: diffusion.cosine(10, v), AT_LEAST_0),
    "cosine(max_beta)": (lambda v: diffusion.cosine(10, max_beta=v), BETAS),
    "sqrt(num_train_steps)": (diffusion.sqrt, COUNT),
    "sqrt(offset)": (lambda v: diffusion.sqrt(10, v), (-1.0, NAN, INF)),
    "DiscreteSchedule(alpha_bar)": (
        diffusion.DiscreteSchedule,
        (np.ones(3), np.array([1.0, NAN]), np.array([1.0, -0.5]), np.array([0.9, 0.5]),
         np.array([1.0]), "x", None, np.ones((2, 2)))),
    "DiscreteSchedule(times)": (LINEAR, (-1, 1001, 2.5, np.array([0, 1001]), NAN, "x")),
    "VP(beta_min)": (diffusion.VP, (-1.0, NAN, INF, "x")),
    "VP(beta_max)": (lambda v: diffusion.VP(0.1, v), (-1.0, NAN, INF, "x", 0.01)),
    "VE(sigma_min)": (diffusion.VE, POSITIVE),
    "VE(sigma_max)": (lambda v: diffusion.VE(0.01, v), (*POSITIVE, 0.001)),
    "CLD(beta)": (diffusion.CLD, POSITIVE),
    "CLD(rate)": (lambda v: diffusion.CLD(rate=v), POSITIVE),
    "Interpolated(schedule)": (diffusion.Interpolated, SCHEDULES),
    "zero_terminal_snr(schedule)": (diffusion.zero_terminal_snr, (*SCHEDULES, FLOW)),
    "ddim(num_steps)": (lambda v: diffusion.ddim(LINEAR, v), NUM),
    "ddim(schedule)": (lambda v: diffusion.ddim(v, 4), SCHEDULES),
    "ddim(eta)": (lambda v: diffusion.ddim(LINEAR, 4, eta=v), SHARE),
    "ddpm(num_steps)": (lambda v: diffusion.ddpm(LINEAR, v), NUM),
    "ddpm(variance_fn)": (lambda v: diffusion.ddpm(LINEAR, 4, variance_fn=v), FUNCTIONS),
    "ddim of a process(num_steps)": (lambda v: diffusion.ddim(FLOW, v), COUNT),
    **{f"{name}(times)": (lambda v, name=name: getattr(diffusion, name)(LINEAR, v), TIMES)
       for name in SAMPLERS},
    **{f"{name}(schedule)": (lambda v, name=name: getattr(diffusion, name)(v, 4), SCHEDULES)
       for name in SAMPLERS},
    **{f"{name}(times)": (lambda v, name=name: getattr(diffusion, name)(VP, v),
                          ((0.5, 1.0), (NAN, 0.0), (0.5,), None, 0, -1, 2.5))
       for name in PROCESS_SAMPLERS},
    "deis(order)": (lambda v: diffusion.deis(LINEAR, 8, order=v), COUNT),
    "unipc(order)": (lambda v: diffusion.unipc(LINEAR, 8, order=v), COUNT),
    "dpmpp_multistep(order)": (
        lambda v: diffusion.dpmpp_multistep(LINEAR, 8, order=v), (*COUNT, 4)),
    "dpmpp_2m(eta)": (lambda v: diffusion.dpmpp_2m(LINEAR, 8, eta=v), SHARE),
    "dpmpp_2m(prediction)": (lambda v: diffusion.dpmpp_2m(LINEAR, 8, prediction=v), FUNCTIONS),
    "dpm_solver_2(ratio)": (lambda v: diffusion.dpm_solver_2(VP, (1.0, 0.5), ratio=v),
                            (0.0, -1.0, NAN, INF, 1.5)),
    "edm(churn)": (lambda v: diffusion.edm(VP, (1.0, 0.5), churn=v), AT_LEAST_0),
    "edm(noise_scale)": (lambda v: diffusion.edm(VP, (1.0, 0.5), noise_scale=v), AT_LEAST_0),
    "predictor_corrector(num_corrector)": (
        lambda v: diffusion.predictor_corrector(VP, (1.0, 0.5), num_corrector=v), COUNT_FROM_0),
    "predictor_corrector(snr)": (
        lambda v: diffusion.predictor_corrector(VP, (1.0, 0.5), snr=v), POSITIVE),
    "consistency(sigma_min)": (
        lambda v: diffusion.consistency(LINEAR, 4, sigma_min=v), AT_LEAST_0),
    "power_times(num_steps)": (lambda v: diffusion.power_times(1.0, 0.1, v), COUNT),
    "power_times(power)": (lambda v: diffusion.power_times(1.0, 0.1, 4, v), POSITIVE),
    "power_times(t_max)": (lambda v: diffusion.power_times(v, 0.1, 4), (0.1, 0.0, NAN, INF, "x")),
    "karras_times(num_steps)": (lambda v: diffusion.karras_times(VP, 1.0, 0.1, v), COUNT),
    "karras_times(rho)": (lambda v: diffusion.karras_times(VP, 1.0, 0.1, 4, v), POSITIVE),
    "log_snr_times(num_steps)": (lambda v: diffusion.log_snr_times(VP, 1.0, 0.1, v), COUNT),
    "quadratic_times(num_steps)": (lambda v: diffusion.quadratic_times(1.0, 0.1, v), COUNT),
    **{f"{name}(num_steps)": (lambda v, name=name: getattr(diffusion, name)(1000, v), NUM)
       for name in ("trailing_times", "leading_times", "linspace_times", "uniform_times",
                    "multistep_linspace_times", "multistep_leading_times")},
    "leading_times(offset)": (lambda v: diffusion.leading_times(1000, 10, v), (-1, 101, 2.5, NAN)),
    "multistep_leading_times(offset)": (
        lambda v: diffusion.multistep_leading_times(1000, 9, v), (-1, 101, 2.5, NAN)),
    "uniform_times(num_train_steps)": (lambda v: diffusion.uniform_times(v, 1), COUNT),
    "default_times(schedule)": (lambda v: diffusion.default_times(v, 4), SCHEDULES),
    "sample(call_fn)": (lambda v: diffusion.sample(v, X, STEPS), FUNCTIONS),
    "sample(x_T)": (lambda v: diffusion.sample(call, v, STEPS),
                    (np.zeros((3, 2), np.int32), None, "x", *not_finite(3, 2))),
    "sample(steps)": (lambda v: diffusion.sample(call, X, v), (None, 4, KEY)),
    "sample(key)": (lambda v: diffusion.sample(call, X, diffusion.ddpm(LINEAR, 4), key=v), KEYS),
    "sample(per_call)": (lambda v: diffusion.sample(call, X, STEPS, per_call=v),
                         (np.zeros(3), np.float32(1.0))),
    "clipped(low, high)": (lambda v: diffusion.clipped(eps_fn, LINEAR, *v),
                           ((1.0, -1.0), (NAN, 1.0), (0.0, NAN))),
    "clipped_x0(low, high)": (lambda v: diffusion.clipped_x0(eps_fn, LINEAR, STEPS, *v),
                              ((1.0, -1.0), (NAN, 1.0), (0.0, NAN))),
    "clipped_x0(steps)": (lambda v: diffusion.clipped_x0(eps_fn, LINEAR, v),
                          (None, 4, diffusion.dpmpp_2m(LINEAR, diffusion.uniform_times(1000, 4)))),
    "thresholded_x0(threshold_fn)": (
        lambda v: diffusion.thresholded_x0(eps_fn, LINEAR, STEPS, v), FUNCTIONS),
    "ddim_linspace(num_steps)": (lambda v: diffusion.ddim_linspace(LINEAR, v), NUM),
    "ddim_linspace(eta)": (lambda v: diffusion.ddim_linspace(LINEAR, 4, eta=v), SHARE),
    "sigmoid(num_train_steps)": (diffusion.sigmoid, COUNT),
    "sigmoid(start, end)": (lambda v: diffusion.sigmoid(10, *v),
                            ((3.0, -3.0), (1.0, 1.0), (NAN, 1.0))),
    "sigmoid(temperature)": (lambda v: diffusion.sigmoid(10, temperature=v), POSITIVE),
    "sigmoid(max_beta)": (lambda v: diffusion.sigmoid(10, max_beta=v), BETAS),
    "sigmoid_betas(beta_min)": (lambda v: diffusion.sigmoid_betas(10, v), BETAS),
    "dynamic_threshold(quantile)": (diffusion.dynamic_threshold, SHARE),
    "guided(scale)": (lambda v: diffusion.guided(eps_fn, 0, v), (NAN, "x", None)),
    "bits_per_dim(num_dims)": (lambda v: diffusion.bits_per_dim(0.0, v), COUNT),
    "bits_per_dim(bin_width)": (lambda v: diffusion.bits_per_dim(0.0, 2, v), POSITIVE),
    "diffrax_solver(rtol)": (diffusion.diffrax_solver, POSITIVE),
    "diffrax_solver(atol)": (lambda v: diffusion.diffrax_solver(1e-5, v), POSITIVE),
    "diffrax_solver(max_steps)": (lambda v: diffusion.diffrax_solver(max_steps=v), COUNT),
    "rk4(times)": (lambda v: diffusion.rk4(lambda x, t: x, X, v), ((1.0,), (), (NAN, 1.0))),
    "log_likelihood(times)": (
        lambda v: diffusion.log_likelihood(eps_fn, {}, VP, X, v), ((1.0,), (), (NAN, 1.0))),
    "log_likelihood(x_0)": (
        lambda v: diffusion.log_likelihood(eps_fn, {}, VP, v, (0.01, 1.0)), not_finite(3, 2)),
    "init_log_snr(width)": (lambda v: diffusion.init_log_snr(KEY, width=v), COUNT),
    "init_log_snr(key)": (diffusion.init_log_snr, KEYS),
    "step_noise(key)": (lambda v: diffusion.step_noise(v, 0, X), KEYS),
    "gaussian_kl(cov_1)": (lambda v: gaussian.gaussian_kl(MEAN, v, MEAN, COV), MATRICES),
    "gaussian_kl(cov_2)": (lambda v: gaussian.gaussian_kl(MEAN, COV, MEAN, v), MATRICES),
    "gaussian_kl(mean_1)": (lambda v: gaussian.gaussian_kl(v, COV, MEAN, COV),
                            (jnp.zeros(3), holed((2,), NAN))),
    "gaussian_w2_squared(cov_1)": (
        lambda v: gaussian.gaussian_w2_squared(MEAN, v, MEAN, COV), MATRICES),
    "sample_mixture(num)": (lambda v: gaussian.sample_mixture(
        KEY, gaussian.GaussianMixture(jnp.ones(1), MEAN[None], COV[None]), v), COUNT),
}  # fmt: skip

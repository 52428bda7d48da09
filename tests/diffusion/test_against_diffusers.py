"""Trajectories beside those of diffusers, on the exact denoiser of Gaussian data.

Its timestep k is our time k + 1; its "sigma" is our sigma / alpha. Every case is run on the same
numbers, noise included, and its own code has float64 tables: as it ships, its float32 tables move
DEIS of order 3 by 1.4e-5 and the others by less than 1e-5. Some of its steps compute in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.diffusion import diffusers_lab as lab
from tests.laws import gaussian_law

diffusers, torch, T, MEAN, COV = lab.diffusers, lab.torch, lab.T, lab.MEAN, lab.COV

SPACINGS = {
    "trailing": d.trailing_times,
    "leading": d.multistep_leading_times,
    "linspace": d.multistep_linspace_times,
}


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(
    ("spacing", "times"), [("leading", d.leading_times), ("trailing", d.trailing_times)]
)
def test_ddim(spacing, times, eta):
    schedule = lab.SCHEDULES["linear"]
    scheduler = lab.make("DDIMScheduler", schedule, clip_sample=False, timestep_spacing=spacing)
    steps = d.from_coeffs(schedule, times(T, 20), partial(d.ddim_coeffs, eta=eta))
    name = "variance_noise" if eta else None
    expected = lab.theirs(scheduler, schedule, 20, eta=eta, noise_name=name)
    lab.check(lab.ours(schedule, steps), expected)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    ("kind", "variance_fn"),
    [("fixed_small", d.posterior_variance), ("fixed_large", d.forward_variance)],
)
def test_ddpm(monkeypatch, kind, variance_fn, spacing):
    from diffusers.schedulers import scheduling_ddpm

    schedule, draws = lab.SCHEDULES["linear"], iter(range(20))
    monkeypatch.setattr(
        scheduling_ddpm, "randn_tensor", lambda *a, **k: torch.tensor(lab.noise(next(draws)))
    )
    times = {"leading": d.leading_times, "linspace": d.linspace_times} | {
        "trailing": d.trailing_times
    }
    scheduler = lab.make(
        "DDPMScheduler", schedule, clip_sample=False, variance_type=kind, timestep_spacing=spacing
    )
    coeffs = partial(d.ddpm_coeffs, variance_fn=variance_fn)
    grid = times[spacing](T, 20)
    # The last step adds noise if it does not start at timestep 0.
    steps = d.from_coeffs(schedule, grid, coeffs, denoise_last=grid[-2] == 1)
    lab.check(lab.ours(schedule, steps), lab.theirs(scheduler, schedule, 20))


DPM = {
    "2m": ({"solver_order": 2}, d.dpmpp_2m),
    "2m-heun": (
        {"solver_order": 2, "solver_type": "heun"},
        partial(d.dpmpp_2m, slope_weight_fn=d.heun_weight),
    ),
    "3m": (
        {"solver_order": 3},
        partial(
            d.dpmpp_3m,
            slope_weight_fn=d.midpoint_weight,
            quadratic_weight_fn=d.published_quadratic_weight,
        ),
    ),
    "sde-1": (
        {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
        partial(d.dpmpp_1, eta=1.0),
    ),
    "sde-2m": (
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        partial(d.dpmpp_2m, eta=1.0),
    ),
    "sde-2m-heun": (
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        partial(d.dpmpp_2m, eta=1.0, slope_weight_fn=d.heun_weight),
    ),
}


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", DPM)
def test_dpm_solver_plus_plus(name, spacing, num_steps):
    config, method = DPM[name]
    keywords = {} if name == "sde-1" else {"lower_order_final": num_steps < 15}
    schedule = lab.SCHEDULES["scaled"]
    scheduler = lab.make(
        "DPMSolverMultistepScheduler", schedule, timestep_spacing=spacing, **config
    )
    steps = method(schedule, SPACINGS[spacing](T, num_steps), **keywords)
    noise_name = "variance_noise" if name.startswith("sde") else None
    expected = lab.theirs(scheduler, schedule, num_steps, noise_name=noise_name)
    lab.check(lab.ours(schedule, steps), expected)


@pytest.mark.parametrize("name", DPM)
def test_dpm_solver_plus_plus_to_sigma_min(name):
    """final_sigmas_type="sigma_min": the grid ends at time 1, the last step keeps its order."""
    config, method = DPM[name]
    schedule = lab.SCHEDULES["scaled"]
    scheduler = lab.make(
        "DPMSolverMultistepScheduler", schedule, final_sigmas_type="sigma_min", **config
    )
    steps = method(schedule, d.ending_at(d.multistep_linspace_times(T, 25), 1))
    noise_name = "variance_noise" if name.startswith("sde") else None
    expected = lab.theirs(scheduler, schedule, 25, noise_name=noise_name)
    lab.check(lab.ours(schedule, steps), expected)


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("scale", [d.bh1, d.bh2], ids=["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, scale, num_steps):
    schedule = lab.SCHEDULES["scaled"]
    scheduler = lab.make(
        "UniPCMultistepScheduler",
        schedule,
        solver_order=order,
        solver_type=scale.name,
        # bh1's B(h) = h is infinite at sigma = 0: theirs returns NaN there.
        final_sigmas_type="sigma_min" if scale is d.bh1 else "zero",
    )
    times = d.multistep_linspace_times(T, num_steps)
    times = d.ending_at(times, 1) if scale is d.bh1 else times
    steps = d.unipc(schedule, times, order=order, scale=scale)
    lab.check(lab.ours(schedule, steps), lab.theirs(scheduler, schedule, num_steps))


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, num_steps):
    schedule = lab.SCHEDULES["linear"]
    scheduler = lab.make("DEISMultistepScheduler", schedule, solver_order=order)
    times = d.ending_at(d.multistep_linspace_times(T, num_steps), 1)
    steps = d.deis(schedule, times, order=order, lower_order_final=num_steps < 15)
    lab.check(lab.ours(schedule, steps), lab.theirs(scheduler, schedule, num_steps))


@pytest.mark.parametrize(("skip", "method"), [(True, d.plms), (False, d.pndm)])
def test_pndm(skip, method):
    schedule = lab.SCHEDULES["scaled"]
    scheduler = lab.make("PNDMScheduler", schedule, skip_prk_steps=skip)
    steps = method(schedule, d.leading_times(T, 10))
    assert d.nfe(steps) == (11 if skip else 19)
    lab.check(lab.ours(schedule, steps), lab.theirs(scheduler, schedule, 10))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("EulerDiscreteScheduler", partial(d.edm, second_order=False)),
        ("HeunDiscreteScheduler", d.edm_heun),
    ],
)
def test_euler_and_heun(name, method):
    schedule = lab.SCHEDULES["scaled"]
    scheduler = lab.make(name, schedule, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    alpha = schedule.exact(T).alpha
    expected = lab.theirs(scheduler, schedule, 20, x=lab.x_T() / alpha, scaled=True)
    lab.check(lab.ours(schedule, method(schedule, d.trailing_times(T, 20))), expected)


def edm_theirs(scheduler, x, num_steps, **churn):
    data = scheduler.config.sigma_data
    scheduler.set_timesteps(num_steps)
    for i, t in enumerate(scheduler.timesteps):
        rho = float(scheduler.sigmas[i])
        scheduler.scale_model_input(torch.tensor(x), t)
        hat, noisy = raised(rho, num_steps, **churn), x
        if hat > rho:
            noisy = x + np.sqrt(hat**2 - rho**2) * lab.noise(i)
        denoised = noisy - hat * lab.eps(noisy, d.NoiseLevel(1.0, hat))
        c_skip, c_out = data**2 / (hat**2 + data**2), hat * data / np.sqrt(hat**2 + data**2)
        out = torch.tensor((denoised - c_skip * noisy) / c_out)
        x = scheduler.step(out, t, torch.tensor(x), **churn).prev_sample.numpy()
    return x


def raised(rho, num_steps, s_churn=0.0, s_tmin=0.0, s_tmax=np.inf):
    gamma = min(s_churn / num_steps, np.sqrt(2) - 1) if s_tmin <= rho <= s_tmax else 0.0
    return rho * (1 + gamma)


@pytest.mark.parametrize("churn", [0.0, 4.0])
def test_edm_euler(monkeypatch, churn):
    from diffusers.schedulers import scheduling_edm_euler

    num_steps, draws = 10, iter(range(99))
    scheduler = diffusers.EDMEulerScheduler()
    process = d.EDM()
    times = d.karras_times(process, scheduler.config.sigma_max, scheduler.config.sigma_min, 10)
    limits = {"s_tmin": 0.1, "s_tmax": 100.0}
    used = [i for i, rho in enumerate(times[:-1]) if raised(rho, 10, churn, **limits) > rho]
    monkeypatch.setattr(
        scheduling_edm_euler,
        "randn_tensor",
        lambda *a, **k: torch.tensor(lab.noise(used[next(draws)])),
    )
    x = times[0] * lab.x_T()
    expected = edm_theirs(scheduler, x, num_steps, s_churn=churn, **limits)
    steps = d.edm(process, times, churn=churn, churn_range=(0.1, 100.0), second_order=False)
    # Ours starts at the raised level, and draws the noise of interval i + 1 in call i.
    start = x + np.sqrt(float(steps.t[0]) ** 2 - times[0] ** 2) * lab.noise(0)
    shifted = shift_noise(d.bind(gaussian.eps_fn_for(process), gaussian_law(MEAN, COV)))
    # Theirs rounds its sigmas and states to float32.
    lab.check(np.asarray(shifted(jnp.asarray(start), steps)), expected, 1e-5)


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("name", ["2m", "2m-heun", "3m"])
def test_edm_dpm_solver(name, num_steps):
    config, method = DPM[name]
    scheduler, process = diffusers.EDMDPMSolverMultistepScheduler(**config), d.EDM()
    ends = scheduler.config.sigma_max, scheduler.config.sigma_min
    times = d.karras_times(process, *ends, num_steps)
    x = times[0] * lab.x_T()
    steps = method(process, times, lower_order_final=num_steps < 15)
    # Theirs rounds its sigmas to float32.
    lab.check(lab.ours(process, steps, x), edm_theirs(scheduler, x, num_steps), 1e-5)


def shift_noise(call_fn):
    """Return a loop that gives call i the noise i + 1."""

    @jax.jit
    def one(x, t, coeffs, z):
        return coeffs.advance(x, call_fn(x, t, None)[0], z)

    def run(x, steps):
        for i in range(d.nfe(steps)):
            coeffs = jax.tree.map(lambda leaf, i=i: leaf[i], steps.coeffs)
            x = one(x, steps.t[i], coeffs, jnp.asarray(lab.noise(i + 1)))
        return x

    return run


def test_flow_matching_euler_from_pure_noise():
    num_steps, process = 12, d.Flow()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(T)
    scheduler.set_timesteps(num_steps)
    times = scheduler.sigmas.numpy().astype(np.float64)
    assert (times[0], times[-1]) == (1.0, 0.0)
    times[0], x = 1.0, lab.x_T()

    def velocity(x, t):
        level = d.NoiseLevel(1 - t, t)
        e = lab.eps(x, level)
        cov = level.alpha**2 * COV + level.sigma**2 * np.eye(2)
        x_0 = MEAN + level.alpha * (COV @ np.linalg.solve(cov, (x - level.alpha * MEAN).T)).T
        return e - x_0

    for i, k in enumerate(scheduler.timesteps):
        out = torch.tensor(velocity(x, float(scheduler.sigmas[i])))
        x = scheduler.step(out, k, torch.tensor(x)).prev_sample.numpy().astype(np.float64)

    def call_fn(x, t, inputs, state=()):
        level = process(t)
        cov = level.alpha**2 * jnp.asarray(COV) + level.sigma**2 * jnp.eye(2)
        gap = jnp.linalg.solve(cov, (x - level.alpha * jnp.asarray(MEAN)[None]).T)
        x_0 = jnp.asarray(MEAN)[None] + level.alpha * jnp.matmul(jnp.asarray(COV), gap).T
        return level.sigma * gap.T - x_0, None, state

    steps = d.dpm_solver_1(process, times, prediction=d.flow_prediction)
    lab.check(np.asarray(d.sample(call_fn, jnp.asarray(lab.x_T()), steps).x_0), x, 1e-5)


def test_schedules_are_those_of_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2
    table = torch.cumprod(1 - betas, 0).numpy()
    lab.check(d.scaled_linear().alpha_bar[1:], table, 1e-12)
    flat = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0).numpy()
    lab.check(d.zero_terminal_snr(d.scaled_linear()).alpha_bar[1:], flat, 1e-12)
    cosine = diffusers.DDPMScheduler(T, beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()
    lab.check(d.cosine().alpha_bar[1:], cosine, 1e-6)

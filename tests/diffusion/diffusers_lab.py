"""The loops of diffusers and ours on one exact denoiser; skips where diffusers is missing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

T = 1000
MEAN, COV = np.array([0.5, -1.0]), np.array([[0.6, 0.3], [0.3, 0.9]])
SCHEDULES = {"linear": d.linear(), "scaled": d.scaled_linear()}
KEY = jax.random.key(5)


def eps(x, level):
    cov = level.alpha**2 * COV + level.sigma**2 * np.eye(2)
    return level.sigma * np.linalg.solve(cov, (x - level.alpha * MEAN).T).T


def x_T():
    return np.random.default_rng(0).normal(size=(4, 2))


def noise(index):
    return np.asarray(d.step_noise(KEY, index, jnp.asarray(x_T())))


@partial(jax.jit, static_argnums=0)
def run(process, x, steps):
    call_fn = d.bind(gaussian.eps_fn_for(process), gaussian_law(MEAN, COV))
    return d.sample(call_fn, x, steps, key=KEY).x_0


def ours(process, steps, x=None):
    # Padded, so that every method is the same program.
    x = jnp.asarray(x_T() if x is None else x)
    return np.asarray(run(process, x, d.pad(steps, 40, 6)))


def make(name, schedule, **kwargs):
    betas = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    scheduler = getattr(diffusers, name)(T, trained_betas=betas, **kwargs)
    scheduler.alphas_cumprod = torch.tensor(schedule.alpha_bar[1:])
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


def theirs(scheduler, schedule, num_steps, x=None, scaled=False, **step_kwargs):
    """Run the loop of a diffusers pipeline; with `scaled`, on x / alpha."""
    scheduler.set_timesteps(num_steps)
    exact_sigmas(scheduler, schedule)
    x, noisy = x_T() if x is None else x, step_kwargs.pop("noise_name", None)
    for i, k in enumerate(scheduler.timesteps):
        kwargs = step_kwargs | ({noisy: torch.tensor(noise(i))} if noisy else {})
        seen = scheduler.scale_model_input(torch.tensor(x), k).numpy() if scaled else x
        out = eps(seen, schedule.exact(round(float(k)) + 1))
        x = scheduler.step(torch.tensor(out), k, torch.tensor(x), **kwargs).prev_sample.numpy()
    return x


def exact_sigmas(scheduler, schedule):
    """Replace the scheduler's float32 sigmas, if it has any, by the same in float64."""
    if hasattr(scheduler, "sigmas"):
        level = schedule.exact(np.append(scheduler.timesteps.numpy(), 0) + 1)
        sigmas = level.sigma / level.alpha
        sigmas[-1] *= float(scheduler.sigmas[-1]) > 0
        np.testing.assert_allclose(scheduler.sigmas.numpy(), sigmas, rtol=1e-3)
        scheduler.sigmas = torch.tensor(sigmas)


def check(actual, expected, tolerance=1e-6):
    assert np.max(np.abs(actual - expected)) <= tolerance * np.max(np.abs(expected))

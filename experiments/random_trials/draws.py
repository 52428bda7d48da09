"""Random worlds for `experiments.random_trials`: networks, schedules, samplers, formats; NumPy."""

from typing import Any, NamedTuple

import numpy as np

from qdiffjax import diffusion

DIMS, NUM_STEPS, WIDTH, NUM_CENTRES = 3, 8, 8, 3
FORMATS = ("int nearest", "int stochastic", "e4m3fn", "e5m2", "e3m2", "e2m1", "nf4")
SCHEDULES = ("linear", "cosine", "scaled linear", "sqrt", "VP", "VE", "EDM")
SAMPLERS = ("ddim", "ddim random eta", "ddpm", "ddpm large", "reverse diffusion", "dpm++ 2m")
DATA = ("network", "mixture", "log-concave")


class World(NamedTuple):
    """What a trial is made of; a stack of them has one more leading axis.

    params: of the denoiser. levels: alpha and sigma of the N steps' starts [N]. coeffs: of the
    sampler. format: index into FORMATS; bits of the integers. scale: standard deviation of x_T.
    names: indices into DATA, SCHEDULES, SAMPLERS. is_ddim: whether the sampler is DDIM to level 0.
    """

    params: Any
    levels: diffusion.NoiseLevel
    next_sigma_edm: np.ndarray
    coeffs: Any
    format: np.int32
    bits: np.int32
    scale: float
    names: np.ndarray
    is_ddim: Any


def draw_grid(rng):
    """Return (index of the schedule, the schedule, descending times [N+1])."""
    index = int(rng.integers(len(SCHEDULES)))
    total = int(rng.integers(20, 400))
    size = float(rng.uniform(4, 16))  # integral of beta
    discrete = {
        0: lambda: diffusion.linear(total, 0.01 * size / total, min(2 * size / total, 0.9)),
        1: lambda: diffusion.cosine(total),
        2: lambda: diffusion.scaled_linear(total, 0.05 * size / total, min(2 * size / total, 0.9)),
        3: lambda: diffusion.sqrt(total),
    }
    if index in discrete:
        inner = rng.choice(np.arange(1, total - 1), NUM_STEPS - 1, replace=False)
        times = np.concatenate([[total - 1], np.sort(inner)[::-1], [0]])
        return index, discrete[index](), times
    process = (diffusion.VP(0.1, 2 * size), diffusion.VE(0.01, rng.uniform(5, 50)),
               diffusion.EDM())[index - 4]  # fmt: skip
    high = rng.uniform(5, 50) if SCHEDULES[index] == "EDM" else 1.0
    inner = np.sort(rng.uniform(0.01, 0.99, NUM_STEPS - 1))[::-1] ** rng.uniform(1, 4)
    return index, process, high * np.concatenate([[1.0], inner, [0.0]])


def draw_steps(rng, schedule, times, multistep: bool):
    """Return (index of the sampler, coefficients as NumPy leaves [N, ...])."""
    if multistep:
        return 5, _numpy(diffusion.dpmpp_2m(schedule, times).coeffs)
    index = int(rng.integers(5))
    eta = float(rng.uniform()) if index == 1 else 0.0
    large = diffusion.forward_variance
    rules = (
        lambda t, s: diffusion.ddim_coeffs(t, s, eta=eta),
        lambda t, s: diffusion.ddim_coeffs(t, s, eta=eta),
        diffusion.ddpm_coeffs,
        lambda t, s: diffusion.ddpm_coeffs(t, s, variance_fn=large),
        diffusion.reverse_diffusion_coeffs,
    )
    coeffs = rules[index](schedule.exact(times[:-1]), schedule.exact(times[1:]))
    return index, _numpy(coeffs)


def draw_network(rng):
    """Draw a smooth network eps = x W_0 + tanh(x W_1 + t w_t + b) W_2 of random gain."""
    gain = 10 ** rng.uniform(-0.5, 0.5)
    return {
        "skip": 0.3 * rng.normal(size=(DIMS, DIMS)),
        "in": gain * rng.normal(size=(DIMS, WIDTH)) / DIMS**0.5,
        "time": rng.normal(size=WIDTH),
        "bias": rng.normal(size=WIDTH),
        "out": gain * rng.normal(size=(WIDTH, DIMS)) / WIDTH**0.5,
    }


def draw_data(rng, log_concave: bool):
    """Draw a mixture of equal round components, or one tilted Gaussian as three equal components.

    radius, std: of the centres and components; strength: m of log-concavity (0 if none).
    """
    weights = rng.dirichlet(np.full(NUM_CENTRES, 2.0))
    centres = rng.normal(size=(NUM_CENTRES, DIMS))
    if log_concave:
        root = rng.normal(size=(DIMS, DIMS)) * 10 ** rng.uniform(-1, 0)
        cov = root @ root.T + 0.01 * np.eye(DIMS)
        means, covs = np.stack([centres[0]] * NUM_CENTRES), np.stack([cov] * NUM_CENTRES)
        strength = 1 / np.linalg.eigvalsh(cov)[-1]
    else:
        std = 10 ** rng.uniform(-1, 0)
        means, covs = centres, std**2 * np.stack([np.eye(DIMS)] * NUM_CENTRES)
        strength = 0.0
    # Centres are measured from the middle of the data: mean shifts commute with the denoiser.
    means = means - means.mean(axis=0)
    radius = np.linalg.norm(means, axis=1).max()
    return {"mixture": (weights, means, covs), "radius": radius, "std": np.sqrt(covs[0, 0, 0]),
            "strength": strength}  # fmt: skip


def draw(rng, family: str) -> World:
    """Draw one trial of a family: network, multistep (a network too), or data."""
    index, schedule, times = draw_grid(rng)
    sampler, coeffs = draw_steps(rng, schedule, times, family == "multistep")
    log_concave = bool(rng.integers(2))
    params = draw_data(rng, log_concave) if family == "data" else draw_network(rng)
    level, after = schedule.exact(times[:-1]), schedule.exact(times[1:])
    kind = (2 if log_concave else 1) if family == "data" else 0
    is_ddim = sampler == 0 and after.sigma[-1] == 0
    return World(
        params, level, after.sigma / after.alpha, coeffs, np.int32(rng.integers(len(FORMATS))),
        np.int32(rng.integers(2, 9)), float(level.sigma[0]), np.array([kind, index, sampler]),
        np.bool_(is_ddim),
    )  # fmt: skip


def draw_gaussian(rng) -> dict:
    """Draw a Gaussian, a schedule, a stochastic sampler, and an affine error of the network."""
    _, schedule, times = draw_grid(rng)
    level, after = schedule.exact(times[:-1]), schedule.exact(times[1:])
    eta = rng.uniform(0.2, 1.0)
    coeffs = (diffusion.ddim_coeffs(level, after, eta=eta), diffusion.ddpm_coeffs(level, after),
              diffusion.reverse_diffusion_coeffs(level, after))[rng.integers(3)]  # fmt: skip
    root = rng.normal(size=(DIMS, DIMS)) * 10 ** rng.uniform(-1, 0)
    size = 10 ** rng.uniform(-3, -0.5)
    return {
        "mean": rng.normal(size=DIMS), "cov": root @ root.T + 0.01 * np.eye(DIMS),
        "levels": level, "coeffs": _numpy(coeffs), "kappa": size * rng.normal(size=NUM_STEPS),
        "bias": size * rng.normal(size=(NUM_STEPS, DIMS)), "frame": rng.normal(size=(1, DIMS)),
        "scale": float(level.sigma[0]),
    }  # fmt: skip


def _numpy(coeffs):
    return type(coeffs)(*(np.asarray(leaf, np.float64) for leaf in coeffs))

"""First-order samplers as tables of coefficients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import FUNCTION, SHARE, check_number, check_numbers, checked, require
from qdiffjax.diffusion.grids import default_times, linspace_times
from qdiffjax.diffusion.loop import StepCoeffs, Steps
from qdiffjax.diffusion.schedules import DiscreteSchedule, NoiseLevel

VarianceFn = Callable[[NoiseLevel, NoiseLevel], Any]
CoeffsFn = Callable[[NoiseLevel, NoiseLevel], StepCoeffs]


def _noise_ratio(level_t: NoiseLevel, level_s: NoiseLevel):
    """Return alpha_t sigma_s / (alpha_s sigma_t) = exp((log_snr_t - log_snr_s) / 2), in [0, 1]."""
    return level_t.alpha * level_s.sigma / (level_s.alpha * level_t.sigma)


def forward_variance(level_t: NoiseLevel, level_s: NoiseLevel):
    """Return the variance of x_t given x_s, "fixed large"; Ho et al. 2020, section 3.2.

        sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2

    which is beta = 1 - alpha_bar_t / alpha_bar_s for a variance-preserving process.
    """
    return level_t.sigma**2 * (1.0 - _noise_ratio(level_t, level_s) ** 2)


def posterior_variance(level_t: NoiseLevel, level_s: NoiseLevel):
    """Return the variance of x_s given x_t and x_0, "fixed small"; Ho et al. 2020, eq. 7.

        forward_variance * sigma_s^2 / sigma_t^2

    It is zero at s = 0.
    """
    return level_s.sigma**2 * (1.0 - _noise_ratio(level_t, level_s) ** 2)


def ddim_coeffs(level_t: NoiseLevel, level_s: NoiseLevel, *, eta=0.0) -> StepCoeffs:
    """Return the coefficients of DDIM (eta = 0) up to DDPM ancestral (eta = 1).

        x = alpha_s / alpha_t,   noise = eta * sqrt(posterior_variance)
        eps = sqrt(sigma_s^2 - noise^2) - x * sigma_t

    Song, Meng & Ermon 2021, eqs. 12 and 16. Exact for point-mass data at every eta.

    Args:
      level_t: the level to leave, leaves [*times] in NumPy or JAX; sigma_t > 0.
      level_s: the level to reach, leaves [*times].
      eta: scalar in [0, 1].

    Raises:
      ValueError: if eta is a Python number outside [0, 1].
    """
    check_number("eta", eta, least=0, most=1, remedy="0 is DDIM, 1 is DDPM ancestral")
    scale = level_s.alpha / level_t.alpha
    fresh = 1.0 - _noise_ratio(level_t, level_s) ** 2
    # sigma_s factored out: in this form the root's argument cannot round below zero.
    kept = level_s.sigma * (1.0 - eta**2 * fresh) ** 0.5
    noise = eta * level_s.sigma * fresh**0.5
    return StepCoeffs(scale, kept - scale * level_t.sigma, noise)


def ddpm_coeffs(
    level_t: NoiseLevel, level_s: NoiseLevel, *, variance_fn: VarianceFn = posterior_variance
) -> StepCoeffs:
    """Return the coefficients of an ancestral DDPM step over any stride t -> s.

        x = alpha_s / alpha_t,   eps = -x * forward_variance / sigma_t,   noise = sqrt(variance_fn)

    The mean is E[x_s | x_t, x_0] with x_0 = (x_t - sigma_t eps) / alpha_t; Ho et al. 2020, eqs. 7
    and 11 with beta = 1 - alpha_bar_t / alpha_bar_s. The survey, eq. 3, leaves both open.

    Args:
      level_t: the level to leave, leaves [*times]; sigma_t > 0.
      level_s: the level to reach, leaves [*times].
      variance_fn: (level_t, level_s) -> variance of the noise, as `posterior_variance`.
    """
    scale = level_s.alpha / level_t.alpha
    eps = -scale * forward_variance(level_t, level_s) / level_t.sigma
    return StepCoeffs(scale, eps, variance_fn(level_t, level_s) ** 0.5)


def make_steps(schedule: Any, times, coeffs_fn: CoeffsFn) -> Steps:
    """Return the steps along descending times [N+1], computed in float64, in JAX's default dtype.

    Args:
      schedule: a `DiscreteSchedule` or `Process`: exact(times) -> NoiseLevel.
      times: [N+1], noisiest first.
      coeffs_fn: (level_t, level_s) -> StepCoeffs.

    Raises:
      ValueError: if times do not descend strictly, or start at alpha = 0.
    """
    check_numbers("times", times)
    times = np.asarray(times)
    require(
        times.ndim == 1 and times.size >= 2 and np.all(np.diff(times) < 0),
        "times",
        got=times,
        expected="two or more, strictly descending",
        remedy="see uniform_times",
    )
    t, s = times[:-1], times[1:]
    require(
        schedule.exact(times).alpha[0] > 0,
        got="alpha = 0 at the first time",
        expected="positive: eps says nothing about x_0 there",
        remedy="use dpmpp_1(schedule, times, prediction=v_prediction)",
    )
    return _as_data(Steps(t, s, coeffs_fn(schedule.exact(t), schedule.exact(s))))


def _as_data(steps: Steps) -> Steps:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), steps)


@checked(eta=SHARE)
def ddim(schedule, num_steps: int, *, eta: float = 0.0) -> Steps:
    """Return `num_steps` DDIM steps at `default_times`; Song, Meng & Ermon 2021, eq. 12.

    Args:
      schedule: a `DiscreteSchedule`, whose times are then uniform, or a `Process`.
      num_steps: N.
      eta: 0 for DDIM, 1 for DDPM ancestral.

    Example:
      >>> import qdiffjax as qd
      >>> [int(t) for t in qd.ddim(qd.linear(), 4).t]
      [1000, 750, 500, 250]
    """
    times = default_times(schedule, num_steps)
    return make_steps(schedule, times, lambda t, s: ddim_coeffs(t, s, eta=eta))


@checked(eta=SHARE)
def ddim_linspace(schedule: DiscreteSchedule, num_steps: int, *, eta: float = 0.0) -> Steps:
    """Return DDIM as diffusers runs it with timestep_spacing="linspace".

    Calls are at `linspace_times`, T to 1, but every step ends floor(T / N) below its start, at 0
    if that is beneath 1, and not where the next begins: for T = 1000, N = 5 at 1000, 750, 501,
    251, 1 with steps to 800, 550, 301, 51, 0. So the network is told another noise level than its
    input has; on a grid whose steps meet use make_steps(schedule, linspace_times(T, N), ...).

    Args:
      schedule: with T training steps.
      num_steps: N.
      eta: 0 for DDIM, 1 for DDPM ancestral.
    """
    num_train_steps = schedule.num_train_steps
    t = linspace_times(num_train_steps, num_steps)[:-1]
    s = np.maximum(t - num_train_steps // num_steps, 0.0)
    coeffs = ddim_coeffs(schedule.exact(t), schedule.exact(s), eta=eta)
    return _as_data(Steps(jnp.asarray(t), jnp.asarray(s), coeffs))


@checked(variance_fn=FUNCTION)
def ddpm(schedule, num_steps: int, *, variance_fn: VarianceFn = posterior_variance) -> Steps:
    """Return `num_steps` ancestral steps at `default_times`; Ho et al. 2020, algorithm 2.

    The step to time 0 adds no noise whatever `variance_fn` says, as in the algorithm.

    Example:
      >>> import qdiffjax as qd
      >>> steps = qd.ddpm(qd.linear(), 10)
      >>> [round(float(z), 2) for z in steps.coeffs.noise][-2:]
      [0.28, 0.0]
    """
    times = default_times(schedule, num_steps)

    def coeffs_fn(level_t, level_s):
        coeffs = ddpm_coeffs(level_t, level_s, variance_fn=variance_fn)
        return coeffs._replace(noise=np.where(level_s.sigma > 0, coeffs.noise, 0.0))

    return make_steps(schedule, times, coeffs_fn)

"""Stochastic samplers: EDM churn, Euler-Maruyama, reverse diffusion, Langevin, consistency.

First-order ones have a `_coeffs` function for `make_steps`-like grids: (level_t, level_s) ->
StepCoeffs. The reverse SDE is dx = (f x - g^2 score) dt + g dw, with score = -eps / sigma.
"""

import numpy as np

from qdiffjax._checks import FROM_0, NOT_NEGATIVE, POSITIVE, checked
from qdiffjax.diffusion.loop import StepCoeffs, Steps
from qdiffjax.diffusion.parameterizations import PredictionFn, denoise, eps_prediction
from qdiffjax.diffusion.processes import Process, half_log_snr
from qdiffjax.diffusion.samplers.first_order import CoeffsFn, ddpm_coeffs, forward_variance
from qdiffjax.diffusion.samplers.table import (
    Call,
    Interval,
    Vector,
    assemble,
    basis,
    intervals,
    transfer,
)
from qdiffjax.diffusion.schedules import NoiseLevel


def from_coeffs(schedule, times, coeffs_fn: CoeffsFn, *, denoise_last: bool = True) -> Steps:
    """Return first-order steps along any grid of any process; the last without noise if asked.

    Args:
      schedule: with exact(times) -> NoiseLevel.
      times: [N+1], noisiest first; alpha > 0.
      coeffs_fn: (level_t, level_s) -> StepCoeffs, as `ddim_coeffs` or `reverse_diffusion_coeffs`.
      denoise_last: whether the last step adds no noise.
    """
    (x,), eps, z = basis(1)
    calls = []
    for step in intervals(schedule, times):
        c = coeffs_fn(step.at, step.to)
        noise = 0.0 if step.last and denoise_last else c.noise
        calls.append(Call(step.t, step.s, x, (c.x * x + c.eps * eps + noise * z,)))
    return assemble(calls)


def ancestral(schedule, times) -> Steps:
    """Return ancestral sampling along any grid of any process: DDPM for VP, Song's for VE."""
    return from_coeffs(schedule, times, ddpm_coeffs)


def reverse_diffusion_coeffs(level_t: NoiseLevel, level_s: NoiseLevel) -> StepCoeffs:
    """Return the coefficients of reverse diffusion; Song et al. 2021, eqs. 46-47.

        x_s = (2 - a) x_t - (v / sigma_t) eps + sqrt(v) z

    for the forward step x_t = a x_s + sqrt(v) z, a = alpha_t / alpha_s, v = `forward_variance`.
    """
    v = forward_variance(level_t, level_s)
    return StepCoeffs(2 - level_t.alpha / level_s.alpha, -v / level_t.sigma, v**0.5)


def reverse_diffusion(schedule, times) -> Steps:
    """Return reverse diffusion sampling, its last step without noise; Song et al. 2021, app. E."""
    return from_coeffs(schedule, times, reverse_diffusion_coeffs)


def euler_maruyama(process: Process, times, *, denoise_last: bool = True) -> Steps:
    """Return Euler-Maruyama on the reverse SDE; Song et al. 2021, eq. 6.

        x_s = x_t + (s - t) (f x_t + g^2 eps / sigma_t) + g sqrt(t - s) z

    Weak and, the noise being additive, strong order one. Not from alpha = 0, where f is infinite.
    """
    (x,), eps, z = basis(1)
    calls = []
    for step in intervals(process, times):
        f, g2 = process.exact_rates(step.t)
        width = step.t - step.s
        noise = 0.0 if step.last and denoise_last else np.sqrt(g2 * width)
        moved = x - width * (f * x + g2 / step.at.sigma * eps) + noise * z
        calls.append(Call(step.t, step.s, x, (moved,)))
    return assemble(calls)


@checked(snr=POSITIVE)
def langevin_coeffs(level: NoiseLevel, snr: float) -> StepCoeffs:
    """Return the coefficients of a Langevin step at one level; Song et al. 2021, algorithm 4.

        x <- x + e score + sqrt(2 e) z,   e = 2 (snr sigma)^2

    Theirs is e = 2 (snr |z| / |score|)^2 with the norms of the batch, which is not linear in the
    state; here both norms have their expectation under perfect training at no information about
    x_0, |score| = |z| / sigma. (For VP they multiply e by 1 - beta.)
    """
    e = 2 * (snr * level.sigma) ** 2
    return StepCoeffs(np.ones_like(e), -e / level.sigma, (2 * e) ** 0.5)


@checked(num_corrector=FROM_0, snr=POSITIVE)
def predictor_corrector(
    schedule,
    times,
    *,
    predictor_fn: CoeffsFn = reverse_diffusion_coeffs,
    num_corrector: int = 1,
    snr: float = 0.16,
) -> Steps:
    """Return predictor-corrector sampling; Song et al. 2021, algorithm 1, in their code's order.

    At each time: num_corrector Langevin steps, then a predictor step. The last is without noise.
    The step size of the corrector is fixed by the level; see `langevin_coeffs`.
    """
    (x,), eps, z = basis(1)
    calls = []
    for step in intervals(schedule, times):
        c = langevin_coeffs(step.at, snr)
        corrected = (c.x * x + c.eps * eps + c.noise * z,)
        calls += [Call(step.t, step.t, x, corrected)] * num_corrector
        c = predictor_fn(step.at, step.to)
        noise = 0.0 if step.last else c.noise
        calls.append(Call(step.t, step.s, x, (c.x * x + c.eps * eps + noise * z,)))
    return assemble(calls)


@checked(sigma_min=NOT_NEGATIVE)
def consistency(
    schedule, times, *, sigma_min: float = 0.0, prediction: PredictionFn = eps_prediction
) -> Steps:
    """Return multistep consistency sampling; Song et al. 2023, algorithm 1.

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - (alpha_s sigma_min)^2) z

    All noise is fresh, x_0 is the consistency function's output, whose clean end is at the noise
    level sigma_min. A grid of two times is one-step generation. The last step returns x_0.
    """
    (x,), out, z = basis(1)
    calls = []
    for step in intervals(schedule, times):
        x_0 = denoise(x, out, step.at, prediction).x_0
        noise = np.sqrt(max(step.to.sigma**2 - (step.to.alpha * sigma_min) ** 2, 0.0))
        moved = x_0 if step.last else step.to.alpha * x_0 + noise * z
        calls.append(Call(step.t, step.s, x, (moved,)))
    return assemble(calls)


def one_step(schedule, t, *, prediction: PredictionFn = eps_prediction) -> Steps:
    """Return x_0 = (x_t - sigma_t eps) / alpha_t, in one call at time t."""
    return consistency(schedule, [t, 0.0], prediction=prediction)


@checked(churn=NOT_NEGATIVE, noise_scale=NOT_NEGATIVE)
def edm(
    schedule,
    times,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, np.inf),
    noise_scale: float = 1.0,
    second_order: bool = True,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return the EDM sampler, algorithms 1 (churn = 0) and 2 of Karras et al. 2022, on any process.

    In the coordinates y = x / alpha, rho = sigma / alpha, where dy / drho = eps: the noise level
    is first raised to rho_hat = (1 + gamma) rho, gamma = min(churn / N, sqrt(2) - 1) for rho in
    churn_range, by noise of variance noise_scale^2 (rho_hat^2 - rho^2); then a Heun step to the
    next rho. Euler where sigma_s = 0.

    The noise of interval i > 0 enters at the end of interval i - 1, and slot 0 is y_hat alpha_hat.
    That of the first interval belongs to the start: draw x_T at the level of `steps.t[0]`.

    Args:
      schedule: with exact(times), and time(log_snr) if churn > 0.
      times: [N+1], noisiest first; alpha > 0.
      churn: S_churn.
      churn_range: S_min and S_max, in sigma_edm.
      noise_scale: S_noise.
      second_order: Heun; False is Euler (diffusers' Euler and EDM-Euler).
      prediction: what the network predicts.
    """
    (x, first), out, z = basis(2)
    steps, calls = intervals(schedule, times), []
    hats = [_raised(schedule, step, churn, churn_range, len(steps)) for step in steps]
    for step, (t, at) in zip(steps, hats, strict=True):
        eps = denoise(x, out, at, prediction).eps
        if not second_order or step.to.sigma == 0:
            calls.append(Call(t, step.s, x, (transfer(x, eps, at, step.to), first)))
        else:
            read = transfer(x, first, at, step.to)
            mean = (first + denoise(read, out, step.to, prediction).eps) / 2
            calls.append(Call(t, t, x, (x, eps)))
            calls.append(Call(step.s, step.s, read, (transfer(x, mean, at, step.to), first)))
        if not step.last:
            hat = hats[step.position + 1]
            calls[-1] = _churned(calls[-1], step.to, hat, noise_scale, z)
    return assemble(calls if second_order else [_without_memory(call) for call in calls])


def edm_heun(schedule, times, *, prediction: PredictionFn = eps_prediction) -> Steps:
    """Return Heun's method in sigma_edm on any process, discrete ones too; see `edm`.

    Example:
      >>> import qdiffjax as qd
      >>> times = qd.diffusion.karras_times(qd.VP(), 1.0, 1e-3, 10)
      >>> len(qd.edm_heun(qd.VP(), times).t)
      19
    """
    return edm(schedule, times, prediction=prediction)


def _raised(schedule, step: Interval, churn: float, churn_range, num_steps: int):
    """Return the time and level to which churn raises the start of a step."""
    rho = np.exp(-half_log_snr(step.at))
    if churn == 0 or not churn_range[0] <= rho <= churn_range[1]:
        return step.t, step.at
    gamma = min(churn / num_steps, np.sqrt(2) - 1)
    t = float(schedule.time(-2 * np.log((1 + gamma) * rho)))
    return t, schedule.exact(np.array(t))


def _churned(call: Call, level: NoiseLevel, hat, noise_scale: float, z: Vector) -> Call:
    """Return the call with its slot 0 raised from level to the time and level hat."""
    t, to = hat
    scale = to.alpha / level.alpha
    added = np.sqrt(max(to.sigma**2 - (scale * level.sigma) ** 2, 0.0))
    moved = scale * call.slots[0] + noise_scale * added * z
    return call._replace(s=t, slots=(moved, *call.slots[1:]))


def _without_memory(call: Call) -> Call:
    """Return the call with its unused second slot dropped."""
    keep = [0, 2, 3]
    return Call(call.t, call.s, call.read[keep], (call.slots[0][keep],))

"""Singlestep samplers: DPM-Solver-1/2/3, DPM-Solver++(2S), Euler, Heun and any Runge-Kutta method.

Each interval stands alone; slot 0 stays x_t until its last call, the other slots hold its stages.
Where sigma_s = 0 the interval is one first-order call: DDIM, and Euler in Heun's method.
Intermediate times need schedule.time: take a `Process`; for a discrete schedule
`Interpolated(schedule)`, whose network sees real times.
"""

from collections.abc import Callable

import numpy as np

from qdiffjax._checks import OPEN_SHARE, checked, require
from qdiffjax.diffusion.loop import Steps
from qdiffjax.diffusion.parameterizations import Denoised, PredictionFn, denoise, eps_prediction
from qdiffjax.diffusion.processes import Process, half_log_snr
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


def _each(
    schedule, times, num_slots: int, calls_fn: Callable[[Interval], list[Call]], prediction,
    denoise_last: bool = True,
) -> Steps:  # fmt: skip
    """Return the table whose intervals make the calls calls_fn(step); DDIM where sigma_s = 0, if
    asked.
    """
    (x, *others), out, _ = basis(num_slots)
    calls: list[Call] = []
    for step in intervals(schedule, times):
        if (step.to.sigma == 0 and denoise_last) or num_slots == 1:
            x_0, eps = denoise(x, out, step.at, prediction)
            moved = step.to.alpha * x_0 + step.to.sigma * eps
            calls.append(Call(step.t, step.s, x, (moved, *others)))
        else:
            calls += calls_fn(step)
    return assemble(calls)


def dpm_solver_1(schedule, times, *, prediction: PredictionFn = eps_prediction) -> Steps:
    """Return DPM-Solver-1, which is DDIM: alpha_s x_0 + sigma_s eps; Lu et al. 2022a, eq. 3.7."""
    return _each(schedule, times, 1, lambda step: [], prediction)


def _between(schedule: Process, step: Interval, ratio: float) -> tuple[float, NoiseLevel]:
    """Return the time and level at lambda_t + ratio h."""
    start, end = half_log_snr(step.at), half_log_snr(step.to)
    t = float(schedule.time(2 * (start + ratio * (end - start))))
    return t, schedule.exact(np.array(t))


@checked(ratio=OPEN_SHARE)
def dpm_solver_2(
    schedule: Process, times, *, ratio: float = 0.5, prediction: PredictionFn = eps_prediction
) -> Steps:
    """Return DPM-Solver-2; Lu et al. 2022a, algorithm 4 (algorithm 1 at ratio 1/2).

        u   = transfer(x_t, eps_t, lambda_t + r h)
        x_s = transfer(x_t, eps_t, s) - sigma_s (e^h - 1) (eps_u - eps_t) / (2 r)

    Two calls an interval, second order.
    """
    (x, first), out, _ = basis(2)

    def calls(step: Interval) -> list[Call]:
        t, level = _between(schedule, step, ratio)
        read = transfer(x, first, step.at, level)
        change = denoise(read, out, level, prediction).eps - first
        moved = transfer(x, first, step.at, step.to)
        moved = moved - step.to.sigma * np.expm1(step.width) / (2 * ratio) * change
        eps = denoise(x, out, step.at, prediction).eps
        return [Call(step.t, step.t, x, (x, eps)), Call(t, step.s, read, (moved, first))]

    return _each(schedule, times, 2, calls, prediction)


def dpm_solver_3(
    schedule: Process,
    times,
    *,
    ratios: tuple[float, float] = (1 / 3, 2 / 3),
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return DPM-Solver-3; Lu et al. 2022a, algorithm 5 (algorithm 2 at the default ratios).

        u1  = transfer(x_t, eps_t, lambda_t + r1 h),   D1 = eps_u1 - eps_t
        u2  = transfer(x_t, eps_t, lambda_t + r2 h) - sigma_u2 (r2 / r1) phi(r2 h) D1
        x_s = transfer(x_t, eps_t, s) - sigma_s phi(h) (eps_u2 - eps_t) / r2

    with phi(h) = (e^h - 1) / h - 1. Three calls an interval. Third order needs r2 = 2/3.
    """
    (x, first, change), out, _ = basis(3)
    r1, r2 = ratios

    def phi(h):
        return np.expm1(h) / h - 1

    def calls(step: Interval) -> list[Call]:
        (t1, level1), (t2, level2) = (_between(schedule, step, r) for r in ratios)
        h, eps = step.width, denoise(x, out, step.at, prediction).eps
        read1 = transfer(x, first, step.at, level1)
        change1 = denoise(read1, out, level1, prediction).eps - first
        read2 = transfer(x, first, step.at, level2) - level2.sigma * r2 / r1 * phi(r2 * h) * change
        change2 = denoise(read2, out, level2, prediction).eps - first
        moved = transfer(x, first, step.at, step.to) - step.to.sigma * phi(h) / r2 * change2
        return [
            Call(step.t, step.t, x, (x, eps, change)),
            Call(t1, step.t, read1, (x, first, change1)),
            Call(t2, step.s, read2, (moved, first, change)),
        ]

    return _each(schedule, times, 3, calls, prediction)


@checked(ratio=OPEN_SHARE)
def dpmpp_2s(
    schedule: Process, times, *, ratio: float = 0.5, prediction: PredictionFn = eps_prediction
) -> Steps:
    """Return DPM-Solver++(2S); Lu et al. 2022b, algorithm 1.

        u   = (sigma_u / sigma_t) x_t + alpha_u (1 - e^-rh) D_t,   at lambda_t + r h
        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) (D_t + (D_u - D_t) / (2 r))

    D is the x_0-prediction. Two calls an interval, second order.
    """
    (x, first), out, _ = basis(2)

    def calls(step: Interval) -> list[Call]:
        t, level = _between(schedule, step, ratio)
        read = _denoised_step(x, first, step.at, level, ratio * step.width)
        slope = (denoise(read, out, level, prediction).x_0 - first) / (2 * ratio)
        moved = _denoised_step(x, first + slope, step.at, step.to, step.width)
        x_0 = denoise(x, out, step.at, prediction).x_0
        return [Call(step.t, step.t, x, (x, x_0)), Call(t, step.s, read, (moved, first))]

    return _each(schedule, times, 2, calls, prediction)


def _denoised_step(x: Vector, x_0: Vector, at: NoiseLevel, to: NoiseLevel, h: float) -> Vector:
    return to.sigma / at.sigma * x - to.alpha * np.expm1(-h) * x_0


def _speed(denoised: Denoised, process: Process, t: float) -> Vector:
    """Return dx/dt of the PF-ODE: alpha' x_0 + sigma' eps, finite where f and g are not."""
    require(hasattr(process, "velocity"), "process", got=f"a {type(process).__name__}",
            expected="a process in continuous time, whose alpha and sigma have derivatives",
            remedy="take edm_heun or ddim, or diffusion.Interpolated(schedule)",
            error=TypeError)  # fmt: skip
    alpha, sigma = process.velocity(t)
    return alpha * denoised.x_0 + sigma * denoised.eps


def euler(process: Process, times, *, prediction: PredictionFn = eps_prediction) -> Steps:
    """Return Euler's method on the PF-ODE in the process's own time; Song et al. 2021, eq. 13.

        x_s = x_t + (s - t) (alpha' x_0 + sigma' eps) = x_t + (s - t) (f x_t + g^2 eps / (2 sigma))

    For EDM and flow processes, whose alpha and sigma are linear in t, it is DDIM.

    Example:
      >>> import qdiffjax as qd
      >>> times = qd.diffusion.karras_times(qd.EDM(), 80.0, 0.002, 18)
      >>> len(qd.euler(qd.EDM(), times).t)
      18
    """
    (x,), out, _ = basis(1)
    calls = []
    for step in intervals(process, times):
        speed = _speed(denoise(x, out, step.at, prediction), process, step.t)
        calls.append(Call(step.t, step.s, x, (x + (step.s - step.t) * speed,)))
    return assemble(calls)


def heun(
    process: Process,
    times,
    *,
    denoise_last: bool = False,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return Heun's method in the process's own time; Karras et al. 2022, algorithm 1.

        d_1 = dx/dt at (x_t, t),   d_2 = dx/dt at (x_t + (s - t) d_1, s)
        x_s = x_t + (s - t) (d_1 + d_2) / 2;   x_s = x_t + (s - t) d_1 where sigma_s = 0

    with dx/dt = alpha' x_0 + sigma' eps. Two calls an interval, one where sigma_s = 0.

    That last step is Euler's in t. In sigma_edm = sigma / alpha, where d(x / alpha) = eps
    d(sigma_edm), Euler's step to 0 is DDIM, x_s = alpha_s x_0. The two agree where alpha and sigma
    are linear in t, as those of `EDM` (the EDM sampler) and `Flow`; elsewhere Euler leaves
    (sigma_t + (s - t) sigma') eps, of second order in t - s. Diffusers' Heun is that in sigma_edm,
    `edm_heun`.

    Args:
      process: see `Process`.
      times: [N+1], noisiest first.
      denoise_last: whether the step to sigma_s = 0 is DDIM.
      prediction: what the network predicts.

    Example:
      >>> import qdiffjax as qd
      >>> times = qd.diffusion.karras_times(qd.EDM(), 80.0, 0.002, 18)
      >>> len(qd.heun(qd.EDM(), times).t)
      35
    """
    (x, first), out, _ = basis(2)

    def calls(step: Interval) -> list[Call]:
        width = step.s - step.t
        speed = _speed(denoise(x, out, step.at, prediction), process, step.t)
        if step.to.sigma == 0:
            return [Call(step.t, step.s, x, (x + width * speed, first))]
        read = x + width * first
        second = _speed(denoise(read, out, step.to, prediction), process, step.s)
        moved = x + width * (first + second) / 2
        return [Call(step.t, step.t, x, (x, speed)), Call(step.s, step.s, read, (moved, first))]

    return _each(process, times, 2, calls, prediction, denoise_last=denoise_last)

"""Multistep samplers on past eps: DEIS in any coordinate, PLMS and PNDM."""

from collections.abc import Callable

import numpy as np

from qdiffjax._checks import check_count, checked, require
from qdiffjax.diffusion.loop import Steps
from qdiffjax.diffusion.parameterizations import PredictionFn, denoise, eps_prediction
from qdiffjax.diffusion.processes import half_log_snr
from qdiffjax.diffusion.samplers.multistep import step_order
from qdiffjax.diffusion.samplers.table import (
    Call,
    Interval,
    Vector,
    assemble,
    basis,
    intervals,
    transfer,
)

# (schedule, log rho [nodes]) -> the coordinate in which eps is a polynomial [nodes].
CoordinateFn = Callable[..., np.ndarray]

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def in_log_rho(schedule, log_rho):
    """Return log rho = log(sigma / alpha): diffusers' DEIS, and DPM-Solver's coordinate."""
    return log_rho


def in_rho(schedule, log_rho):
    """Return rho = sigma / alpha: rhoAB of Zhang & Chen 2023."""
    return np.exp(log_rho)


def in_time(schedule, log_rho):
    """Return the time of a `Process`: tAB of Zhang & Chen 2023."""
    return schedule.time(-2 * log_rho)


@checked(order=check_count)
def deis(
    schedule,
    times,
    *,
    order: int = 3,
    coordinate_fn: CoordinateFn = in_log_rho,
    lower_order_final: bool = False,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return DEIS, Adams-Bashforth with eps a polynomial; Zhang & Chen 2023, eqs. 14-15.

        x_s / alpha_s = x_t / alpha_t + sum_j w_j eps_j,   w_j = int_rho_t^rho_s L_j(c(rho)) drho

    with rho = sigma / alpha and L_j the Lagrange polynomials through the last `order` values of
    the coordinate c. Quadrature (32 Gauss points in log rho) is exact to rounding. Orders 1, 2,
    ... come first, as in `dpmpp_multistep`, and a step to sigma = 0 is DDIM.

    Args:
      schedule: with exact(times) -> NoiseLevel, and time(log_snr) for `in_time`.
      times: [N+1], noisiest first; alpha > 0.
      order: number of predictions used, 1 or more.
      coordinate_fn: `in_log_rho`, `in_time` or `in_rho`.
      lower_order_final: also end with orders ..., 2, 1 (diffusers: below 15 steps).
      prediction: what the network predicts.

    Example:
      >>> import qdiffjax as qd
      >>> steps = qd.deis(qd.linear(), 10, order=2)
      >>> len(steps.t)  # network calls
      10
    """
    (x, *past), out, _ = basis(order)
    steps, calls = intervals(schedule, times), []
    for step in steps:
        now = denoise(x, out, step.at, prediction).eps
        known = [now, *past]
        num = step_order(step, order, len(steps), lower_order_final)
        moved = transfer(x, now, step.at, step.to)
        if num > 1:
            nodes = [steps[step.position - k].at for k in range(num)]
            weights = deis_weights(schedule, step, nodes, coordinate_fn)
            increment = sum(w * eps for w, eps in zip(weights, known, strict=False))
            moved = step.to.alpha * (x / step.at.alpha + increment)
        calls.append(Call(step.t, step.s, x, (moved, *known[: order - 1])))
    return assemble(calls)


def deis_weights(schedule, step: Interval, nodes, coordinate_fn: CoordinateFn) -> np.ndarray:
    """Return w_j = int L_j(c(rho)) drho from rho_t to rho_s [num nodes]."""
    log_rho = np.array([-half_log_snr(level) for level in nodes])
    ends = -half_log_snr(step.at), -half_log_snr(step.to)
    u, weight = np.polynomial.legendre.leggauss(32)
    points = (ends[0] + ends[1]) / 2 + (ends[1] - ends[0]) / 2 * u
    measure = weight * (ends[1] - ends[0]) / 2 * np.exp(points)  # drho = rho dlog(rho)
    lagrange = _lagrange(coordinate_fn(schedule, log_rho), coordinate_fn(schedule, points))
    return lagrange @ measure


def _lagrange(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return L_j(points) [num nodes, num points]."""
    rows = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)[:, None]
        rows.append(np.prod((points - others) / (node - others), axis=0))
    return np.stack(rows)


def plms(schedule, times, *, prediction: PredictionFn = eps_prediction) -> Steps:
    """Return PLMS: Adams-Bashforth up to order 4 in the step count; Liu et al. 2022, eq. 12.

        x_s = transfer(x_t, sum_k a_k eps_k),   a = (55, -59, 37, -9) / 24

    with Stable Diffusion's start (diffusers' PNDM with skip_prk_steps): the first interval is taken
    twice, with eps at its start and then with the mean of eps at both ends. N + 1 calls. The grid
    should be uniform in t. Because the transfer is not in t, the method is of second order.

    Example:
      >>> import qdiffjax as qd
      >>> len(qd.plms(qd.linear(), 10).t)
      11
    """
    (x, *past), out, _ = basis(4)
    first, *rest = steps = intervals(schedule, times)
    eps = denoise(x, out, first.at, prediction).eps
    ahead = transfer(x, eps, first.at, first.to)
    calls = [Call(first.t, first.t, x, (x, eps, ahead, *past[2:]))]
    if first.to.sigma == 0:
        return assemble([calls[0]._replace(s=first.s, slots=(ahead, *calls[0].slots[1:]))])
    # Slots: x, the first eps, the state at the end of the interval.
    eps = denoise(past[1], out, first.to, prediction).eps
    moved = transfer(x, (eps + past[0]) / 2, first.at, first.to)
    calls.append(Call(first.s, first.s, past[1], (moved, past[0], *past[1:])))
    return assemble(calls + _adams(rest, 2, prediction, len(steps)))


def _adams(steps: list[Interval], known: int, prediction: PredictionFn, num: int) -> list[Call]:
    """Return Adams-Bashforth steps, the first of which has `known` predictions; K = 4."""
    (x, *past), out, _ = basis(4)
    calls = []
    for step in steps:
        values = [denoise(x, out, step.at, prediction).eps, *past]
        weights = ADAMS[min(known, 4) - 1]
        mixed = sum(a * eps for a, eps in zip(weights, values, strict=False))
        calls.append(Call(step.t, step.s, x, (transfer(x, mixed, step.at, step.to), *values[:3])))
        known += 1
    return calls


def pndm(schedule, times, *, prediction: PredictionFn = eps_prediction) -> Steps:
    """Return PNDM: three pseudo-Runge-Kutta intervals, then Adams-Bashforth of order 4.

    Liu et al. 2022, eqs. 11-13 (F-PNDM) and diffusers' PNDM. The Runge-Kutta midpoint is
    (t + s) / 2, which a discrete schedule must have. N + 9 calls; second order, as `plms`.

    Raises:
      ValueError: if the grid has fewer than 4 intervals.
    """
    steps = intervals(schedule, times)
    require(
        len(steps) >= 4, got=f"{len(steps)} steps", expected="at least 4", remedy="use plms or deis"
    )
    calls = []
    for step in steps[:3]:
        calls += _pseudo_runge_kutta(schedule, step, prediction)
    return assemble([_widen(call) for call in calls] + [_widen(c) for c in _adams(
        steps[3:], 4, prediction, len(steps))])  # fmt: skip


def _pseudo_runge_kutta(schedule, step: Interval, prediction: PredictionFn) -> list[Call]:
    """Return the four calls of one interval; slots x, three past eps, the stage, the sum; K = 6."""
    (x, *past), out, _ = basis(6)
    *old, stage, total = past
    middle = (step.t + step.s) / 2
    half = schedule.exact(np.array(middle))

    def call(t, level, read, weight, to, new_sum, push=False):
        eps = denoise(read, out, level, prediction).eps
        stage = transfer(x, eps, step.at, to)
        kept = [eps, *old[:2]] if push else old
        return Call(t, step.t, read, (x, *kept, stage, new_sum + weight * eps))

    zero = np.zeros_like(x)
    calls = [
        call(step.t, step.at, x, 1 / 6, half, zero, push=True),
        call(middle, half, stage, 1 / 3, half, total),
        call(middle, half, stage, 1 / 3, step.to, total),
    ]
    eps = total + denoise(stage, out, step.to, prediction).eps / 6
    moved = transfer(x, eps, step.at, step.to)
    return [*calls, Call(step.s, step.s, stage, (moved, *old, stage, total))]


def _widen(call: Call) -> Call:
    """Return a call of 4 slots as one of 6, whose last two are not used."""
    if len(call.slots) == 6:
        return call

    def widen(v: Vector) -> Vector:
        return np.concatenate([v[:4], np.zeros(2), v[4:]])

    zero = np.zeros(8)
    return Call(call.t, call.s, widen(call.read), (*map(widen, call.slots), zero, zero))

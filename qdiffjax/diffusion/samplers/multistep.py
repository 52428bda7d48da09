"""DPM-Solver++ 1/2M/3M and their SDE forms: multistep in log-SNR.

Written with lambda = log(alpha / sigma), h the step in it, and D the x_0-prediction; the steps are
r = e^-h = alpha_t sigma_s / (alpha_s sigma_t). Slots hold past predictions. A step to sigma = 0
has h = inf and is of first order, for all of them (diffusers' `final_sigmas_type="zero"`).

A method of order p warms up with orders 1, 2, ... and its first step alone makes an error of
O(h^2): of third order as a whole only on a grid whose first step is O(h^(p/2)).
"""

from collections.abc import Callable

import numpy as np

from qdiffjax._checks import check_count, check_number
from qdiffjax.diffusion.loop import Steps
from qdiffjax.diffusion.parameterizations import PredictionFn, denoise, eps_prediction
from qdiffjax.diffusion.samplers.table import Call, Interval, Vector, assemble, basis, intervals

WeightFn = Callable[[float], float]


def midpoint_weight(h: float) -> float:
    """Return (1 - e^-h) / 2, the weight of h dD/dlambda; Lu et al. 2022b, algorithm 2."""
    return -np.expm1(-h) / 2


def heun_weight(h: float) -> float:
    """Return 1 - (1 - e^-h) / h, the weight of h dD/dlambda if D is linear in lambda.

    The `solver_type="heun"` of the authors' code and diffusers.
    """
    return 1 + np.expm1(-h) / h


def quadratic_weight(h: float) -> float:
    """Return 1 - 2 / h + 2 (1 - e^-h) / h^2, the weight of h^2 D'' / 2 if D is quadratic."""
    return 1 - 2 * heun_weight(h) / h


def published_quadratic_weight(h: float) -> float:
    """Return half of `quadratic_weight`, as printed and coded by the authors and by diffusers.

    With it the third-order multistep method is of second order: the exact weight is
    int_0^h e^(tau - h) (tau / h)^2 dtau, and (phi_2 / h - 1 / 2) of Lu et al. 2022a, appendix B,
    belongs to the second derivative, not to the second divided difference that it multiplies.
    """
    return quadratic_weight(h) / 2


def step_order(step: Interval, order: int, num_steps: int, lower_order_final: bool) -> int:
    """Return a step's order: limited by the past, by the end, and 1 to sigma = 0."""
    if step.to.sigma == 0:
        return 1
    left = num_steps - step.position if lower_order_final else order
    return min(order, step.position + 1, left)


def dpmpp_1(
    schedule, times, *, eta: float = 0.0, prediction: PredictionFn = eps_prediction
) -> Steps:
    """Return DPM-Solver++(1) at eta = 0, SDE-DPM-Solver++(1) at eta = 1; see `dpmpp_multistep`.

    The same as DDIM and as ancestral DDPM, but from any prediction, so also from alpha = 0.
    """
    return dpmpp_multistep(schedule, times, order=1, eta=eta, prediction=prediction)


def dpmpp_2m(
    schedule,
    times,
    *,
    eta: float = 0.0,
    slope_weight_fn: WeightFn = midpoint_weight,
    lower_order_final: bool = False,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return DPM-Solver++(2M) at eta = 0, SDE-DPM-Solver++(2M) at 1; see `dpmpp_multistep`.

    Example:
      >>> import qdiffjax as qd
      >>> times = qd.diffusion.log_snr_times(qd.VP(), 1.0, 1e-3, 10)
      >>> len(qd.dpmpp_2m(qd.VP(), times).t), len(qd.dpmpp_2m(qd.linear(), 10).t)
      (10, 10)
    """
    return dpmpp_multistep(
        schedule, times, order=2, eta=eta, slope_weight_fn=slope_weight_fn,
        lower_order_final=lower_order_final, prediction=prediction,
    )  # fmt: skip


def dpmpp_3m(
    schedule,
    times,
    *,
    eta: float = 0.0,
    slope_weight_fn: WeightFn = heun_weight,
    quadratic_weight_fn: WeightFn = quadratic_weight,
    lower_order_final: bool = False,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return DPM-Solver++(3M), of third order; see `dpmpp_multistep`.

    With quadratic_weight_fn=published_quadratic_weight it is the authors' and diffusers' method,
    whose second step has, in diffusers, the midpoint weight by default: `slope_weight_fn`.

    Example:
      >>> import qdiffjax as qd
      >>> times = qd.diffusion.log_snr_times(qd.VP(), 1.0, 1e-3, 10)
      >>> len(qd.dpmpp_3m(qd.VP(), times).t), len(qd.dpmpp_3m(qd.linear(), 10).t)
      (10, 10)
    """
    return dpmpp_multistep(
        schedule, times, order=3, eta=eta, slope_weight_fn=slope_weight_fn,
        quadratic_weight_fn=quadratic_weight_fn, lower_order_final=lower_order_final,
        prediction=prediction,
    )  # fmt: skip


def dpmpp_multistep(
    schedule,
    times,
    *,
    order: int,
    eta: float = 0.0,
    slope_weight_fn: WeightFn = midpoint_weight,
    quadratic_weight_fn: WeightFn = quadratic_weight,
    lower_order_final: bool = False,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return DPM-Solver++ multistep; Lu et al. 2022b, algorithm 2, and eqs. 18-19 for the SDE.

        x_s = (sigma_s / sigma_t) e^-(g-h) x_t + alpha_s ((1 - e^-g) D + w1(g) D1 + w2(g) D2)
              + sigma_s sqrt(1 - e^-2(g-h)) z,   g = (1 + eta) h

    D1 and D2 are h dD/dlambda and h^2 / 2 d^2D/dlambda^2 of the polynomial through the last
    `order` predictions.

    Args:
      schedule: with exact(times) -> NoiseLevel.
      times: [N+1], noisiest first.
      order: 1, 2 or 3.
      eta: share of the reverse SDE's noise variance: 0 the ODE, 1 the SDE (k-diffusion's eta).
      slope_weight_fn: w1 at order 2; order 3 always has `heun_weight`.
      quadratic_weight_fn: w2.
      lower_order_final: also end with orders ..., 2, 1 (diffusers: below 15 steps).
      prediction: what the network predicts.

    Raises:
      ValueError: if order is not 1, 2 or 3 or eta not in [0, 1].
    """
    check_count("order", order, most=3, remedy="see unipc and deis for more")
    check_number("eta", eta, least=0, most=1, remedy="0 is the ODE, 1 the SDE")
    (x, *past), out, z = basis(order)
    steps, calls = intervals(schedule, times), []
    for step in steps:
        now, h, g = denoise(x, out, step.at, prediction).x_0, step.width, (1 + eta) * step.width
        num = step_order(step, order, len(steps), lower_order_final)
        change = -np.expm1(-g) * now
        if num > 1:
            slope, curve = _derivatives([now, *past], width_ratios(steps, step.position, num), num)
            slope_weight = heun_weight if num == 3 else slope_weight_fn
            change = change + slope_weight(g) * slope + quadratic_weight_fn(g) * curve
        # Not eta * h: h is inf from alpha = 0, and to sigma = 0.
        fresh = eta * h if eta > 0 else 0.0
        kept = step.to.sigma / step.at.sigma * np.exp(-fresh)
        noise = step.to.sigma * np.sqrt(-np.expm1(-2 * fresh))
        moved = kept * x + step.to.alpha * change + noise * z
        calls.append(Call(step.t, step.s, x, (moved, *[now, *past][: order - 1])))
    return assemble(calls)


def width_ratios(steps: list[Interval], index: int, num: int) -> list[float]:
    """Return h, and the ratios to it of the num - 1 steps before."""
    h = steps[index].width
    return [steps[index - k].width / h for k in range(1, num)]


def _derivatives(values: list[Vector], ratios: list[float], num: int) -> tuple[Vector, Vector]:
    """Return h D' and h^2 D'' / 2 at the newest of `num` values, r_k = h_k / h apart."""
    first = (values[0] - values[1]) / ratios[0]
    if num == 2:
        return first, np.zeros_like(first)
    second = (first - (values[1] - values[2]) / ratios[1]) / (ratios[0] + ratios[1])
    return first + ratios[0] * second, second

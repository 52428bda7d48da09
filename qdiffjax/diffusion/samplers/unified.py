"""UniPC: predictor and corrector of any order that share their network calls."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qdiffjax._checks import check_count, checked
from qdiffjax.diffusion.loop import Steps
from qdiffjax.diffusion.parameterizations import PredictionFn, denoise, eps_prediction
from qdiffjax.diffusion.samplers.multistep import step_order, width_ratios
from qdiffjax.diffusion.samplers.table import Call, Interval, Vector, assemble, basis, intervals


class Scale(NamedTuple):
    """B(h) of UniPC, a function of the signed step hh = -h (Zhao et al. 2023, section 3.2)."""

    name: str
    fn: Callable[[float], float]


bh1 = Scale("bh1", lambda hh: hh)
bh2 = Scale("bh2", np.expm1)


@checked(order=check_count)
def unipc(
    schedule,
    times,
    *,
    order: int = 2,
    scale: Scale = bh2,
    lower_order_final: bool = True,
    prediction: PredictionFn = eps_prediction,
) -> Steps:
    """Return UniPC-p on x_0-predictions; Zhao et al. 2023, algorithms 5-8.

    Predictor UniP-p and corrector UniC-p share one call: the prediction at the predicted x_s
    corrects x_s, and the next predictor starts from the corrected one. Slots: predicted x,
    corrected x before it, past predictions. The last x is predicted, not corrected, as in the
    authors' code. UniPC-1 without its corrector is DDIM; with it the order is p + 1.

    Args:
      schedule: with exact(times) -> NoiseLevel.
      times: [N+1], noisiest first.
      order: p of predictor and corrector, 1 or more.
      scale: `bh1` or `bh2`; they differ only where the authors replace the solution of their
        linear system by 1/2: the predictor at p = 2 and the corrector at p = 1.
      lower_order_final: end with orders ..., 2, 1.
      prediction: what the network predicts.

    Example:
      >>> import qdiffjax as qd
      >>> len(qd.unipc(qd.linear(), 10).t)
      10
    """
    (x, base, *past), out, _ = basis(2 + order)
    steps, calls, num = intervals(schedule, times), [], 0
    for step in steps:
        now, start = denoise(x, out, step.at, prediction).x_0, x
        if step.position > 0:
            start = _unipc_step(steps[step.position - 1], steps, base, past, num, scale, now)
        num = step_order(step, order, len(steps), lower_order_final)
        moved = _unipc_step(step, steps, start, [now, *past], num, scale)
        calls.append(Call(step.t, step.s, x, (moved, start, *[now, *past][:order])))
    return assemble(calls)


def _unipc_step(
    step: Interval,
    steps: list[Interval],
    x: Vector,
    values: list[Vector],
    num: int,
    scale: Scale,
    target: Vector | None = None,
) -> Vector:
    """Return x_s from x_t and predictions, newest first; with the one at s given, corrected."""
    to, hh = step.to, -step.width
    kept = to.sigma / step.at.sigma
    moved = kept * x - to.alpha * np.expm1(hh) * values[0]
    nodes = [-sum(width_ratios(steps, step.position, num)[:k]) for k in range(1, num)]
    slopes = [(v - values[0]) / r for v, r in zip(values[1:], nodes, strict=False)]
    if target is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, target - values[0]]
    if not nodes:
        return moved
    weights = _unipc_weights(np.array(nodes), hh, scale)
    return moved - to.alpha * scale.fn(hh) * sum(
        w * d for w, d in zip(weights, slopes, strict=True)
    )


def _unipc_weights(nodes: np.ndarray, hh: float, scale: Scale) -> np.ndarray:
    """Return rho of R rho = b: exact for polynomials in lambda; 1/2 for a single node."""
    if nodes.size == 1:
        return np.array([0.5])
    powers = np.arange(nodes.size)
    return np.linalg.solve(
        nodes[None, :] ** powers[:, None], _moments(hh, nodes.size) / scale.fn(hh)
    )


def _moments(hh: float, num: int) -> np.ndarray:
    """Return k! h phi_{k+1}(hh) of UniPC, k = 1 ... num: int_0^1 hh e^(hh (1 - u)) u^k du."""
    u, weight = np.polynomial.legendre.leggauss(32)
    u, weight = (1 + u) / 2, weight / 2
    return np.array([np.sum(weight * hh * np.exp(hh * (1 - u)) * u**k) for k in range(1, num + 1)])

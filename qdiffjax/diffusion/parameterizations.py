"""What a network predicts, and the wrappers that let every sampler read eps.

With x = alpha x_0 + sigma eps, each prediction is a combination  out = p x_0 + q eps  whose
coefficients depend on the level alone; a `PredictionFn` is the function level -> (p, q). Two
equations, two unknowns: every conversion is the solution of a 2 x 2 system, `denoise`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import FUNCTION, SHARE, check_callable, check_number, checked, require
from qdiffjax._typing import Array, EpsFn, PyTree, float_dtype
from qdiffjax.diffusion.loop import Steps
from qdiffjax.diffusion.schedules import NoiseLevel

PredictionFn = Callable[[NoiseLevel], tuple[Any, Any]]
LevelFn = Callable[[Any], NoiseLevel]


def eps_prediction(level: NoiseLevel):
    """Return the coefficients of out = eps; Ho et al. 2020."""
    return 0.0, 1.0


def x0_prediction(level: NoiseLevel):
    """Return the coefficients of out = x_0."""
    return 1.0, 0.0


def v_prediction(level: NoiseLevel):
    """Return the coefficients of out = alpha eps - sigma x_0; Salimans & Ho 2022, appendix D."""
    return -level.sigma, level.alpha


def flow_prediction(level: NoiseLevel):
    """Return the coefficients of out = eps - x_0, rectified flow's velocity; Liu et al. 2023."""
    return -1.0, 1.0


def score_prediction(level: NoiseLevel):
    """Return the coefficients of out = -eps / sigma, the score; Song et al. 2021."""
    return 0.0, -1.0 / level.sigma


class Denoised(NamedTuple):
    """The two parts of x = alpha x_0 + sigma eps, as a network sees them [*shape]."""

    x_0: Any
    eps: Any


def denoise(x, out, level: NoiseLevel, prediction: PredictionFn = eps_prediction) -> Denoised:
    """Return the x_0 and eps that an output means.

        x_0 = (q x - sigma out) / d,   eps = (alpha out - p x) / d,   d = alpha q - sigma p

    v- and flow-prediction are well posed at every level; eps-prediction is not at alpha = 0, nor
    x_0-prediction at sigma = 0.

    Args:
      x, out: network input and output [*shape], NumPy or JAX.
      level: leaves that broadcast with x.
      prediction: what the network predicts.
    """
    check_callable("prediction", prediction, "level -> (p, q)")
    p, q = prediction(level)
    det = level.alpha * q - level.sigma * p
    # A table in which a division by zero counts is refused as a whole, with its remedy.
    with np.errstate(divide="ignore", invalid="ignore"):
        return Denoised((q * x - level.sigma * out) / det, (level.alpha * out - p * x) / det)


def convert(x, out, level: NoiseLevel, source: PredictionFn, target: PredictionFn):
    """Return what a network of prediction `target` would have said [*shape]; see `denoise`."""
    x_0, eps = denoise(x, out, level, source)
    p, q = target(level)
    return p * x_0 + q * eps


def level_like(level_fn: LevelFn, t, x) -> NoiseLevel:
    """Return the level at t [] or [batch], in the dtype of x [batch, *shape] and to broadcast."""
    level = level_fn(jnp.asarray(t).astype(x.dtype))

    def expand(leaf):
        return leaf.reshape(leaf.shape + (1,) * (x.ndim - leaf.ndim)).astype(x.dtype)

    return NoiseLevel(*map(expand, level))


def as_eps(net_fn: EpsFn, level_fn: LevelFn, prediction: PredictionFn) -> EpsFn:
    """Return the network as eps_fn(params, x, t, *rest) -> eps, whatever it predicts.

    Computes in float32 (float64 if x is). Not at alpha = 0, where eps says nothing about x_0:
    there, give the network itself and `prediction=` to a sampler.

    Args:
      net_fn: (params, x [batch, *shape], t [] or [batch], *rest) -> out [batch, *shape].
      level_fn: the process, t -> level.
      prediction: what net_fn predicts.
    """

    def eps_fn(params, x, t, *rest):
        x = jnp.asarray(x).astype(float_dtype(x))
        out = net_fn(params, x, t, *rest).astype(x.dtype)
        return denoise(x, out, level_like(level_fn, t, x), prediction).eps

    return eps_fn


def thresholded(eps_fn: EpsFn, level_fn: LevelFn, threshold_fn: Callable[[Array], Array]) -> EpsFn:
    """Return eps_fn with its x_0 passed through threshold_fn [batch, *shape] -> same.

        x_0 = threshold_fn((x - sigma eps) / alpha),   eps = (x - alpha x_0) / sigma

    It acts on eps, so every sampler sees the same clipped network: DDPM of Ho et al. 2020 and of
    diffusers, and diffusers' DDIM with `use_clipped_model_output=True`. Without that flag, its
    default, DDIM keeps eps: see `thresholded_x0`. At sigma = 0 the output is unchanged, alpha > 0.
    """

    def clipped_fn(params, x, t, *rest):
        x = jnp.asarray(x).astype(float_dtype(x))
        eps, level = eps_fn(params, x, t, *rest).astype(x.dtype), level_like(level_fn, t, x)
        x_0 = (x - level.sigma * eps) / level.alpha
        # As a correction: not one bit of eps moves where nothing is clipped.
        safe = jnp.where(level.sigma > 0, level.sigma, jnp.ones_like(level.sigma))
        change = level.alpha / safe * (x_0 - threshold_fn(x_0))
        return eps + jnp.where(level.sigma > 0, change, jnp.zeros_like(change))

    return clipped_fn


def clipped(eps_fn: EpsFn, level_fn: LevelFn, low: float = -1.0, high: float = 1.0) -> EpsFn:
    """Return eps_fn with x_0 clipped to [low, high]; Ho et al. 2020, code."""
    return thresholded(eps_fn, level_fn, _clip_between(low, high))


def _clip_between(low: float, high: float) -> Callable[[Array], Array]:
    for name, end in (("low", low), ("high", high)):
        check_number(f"low, high: {name}", end)
    require(low < high, "low, high", got=(low, high), expected="low < high",
            remedy="swap them")  # fmt: skip
    return lambda x_0: jnp.clip(x_0, low, high)


@checked(threshold_fn=FUNCTION)
def thresholded_x0(
    eps_fn: EpsFn, level_fn: LevelFn, steps: Steps, threshold_fn: Callable[[Array], Array]
) -> EpsFn:
    """Return eps_fn that makes first-order steps use threshold_fn(x_0), but eps as it was.

        x_s = alpha_s threshold_fn(x_0) + (b + a sigma_t) eps + noise z,   a = alpha_s / alpha_t

    for a step a x_t + b eps + noise z, with x_0 = (x_t - sigma_t eps) / alpha_t: diffusers' DDIM
    with `clip_sample` or `thresholding`. What the network must say for that depends on the step:
    eps - (alpha_s / b) (x_0 - threshold_fn(x_0)).

    Args:
      eps_fn: (params, x, t, *rest) -> eps.
      level_fn: the process, t -> level.
      steps: the steps to be run, without memory, such as those of `ddim`. NaN at other times.
      threshold_fn: x_0 [batch, *shape] -> same, as in `thresholded`.

    Raises:
      TypeError: steps of a sampler with memory, for which no eps does this.
      ValueError: two steps from one time.
    """
    require(
        getattr(steps, "is_first_order", False), "steps",
        got=type(getattr(steps, "coeffs", steps)).__name__,
        expected="first-order steps of x_t, such as ddim(schedule, n)", error=TypeError,
        remedy="`thresholded` serves every sampler",
    )  # fmt: skip
    times = np.asarray(steps.t)
    require(np.unique(times).size == times.size, "steps", got="two steps from one time",
            expected="one from each", remedy="`thresholded` serves every sampler")  # fmt: skip

    def clipped_fn(params, x, t, *rest):
        x = jnp.asarray(x).astype(float_dtype(x))
        eps, level = eps_fn(params, x, t, *rest).astype(x.dtype), level_like(level_fn, t, x)
        x_0 = (x - level.sigma * eps) / level.alpha
        t, ratios = jnp.asarray(t).astype(x.dtype), steps.coeffs.x / steps.coeffs.eps
        is_now = t[..., None] == steps.times(x).reshape((1,) * t.ndim + (-1,))
        ratio = jnp.asarray(ratios)[jnp.argmax(is_now, -1)].astype(x.dtype)
        ratio = jnp.where(is_now.any(-1), ratio, jnp.nan)
        ratio = level.alpha * ratio.reshape(ratio.shape + (1,) * (x.ndim - ratio.ndim))
        return eps - ratio * (x_0 - threshold_fn(x_0))

    return clipped_fn


def clipped_x0(
    eps_fn: EpsFn, level_fn: LevelFn, steps: Steps, low: float = -1.0, high: float = 1.0
) -> EpsFn:
    """Return eps_fn that makes steps use x_0 clipped to [low, high], but eps as it was."""
    return thresholded_x0(eps_fn, level_fn, steps, _clip_between(low, high))


@checked(quantile=SHARE)
def dynamic_threshold(quantile: float = 0.995, largest: float = jnp.inf):
    """Return x_0 [batch, *shape] -> clip(x_0, -s, s) / s; Saharia et al. 2022, section 2.3.

    s is the quantile of |x_0| in each sample, at least 1 and at most `largest`.
    """

    def threshold_fn(x_0):
        flat = jnp.abs(x_0).reshape(x_0.shape[0], -1)
        s = jnp.clip(jnp.quantile(flat, quantile, axis=1), 1.0, largest)
        s = s.reshape(s.shape + (1,) * (x_0.ndim - 1)).astype(x_0.dtype)
        return jnp.clip(x_0, -s, s) / s

    return threshold_fn


def guided(eps_fn: EpsFn, null: PyTree, scale, *, map_branches: bool = False) -> EpsFn:
    """Return guided_fn(params, x, t, cond): classifier-free guidance, one call of twice the batch.

        eps = (1 - w) eps(x, t, null) + w eps(x, t, cond)

    Ho & Salimans 2022, eq. 6, with w = 1 + their w: w = 1 is the conditional network, w = 0 the
    unconditional one. One call, so both branches share scales taken from the batch; random bits
    are drawn for the doubled batch, so that the branches' are independent. With map_branches the
    call is a vmap over the two branches instead: bits that eps_fn draws inside are then the same
    for both, scales each branch's own. Shared bits halve what guidance adds to the errors of
    stochastic rounding, see `analysis.errors.laws`.
    For a sampler: call_fn = bind(lambda params, x, t: guided_fn(params, x, t, cond), params).

    Args:
      eps_fn: (params, x, t, cond) -> eps; cond leaves [batch, ...]; eps, v, x_0 or flow.
      null: the empty condition, leaves that broadcast to those of cond.
      scale: w [], traced or not, or a function of t (guidance in an interval of noise levels).
      map_branches: whether to share the random bits of an eps_fn that rounds stochastically.
    """
    if not callable(scale):
        check_number("scale", scale)

    def guided_fn(params, x, t, cond):
        empty = jax.tree.map(lambda n, c: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape),
                             null, cond)  # fmt: skip
        t = jnp.asarray(t)
        if map_branches:
            conds = jax.tree.map(lambda *branches: jnp.stack(branches), empty, cond)
            without, with_cond = jax.vmap(lambda c: eps_fn(params, x, t, c))(conds)
        else:
            both = jax.tree.map(_stack, (x, empty), (x, cond))
            out = eps_fn(params, both[0], t if t.ndim == 0 else _stack(t, t), both[1])
            without, with_cond = jnp.split(out, 2)
        w = jnp.asarray(scale(t) if callable(scale) else scale).astype(without.dtype)
        w = w.reshape(w.shape + (1,) * (without.ndim - w.ndim)) if w.ndim else w
        return (1 - w) * without + w * with_cond

    return guided_fn


def _stack(first, second) -> Array:
    return jnp.concatenate([jnp.asarray(first), jnp.asarray(second)])

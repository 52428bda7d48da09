"""Corrections of results: of sites by their mean error, of the network's prediction by call.

    y <- gain y + shift,   gain and shift of each network call, fitted on calibration samples

The fit of a call is made on the run that the calls before it, corrected, have led to, so that what
a correction does to later calls is part of the fit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import precision
from qdiffjax._checks import (
    NOT_NEGATIVE,
    check_callable,
    check_names,
    check_number,
    check_numbers,
    check_type,
    checked,
    optional,
    require,
)
from qdiffjax._typing import Array, float_dtype
from qdiffjax.diffusion import Point, Steps, as_point, sample, step_noise
from qdiffjax.precision import Quantized, SiteQuant
from qdiffjax.precision.around import Affine, Around
from qdiffjax.precision.quantized import handed_on, merge, ruled_call, with_residuals
from qdiffjax.precision.rules import remembered
from qdiffjax.sites import Site, rules
from qdiffjax.strategies.drafts import SAMPLER, SITES, Cure, Draft
from qdiffjax.strategies.lines import (
    CHANNEL,
    PIXEL,
    Fit,
    check_over,
    correlated_noise,
    least_squares,
    matched_moments,
    mean_shift,
)

OUTPUT = "output"  # the edge whose result is the network's prediction
POINT, RUN, STATE = "point", "run", "state"


FitFn = Callable[[Array, Array], Fit]


def bias_correction(*, by_call: bool = False) -> Cure:
    """Return the cure that takes from each product the mean error of its output channels.

        shift_c = -E[r_c],   r = Q(x) Q(w) - x w at the operands that reach the site

    Nagel et al. 2019 (data-free quantization), eq. 17, with measured means, and of what the site
    itself commits along the quantized network: what reaches it from others is theirs to correct.
    Activations rounded with memory of earlier calls are seen along the run, handed their residuals.
    The shift is of the product's result, the residual of its operand, so that neither changes the
    other; what a call hands on the next makes up for, so that only a shift by call follows it.

    Args:
      by_call: a shift for each of the sampler's calls; the draft has to look at all of them, as it
        has to where calls hand something on.

    Raises (when applied):
      ValueError: a draft that looks at fewer calls than it has to.
    """

    def check(draft: Draft) -> None:
        num_calls = draft.steps.t.shape[0]
        seen = len(np.unique(np.asarray(draft.states.call)))
        why = "a shift of each" if by_call else "what each hands on to the next"
        require(seen == num_calls or not (by_call or remembered(draft.site_inputs())),
                "bias correction", got=f"{seen} calls",
                expected=f"all {num_calls} of the sampler, for {why}",
                remedy=f"draft(..., num_calls={num_calls})")  # fmt: skip

    def apply(draft: Draft) -> Draft:
        means = _mean_errors(draft, draft.at_samples())
        for name, mean in means.items():
            shift = -mean if by_call else -jnp.mean(mean, 0, keepdims=True)
            correction = Affine(jnp.ones((shift.shape[0],), shift.dtype), shift)
            draft = draft.with_around(name, correction=correction)
        return draft.billed(evaluations=draft.states.num)

    return Cure(f"bias correction{' by call' if by_call else ''}", SITES, apply, check)


def _mean_errors(draft: Draft, q: Quantized) -> dict[str, Array]:
    """Return E[r] of every output channel of every product with a weight [calls, ...]."""
    names = [name for name, each in q.site_inputs.items()
             if draft.sites[name].product is not None and draft.sites[name].weight is not None
             and (each.weight is not None or each.activations)]  # fmt: skip
    measured = rules.local_errors(q.rule, follow_rule=True, keep_outputs=True)

    def rule(site: Site, op, operands, inputs):
        y, found = measured(site, op, operands, inputs)
        if found is None:
            return y, None
        error, handed = found
        if site.name.split("[")[0] not in bases:
            return y, (None, handed)
        kept = channel_axes(site)
        wide = error.astype(float_dtype(error))
        others = tuple(a for a in range(error.ndim) if a not in kept)
        mean = jnp.mean(wide, others, keepdims=True)
        return y, (mean.reshape(mean.shape[1:]) if 0 not in kept else mean, handed)

    bases = {name.split("[")[0] for name in names}

    @jax.jit
    def means(q, states):
        call = ruled_call(q, rule)
        calls = q.calls(draft.steps)

        def one(state, s):
            own = jax.tree.map(lambda a: jnp.asarray(a)[s.call], calls)
            _, found, _ = call(s.x, s.t, with_residuals(merge(q.site_inputs, own), state))
            state = handed_on(state, {name: handed for name, (_, handed) in found.items()})
            return state, {name: mean for name, (mean, _) in found.items() if name in names}

        return jax.lax.scan(one, q.start(states.x[0]), states)[1]

    return means(q, draft.states)


def channel_axes(site: Site) -> tuple[int, ...]:
    """Return the axes of a product's result that come from the weight: its output channels."""
    product: Any = site.product
    if hasattr(product, "out"):
        return (product.out[1],)
    assert site.weight is not None
    free = [len(product.free(i, len(site.shapes[i]))) for i in range(2)]
    batch = len(product.batch[0])
    first = batch + (free[0] if site.weight == 1 else 0)
    return tuple(range(first, first + free[site.weight]))


def correction(name: str, fit_fn: FitFn, target: str = POINT) -> Cure:
    """Return the cure that corrects the network's prediction at every call.

    Args:
      name: of the cure.
      fit_fn: (y, wanted) [batch, *shape] -> `Fit`.
      target: what the prediction should be: "point", what the full-precision network says at the
        same point; "run", what it said on its own run; "state", what brings the sampler back to
        the state of that run.

    Raises (when applied):
      ValueError: target "state" for a sampler with memory; guidance.
    """
    check_callable("fit_fn", fit_fn, "(y, wanted) -> gain and shift")
    check_names("target", (target,), (POINT, RUN, STATE))

    def check(draft: Draft) -> None:
        require(target != STATE or draft.steps.is_first_order, name,
                got="a sampler with memory or with matrix coefficients",
                expected="a first-order one, whose state is x_t",
                remedy="joint_gaussian(), which corrects at the same point")  # fmt: skip
        require(draft.calibration.denoiser.guidance is None, name, got="guidance",
                expected="one prediction for each sample",
                remedy="fit it to the denoiser without guidance, and guide the result: "
                "dataclasses.replace(q, denoiser=q.denoiser.guided(scale, null))")  # fmt: skip

    def apply(draft: Draft) -> Draft:
        q = draft.at_samples()
        fits = fit_along(q, draft.x_T, draft.steps, fit_fn, target, key=draft.key)
        done = draft.with_around(OUTPUT, correction=Affine(*fits))
        return done.billed(evaluations=(4 if target != POINT else 3) * fits.shift.shape[0]
                           * draft.x_T.shape[0])  # fmt: skip

    return Cure(name, SAMPLER, apply, check)


def ptqd() -> Cure:
    """Return PTQD's correction of the correlated part and the bias of the error.

    See `correlated_noise`; `absorbed` reduces the noise of a stochastic sampler by what is left.
    """
    return correction("PTQD", correlated_noise)


@checked(over=check_over, ridge=NOT_NEGATIVE)
def joint_gaussian(over: str = CHANNEL, ridge: float = 0.0) -> Cure:
    """Return D2-DPM's correction, see `least_squares`."""
    return correction("D2-DPM", lambda y, wanted: least_squares(y, wanted, over=over, ridge=ridge))


@checked(ridge=NOT_NEGATIVE)
def timestep_aware(ridge: float = 0.5) -> Cure:
    """Return TAC's correction: a gain by channel towards the full-precision run, and a shift.

    TAC-Diffusion (Yao et al. 2024) reconstructs the run's prediction by a ratio for each channel
    (ridge .5 in the code that we saw described) and corrects the bias of the input.
    """
    return correction("TAC", lambda y, wanted: least_squares(y, wanted, ridge=ridge), RUN)


def drift() -> Cure:
    """Return the correction that keeps mean and variance of the prediction: `matched_moments`."""
    return correction("moments", matched_moments)


@checked(over=check_over, ridge=optional(NOT_NEGATIVE))
def compensation(over: str = PIXEL, ridge: float | None = None) -> Cure:
    """Return the correction that removes the mean of the accumulated error at each step.

        shift_i = E[(x_i+1 - c_x x_hat_i) / c_eps - eps_hat_i]

    with x the full-precision run: the shift makes up for what earlier steps have left, too, so that
    the mean of x_hat - x is zero after every step on the calibration samples. What is left is the
    error's part that differs from sample to sample, see `ceiling`.

    Args:
      over: which numbers share a mean: "pixel", those of all samples; "channel"; "tensor".
      ridge: with a number, a gain towards 1 is fitted too, see `least_squares`.
    """

    def fit(y: Array, wanted: Array) -> Fit:
        if ridge is None:
            return mean_shift(y, wanted, over=over)
        gain = least_squares(y, wanted, over=CHANNEL, ridge=ridge).gain
        return Fit(gain, mean_shift(gain[None] * y, wanted, over=over).shift)

    gains = "" if ridge is None else " and gain"
    return correction(f"compensation{gains}", fit, STATE)


def ceiling(errors) -> float:
    """Return the most that removing the mean error can gain [dB]: 10 log10(1 / (1 - rho)).

        rho = |E error|^2 / E|error|^2

    Args:
      errors: of samples [num, *shape]; rho is estimated without its bias of (1 - rho) / (num - 1).
    """
    check_numbers("errors", errors, least_rank=1)
    errors = np.asarray(errors, np.float64)
    num = len(errors)
    require(num >= 2, "errors", got=f"{num} sample", expected="at least 2",
            remedy="draw more")  # fmt: skip
    whole = np.mean(np.sum(errors.reshape(num, -1) ** 2, 1))
    spread = np.sum(np.var(errors.reshape(num, -1), 0, ddof=1))
    rest = float(np.clip(spread / whole, np.finfo(float).tiny, 1.0)) if whole else 1.0
    return float(10 * np.log10(1 / rest))


def absorbed(steps: Steps, variances) -> Steps:
    """Return the sampler with less noise of its own, where the error brings some.

        noise'^2 = max(noise^2 - (c_eps)^2 variance, 0)

    PTQD (He et al. 2023), eq. 14: for what is left of the error after its correction, if it is
    noise. Only a sampler that adds noise has some to spare.

    Args:
      steps: with a scalar coefficient of noise a step.
      variances: of the prediction's error at each call [N], not negative.

    Raises:
      ValueError: another number of calls; a sampler without noise.
    """
    check_type("steps", steps, Steps, remedy="such as ddpm(schedule, 100)")
    check_numbers("variances", variances)
    check_number("variances", variances, least=0)
    coeffs = steps.coeffs
    require(steps.is_first_order, "steps",
            got="a sampler with memory or with matrix coefficients",
            expected="a first-order one, whose state is x_t",
            remedy="such as ddpm(schedule, 100)")  # fmt: skip
    require(steps.adds_noise, "steps", got="a sampler without noise",
            expected="noise that an error can take the place of",
            remedy="such as ddim(schedule, 50, eta=1.0)")  # fmt: skip
    variances = jnp.asarray(variances)
    require(variances.shape == coeffs.noise.shape, "variances", got=f"shape {variances.shape}",
            expected=f"{coeffs.noise.shape}", remedy="one for each call")  # fmt: skip
    left = jnp.maximum(coeffs.noise**2 - coeffs.eps**2 * variances, 0.0)
    return steps._replace(coeffs=coeffs._replace(noise=jnp.sqrt(left)))


def fit_along(
    q: Quantized, x_T, steps: Steps, fit_fn: FitFn, target: str = POINT, *, key=None
) -> Fit:
    """Return the correction of every call [N, ...], fitted one call after another.

    Args:
      q: without a correction of its prediction.
      x_T: initial noise of the calibration samples [batch, *shape], whose conditions q has.
      steps: the sampler.
      fit_fn, target: see `correction`.
      key: noise of a stochastic sampler.
    """
    full = precision.full_call(q)
    plain = ruled_call(q, _with_output(rules.plain))
    rounded = ruled_call(q, _with_output(q.rule))

    @jax.jit
    def fits(q, x_T):
        dtype, own = float_dtype(x_T), q.site_inputs.get(OUTPUT, SiteQuant())

        def corrected(x, t, inputs, state, fit):
            around = Around(correction=Affine(fit.gain[None], fit.shift[None]))
            here = {OUTPUT: own._replace(around=around)}
            call = precision.quantized_call(
                dataclasses.replace(q, site_inputs={**q.site_inputs, **here})
            )
            return call(x, t, inputs, state)

        def body(point, slices):
            index, t, coeffs, inputs, x_next, y_run = slices
            x, state = as_point(point)
            seen = coeffs.read(x)
            taken = with_residuals(merge(q.site_inputs, inputs), state)
            eps_hat, found, _ = rounded(seen, t, taken)
            y = found[OUTPUT]
            if target == POINT:
                wanted = plain(seen, t)[1][OUTPUT]
            elif target == RUN:
                wanted = y_run
            else:
                wanted = y + _wanted_change(q, taken, seen, t, coeffs, x, x_next, eps_hat, index)
            wide = [a.astype(dtype) for a in (y, wanted)]
            fit = Fit(*(jnp.asarray(part) for part in fit_fn(*wide)))
            eps, _, state = corrected(seen, t, inputs, state, fit)
            z = None if noise_key is None else step_noise(noise_key, index, seen)
            return Point(coeffs.advance(x, eps, z), state).bare(), fit

        states = sample(full, x_T, steps, key=noise_key).states
        runs = jax.vmap(lambda c, x: c.read(x))(steps.coeffs, states[:-1])
        y_run = jax.lax.map(lambda s: plain(*s)[1][OUTPUT], (runs, steps.times(x_T)))
        first = Point(steps.coeffs.start(x_T), q.start(x_T)).bare()
        rows = (jnp.arange(len(steps.t)), steps.times(x_T), steps.coeffs, q.calls(steps),
                states[1:], y_run)  # fmt: skip
        return jax.lax.scan(body, first, rows)[1]

    noise_key = steps.noise_key(key)

    def _wanted_change(q, taken, seen, t, coeffs, x, x_next, eps_hat, index):
        z = None if noise_key is None else step_noise(noise_key, index, seen)
        missing = x_next - coeffs.advance(x, eps_hat, z)
        missing = missing / jnp.asarray(coeffs.eps).astype(missing.dtype)  # of eps
        tapped = ruled_call(q, _tapped(q.rule))
        _, slope = jax.jvp(
            lambda tap: tapped(seen, t, {**{n: (None, i) for n, i in taken.items()},
                                         OUTPUT: (tap, taken.get(OUTPUT))})[0],
            (jnp.zeros(missing.shape, missing.dtype),), (jnp.ones(missing.shape, missing.dtype),),
        )  # fmt: skip
        return missing / slope

    return fits(q, x_T)


def _with_output(rule):
    """Return the rule, with the prediction as the output of the site `output`, and no other."""

    def kept(site: Site, op, operands, inputs):
        y, _ = rule(site, op, operands, inputs)
        return y, y if site.kind == OUTPUT else None

    return kept


def _tapped(rule):
    """Return the rule that adds a tap to the prediction: inputs are (tap or None, the rule's)."""

    def added(site: Site, op, operands, inputs):
        tap, own = (None, None) if inputs is None else inputs
        y, _ = rule(site, op, operands, own) if own is not None else (op(*operands), None)
        return (y if tap is None else y + tap.astype(y.dtype)), None

    return added

"""Weights rounded anew at every call: what they add to the final sample, without a run of them."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from qdiffjax._checks import check_count, require
from qdiffjax._typing import Array, Key
from qdiffjax.analysis.errors.ledger import per_sample
from qdiffjax.analysis.errors.runs import Probed, current, noises, probed, step_map
from qdiffjax.analysis.errors.site_variances import nothing_at, tap_weight, weight_gradients
from qdiffjax.diffusion import Steps
from qdiffjax.precision import Switch
from qdiffjax.precision.quantized import Quantized, ruled_call
from qdiffjax.precision.shaping import site_key
from qdiffjax.quant import (
    RoundingSequence,
    ToggleFn,
    expand,
    fresh_bits,
    golden_ratio,
    noble_ratios,
    sigma_delta,
)
from qdiffjax.quant.sequences import GOLDEN, NOBLE

# Of the sequences whose upper codes are an arc that is rotated from call to call.
ROTATIONS: dict[ToggleFn, tuple[float, ...]] = {
    golden_ratio: (GOLDEN,),
    noble_ratios: tuple(map(float, NOBLE)),
}
CHUNK = 1024  # elements whose sums over pairs of calls are done together, within a cache


def sequence_variances(
    q: Quantized, x_T: Array, steps: Steps, probes: Array, *, key: Key | None = None
) -> dict[str, Array]:
    """Predict what weights rounded anew at every call add to E|x_0 error|^2 {site: [batch]}.

    With G_i the gradient of <v, x_0> in a weight at call i, to first order and over phases,

        sigma-delta:  E_v sum_k s_k^2 sum_{i,j} a_ki a_kj B_2(frac((i - j) f_k)) / 2,
                      a_0 = G_0, a_i = G_i - G_{i-1}, a_N = -G_{N-1},   B_2(x) = x^2 - x + 1/6
        rotations:    E_v sum_k s_k^2 sum_{i,j} G_ki G_kj c(frac((i - j) g), f_k),
                      c(d, f) = max(f - d, 0) + max(f + d - 1, 0) - f^2
        fresh bits:   E_v sum_k s_k^2 f_k (1 - f_k) sum_i G_ki^2

    with f the fraction and s the scale of element k. Sigma-delta's error is r_i - r_{i+1}, and
    B_2 / 2 the covariance of r (`quant.sigma_delta`). The upper codes of a rotation by g are an arc
    of length f, and c what two of them share beyond chance: of `quant.golden_ratio`, and for
    `quant.noble_ratios` the mean over its rotations, as if the phase did not choose among them.
    Nothing is run in low precision. What a bend of the network adds, of second order and alike for
    all, is left out. Samples are done one after another, and keep a gradient for each call: N times
    the weights' memory.

    Args:
      q: a denoiser whose weights are a `RoundingSequence` each, at every call or but for calls in
        full precision; other sites add nothing.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      probes: v [num, batch, *shape], see `runs.signs`.
      key: noise of a stochastic sampler.

    Raises:
      ValueError: no sequence, or one whose covariance is not known in closed form.
    """
    (found,) = variances_of_sequences((q,), x_T, steps, probes, key=key)
    return found


def variances_of_sequences(
    qs: Sequence[Quantized], x_T: Array, steps: Steps, probes: Array, *, key: Key | None = None
) -> tuple[dict[str, Array], ...]:
    """Return `sequence_variances` of several roundings of one denoiser, from the same gradients."""
    require(qs, "qs", got="none", expected="at least one quantized denoiser",
            remedy="quantize with round_fn=precision.shaped(key)")  # fmt: skip
    tables = [_sequences(q, len(steps.t)) for q in qs]
    for name, (sequence, _) in itertools.chain(*(table.items() for table in tables)):
        require(sequence.toggle_fn in (sigma_delta, fresh_bits, *ROTATIONS), name,
                got=getattr(sequence.toggle_fn, "__name__", "a sequence"),
                expected="sigma_delta, golden_ratio, noble_ratios or fresh_bits, whose covariance "
                "is known",
                remedy="measure other sequences over seeds")  # fmt: skip
    nothing = nothing_at(qs[0], x_T, steps, dict.fromkeys(itertools.chain(*tables)))

    def one(q, x_T, z, vs):
        sweep = weight_gradients(q, x_T, steps, z, nothing)

        def squares(v):
            _, gains = sweep(v, lambda kept, bars: (kept, bars))
            return tuple({n: _sequence_variance(*table[n], gains[n]) for n in table}
                         for table in tables)  # fmt: skip

        return jax.tree.map(lambda a: jnp.mean(a, 0), jax.lax.map(squares, vs[0]))

    return per_sample(one, qs[0], x_T, steps, key, jnp.moveaxis(probes, 1, 0), is_map=True)


def sequence_bias(
    q: Quantized, x_T: Array, steps: Steps, *, phases: Key, num: int, key: Key | None = None
) -> Probed:
    """Predict the mean error of x_0 over phases of weights rounded anew at every call.

        B = E_d D^2 x_0[d, d] / 2,   d_i the error of call i with phases drawn anew

    Every call's rounding is unbiased, so that first order has mean zero; the bend of the network
    leaves a bias of the order of scale^2, a floor under which more steps do not go. For fresh bits
    it is sum_k s_k^2 f_k (1 - f_k) sum_i d^2 x_0 / dw_ki^2 / 2; other sequences have in addition
    what their calls have in common. Nothing is run in low precision. Costs about 4 sampling runs a
    draw.

    Args:
      q: as `sequence_variances`, with any toggle function.
      x_T: initial noise [batch, *shape].
      steps: the sampler, leaves [N].
      phases: key of the draws.
      num: number of draws, at least 2.
      key: noise of a stochastic sampler.

    Returns:
      Mean over draws and its standard error [batch, *shape].

    Raises:
      ValueError: no sequence; fewer than two draws.
    """
    check_count("num", num, least=2, remedy="draw phases at least twice, for an error bar")
    rounded = _sequences(q, len(steps.t))
    tapped = ruled_call(q, tap_weight)
    calls = jnp.arange(len(steps.t))
    table = (steps.times(x_T), steps.coeffs, noises(key, steps, x_T), calls)

    def curvature(phase_key) -> Array:
        drawn = {
            name: sequence.redrawn(site_key(phase_key, name))
            for name, (sequence, _) in rounded.items()
        }

        def final(amount) -> Array:
            def body(point, slices):
                t, coeffs, z, call = slices
                taps = {n: amount.astype(d.scale.dtype) * rounded[n][1][call] * d.error(call)
                        for n, d in drawn.items()}  # fmt: skip
                return step_map(tapped, t, coeffs, z, taps)(point), None

            return current(jax.lax.scan(body, steps.coeffs.start(x_T), table)[0], steps)

        one, zero = jnp.ones(()), jnp.zeros(())
        slope = lambda amount: jax.jvp(final, (amount,), (one,))[1]  # noqa: E731
        return jax.jvp(slope, (zero,), (one,))[1] / 2

    return probed(curvature, jax.random.split(phases, num))


def _sequences(q: Quantized, num_calls: int) -> dict[str, tuple[RoundingSequence, Array]]:
    """Return {site: (sequence, which calls are rounded by it [N])}; the others are in full."""
    found = {}
    for name, inputs in q.site_inputs.items():
        weight = inputs.weight
        if isinstance(weight, RoundingSequence):
            found[name] = weight, jnp.ones(num_calls, weight.scale.dtype)
        elif isinstance(weight, Switch):
            places = [i for i, a in enumerate(weight.alternatives) if a is not None]
            only = weight.alternatives[places[0]] if len(places) == 1 else None
            require(isinstance(only, RoundingSequence), name, got="roundings of several kinds",
                    expected="one sequence, and full precision at other calls",
                    remedy="give all rounded steps one format and round_fn")  # fmt: skip
            assert isinstance(only, RoundingSequence)
            is_rounded = jnp.asarray(weight.which) == places[0]
            found[name] = only, is_rounded.astype(only.scale.dtype)
    require(found, "sequences", got="no weights that change from call to call",
            expected="some", remedy="quantize with round_fn=precision.shaped(key)")  # fmt: skip
    return found


def _sequence_variance(sequence: RoundingSequence, is_rounded, gains) -> Array:
    """Return the variance of sum_i <G_i, error of call i> for gains G [N, *weight]."""
    f, scale = sequence.fraction, expand(sequence.scale, sequence.shape)
    gains = gains * scale[None] * is_rounded.reshape(-1, *[1] * scale.ndim)
    if sequence.toggle_fn is fresh_bits:
        return jnp.sum(jnp.sum(gains**2, 0) * f * (1 - f))
    rotations = ROTATIONS.get(sequence.toggle_fn)
    if rotations is None:
        a = jnp.concatenate([gains[:1], gains[1:] - gains[:-1], -gains[-1:]])
        covariance = _of_residuals
    else:
        a, covariance = gains, functools.partial(_of_arcs, rotations)
    rows = a.reshape(len(a), -1)
    return jnp.sum(jax.lax.map(
        lambda row: _of_lags(covariance, *row), (rows.T, f.reshape(-1)), batch_size=CHUNK
    ))  # fmt: skip


def _of_lags(covariance, a, f) -> Array:
    """Return sum_{i,j} a_i a_j covariance(|i - j|, f) of one element, a [N]."""
    num = len(a)
    spectrum = jnp.fft.rfft(a, 2 * num)  # twice as long, so that nothing wraps around
    pairs = jnp.fft.irfft(spectrum.real**2 + spectrum.imag**2, 2 * num)[:num]
    lags = jnp.arange(num, dtype=f.dtype)
    return jnp.sum(jnp.where(lags == 0, 1, 2).astype(f.dtype) * covariance(lags, f) * pairs)


def _of_residuals(lag, f):
    """Return Cov(r_i, r_{i + lag}) of sigma-delta's residuals for fractions f, in squared steps."""
    part = lag * f
    part = part - jnp.floor(part)
    return (part**2 - part + 1 / 6) / 2


def _of_arcs(rotations, lag, f):
    """Return Cov(upper_i, upper_{i + lag}) for fractions f, the mean over rotations."""

    def shared(rotation):
        part = lag * rotation
        part = part - jnp.floor(part)
        return jnp.maximum(f - part, 0) + jnp.maximum(f + part - 1, 0)

    return sum(map(shared, rotations)) / len(rotations) - f**2

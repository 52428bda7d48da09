"""What quantization costs the distribution: KL of the paths, W2 from both sides; KL in nats.

Samples are paired: both samplers start from the same x_T and use the same noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, Key, PyTree
from qdiffjax.diffusion import (
    DiscreteSchedule,
    SlotCoeffs,
    StepCoeffs,
    Steps,
    ddpm_coeffs,
    float_dtype,
    forward_variance,
    step,
    step_noise,
)
from qdiffjax.diffusion.gaussian import gaussian_w2_squared
from qdiffjax.diffusion.samplers import VarianceFn


class Estimate(NamedTuple):
    """A number from samples with its 95 % interval; leaves [*shape]."""

    value: Array
    low: Array
    high: Array


def mean_interval(samples) -> Estimate:
    """Return the mean over the first axis, +- 1.96 standard errors: [num, *shape] -> [*shape].

    Raises:
      ValueError: if there are fewer than two samples.
    """
    samples = jnp.asarray(samples).astype(float_dtype(samples))
    num = samples.shape[0]
    if num < 2:
        raise ValueError(f"got {num} sample(s), expected at least 2 for an interval; draw more")
    mean = jnp.mean(samples, axis=0)
    width = 1.96 * jnp.std(samples, axis=0, ddof=1) / num**0.5
    return Estimate(mean, mean - width, mean + width)


def bootstrap(stat_fn, *arrays, key: Key, num: int = 200) -> Estimate:
    """Return stat_fn(*arrays) with its percentile bootstrap interval (Efron 1979).

    All arrays are resampled by the same rows, which keeps pairs together. The interval shows
    the spread, not the bias: distances of empirical laws lean upwards, on resamples more so.

    Args:
      stat_fn: arrays [n, ...] -> [*shape], traceable.
      arrays: paired samples, all with first axis n.
      key: of the resampling.
      num: number of resamples.

    Raises:
      ValueError: if the first axes differ.
    """
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1:
        raise ValueError(f"got first axes {sorted(sizes)}, expected one size; pass paired samples")
    size = sizes.pop()
    rows = jax.random.randint(key, (num, size), 0, size)
    draws = jax.lax.map(lambda row: stat_fn(*(jnp.asarray(a)[row] for a in arrays)), rows)
    low, high = (jnp.quantile(draws, q, axis=0) for q in (0.025, 0.975))
    return Estimate(jnp.asarray(stat_fn(*arrays)), low, high)


def kl_weights(coeffs: StepCoeffs) -> Any:
    """Return c.eps^2 / (2 c.noise^2), nats per squared error of eps; infinite without noise.

    KL of two Gaussian steps whose eps differ by d and whose noise is equal is weight * |d|^2.
    """
    return coeffs.eps**2 / (2 * coeffs.noise**2)


def elbo_weights(schedule: DiscreteSchedule, variance_fn: VarianceFn = forward_variance):
    """Return the weights w_t of the likelihood bound, t = 1 ... T, NumPy float64 [T].

        w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t))

    Ho et al. 2020, eq. 12, with sigma_t^2 = variance_fn; there alpha_t = 1 - beta_t. The bound on
    the negative log-likelihood rises by sum_t w_t (|eps - eps_hat|^2 - |eps - eps_theta|^2) when
    eps_hat replaces eps_theta: the survey's eqs. 8 and 10-12 are unweighted. The squares are
    sums over elements (`losses.squared_errors`). With `posterior_variance` w_1 is infinite: its
    last kernel is a Dirac, so leave t = 1 out.
    """
    t = np.arange(1, schedule.num_train_steps + 1)
    levels = schedule.exact(t), schedule.exact(t - 1)
    with np.errstate(divide="ignore"):
        return kl_weights(ddpm_coeffs(*levels, variance_fn=variance_fn))


def path_kl(
    call_full: CallFn,
    call_quant: CallFn,
    x_T,
    steps: Steps,
    *,
    key: Key,
    per_call: PyTree = None,
) -> Array:
    """Return the terms of KL(P || P_hat) of the two path laws along full-precision runs [N, batch].

        KL = sum_i E_P |mu_i(x_i) - mu_hat_i(x_i)|^2 / (2 noise_i^2)

    in nats: the chain rule for Markov chains with equal start and equal Gaussian noise, exact
    when the quantized step is a function of x (under stochastic rounding its expectation is an
    upper bound). Sum over steps for the unbiased estimate of each run; `mean_interval` of that
    for the KL. It bounds the KL of the marginals (data processing).

    A last step without noise has Dirac kernels and an infinite KL; its term is left out, set to
    zero, and the sum then bounds the laws of x_1, not of x_0. An earlier one that is traced
    gives infinity, or nan where the two networks agree.

    Args:
      call_full: full-precision (x [batch, *shape], t, inputs) -> (eps [batch, *shape], outputs).
      call_quant: quantized, the same.
      x_T: initial noise [batch, *shape].
      steps: a stochastic sampler such as ddim(eta=1), leaves [N].
      key: noise as in `diffusion.sample`.
      per_call: pytree with leaves [N, ...]; call i of both gets slice i as `inputs`.

    Raises:
      ValueError: if a step before the last adds no noise, or the sampler has memory.
    """
    if isinstance(steps.coeffs, SlotCoeffs):
        raise ValueError(
            "got a sampler with memory, expected a first-order stochastic one; its steps are not "
            "Markov in x_t, so compare the paths of its ddim(eta=1) companion."
        )
    _check_stochastic(steps.coeffs.noise)
    dtype, num_steps = float_dtype(x_T), steps.t.shape[0]
    weights = kl_weights(jax.tree.map(lambda c: jnp.asarray(c).astype(dtype), steps.coeffs))
    dirac = (steps.coeffs.noise == 0) & (jnp.arange(num_steps) == num_steps - 1)
    weights = jnp.where(dirac, 0, weights)

    def body(x, slices):
        index, t, coeffs, weight, inputs = slices
        eps = call_full(x, t.astype(dtype), inputs)[0].astype(dtype)
        gap = call_quant(x, t.astype(dtype), inputs)[0].astype(dtype) - eps
        term = weight * jnp.sum(gap**2, axis=tuple(range(1, x.ndim)))
        return step(x, eps, coeffs, step_noise(key, index, x)), term

    slices = (jnp.arange(num_steps), steps.t, steps.coeffs, weights, per_call)
    return jax.lax.scan(body, jnp.asarray(x_T).astype(dtype), slices)[1]


def total_variation_bounds(kl) -> tuple[Array, Array]:
    """Return two upper bounds of the total variation distance from KL in nats, each [*shape].

    sqrt(KL / 2) (Pinsker) and sqrt(1 - exp(-KL)) (Bretagnolle & Huber 1979); the first is the
    smaller up to KL = 1.5936, the second stays below 1.
    """
    kl = jnp.asarray(kl)
    return jnp.sqrt(kl / 2), jnp.sqrt(-jnp.expm1(-kl))


def w2_coupling(x, y) -> Estimate:
    """Return sqrt(E |x - y|^2) of paired samples [num, *shape], an upper bound of W2 [].

    The interval is that of the mean square, mapped by the root. Heavy tails (a few samples that
    change their mode) make it optimistic: look at the median of |x - y| too.
    """
    x, y = _paired(x, y)
    return Estimate(*(jnp.sqrt(jnp.maximum(m, 0)) for m in mean_interval(jnp.sum((x - y) ** 2, 1))))


def gelbrich_squared(x, y) -> Array:
    """Return the squared W2 of the Gaussians with the samples' moments, covariances over num [].

    A lower bound of the squared W2 between the two empirical laws (Gelbrich 1990). With
    centred rows X, Y [num, n] it is |mean gap|^2 + min over orthogonal Q of |X - Q Y|^2 / num, as
    the n x n and the num x num cross products have the same nuclear norm; the smaller is used.
    Survey, eq. 17, on samples. Against the population it leans upwards, more so for num < n.

    Args:
      x: samples [num, *shape].
      y: samples [num, *shape].
    """
    x, y = _paired(x, y)
    mean_x, mean_y = jnp.mean(x, axis=0), jnp.mean(y, axis=0)
    x, y = x - mean_x[None], y - mean_y[None]
    if x.shape[0] > x.shape[1]:
        cov_x, cov_y = (jnp.matmul(a.T, a, precision="highest") / a.shape[0] for a in (x, y))
        return gaussian_w2_squared(mean_x, cov_x, mean_y, cov_y)
    left, _, right = jnp.linalg.svd(jnp.matmul(x, y.T, precision="highest"))
    q = jnp.matmul(left, right, precision="highest")
    gap = x - jnp.matmul(q, y, precision="highest")
    return jnp.sum((mean_x - mean_y) ** 2) + jnp.sum(gap**2) / x.shape[0]


def w2_squared_1d(x, y) -> Array:
    """Return the exact squared W2 of two empirical laws on the line: [num, *batch] -> [*batch].

    The monotone coupling: the mean of (sorted x - sorted y)^2.
    """
    return jnp.mean((jnp.sort(x, axis=0) - jnp.sort(y, axis=0)) ** 2, axis=0)


def orthonormal_frames(key: Key, num_frames: int, n: int, dtype=None) -> Array:
    """Return uniformly random orthonormal frames of R^n, stacked [num_frames * n, n]."""
    gauss = jax.random.normal(key, (num_frames, n, n), dtype or jnp.result_type(float))
    return jnp.swapaxes(jnp.linalg.qr(gauss)[0], 1, 2).reshape(num_frames * n, n)


def sliced_w2_squared(x, y, directions) -> Array:
    """Return the mean squared W2 of the projections on unit directions [] (Rabin et al. 2012).

    Over a full orthonormal frame n times this is at most W2^2, as the optimal coupling projects
    to one coupling per direction and sum_u <u, z>^2 = |z|^2. Independent directions obey that
    only in expectation.

    Args:
      x: samples [num, *shape].
      y: samples [num, *shape].
      directions: [num_directions, n] with n = prod(shape); see `orthonormal_frames`.
    """
    x, y = _paired(x, y)
    directions = jnp.asarray(directions).astype(x.dtype)
    projected = (jnp.matmul(a, directions.T, precision="highest") for a in (x, y))
    return jnp.mean(w2_squared_1d(*projected))


def w2_lower(x, y, key: Key, num_frames: int = 1) -> Array:
    """Return max(Gelbrich, sliced) <= W2 of the two empirical laws [], samples [num, *shape].

    With `w2_coupling` a bracket of W2 that needs no density. Pair the noise: two independent
    halves of one law are far from 0.
    """
    x, y = _paired(x, y)
    frames = orthonormal_frames(key, num_frames, x.shape[1], x.dtype)
    sliced = x.shape[1] * sliced_w2_squared(x, y, frames)
    return jnp.sqrt(jnp.maximum(gelbrich_squared(x, y), sliced))


def _paired(x, y) -> tuple[Array, Array]:
    """Return both as [num, n] in the float dtype of x."""
    if jnp.shape(x) != jnp.shape(y) or jnp.ndim(x) < 1:
        raise ValueError(
            f"got samples of shapes {jnp.shape(x)} and {jnp.shape(y)}, expected equal [num, *shape]"
            "; generate both from the same noise"
        )
    x, y = (jnp.asarray(a).astype(float_dtype(x)) for a in (x, y))
    return x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)


def _check_stochastic(noise) -> None:
    if isinstance(noise, jax.core.Tracer):
        return
    noise = np.asarray(noise)
    silent = np.flatnonzero(noise[: max(noise.size - 1, 1)] == 0)
    if silent.size:
        raise ValueError(
            f"got steps without noise at {silent} of {noise.size}, expected noise in "
            "every step but the last; path laws of deterministic samplers are mutually singular, "
            "use ddim(eta=1) or ddpm, or compare samples by w2_coupling"
        )

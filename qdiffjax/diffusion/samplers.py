"""First-order samplers as tables of coefficients, and the one loop that runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, EpsFn, Key, PyTree
from qdiffjax.diffusion.schedules import DiscreteSchedule, NoiseLevel, float_dtype, uniform_times

VarianceFn = Callable[[NoiseLevel, NoiseLevel], Any]
CoeffsFn = Callable[[NoiseLevel, NoiseLevel], "StepCoeffs"]


class StepCoeffs(NamedTuple):
    """One first-order step t -> s:  x_s = x * x_t + eps * eps_fn(x_t, t) + noise * z."""

    x: Any
    eps: Any
    noise: Any


class Steps(NamedTuple):
    """A sampler as data: N steps from t [N] to s [N], noisiest first; coeffs with leaves [N]."""

    t: Array
    s: Array
    coeffs: StepCoeffs


class Trajectory(NamedTuple):
    """What one sampling run leaves behind.

    x_0 [*shape]; xs [N+1, *shape], noisiest first and xs[-1] = x_0, or None if not kept;
    outputs of the N network calls, leaves [N, ...].
    """

    x_0: Array
    xs: Any
    outputs: PyTree


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
    if isinstance(eta, (int, float)) and not 0.0 <= eta <= 1.0:
        raise ValueError(f"got eta = {eta}, expected 0 (DDIM) to 1 (DDPM ancestral); clip it")
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


def make_steps(schedule: DiscreteSchedule, times, coeffs_fn: CoeffsFn) -> Steps:
    """Return the steps along descending times [N+1], computed in float64, in JAX's default dtype.

    Raises:
      ValueError: if times do not descend strictly.
    """
    times = np.asarray(times)
    if times.ndim != 1 or times.size < 2 or not np.all(np.diff(times) < 0):
        raise ValueError(f"got times {times}, expected strictly descending; see uniform_times")
    t, s = times[:-1], times[1:]
    steps = Steps(t, s, coeffs_fn(schedule.exact(t), schedule.exact(s)))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), steps)


def ddim(schedule: DiscreteSchedule, num_steps: int, *, eta: float = 0.0) -> Steps:
    """Return `num_steps` DDIM steps at uniform times; Song, Meng & Ermon 2021, eq. 12."""
    times = uniform_times(schedule.num_train_steps, num_steps)
    return make_steps(schedule, times, lambda t, s: ddim_coeffs(t, s, eta=eta))


def ddpm(
    schedule: DiscreteSchedule, num_steps: int, *, variance_fn: VarianceFn = posterior_variance
) -> Steps:
    """Return `num_steps` ancestral steps at uniform times; Ho et al. 2020, algorithm 2.

    The step to time 0 adds no noise whatever `variance_fn` says, as in the algorithm.
    """
    times = uniform_times(schedule.num_train_steps, num_steps)

    def coeffs_fn(level_t, level_s):
        coeffs = ddpm_coeffs(level_t, level_s, variance_fn=variance_fn)
        return coeffs._replace(noise=np.where(level_s.sigma > 0, coeffs.noise, 0.0))

    return make_steps(schedule, times, coeffs_fn)


def step(x, eps, coeffs: StepCoeffs, z=None) -> Array:
    """Return x_s = coeffs.x * x_t + coeffs.eps * eps + coeffs.noise * z, no network evaluation.

    Args:
      x: x_t [*shape].
      eps: the network's prediction at x_t [*shape], any float dtype.
      coeffs: scalar coefficients.
      z: standard normal noise [*shape], or None for no noise.

    Returns:
      x_s [*shape] in float64 if x is, else float32.
    """
    dtype = float_dtype(x)
    c = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), coeffs)
    x_s = c.x * jnp.asarray(x).astype(dtype) + c.eps * jnp.asarray(eps).astype(dtype)
    return x_s if z is None else x_s + c.noise * jnp.asarray(z).astype(dtype)


def step_noise(key: Key, index, like) -> Array:
    """Return the noise z of step `index` (0 = noisiest), with the shape of `like`.

        z = normal(fold_in(key, index))

    This is its definition: any loop that uses it replays the noise path of `sample`.
    """
    return jax.random.normal(jax.random.fold_in(key, index), like.shape, float_dtype(like))


def bind(eps_fn: EpsFn, params: PyTree) -> CallFn:
    """Return call_fn(x, t, inputs) -> (eps_fn(params, x, t), None), which ignores its inputs."""
    return lambda x, t, inputs: (eps_fn(params, x, t), None)


def sample(
    call_fn: CallFn,
    x_T,
    steps: Steps,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
    keep_trajectory: bool = True,
) -> Trajectory:
    """Run the sampler from x_T: one `lax.scan`, one network call per step.

    Steps, key and per_call are data, so runs that differ only in them share one compilation.

    Args:
      call_fn: (x [*shape], t scalar, inputs) -> (eps [*shape], outputs); see `bind`.
      x_T: initial noise [*shape]. The state is float64 if x_T is, else float32.
      steps: coefficients, leaves [N].
      key: the noise of step i is `step_noise(key, i, x_T)`. None only for deterministic steps;
        traced coefficients are not checked.
      per_call: pytree with leaves [N, ...]; call i gets slice i as `inputs` (None: None).
      keep_trajectory: whether to return the states of all steps.

    Raises:
      ValueError: if steps that add noise get no key, or per_call has not N slices.
    """
    num_steps = steps.t.shape[0]
    _check_per_call(per_call, num_steps)
    if not _adds_noise(steps.coeffs.noise, key):
        key = None
    dtype = float_dtype(x_T)

    def body(x, slices):
        index, t, coeffs, inputs = slices
        eps, outputs = call_fn(x, t.astype(dtype), inputs)
        x_s = step(x, eps, coeffs, None if key is None else step_noise(key, index, x))
        return x_s, (x_s if keep_trajectory else None, outputs)

    x_T = jnp.asarray(x_T).astype(dtype)
    slices = (jnp.arange(num_steps), steps.t, steps.coeffs, per_call)
    x_0, (states, outputs) = jax.lax.scan(body, x_T, slices)
    xs = jnp.concatenate([x_T[None], states]) if keep_trajectory else None
    return Trajectory(x_0, xs, outputs)


def _adds_noise(noise, key: Key | None) -> bool:
    """Say whether noise must be drawn; raise if it must and there is no key."""
    if isinstance(noise, jax.core.Tracer):
        return key is not None
    noisy = bool(np.any(np.asarray(noise) != 0.0))
    if noisy and key is None:
        raise ValueError(
            f"got key=None for steps with noise coefficients up to {np.max(noise):.3g}, expected a "
            "PRNG key; pass key=jax.random.key(seed) or use deterministic steps such as ddim(eta=0)"
        )
    return noisy


def _check_per_call(per_call: PyTree, num_steps: int) -> None:
    for leaf in jax.tree.leaves(per_call):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != num_steps:
            raise ValueError(
                f"got a per_call leaf of shape {jnp.shape(leaf)}, expected leading axis "
                f"{num_steps}; give one slice per network call"
            )

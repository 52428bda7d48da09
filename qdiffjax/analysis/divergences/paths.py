"""KL of the path laws of two stochastic samplers, step by step, in nats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, Key, PyTree
from qdiffjax.analysis.labels import Kind, bound
from qdiffjax.diffusion import (
    DiscreteSchedule,
    StepCoeffs,
    Steps,
    ddpm_coeffs,
    float_dtype,
    forward_variance,
    step,
    step_noise,
)
from qdiffjax.diffusion.gaussian_laws import log_excess
from qdiffjax.diffusion.samplers import VarianceFn


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
    eps_hat replaces eps_theta (`elbo_gaps`): the survey's eqs. 8 and 10-12 are unweighted. The
    squares are sums over elements (`losses.squared_errors`). With `posterior_variance` w_1 is
    infinite: its last kernel is a Dirac, so leave t = 1 out.
    """
    t = np.arange(1, schedule.num_train_steps + 1)
    levels = schedule.exact(t), schedule.exact(t - 1)
    with np.errstate(divide="ignore"):
        return kl_weights(ddpm_coeffs(*levels, variance_fn=variance_fn))


def local_kl(local_errors, steps: Steps) -> Array:
    """Return |e_i|^2 / (2 noise_i^2), the KL that each local error costs, in nats [N, batch].

    The terms of `path_kl` from local errors [N, batch, *shape] in units of x, recorded anywhere.
    At states of the forward process it predicts w_t Delta L_t, the weighted survey's eq. 12, whose
    cross term has mean zero when the full-precision network is E[eps | x_t]. Zero where the last
    step has no noise, as in `path_kl`.
    """
    e = jnp.asarray(local_errors)
    noise = jnp.asarray(steps.coeffs.noise).astype(e.dtype)
    dirac = _is_dirac(noise)
    weights = jnp.where(dirac, 0, 1 / (2 * jnp.where(dirac, 1, noise) ** 2))
    return weights[:, None] * jnp.sum(e**2, axis=tuple(range(2, e.ndim)))


@bound(Kind.DISTRIBUTIONAL, "Gaussian steps, equal starts; expectation along the first chain")
def path_kl(
    call_full: CallFn,
    call_quant: CallFn,
    x_T,
    steps: Steps,
    *,
    key: Key,
    per_call: PyTree = None,
    noise_hat=None,
) -> Array:
    """Return the terms of KL(P || P_hat) of the two path laws along full-precision runs [N, batch].

        KL = sum_i E_P sum [ (mu_i - mu_hat_i)^2 / (2 s_hat_i^2) + (r_i - 1 - log r_i) / 2 ],
        r_i = s_i^2 / s_hat_i^2,   over the elements of x_i

    in nats: the chain rule for Markov chains with equal start and Gaussian noise s_i = noise_i,
    exact when the quantized step is a function of x (under stochastic rounding its expectation is
    an upper bound). Sum over steps for the unbiased estimate of each run; `mean_interval` of that
    for the KL. It bounds the KL of the marginals (data processing), and of any projection of them.
    KL(P_hat || P): swap the two denoisers (and the noise), as both get the same inputs.

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
      noise_hat: standard deviations s_hat of the quantized chain [N] or [N, *shape], for example
        with rounding variance absorbed; None: those of `steps`.

    Raises:
      ValueError: if a step before the last adds no noise, or the sampler has memory or
        matrix coefficients.
    """
    if jnp.ndim(steps.coeffs.x) != 1:
        raise ValueError(
            "got a sampler with memory or with matrix coefficients, expected a first-order "
            "stochastic one: with memory its steps are not Markov in x_t, so compare the paths of "
            "its ddim(eta=1) companion."
        )
    _check_stochastic(steps.coeffs.noise)
    dtype, num_steps = float_dtype(x_T), steps.t.shape[0]
    coeffs = jax.tree.map(lambda c: jnp.asarray(c).astype(dtype), steps.coeffs)
    spread = coeffs.noise if noise_hat is None else jnp.asarray(noise_hat).astype(dtype)

    def body(x, slices):
        index, t, c, s_hat, dirac, inputs = slices
        eps = call_full(x, t.astype(dtype), inputs)[0].astype(dtype)
        gap = call_quant(x, t.astype(dtype), inputs)[0].astype(dtype) - eps
        # Divide by 1 instead of the Dirac's 0: derivatives see the branch that is not taken.
        s, s_hat = jnp.where(dirac, 1, c.noise), jnp.where(dirac, 1, s_hat)
        s_hat = jnp.broadcast_to(s_hat, x.shape[1:])
        weights = jnp.where(dirac, 0, kl_weights(StepCoeffs(c.x, c.eps, s_hat)))
        constant = jnp.where(dirac, 0, log_excess((s / s_hat) ** 2 - 1) / 2)
        term = jnp.sum(weights[None] * gap**2 + constant[None], axis=tuple(range(1, x.ndim)))
        return step(x, eps, c, step_noise(key, index, x)), term

    index, dirac = jnp.arange(num_steps), _is_dirac(coeffs.noise)
    slices = (index, steps.t, coeffs, spread, dirac, per_call)
    return jax.lax.scan(body, jnp.asarray(x_T).astype(dtype), slices)[1]


def _is_dirac(noise) -> Array:
    """Say for each step whether it is the last and has no noise [N]."""
    return (noise == 0) & (jnp.arange(noise.shape[0]) == noise.shape[0] - 1)


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

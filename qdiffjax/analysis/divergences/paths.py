"""KL of the path laws of two stochastic samplers, step by step, in nats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import POSITIVE, check_count, check_number, check_type, checked, require
from qdiffjax._typing import Array, CallFn, Key, PyTree, float_dtype
from qdiffjax.analysis.errors.propagation import gauss_legendre
from qdiffjax.diffusion import (
    DiscreteSchedule,
    Point,
    Process,
    StepCoeffs,
    Steps,
    ddpm_coeffs,
    forward_variance,
    step_noise,
)
from qdiffjax.diffusion.gaussian import log_excess
from qdiffjax.diffusion.losses import add_noise
from qdiffjax.diffusion.samplers.first_order import VarianceFn
from qdiffjax.labels import Kind, bound


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
    squares are sums over elements. With `posterior_variance` w_1 is
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
    state: PyTree = (),
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
      call_full: full-precision denoiser (x, t, inputs, state) -> (eps, outputs, state).
      call_quant: quantized, the same.
      x_T: initial noise [batch, *shape].
      steps: a stochastic sampler such as ddim(eta=1), leaves [N].
      key: noise as in `diffusion.sample`.
      per_call: pytree with leaves [N, ...]; call i of both gets slice i as `inputs`.
      state: what the first call is handed, of both; each carries its own along the chain, which
        makes the law of a step one given all states before it.
      noise_hat: standard deviations s_hat of the quantized chain [N] or [N, *shape], for example
        with rounding variance absorbed; None: those of `steps`.

    Raises:
      ValueError: if a step before the last adds no noise, or the sampler has memory or
        matrix coefficients.
    """
    require(
        steps.is_first_order,
        got="a sampler with memory or with matrix coefficients",
        expected="a first-order stochastic one",
        remedy="with memory its steps are not Markov in x_t, so compare the paths "
        "of its ddim(eta=1) companion",
    )
    _check_stochastic(steps.coeffs.noise)
    dtype, num_steps = float_dtype(x_T), steps.t.shape[0]
    coeffs = jax.tree.map(lambda c: jnp.asarray(c).astype(dtype), steps.coeffs)
    spread = coeffs.noise if noise_hat is None else jnp.asarray(noise_hat).astype(dtype)

    def body(point, slices):
        (x, (state, state_hat)), (index, t, c, s_hat, dirac, inputs) = point, slices
        eps, _, state = call_full(x, t, inputs, state)
        eps_hat, _, state_hat = call_quant(x, t, inputs, state_hat)
        eps, gap = eps.astype(dtype), eps_hat.astype(dtype) - eps.astype(dtype)
        # Divide by 1 instead of the Dirac's 0: derivatives see the branch that is not taken.
        s, s_hat = jnp.where(dirac, 1, c.noise), jnp.where(dirac, 1, s_hat)
        s_hat = jnp.broadcast_to(s_hat, x.shape[1:])
        weights = jnp.where(dirac, 0, kl_weights(StepCoeffs(c.x, c.eps, s_hat)))
        constant = jnp.where(dirac, 0, log_excess((s / s_hat) ** 2 - 1) / 2)
        term = jnp.sum(weights[None] * gap**2 + constant[None], axis=tuple(range(1, x.ndim)))
        x = c.advance(x, eps, step_noise(key, index, x))
        return Point(x, (state, state_hat)), term

    index, dirac = jnp.arange(num_steps), _is_dirac(coeffs.noise)
    slices = (index, steps.times(x_T), coeffs, spread, dirac, per_call)
    return jax.lax.scan(body, Point(coeffs.start(x_T), (state, state)), slices)[1]


def _is_dirac(noise) -> Array:
    """Say for each step whether it is the last and has no noise [N]."""
    return (noise == 0) & (jnp.arange(noise.shape[0]) == noise.shape[0] - 1)


def _check_stochastic(noise) -> None:
    if isinstance(noise, jax.core.Tracer):
        return
    noise = np.asarray(noise)
    silent = np.flatnonzero(noise[: max(noise.size - 1, 1)] == 0)
    require(
        not silent.size,
        got=f"steps without noise at {silent} of {noise.size}",
        expected="noise in every step but the last",
        remedy="path laws of deterministic samplers are mutually singular, use "
        "ddim(eta=1) or ddpm, or compare samples by w2_coupling",
    )


def girsanov_weights(process: Process, times) -> np.ndarray:
    """Return g^2 / (2 sigma^2), nats per time and squared error of eps, float64 [*times]."""
    check_type("process", process, Process, remedy="Interpolated(schedule) of a discrete one")
    check_number("times", times, above=0)
    return process.exact_rates(times).diffusion_squared / (2 * process.exact(times).sigma ** 2)


@checked(t_min=POSITIVE, t_max=POSITIVE, num_panels=check_count, num_nodes=check_count)
def quadrature(t_min: float, t_max: float, num_panels: int = 8, num_nodes: int = 4):
    """Return times and weights [num_panels * num_nodes] of a composite Gauss-Legendre rule.

    Panels are equally long in log t, since the integrand grows like 1 / t towards the data.
    """
    require(t_min < t_max, "t_min, t_max", got=(t_min, t_max), expected="t_min < t_max",
            remedy="swap them")  # fmt: skip
    edges = np.geomspace(t_min, t_max, num_panels + 1)
    nodes, weights = gauss_legendre(num_nodes)
    widths = np.diff(edges)
    times = edges[:-1, None] + widths[:, None] * nodes
    return times.ravel(), (widths[:, None] * weights).ravel()


@bound(Kind.DISTRIBUTIONAL, "reverse SDEs of equal noise; first one exact for the data")
def girsanov_kl(
    call_full: CallFn, call_quant: CallFn, x_0, process: Process, rule, *, key: Key
) -> Array:
    """Return the terms of KL between the path laws of the two reverse SDEs [nodes, batch].

        KL(P || P_hat) = KL(p_T || pi_T) + int g^2 / (2 sigma^2) E |eps_hat - eps|^2 dt

    in nats, without the first term, which is 0 for equal starts. The expectation is that of the
    first SDE, here the forward process from the data: exact if call_full is E[eps | x_t] and the
    SDE starts from p_T. With call_full the noise's own conditional mean and call_quant any
    network this is the bound of Song et al. 2021 (maximum likelihood), theorem 1; it bounds the KL
    of the laws at t_min and of their projections. Sum over nodes, then `mean_interval`.

    Args:
      call_full: denoiser (x, t, inputs, state) -> (eps, outputs, state); inputs None.
      call_quant: quantized, the same.
      x_0: data [batch, *shape].
      process: VP, SubVP, VE or any other in continuous time.
      rule: times and weights [nodes]; see `quadrature`.
      key: of the noise, fresh at each time.
    """
    x_0 = jnp.asarray(x_0).astype(float_dtype(x_0))
    times, weights = (np.asarray(a, np.float64) for a in rule)
    table = jnp.asarray(weights * girsanov_weights(process, times), x_0.dtype)

    def one(indexed):
        index, t, weight = indexed
        noise = jax.random.normal(jax.random.fold_in(key, index), x_0.shape, x_0.dtype)
        x_t = add_noise(x_0, noise, process(t))
        gap = call_quant(x_t, t, None, ())[0] - call_full(x_t, t, None, ())[0]
        return weight * jnp.sum(gap.astype(x_t.dtype) ** 2, axis=tuple(range(1, x_t.ndim)))

    return jax.lax.map(one, (jnp.arange(times.size), jnp.asarray(times, x_0.dtype), table))

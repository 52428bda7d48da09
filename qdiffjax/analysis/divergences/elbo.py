"""What quantization costs the likelihood bound: Delta L of the survey's eq. 12, weighted, whole."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array, CallFn, Key, PyTree, float_dtype
from qdiffjax.analysis.divergences.paths import elbo_weights
from qdiffjax.diffusion import DiscreteSchedule, forward_variance
from qdiffjax.diffusion.losses import add_noise
from qdiffjax.diffusion.samplers.first_order import VarianceFn


class LossGap(NamedTuple):
    """Change of the squared error, |eps - eps_hat|^2 - |eps - eps_theta|^2; leaves [*lead, batch].

    square: |d|^2, never negative. cross: 2 <eps_theta - eps, d>, either sign; its mean vanishes
    for every d(x_t) if and only if eps_theta = E[eps | x_t].
    """

    square: Array
    cross: Array

    @property
    def total(self) -> Array:
        """Their sum, the survey's Delta L."""
        return self.square + self.cross


def loss_gap(
    call_full: CallFn, call_quant: CallFn, x_0, t, eps, schedule, inputs: PyTree = None
) -> LossGap:
    """Return Delta L_t of the survey, eq. 12, of each sample, leaves [batch].

        |eps - eps_hat|^2 - |eps - eps_theta|^2 = |d|^2 + 2 <eps_theta - eps, d>,
        d = eps_hat - eps_theta at x_t = alpha_t x_0 + sigma_t eps

    Sums over elements, not means. The survey keeps neither term apart, and so misses that Delta L
    can be negative. Both networks see the same x_t, which removes most of the variance.

    Args:
      call_full: full-precision (x, t, inputs, state) -> (eps, outputs, state).
      call_quant: quantized, the same.
      x_0: data [batch, *shape].
      t: time, scalar.
      eps: the noise in x_t [batch, *shape].
      schedule: the forward process.
      inputs: of both networks.
    """
    x_t = add_noise(x_0, eps, schedule(t))
    t = jnp.asarray(t).astype(x_t.dtype)
    full = call_full(x_t, t, inputs, ())[0].astype(x_t.dtype)
    d = call_quant(x_t, t, inputs, ())[0].astype(x_t.dtype) - full
    axes = tuple(range(1, x_t.ndim))
    residual = full - jnp.asarray(eps).astype(x_t.dtype)
    return LossGap(jnp.sum(d**2, axes), 2 * jnp.sum(residual * d, axes))


def elbo_gaps(
    call_full: CallFn,
    call_quant: CallFn,
    x_0,
    schedule: DiscreteSchedule,
    *,
    key: Key,
    num_times: int | None = None,
    variance_fn: VarianceFn = forward_variance,
) -> LossGap:
    """Return w_t Delta L_t along t, whose sum is the rise of the likelihood bound [num, batch].

        KL(q_{0:T} || p_hat) - KL(q_{0:T} || p) = sum_t E_q[w_t Delta L_t]

    in nats, for any two networks: the survey's eqs. 8 and 10-12 with their weights
    (`elbo_weights`), and the data's direction of the KL. Needs data, no sampling run. The sum over
    the first axis is unbiased for each sample; `mean_interval` of that for the number.

    Args:
      call_full: full-precision (x, t, inputs, state) -> (eps, outputs, state); its inputs are None.
      call_quant: quantized, the same.
      x_0: data [batch, *shape].
      schedule: the forward process, T training steps.
      key: of times and noise, a fresh noise for each time.
      num_times: None for all of t = 1 ... T; else so many strata of the times, one random time
        in each, its terms multiplied by the width of the stratum.
      variance_fn: variance of the reverse kernels. With `posterior_variance` t = 1 counts zero.
    """
    num_train_steps = schedule.num_train_steps
    num = num_train_steps if num_times is None else num_times
    require(
        1 <= num <= num_train_steps,
        got=f"num_times = {num}",
        expected=f"1 ... {num_train_steps}",
        remedy="lower it",
    )
    x_0 = jnp.asarray(x_0).astype(float_dtype(x_0))
    key_t, key_eps = jax.random.split(key)
    width = num_train_steps / num
    within = jnp.zeros(num) if num_times is None else jax.random.uniform(key_t, (num,))
    below = jnp.floor(width * (jnp.arange(num).astype(within.dtype) + within)).astype(int)
    times = jnp.minimum(below, num_train_steps - 1) + 1  # a sum may round up to the end
    weights = elbo_weights(schedule, variance_fn)
    table = jnp.asarray(np.where(np.isfinite(weights), weights, 0.0) * width, x_0.dtype)

    def one(indexed):
        index, t = indexed
        eps = jax.random.normal(jax.random.fold_in(key_eps, index), x_0.shape, x_0.dtype)
        gap = loss_gap(call_full, call_quant, x_0, t, eps, schedule)
        return jax.tree.map(lambda leaf: table[t - 1] * leaf, gap)

    return jax.lax.map(one, (jnp.arange(num), times))

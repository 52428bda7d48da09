"""KL of two reverse SDEs in continuous time (Girsanov), by quadrature over the forward process.

The SDE dx = (f x - g^2 score) dt + g dw, run backwards, with two networks for the score
-eps / sigma. Its discretizations are chains: `path_kl` of `diffusion.euler_maruyama` steps has the
same terms, h g^2 |d|^2 / (2 sigma^2), at the states of the sampler.
"""

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, Key
from qdiffjax.analysis.labels import Kind, bound
from qdiffjax.analysis.propagation import gauss_legendre
from qdiffjax.diffusion import Process, float_dtype
from qdiffjax.diffusion.losses import add_noise


def girsanov_weights(process: Process, times) -> np.ndarray:
    """Return g^2 / (2 sigma^2), nats per time and squared error of eps, float64 [*times]."""
    return process.exact_rates(times).diffusion_squared / (2 * process.exact(times).sigma ** 2)


def quadrature(t_min: float, t_max: float, num_panels: int = 8, num_nodes: int = 4):
    """Return times and weights [num_panels * num_nodes] of a composite Gauss-Legendre rule.

    Panels are equally long in log t, since the integrand grows like 1 / t towards the data.
    """
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
      call_full: (x [batch, *shape], t, inputs) -> (eps [batch, *shape], outputs); inputs None.
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
        gap = call_quant(x_t, t, None)[0] - call_full(x_t, t, None)[0]
        return weight * jnp.sum(gap.astype(x_t.dtype) ** 2, axis=tuple(range(1, x_t.ndim)))

    return jax.lax.map(one, (jnp.arange(times.size), jnp.asarray(times, x_0.dtype), table))

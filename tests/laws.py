"""Laws of data that tests share."""

import jax.numpy as jnp

from qdiffjax.diffusion import gaussian


def gaussian_law(mean, cov):
    """N(mean [n], cov [n, n]) as a mixture of one."""
    mean, cov = jnp.asarray(mean), jnp.asarray(cov)
    return gaussian.GaussianMixture(jnp.ones((1,), mean.dtype), mean[None], cov[None])

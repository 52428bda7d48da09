"""Laws of data that tests share."""

import jax.numpy as jnp
import numpy as np

from qdiffjax.diffusion import gaussian


def gaussian_law(mean, cov):
    """N(mean [n], cov [n, n]) as a mixture of one."""
    mean, cov = jnp.asarray(mean), jnp.asarray(cov)
    return gaussian.GaussianMixture(jnp.ones((1,), mean.dtype), mean[None], cov[None])


def mixture():
    """Three tilted components in the plane, near enough that their flow is smooth."""
    means = np.array([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.1]])
    roots = 0.5 * np.random.default_rng(3).normal(size=(3, 2, 2))
    covs = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(2)
    return gaussian.GaussianMixture(np.array([0.5, 0.3, 0.2]), means, covs)

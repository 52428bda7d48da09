"""Theorems about the exact mixture oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from qdiffjax import diffusion
from qdiffjax.diffusion import NoiseLevel, gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear()
K, n = 3, 4

# Compiled once for all tests: op-by-op dispatch is most of their time otherwise.
EPS_FN = jax.jit(gaussian.eps_fn_for(SCHEDULE))
log_prob, score = map(jax.jit, (gaussian.log_prob, gaussian.score))
marginal = jax.jit(gaussian.marginal)
sample_mixture = jax.jit(gaussian.sample_mixture, static_argnums=2)


def mixture(seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(K, n, n))
    covs = roots @ roots.swapaxes(1, 2) + 0.2 * np.eye(n)
    return gaussian.GaussianMixture(
        jnp.array([0.2, 0.5, 0.3]), jnp.asarray(2 * rng.normal(size=(K, n))), jnp.asarray(covs)
    )


def points(num=5):
    return jnp.asarray(np.random.default_rng(1).normal(size=(num, n)))


def component_posterior(law, x, level):
    """Weights, means and covariances of x_0 given x_t = x and the component, by regression."""
    a, s = float(level.alpha), float(level.sigma)
    w, mu, cov = (np.asarray(leaf) for leaf in law)
    cov_t = a**2 * cov + s**2 * np.eye(n)
    gain = a * cov @ np.linalg.inv(cov_t)
    log_w = [
        np.log(w[k]) + stats.multivariate_normal.logpdf(x, a * mu[k], cov_t[k]) for k in range(K)
    ]
    means = mu + np.einsum("kij,kj->ki", gain, x - a * mu)
    return special.softmax(log_w), means, cov - a * gain @ cov


def test_log_prob_is_the_log_of_the_weighted_densities():
    law, x = mixture(), points()
    densities = [w * stats.multivariate_normal.pdf(x, m, c) for w, m, c in zip(*law, strict=True)]
    assert_close(log_prob(law, x), np.log(sum(densities)), factor=64)


def test_the_score_is_the_gradient_of_log_prob():
    law, x = mixture(), points()
    expected = jax.jit(jax.vmap(jax.grad(lambda v: log_prob(law, v))))(x)
    assert_close(score(law, x), expected, factor=64)


def test_the_marginal_is_the_law_of_the_noised_data():
    level = NoiseLevel(0.8, 0.6)
    w, mu, s = np.array([0.4, 0.6]), np.array([-1.0, 2.0]), np.array([0.5, 0.3])
    law = gaussian.GaussianMixture(w, mu[:, None], (s**2)[:, None, None])

    def convolved(x):
        data = lambda x_0: np.sum(w * stats.norm.pdf(x_0, mu, s))  # noqa: E731
        kernel = lambda x_0: stats.norm.pdf(x, 0.8 * x_0, 0.6)  # noqa: E731
        return integrate.quad(lambda v: data(v) * kernel(v), -8, 8, epsabs=1e-12, points=[-1, 2])[0]

    x = np.array([-1.5, 0.2, 1.9])
    log_p = log_prob(marginal(law, level), x[:, None])
    np.testing.assert_allclose(np.exp(log_p), [convolved(v) for v in x], rtol=1e-10)


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_eps_is_the_mean_of_the_noise_given_x_t(t):
    law, xs, level = mixture(), points(), SCHEDULE(t)
    x_0 = [component_posterior(law, np.asarray(x), level) for x in xs]
    mean = np.stack([w @ means for w, means, _ in x_0])
    expected = (xs - level.alpha * mean) / level.sigma
    eps = EPS_FN(law, xs, t)
    assert_close(eps, expected, factor=64, scale=float(4 / level.sigma))


def test_at_time_zero_eps_is_zero_with_zero_derivative_even_for_point_masses():
    law = gaussian.GaussianMixture(jnp.ones(2) / 2, jnp.eye(2), jnp.zeros((2, 2, 2)))
    x = jnp.array([0.3, 0.4])
    np.testing.assert_array_equal(EPS_FN(law, x, 0), np.zeros(2))
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_array_equal(
            jax.jit(jacobian(lambda v: EPS_FN(law, v, 0)))(x), np.zeros((2, 2))
        )


def test_a_time_per_sample_is_each_sample_alone():
    law, xs = mixture(), points(3)
    times = jnp.array([5.0, 500.0, 1000.0])
    alone = jnp.stack([EPS_FN(law, x, t) for x, t in zip(xs, times, strict=True)])
    assert_close(EPS_FN(law, xs, times), alone, factor=64)


def test_float32_inputs_give_float32_answers_close_to_float64():
    law, xs, t = mixture(), points(), 400
    low = EPS_FN(law, xs.astype(jnp.float32), jnp.float32(t))
    assert low.dtype == jnp.float32
    assert_close(low, EPS_FN(law, xs, t), factor=64)


def test_far_from_every_mode_the_score_is_that_of_the_nearest_component():
    means = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    law = gaussian.GaussianMixture(jnp.ones(2) / 2, means, jnp.stack([jnp.eye(2)] * 2))
    x = jnp.array([1e4, -3e3])
    assert_close(score(law, x), means[1] - x)


def test_samples_have_the_moments_of_the_mixture():
    law, num = mixture(), 20_000
    x = np.asarray(sample_mixture(jax.random.key(0), law, num))
    w, mu, cov = (np.asarray(leaf) for leaf in law)
    mean = w @ mu
    second = np.einsum("k,kij->ij", w, cov + mu[:, :, None] * mu[:, None, :])
    products = x[:, :, None] * x[:, None, :]
    assert np.all(np.abs(x.mean(0) - mean) < 5 * x.std(0) / np.sqrt(num))
    assert np.all(np.abs(products.mean(0) - second) < 5 * products.std(0) / np.sqrt(num))


def test_samples_of_a_singular_gaussian_stay_on_its_support():
    direction = np.array([0.6, 0.8])
    law = gaussian_law(jnp.zeros(2), jnp.asarray(np.outer(direction, direction)))
    x = sample_mixture(jax.random.key(0), law, 50)
    off = np.asarray(x) @ np.array([-0.8, 0.6])
    assert np.abs(off).max() < 1e-7  # square root of the rounding of a zero eigenvalue

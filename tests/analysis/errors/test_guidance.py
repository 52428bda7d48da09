"""Errors under classifier-free guidance: algebra, shared random bits, a laboratory that rounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, quant
from qdiffjax.analysis.errors import laws, random_errors
from qdiffjax.diffusion import gaussian
from tests import worlds
from tests.analysis import coupled
from tests.laws import gaussian_law
from tests.tolerances import assert_close
from tests.worlds import normal

W = 7.5


def test_the_gain_is_the_mean_square_of_the_guided_combination():
    """Branch errors a z + b z_u and a z + b z_c with rho = a^2: E by the algebra of squares."""
    for rho in (0.0, 0.3, 0.5, 1.0):
        for w in (0.0, 1.0, 3.0, W):
            shared, own = rho, 1 - rho  # variances of the common and of each own part
            expected = ((1 - w) + w) ** 2 * shared + ((1 - w) ** 2 + w**2) * own
            assert_close(laws.guidance_gain(w, rho), np.float64(expected))
    found = [float(laws.guidance_gain(W, rho)) for rho in (0, 0.5, 1)]
    np.testing.assert_allclose(found, [98.5, 49.75, 1.0])


def test_the_gain_of_a_measured_correlation_is_exact_for_equal_mean_squares():
    d_u, d_c = normal(80, 100, 3), normal(81, 100, 3) + 0.4
    d_c = d_c * jnp.sqrt(jnp.sum(d_u**2) / jnp.sum(d_c**2))
    rho = 2 * jnp.sum(d_u * d_c) / (jnp.sum(d_u**2) + jnp.sum(d_c**2))
    guided = jnp.sum(((1 - W) * d_u + W * d_c) ** 2) / jnp.sum(d_u**2)
    assert_close(laws.guidance_gain(W, rho), guided)


def test_the_covariance_of_roundings_with_shared_bits_is_an_integral_over_the_bits():
    """e = [u >= 1 - f] - f, averaged over a grid of u that no f of the table hits."""
    f = np.linspace(0, 1, 11)[:, None]
    u = (np.arange(1000) + 0.5)[None] / 1000
    e = (u >= 1 - f) - f
    expected = np.einsum("iu,ju->ij", e, e) / 1000
    found = laws.shared_rounding_covariance(f, f.T)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert_close(np.diag(found), (f * (1 - f))[:, 0], scale=1.0)
    assert np.all(found >= -1e-15)
    fine = (np.arange(2000) + 0.5) / 2000
    mean = np.mean(laws.shared_rounding_covariance(fine[:, None], fine[None]))
    np.testing.assert_allclose(mean / np.mean(fine * (1 - fine)), 0.5, rtol=1e-6)


# ------------------------------------------------------------------ a sampler that rounds

SCALE = 0.05
STEPS = diffusion.ddim(worlds.SCHEDULE, 10)
COV = np.diag([0.5, 0.3])
EXACT = gaussian.eps_fn_for(worlds.SCHEDULE)
NUM = 2048


def eps_fn(params, x, t, cond):
    """Exact denoisers of Gaussians of one covariance and mean cond: affine, with one J for all."""
    shift = gaussian.marginal(gaussian_law(np.zeros(2), COV), worlds.SCHEDULE(t)).covs[0]
    mean = worlds.SCHEDULE(t).alpha * cond
    return worlds.SCHEDULE(t).sigma * (x - mean) @ jnp.linalg.inv(shift)


def rounding(key):
    """The denoiser with its prediction rounded at random, bits drawn inside."""

    def rounded(params, x, t, cond):
        eps = eps_fn(params, x, t, cond)
        uniform = jax.random.uniform(jax.random.fold_in(key, t.astype(int)), eps.shape)
        steps = jnp.full((1,) * eps.ndim, SCALE)
        return quant.fake_quant_stochastic(eps, steps, None, uniform, format=quant.IntFormat(16))

    return rounded


# A mean for each sample, so that the fractional parts of the two branches are unrelated.
COND, NULL = normal(83, NUM, 2), jnp.array([-0.3, 0.2])


@functools.partial(jax.jit, static_argnums=1)
def measured(key, map_branches):
    """Correlation of the branches' errors at one call, mean squared error of x_0, predicted one."""
    x_T = jax.random.normal(key, (NUM, 2))

    def sampler(fn):
        guided = diffusion.guided(fn, NULL, W, map_branches=map_branches)
        return lambda x, t, inputs, state=(): (guided(None, x, t, COND), None, state)

    full = sampler(eps_fn)
    xs = diffusion.sample(full, x_T, STEPS).states
    rounded = diffusion.sample(sampler(rounding(key)), x_T, STEPS).x_0
    t = STEPS.t[0]
    d_u, d_c = (
        diffusion.guided(rounding(key), NULL, w, map_branches=map_branches)(None, x_T, t, COND)
        - diffusion.guided(eps_fn, NULL, w)(None, x_T, t, COND)
        for w in (0.0, 1.0)
    )
    mse = jnp.sum((rounded - xs[-1]) ** 2, axis=1)
    v = jnp.full((10, 1, 2), SCALE**2 / 6)
    axes = coupled.axes(x_T[:1])
    unit = random_errors.final_variance(
        lambda x, t, i, state=(): (EXACT(gaussian_law(np.zeros(2), COV), x, t), None, state),
        xs[:, :1], STEPS, v, axes,
    )  # fmt: skip
    rho = 2 * jnp.sum(d_u * d_c) / (jnp.sum(d_u**2) + jnp.sum(d_c**2))
    return rho, jnp.mean(mse), jnp.std(mse) / NUM**0.5, unit


@pytest.mark.parametrize(("map_branches", "rho"), [(False, 0.0), (True, 0.5)])
def test_shared_bits_halve_what_guidance_adds_to_the_error(map_branches, rho):
    found, mse, error, unit = measured(worlds.KEY, map_branches)
    assert abs(found - rho) < 0.06  # 4096 products of standard deviation about 1
    predicted = float(laws.guidance_gain(W, rho) * unit.total.value[0])
    assert abs(mse - predicted) < 4 * error + 0.03 * predicted


def test_mapped_branches_are_the_same_guidance():
    x, t = normal(82, NUM, 2), jnp.float64(20)
    one, other = (
        jax.jit(diffusion.guided(eps_fn, NULL, W, map_branches=m))(None, x, t, COND)
        for m in (False, True)
    )
    assert_close(one, other, factor=64)

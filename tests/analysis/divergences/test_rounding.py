"""Theorems about the KL of rounding one Gaussian step: its orders are 2, 4, 6 and 8."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from qdiffjax import diffusion
from qdiffjax.analysis import divergences
from qdiffjax.analysis.divergences import rounding as law
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

RANGE, NUM_POINTS = 14.0, 2801  # standard deviations of P; the trapezoid rule converges beyond


class Noise(NamedTuple):
    """A discrete law: values [*batch, K], probabilities [*batch, K]."""

    values: Any
    probs: Any


class StepKL(NamedTuple):
    """KL(P || P_hat) and KL(P_hat || P) of one step, nats [*batch]."""

    forward: Any
    reverse: Any


def stochastic_rounding_noise(fraction, scale):
    """Return the error of stochastic rounding at fractional part f of the grid: two points.

    scale (1 - f) with probability f, -scale f with probability 1 - f: mean 0, variance
    scale^2 f (1 - f), skewed unless f = 1/2. Both arguments [*batch].
    """
    f, scale = jnp.asarray(fraction), jnp.asarray(scale)
    values = jnp.stack([scale * (1 - f), -scale * f], axis=-1)
    return Noise(values, jnp.stack([f, 1 - f], axis=-1))


def cumulants(noise):
    """Return the first four cumulants of the noise, each [*batch]."""
    mean = jnp.sum(noise.probs * noise.values, axis=-1)
    centred = noise.values - mean[..., None]
    second, third, fourth = (jnp.sum(noise.probs * centred**k, axis=-1) for k in (2, 3, 4))
    return mean, second, third, fourth - 3 * second**2


def biased_kl(error, sigma):
    """Return error^2 / (2 sigma^2): a rounding error that is a number; exact [*batch]."""
    return error**2 / (2 * sigma**2)


def unbiased_kl(noise, sigma):
    """Predict (r / sigma)^4 / 4, r^2 the variance of independent noise of mean zero [*batch]."""
    return cumulants(noise)[1] ** 2 / (4 * sigma**4)


def absorbed_kl(noise, sigma):
    """Predict kappa_3^2 / (12 sigma^6) + kappa_4^2 / (48 sigma^8) [*batch].

    For noise of mean zero and an injected variance reduced by its variance. Two equal points at
    +- r: (r / sigma)^8 / 12. Grows without bound in truth as r -> sigma, not here.
    """
    _, _, third, fourth = cumulants(noise)
    return third**2 / (12 * sigma**6) + fourth**2 / (48 * sigma**8)


def exact_kl(noise, sigma, *, absorbed=False):
    """Return both KLs between N(0, sigma^2) and noise + N(0, s^2), by quadrature [*batch].

    s^2 = sigma^2, or sigma^2 - Var noise if absorbed: nan where that is not positive. With
    u = p_hat / p - 1, the trapezoid rule on E_p[u - log(1 + u)] and
    E_p[(1 + u) log(1 + u) - u], which keep their digits where u is small. Accurate while
    |noise| is at most a few sigma.
    """
    values = jnp.asarray(noise.values) / jnp.asarray(sigma)[..., None]
    probs = jnp.asarray(noise.probs)
    variance = 1 - jnp.where(absorbed, cumulants(Noise(values, probs))[1], 0)
    x = jnp.linspace(-RANGE, RANGE, NUM_POINTS, dtype=values.dtype)
    x = x.reshape(-1, *(1,) * values.ndim)
    exponent = x**2 / 2 - (x - values[None]) ** 2 / (2 * variance)[None, ..., None]
    exponent = exponent - jnp.log(variance)[None, ..., None] / 2
    log_ratio = jax.nn.logsumexp(exponent, axis=-1, b=probs[None])
    # Both branches stay finite where they are not taken: derivatives see both.
    is_small = jnp.max(jnp.abs(exponent), axis=-1) < 1
    small = jnp.sum(probs[None] * jnp.expm1(jnp.minimum(exponent, 1)), axis=-1)
    small = jnp.where(is_small, small, 0)
    u = jnp.where(is_small, small, jnp.expm1(log_ratio))
    log_density = -(x[..., 0] ** 2) / 2 - np.log(2 * np.pi) / 2
    weight = jnp.exp(log_density) * (2 * RANGE / (NUM_POINTS - 1))
    forward = jnp.where(is_small, gaussian.log_excess(small), u - log_ratio)
    log_ratio = jnp.where(is_small, jnp.log1p(small), log_ratio)
    # (1 + u) log(1 + u) - u = u log(1 + u) - (u - log(1 + u)).
    both = jnp.sum(weight * forward, 0), jnp.sum(weight * (u * log_ratio - forward), 0)
    return StepKL(*(jnp.where(variance > 0, kl, jnp.nan) for kl in both))


PAIR = Noise(np.array([-1.0, 1.0]), np.array([0.5, 0.5]))
exact = jax.jit(exact_kl, static_argnames="absorbed")


def scaled(noise, r):
    """The noise times r [*batch]."""
    values = np.asarray(r)[..., None] * np.asarray(noise.values)
    return Noise(values, np.broadcast_to(noise.probs, values.shape))


SKEWED = stochastic_rounding_noise(np.float64(0.2), np.float64(2.5))  # variance 1


def scipy_kl(values, probs, std):
    """Both KLs by adaptive quadrature on logs."""
    p = stats.norm.logpdf

    def q(x):
        return np.logaddexp.reduce(np.log(probs) + p(x, values, std))

    forward = integrate.quad(lambda x: np.exp(p(x)) * (p(x) - q(x)), -12, 12, limit=400)[0]
    reverse = integrate.quad(lambda x: np.exp(q(x)) * (q(x) - p(x)), -12, 12, limit=400)[0]
    return forward, reverse


@pytest.mark.parametrize("absorbed", [False, True])
@pytest.mark.parametrize("noise", [PAIR, SKEWED], ids=["pair", "skewed"])
def test_the_quadrature_is_the_integral(noise, absorbed):
    values = 0.6 * np.asarray(noise.values)
    std = np.sqrt(1 - 0.36 * absorbed)
    found = exact(Noise(values, np.asarray(noise.probs)), 1.0, absorbed=absorbed)
    np.testing.assert_allclose(jnp.stack(found), scipy_kl(values, noise.probs, std), rtol=1e-7)


def test_the_three_costs_at_half_the_noise():
    """r = sigma / 2, two points: worked values of the theory, both directions."""
    noise = scaled(PAIR, 0.5)
    assert_close(biased_kl(0.5, 1.0), np.array(0.125))
    unbiased, absorbed = (exact(noise, 1.0, absorbed=a) for a in (False, True))
    np.testing.assert_allclose(unbiased, (0.012088, 0.01358), rtol=5e-4)
    np.testing.assert_allclose(absorbed, (0.000411, 0.000389), rtol=2e-3)


def test_a_number_as_noise_is_the_biased_cost():
    found = exact(Noise(np.array([0.7]), np.ones(1)), 2.0)
    np.testing.assert_allclose(jnp.stack(found), biased_kl(0.7, 2.0), rtol=1e-12)


ORDERS = {
    "unbiased pair": (PAIR, False, 4), "unbiased skewed": (SKEWED, False, 4),
    "absorbed skewed": (SKEWED, True, 6), "absorbed pair": (PAIR, True, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_4_unbiased_6_absorbed_8_absorbed_and_symmetric(name):
    noise, absorbed, order = ORDERS[name]
    sizes = np.array([0.05, 0.1, 0.2]) if order < 8 else np.array([0.1, 0.14, 0.2])
    predict = absorbed_kl if absorbed else unbiased_kl
    predicted = predict(scaled(noise, sizes), 1.0)
    for found in exact(scaled(noise, sizes), np.ones(3), absorbed=absorbed):
        slope = np.polyfit(np.log(sizes), np.log(np.asarray(found)), 1)[0]
        assert abs(slope - order) < 0.1
        # The law is the limit: its relative error shrinks with r.
        misses = np.abs(np.asarray(found / predicted) - 1)
        assert misses[0] < 0.05
        assert misses[0] < misses[1] < misses[2]


def test_the_law_of_two_points_is_the_eighth_power():
    assert_close(absorbed_kl(scaled(PAIR, 0.3), 1.0), np.array(0.3**8 / 12))


def test_the_absorbed_law_fails_as_the_noise_fills_the_step():
    """r / sigma = .9: the truth is .278, the law .036."""
    found = exact(scaled(PAIR, 0.9), 1.0, absorbed=True)
    np.testing.assert_allclose(found.forward, 0.278, atol=5e-4)
    np.testing.assert_allclose(absorbed_kl(scaled(PAIR, 0.9), 1.0), 0.036, atol=5e-4)
    assert np.isnan(exact(scaled(PAIR, 1.1), 1.0, absorbed=True).forward)


def test_units_do_not_matter():
    one, many = exact(scaled(PAIR, 0.4), 1.0), exact(scaled(PAIR, 4.0), 10.0)
    assert_close(jnp.stack(one), jnp.stack(many), factor=1e3)


def test_cumulants_of_stochastic_rounding():
    """Bernoulli(f) times s: s^2 f(1-f), s^3 f(1-f)(1-2f), s^4 f(1-f)(1 - 6 f(1-f))."""
    f, s = 0.3, 1.7
    found = cumulants(stochastic_rounding_noise(f, s))
    v = f * (1 - f)
    assert_close(jnp.stack(found), np.array([0, s**2 * v, s**3 * v * 0.4, s**4 * v * (1 - 6 * v)]))


def pair_cost(r):
    """Absorbed, r = 0.1 in the series, r = 0.9 far from it."""
    return exact_kl(Noise(r * PAIR.values, PAIR.probs), 1.0, absorbed=True).forward


@jax.jit
def slopes(r):
    return jax.grad(pair_cost)(r), jax.jvp(pair_cost, (r,), (1.0,))[1]


@pytest.mark.parametrize("r", [0.1, 0.9])
def test_both_modes_of_autodiff_give_the_slope_of_the_cost(r):
    high, low = (exact(scaled(PAIR, r + h), 1.0, absorbed=True).forward for h in (1e-5, -1e-5))
    np.testing.assert_allclose(jnp.stack(slopes(r)), (high - low) / 2e-5, rtol=1e-5)


# On a sampler.

SCHEDULE = diffusion.linear()
STEPS = diffusion.ddpm(SCHEDULE, 1000, variance_fn=diffusion.forward_variance)


def test_absorption_on_ddpm_is_possible_up_to_the_known_step():
    """s^2 < 4 alpha_t (1 - abar_t) / beta_t; on average 6: 2.4 at t = 1 and 17 at t = 1000."""
    beta = np.linspace(1e-4, 0.02, 1000)
    expected = 2 * np.sqrt((1 - beta) * (1 - np.cumprod(1 - beta)) / beta)[::-1]
    found = law.largest_absorbable_scale(STEPS.coeffs)
    np.testing.assert_allclose(found.always[:-1], expected[:-1], rtol=1e-10)
    np.testing.assert_allclose(found.on_average[0], 17.1, atol=0.05)
    with_noise = diffusion.ddpm_coeffs(SCHEDULE.exact([1]), SCHEDULE.exact([0]),
                                       variance_fn=diffusion.forward_variance)  # fmt: skip
    np.testing.assert_allclose(law.largest_absorbable_scale(with_noise).on_average, 2.45, atol=0.01)
    assert found.always[-1] == 0  # Ho et al.'s last step adds no noise


def test_averages_over_the_fractional_part_are_the_integrals():
    """Against 12-point Gauss-Legendre over f, exact for these polynomials."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    f, weights = (nodes + 1) / 2, weights / 2
    noise = stochastic_rounding_noise(f, np.full(12, 1.2))
    found = law.average_costs(diffusion.StepCoeffs(1.0, -0.5, 0.75), 1.8)  # q = 1.2
    dense = np.linspace(-0.6, 0.6, 2001)
    expected = [
        np.sum(weights * np.asarray(unbiased_kl(noise, 1.0))),
        np.sum(weights * np.asarray(absorbed_kl(noise, 1.0))),
    ]
    assert_close(jnp.stack(found[1:]), np.array(expected), factor=100)
    np.testing.assert_allclose(found.biased, np.mean(biased_kl(dense, 1.0)), rtol=2e-3)


def test_the_averages_are_near_the_truth_for_a_grid_of_a_quarter_of_the_noise():
    nodes, weights = np.polynomial.legendre.leggauss(12)
    noise = stochastic_rounding_noise((nodes + 1) / 2, np.full(12, 0.25))
    predicted = law.average_costs(diffusion.StepCoeffs(1.0, 1.0, 1.0), 0.25)
    for absorbed, one in ((False, predicted.unbiased), (True, predicted.absorbed)):
        kl = exact(noise, np.ones(12), absorbed=absorbed).forward
        np.testing.assert_allclose(np.sum(weights / 2 * np.asarray(kl)), one, rtol=0.02)


def test_absorption_leaves_the_second_moment_of_a_step_alone():
    coeffs = jax.tree.map(lambda leaf: leaf[500], STEPS.coeffs)
    scale = 0.9 * float(law.largest_absorbable_scale(coeffs).always)
    variance = scale**2 / 4
    left = law.absorbed_noise(coeffs, variance)
    assert_close(left**2 + coeffs.eps**2 * variance, coeffs.noise**2, factor=100)
    assert np.isnan(law.absorbed_noise(coeffs, variance / 0.8))


def test_the_costs_of_steps_add_up_to_the_kl_of_a_chain():
    """Gaussian noise instead of rounding, unbiased: the KL of two chains of equal means.

    Zero-mean Gaussian noise of variance r^2 only changes the noise of a step: path KL with
    unequal noise is sum (v - log(1 + v)) / 2 at v = -r^2 / (1 + r^2), r^4 / 4 to leading order.
    """
    call = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), gaussian_law(np.zeros(2), np.eye(2)))
    steps = jax.tree.map(lambda leaf: leaf[:3], STEPS)
    r = 0.1
    noise_hat = steps.coeffs.noise * (1 + r**2) ** 0.5
    found = divergences.path_kl(call, call, np.ones((1, 2)), steps, key=jax.random.key(0),
                                noise_hat=noise_hat)  # fmt: skip
    v = -(r**2) / (1 + r**2)
    assert_close(found[:, 0], np.full(3, 2 * (v - np.log1p(v)) / 2), factor=1e4)
    np.testing.assert_allclose(found[:, 0], 2 * r**4 / 4, rtol=2 * r**2)

"""Theorems about W2 bounds from errors along the way: valid on Gaussians, equal where promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from qdiffjax import diffusion
from qdiffjax.analysis.bounds import laws as transport_bounds
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.diffusion import gaussian
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(40, 1e-3, 0.2)
SAMPLERS = {"ddim": diffusion.ddim(SCHEDULE, 10), "ddpm": diffusion.ddpm(SCHEDULE, 10)}
PROCESSES = {"vp": diffusion.VP(0.1, 8.0), "subvp": diffusion.SubVP(0.1, 8.0),
             "ve": diffusion.VE(0.05, 5.0)}  # fmt: skip
MEAN = np.array([0.5, -1.0])


def levels(steps):
    alpha, sigma = SCHEDULE.exact(np.asarray(steps.t))
    return sigma / alpha


# Any sampler, discrete.


@pytest.mark.parametrize("name", SAMPLERS)
def test_minkowski_is_attained_by_isotropic_gaussians_and_a_constant_error(name):
    """A constant bias moves all samples alike: W2 of the laws is the distance of their means."""
    steps, c2, bias = SAMPLERS[name], 0.4, np.array([0.03, 0.04])
    gains = pathwise.posterior_gains(
        SCHEDULE, steps, pathwise.log_concave_posterior(levels(steps), 1 / c2)
    )
    local = np.tile(0.05 * np.abs(np.asarray(steps.coeffs.eps))[:, None], 3)
    bound = transport_bounds.minkowski_bound(gains, local)
    chains = [gaussian.gaussian_chain(MEAN, c2 * np.eye(2), SCHEDULE, steps, bias=b)
              for b in (0 * bias, bias)]  # fmt: skip
    exact = np.linalg.norm(np.asarray(chains[1].means - chains[0].means), axis=1)
    assert_close(bound.value, exact, factor=1e3)
    assert_close(bound.high, exact, factor=1e3)  # no spread, no interval


@pytest.mark.parametrize("name", SAMPLERS)
def test_minkowski_holds_for_relative_errors_on_anisotropic_gaussians(name):
    steps, cov, kappa = SAMPLERS[name], np.diag([0.9, 0.1]), 0.2
    gains = pathwise.posterior_gains(
        SCHEDULE, steps, pathwise.log_concave_posterior(levels(steps), 1 / 0.9)
    )
    full, hat = (gaussian.gaussian_chain(MEAN, cov, SCHEDULE, steps, kappa=k) for k in (0.0, kappa))
    squares = []
    for i, t in enumerate(np.asarray(steps.t)):
        alpha, sigma = SCHEDULE.exact(t)
        jac = kappa * sigma * np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
        mean = jac @ (np.asarray(hat.means[i]) - alpha * MEAN)
        square = mean @ mean + np.trace(jac @ np.asarray(hat.covs[i]) @ jac)
        squares.append(float(steps.coeffs.eps[i]) ** 2 * square)
    bound = transport_bounds.minkowski_bound(gains, np.tile(np.sqrt(squares)[:, None], 2)).value
    pairs = zip(full.means, full.covs, hat.means, hat.covs, strict=True)
    exact = [float(gaussian.gaussian_w2_squared(*laws)) for laws in pairs]
    assert np.all(np.sqrt(exact) <= np.asarray(bound) * (1 + 1e-9) + 1e-7)
    assert exact[-1] > 1e-4


def test_the_interval_is_that_of_the_mean_squares_pushed_through():
    """Squares 1, 9, then gain 2 and squares 4, 4: 2 sqrt(5) + 2, upper 2 sqrt(5 + 7.84) + 2."""
    local = np.array([[1.0, 3.0], [2.0, 2.0]])
    found = transport_bounds.minkowski_bound(np.array([7.0, 2.0]), local)
    assert_close(found.value, np.array([0, 5**0.5, 2 * 5**0.5 + 2]))
    assert_close(found.high[-1], np.array(2 * 12.84**0.5 + 2))


# Continuous time.


def test_the_score_rate_of_log_concave_data_is_that_of_the_narrowest_allowed_gaussian():
    level, m = PROCESSES["subvp"].exact(np.array([0.1, 0.5, 0.9])), 2.5
    posterior = pathwise.log_concave_posterior(level.sigma / level.alpha, m)
    rates = transport_bounds.score_rate(level, posterior)
    assert_close(rates, -1 / (level.alpha**2 / m + level.sigma**2), factor=100)


def test_the_score_rate_of_a_mixture_is_attained_between_its_centres_and_nowhere_exceeded():
    level = jax.tree.map(float, PROCESSES["vp"].exact(0.4))
    pair = gaussian.GaussianMixture(np.full(2, 0.5), np.array([[0.8, 0], [-0.8, 0]]),
                                    0.09 * np.stack([np.eye(2)] * 2))  # fmt: skip
    posterior = pathwise.mixture_posterior(level.sigma / level.alpha, 0.8, 0.3)
    rate = float(transport_bounds.score_rate(level, posterior))
    x = np.concatenate([np.zeros((1, 2)), np.random.default_rng(0).normal(size=(200, 2))])
    law = gaussian.marginal(pair, level)
    hessians = jax.jit(jax.vmap(jax.hessian(lambda v: gaussian.log_prob(law, v))))(x)
    top = np.linalg.eigvalsh(hessians)[:, -1]
    np.testing.assert_allclose(top[0], rate, rtol=1e-10)
    assert np.all(top <= rate + 1e-12)


def affine_laws(process, cov, times, kappa, bias, share):
    """Moments along the reverse SDE (share 1) or ODE (1/2) at descending times, from p_T."""

    def field(t):
        (alpha, sigma), (f, g2) = process.exact(t), process.exact_rates(t)
        jac = (1 + kappa) * sigma * np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
        gain = share * g2 / sigma
        added = g2 if share == 1.0 else 0.0
        return f * np.eye(2) + gain * jac, gain * (bias - jac @ (alpha * MEAN)), added

    def rates(t, y):
        (a, b, added), m, c = field(t), y[:2], y[2:].reshape(2, 2)
        return np.concatenate([a @ m + b, (a @ c + c @ a.T - added * np.eye(2)).ravel()])

    alpha, sigma = process.exact(times[0])
    start = np.concatenate([alpha * MEAN, (alpha**2 * cov + sigma**2 * np.eye(2)).ravel()])
    y = integrate.solve_ivp(rates, (times[0], times[-1]), start, t_eval=times,
                            rtol=1e-9, atol=1e-12).y.T  # fmt: skip
    return y[:, :2], y[:, 2:].reshape(-1, 2, 2)


def rms_error(process, cov, times, laws, kappa, bias):
    """(E |kappa eps + bias|^2)^(1/2) at the given laws."""
    out = []
    for t, m, c in zip(times, *laws, strict=True):
        alpha, sigma = process.exact(t)
        jac = kappa * sigma * np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
        mean = jac @ (m - alpha * MEAN) + bias
        out.append(np.sqrt(mean @ mean + np.trace(jac @ c @ jac)))
    return np.array(out)


CASES = {
    "equal": (0.4 * np.eye(2), 0.0, np.array([0.03, 0.04])),
    "below": (np.diag([0.9, 0.1]), 0.2, np.array([0.03, -0.04])),
}


@pytest.mark.parametrize("deterministic", [False, True], ids=["sde", "ode"])
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("case", CASES)
def test_the_score_error_bound_is_w2_for_isotropic_gaussians_and_above_it_else(
    case, name, deterministic
):
    process, (cov, kappa, bias) = PROCESSES[name], CASES[case]
    times = np.geomspace(1.0, 0.02, 801)
    share = 0.5 if deterministic else 1.0
    networks = (0.0, 0 * bias), (kappa, bias)
    laws = [affine_laws(process, cov, times, *net, share) for net in networks]
    level = process.exact(times)
    posterior = pathwise.log_concave_posterior(level.sigma / level.alpha, 1 / cov.max())
    rms = rms_error(process, cov, times, laws[1], kappa, bias)
    bound = transport_bounds.score_error_bound(
        process, times[::-1], transport_bounds.score_rate(level, posterior)[::-1], rms[::-1],
        deterministic=deterministic,
    )  # fmt: skip
    ends = [leaf[-1] for law in laws for leaf in law]
    exact = float(gaussian.gaussian_w2_squared(*ends)) ** 0.5
    if case == "equal":
        np.testing.assert_allclose(bound, exact, rtol=1e-4)
    assert exact <= float(bound) * (1 + 1e-4)


def test_a_distance_at_the_start_travels_with_the_gain_of_the_flow():
    """No error: the PF-ODE multiplies it by sqrt(v_0 / v_T) on N(0, c^2 I)."""
    process, c2 = PROCESSES["vp"], 0.4
    times = np.geomspace(0.02, 1.0, 2001)
    level = process.exact(times)
    v = level.alpha**2 * c2 + level.sigma**2
    bound = transport_bounds.score_error_bound(
        process, times, jnp.asarray(-1 / v), np.zeros(2001), start=0.3, deterministic=True
    )
    np.testing.assert_allclose(bound, 0.3 * np.sqrt(v[0] / v[-1]), rtol=1e-5)

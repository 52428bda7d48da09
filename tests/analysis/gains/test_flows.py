"""Theorems about the KL of continuous dynamics: deterministic flows, and SDEs by Girsanov."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from qdiffjax import diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law


def flow_kl_rate(velocity, velocity_hat, score, score_hat):
    """Return the integrand of d KL(p_s || p_hat_s) / ds at samples of p_s [batch].

        d/ds KL(p_s || p_hat_s) = E_{p_s} [ (u - u_hat) . (grad log p_s - grad log p_hat_s) ]

    for densities carried by dx/ds = u and u_hat, from the two continuity equations and one
    integration by parts; either sign, 0 where u = u_hat. s runs in the direction of the flow.

    Args:
      velocity, velocity_hat: u(x), u_hat(x) [batch, *shape].
      score, score_hat: grad log p_s(x), grad log p_hat_s(x) [batch, *shape].
    """
    change = (velocity - velocity_hat) * (score - score_hat)
    return jnp.sum(change, axis=tuple(range(1, change.ndim)))


def gaussian_flow_kl_rate(law, law_hat, field, field_hat):
    """Return d KL(p_s || p_hat_s) / ds of Gaussians carried by affine fields, closed form [].

        tr(D^T (C_hat^-1 C - I)) + (D m + d)^T C_hat^-1 (m - m_hat),   D = A - A_hat, d = a - a_hat

    the expectation in `flow_kl_rate` for p = N(m, C), p_hat = N(m_hat, C_hat), u = A x + a.

    Args:
      law, law_hat: (mean [n], covariance [n, n]).
      field, field_hat: (A [n, n], a [n]).
    """
    laws = (law, law_hat, field, field_hat)
    (m, c), (m_hat, c_hat), (a, b), (a_hat, b_hat) = laws
    ratio = jnp.linalg.solve(c_hat, c) - jnp.eye(m.shape[0], dtype=m.dtype)
    drift = jnp.matmul(a - a_hat, m, precision="highest") + b - b_hat
    pull = jnp.linalg.solve(c_hat, m - m_hat)
    return jnp.sum((a - a_hat) * ratio) + jnp.sum(drift * pull)


def affine(seed, n=3):
    """A law and an affine field with no structure."""
    r = np.random.default_rng(seed)
    root = np.eye(n) + 0.3 * r.normal(size=(n, n))
    return (r.normal(size=n), root @ root.T), (r.normal(size=(n, n)), r.normal(size=n))


def moment_rates(law, field):
    """dm/ds = A m + a,  dC/ds = A C + C A^T."""
    (m, c), (a, b) = law, field
    return a @ m + b, a @ c + c @ a.T


# Deterministic flows.


@pytest.mark.parametrize("seed", range(4))
def test_the_rate_is_the_derivative_of_the_kl_along_both_flows(seed):
    law, field = affine(seed)
    law_hat, field_hat = affine(seed + 10)
    primal = (*law, *law_hat)
    tangent = (*moment_rates(law, field), *moment_rates(law_hat, field_hat))
    _, expected = jax.jvp(gaussian.gaussian_kl, primal, tangent)
    found = gaussian_flow_kl_rate(law, law_hat, field, field_hat)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("seed", range(2))
def test_the_integrand_has_the_closed_form_as_its_mean(seed):
    """Quadratic in x, so the points m +- sqrt(n) C^(1/2) e_j give its mean exactly."""
    (m, c), (a, b) = affine(seed)
    (m_hat, c_hat), (a_hat, b_hat) = affine(seed + 10)
    units = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    x = m + units @ np.linalg.cholesky(c).T
    scores = (-np.linalg.solve(s, (x - mean).T).T for mean, s in ((m, c), (m_hat, c_hat)))
    found = flow_kl_rate(x @ a.T + b, x @ a_hat.T + b_hat, *scores)
    expected = gaussian_flow_kl_rate((m, c), (m_hat, c_hat), (a, b), (a_hat, b_hat))
    np.testing.assert_allclose(np.mean(found), expected, rtol=1e-10)


PROCESSES = {"vp": diffusion.VP(0.1, 8.0), "subvp": diffusion.SubVP(0.1, 8.0),
             "ve": diffusion.VE(0.05, 5.0)}  # fmt: skip
MEAN, COV = np.array([0.5, -1.0]), np.array([[0.6, 0.2], [0.2, 0.3]])
KAPPA, BIAS = 0.1, np.array([0.1, -0.05])
NETWORKS = ((0.0, np.zeros(2)), (KAPPA, BIAS))


def reverse_field(process, t, kappa, bias, stochastic):
    """Drift (A, a) in time t of the reverse SDE or of the PF-ODE, eps_hat = (1 + kappa) eps + b."""
    (alpha, sigma), (f, g2) = process.exact(t), process.exact_rates(t)
    gain = (1 if stochastic else 0.5) * g2 / sigma
    jac = (1 + kappa) * sigma * np.linalg.inv(alpha**2 * COV + sigma**2 * np.eye(2))
    return f * np.eye(2) + gain * jac, gain * (bias - jac @ (alpha * MEAN))


def moments_at(process, t_min, kappa, bias, stochastic):
    """Solve the moment equations from p_T of the data at t = 1 down to t_min."""
    alpha, sigma = process.exact(1.0)
    start = np.concatenate([alpha * MEAN, (alpha**2 * COV + sigma**2 * np.eye(2)).ravel()])

    def rates(t, y):
        m, c = y[:2], y[2:].reshape(2, 2)
        dm, dc = moment_rates((m, c), reverse_field(process, t, kappa, bias, stochastic))
        # Backwards in t the Wiener process still adds variance.
        dc = dc - stochastic * process.exact_rates(t).diffusion_squared * np.eye(2)
        return np.concatenate([dm, dc.ravel()])

    y = integrate.solve_ivp(rates, (1.0, t_min), start, rtol=1e-9, atol=1e-12).y[:, -1]
    return y[:2], y[2:].reshape(2, 2)


def test_the_rate_integrates_to_the_kl_of_the_probability_flow():
    process, t_min = PROCESSES["vp"], 0.05

    def rate(t):
        law = process.exact(t)
        law = law.alpha * MEAN, law.alpha**2 * COV + law.sigma**2 * np.eye(2)
        law_hat = moments_at(process, t, KAPPA, BIAS, False)
        fields = (reverse_field(process, t, *net, False) for net in NETWORKS)
        return float(gaussian_flow_kl_rate(law, law_hat, *fields))

    times, weights = divergences.quadrature(t_min, 1.0, num_panels=3, num_nodes=5)
    total = -sum(w * rate(t) for t, w in zip(times, weights, strict=True))
    laws = [moments_at(process, t_min, *net, False) for net in NETWORKS]
    np.testing.assert_allclose(total, gaussian.gaussian_kl(*laws[0], *laws[1]), rtol=1e-4)


# Girsanov.


def exact_integral(process, t_min):
    """int g^2 / 2 sigma^2 E |kappa eps + b|^2 dt,  E |eps|^2 = sigma^2 tr C_t^-1, by scipy."""

    def integrand(t):
        (alpha, sigma), g2 = process.exact(t), process.exact_rates(t).diffusion_squared
        trace = np.trace(np.linalg.inv(alpha**2 * COV + sigma**2 * np.eye(2)))
        return g2 / (2 * sigma**2) * (KAPPA**2 * sigma**2 * trace + BIAS @ BIAS)

    return integrate.quad(integrand, t_min, 1.0, epsabs=0, epsrel=1e-10)[0]


@pytest.mark.parametrize("name", PROCESSES)
def test_girsanov_is_the_integral_and_bounds_the_kl_of_the_marginal(name):
    process, t_min = PROCESSES[name], 0.02
    full = diffusion.bind(gaussian.eps_fn_for(process), gaussian_law(MEAN, COV))

    def quantized(x, t, inputs, state=()):
        return (1 + KAPPA) * full(x, t, None)[0] + BIAS[None], None, state

    x_0 = gaussian.sample_mixture(jax.random.key(0), gaussian_law(MEAN, COV), 2000)
    rule = divergences.quadrature(t_min, 1.0)

    @jax.jit
    def total(key):
        terms = divergences.girsanov_kl(full, quantized, x_0, process, rule, key=key)
        return jnp.sum(terms, axis=0)

    found = estimates.mean_interval(total(jax.random.key(1)))
    exact = exact_integral(process, t_min)
    assert abs(float(found.value) - exact) <= 3 / 1.96 * float(found.high - found.value)
    laws = [moments_at(process, t_min, *net, True) for net in NETWORKS]
    forward = process.exact(t_min)
    np.testing.assert_allclose(laws[0][0], forward.alpha * MEAN, rtol=1e-5)
    assert 0 < float(gaussian.gaussian_kl(*laws[0], *laws[1])) < exact


@pytest.mark.parametrize("name", PROCESSES)
def test_girsanov_is_attained_by_an_error_shaped_like_what_is_still_to_be_forgotten(name):
    """Score error b(t) = I(t), the gain from t to the end; equality of Cauchy and Schwarz.

    The means differ by m = int g^2 I b, the variance is v = I(T)^2 v_T + int g^2 I^2, and the path
    KL is int g^2 b^2 / 2 = int g^2 I^2 / 2: m^2 / 2 v, but for what is left of the start. On
    N(0, c^2) the gain is I(t) = alpha_t v_0 / (alpha_0 v_t).
    """
    process, t_min, c2 = PROCESSES[name], 0.02, 0.3
    level_0 = process.exact(t_min)
    v_0 = level_0.alpha**2 * c2 + level_0.sigma**2

    def gain(level):
        return level.alpha / level_0.alpha * v_0 / (level.alpha**2 * c2 + level.sigma**2)

    def full(x, t, inputs, state=()):
        return 0 * x, None, state

    def quantized(x, t, inputs, state=()):
        level = process(t)
        return 0 * x - level.sigma * gain(level), None, state

    rule = divergences.quadrature(t_min, 1.0)
    terms = divergences.girsanov_kl(full, quantized, np.zeros((2, 1)), process, rule,
                                    key=jax.random.key(0))  # fmt: skip
    path = float(np.sum(terms[:, 0]))
    exact = 2 * path**2 / v_0  # the mean is twice the path KL
    assert exact <= path <= 1.05 * exact


@pytest.mark.parametrize("name", PROCESSES)
def test_the_quadrature_is_exact_to_six_digits_for_a_constant_error(name):
    """Constant error b: the integrand is deterministic, |b|^2 g^2 / 2 sigma^2."""
    process = PROCESSES[name]
    times, weights = divergences.quadrature(0.02, 1.0)
    found = np.sum(weights * divergences.girsanov_weights(process, times))
    expected = integrate.quad(lambda t: divergences.girsanov_weights(process, t), 0.02, 1.0,
                              epsabs=0, epsrel=1e-10)[0]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # VE, closed form: g^2 / 2 sigma^2 = log(sigma_max / sigma_min).
    if name == "ve":
        np.testing.assert_allclose(found, 0.98 * np.log(100.0), rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_path_kl_of_euler_maruyama_tends_to_girsanov_at_first_order(name):
    """Constant error b: the chain's KL is deterministic; its slope in the step size is 1."""
    process, misses = PROCESSES[name], []
    exact = integrate.quad(lambda t: divergences.girsanov_weights(process, t), 0.1, 1.0)[0]
    for num in (50, 100, 200):
        times = np.linspace(1.0, 0.1, num + 1)
        steps = diffusion.euler_maruyama(process, times, denoise_last=False)
        terms = divergences.local_kl(np.asarray(steps.coeffs.eps)[:, None, None], steps)
        misses.append(abs(float(np.sum(terms)) - exact))
    if name == "ve":  # the integrand is constant: every step is exact
        assert max(misses) < 1e-12
    else:
        slope = np.polyfit(np.log([50, 100, 200]), np.log(misses), 1)[0]
        assert abs(slope + 1) < 0.1

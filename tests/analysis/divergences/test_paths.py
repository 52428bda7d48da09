"""Theorems about the KL of sampler paths: the Gaussian laboratory knows every number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, estimates
from qdiffjax.analysis import divergences
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(20, 1e-3, 0.3)
STEPS = diffusion.ddim(SCHEDULE, 8, eta=1.0)
MEAN, COV = np.array([0.5, -1.0, 0.2]), np.diag([0.6, 0.3, 0.1])
EPS_FN = gaussian.eps_fn_for(SCHEDULE)
KEY = jax.random.key(3)


@jax.jit
def lab_terms(steps, kappa, bias, noise_hat=None):
    """KL terms of eps_hat = (1 + kappa) eps + bias on Gaussian data [N, 4000]."""
    full = diffusion.bind(EPS_FN, gaussian_law(MEAN, COV))

    def quantized(x, t, inputs, state=()):
        return (1 + kappa) * full(x, t, None)[0] + bias[None], None, state

    x_T = jax.random.normal(jax.random.key(1), (4000, 3))
    return divergences.path_kl(full, quantized, x_T, steps, key=KEY, noise_hat=noise_hat)


@jax.jit
def exact_chain(steps, kappa, bias):
    return gaussian.gaussian_chain(MEAN, COV, SCHEDULE, steps, kappa=kappa, bias=bias)


def closed_form(steps, kappa, bias, chain=None):
    """E |c_eps (kappa eps(x) + bias)|^2 / (2 noise^2), x along the exact chain of laws [N-1]."""
    chain = exact_chain(steps, 0.0, np.zeros(3)) if chain is None else chain
    out = []
    for i in range(steps.t.shape[0] - 1):
        alpha, sigma = SCHEDULE.exact(np.asarray(steps.t[i]))
        jac = sigma * np.linalg.inv(alpha**2 * COV + sigma**2 * np.eye(3))
        mean = kappa * jac @ (np.asarray(chain.means[i]) - alpha * MEAN) + bias
        square = mean @ mean + kappa**2 * np.trace(jac @ np.asarray(chain.covs[i]) @ jac)
        out.append(float(steps.coeffs.eps[i] ** 2 / (2 * steps.coeffs.noise[i] ** 2)) * square)
    return np.array(out)


def test_a_constant_error_has_the_closed_form_exactly_on_every_run():
    bias = np.array([0.1, -0.2, 0.05])
    terms = lab_terms(STEPS, 0.0, bias)
    expected = np.append(closed_form(STEPS, 0.0, bias), 0.0)
    np.testing.assert_allclose(terms, np.tile(expected[:, None], 4000), rtol=1e-10)


def test_the_noise_of_girsanovs_expectation_is_fresh_at_every_node():
    """With data 0 and a gap of x_t the terms are |z|^2 of each node: independent chi-squares."""
    process, x_0 = diffusion.VP(), jnp.zeros((2000, 2))
    rule = divergences.quadrature(0.1, 0.9, 1, 4)
    zero, own = (lambda x, t, i, s, f=f: (f * x, None, s) for f in (0.0, 1.0))
    terms = jax.jit(lambda: divergences.girsanov_kl(zero, own, x_0, process, rule, key=KEY))()
    weights = np.asarray(rule[1]) * divergences.girsanov_weights(process, np.asarray(rule[0]))
    squares = np.asarray(terms) / (weights * process.exact(np.asarray(rule[0])).sigma ** 2)[:, None]
    np.testing.assert_allclose(squares.mean(1), 2, rtol=0.15)
    assert np.max(np.abs(np.corrcoef(squares) - np.eye(4))) < 0.1


def test_a_relative_error_has_the_closed_form_in_expectation():
    kappa, bias = 0.1, np.array([0.05, 0.0, -0.1])
    terms = np.asarray(lab_terms(STEPS, kappa, bias))[:-1]
    errors = terms.std(axis=1, ddof=1) / np.sqrt(terms.shape[1])
    assert np.all(np.abs(terms.mean(axis=1) - closed_form(STEPS, kappa, bias)) <= 3.5 * errors)
    total = estimates.mean_interval(terms.sum(axis=0))
    half = float(total.high - total.value) * 3 / 1.96
    assert abs(float(total.value) - closed_form(STEPS, kappa, bias).sum()) <= half


@pytest.mark.parametrize("kappa", [-0.1, 0.02, 0.2])
def test_the_path_kl_bounds_the_kl_of_the_last_noisy_marginal(kappa):
    """Data processing, for the law of x_1: the last step has no noise."""
    bias = np.array([0.05, 0.0, -0.1])
    full, quantized = exact_chain(STEPS, 0.0, np.zeros(3)), exact_chain(STEPS, kappa, bias)
    marginal = gaussian.gaussian_kl(
        full.means[-2], full.covs[-2], quantized.means[-2], quantized.covs[-2]
    )
    assert 0 < float(marginal) < closed_form(STEPS, kappa, bias).sum()


def test_the_path_kl_is_attained_by_errors_shaped_like_what_is_still_to_be_forgotten():
    """Mean shifts d_i ~ P_i s_i^2, P_i what later steps leave of them: equality of Cauchy-Schwarz.

    The marginal's KL is (sum P d)^2 / 2 v, v = sum P^2 s^2 but for what is left of the start.
    """
    level = SCHEDULE.exact(np.asarray(STEPS.t))
    gains = np.asarray(STEPS.coeffs.x + STEPS.coeffs.eps * level.sigma / (
        level.alpha**2 * COV[0, 0] + level.sigma**2))  # fmt: skip
    left = np.append(np.cumprod(gains[1:-1][::-1])[::-1], 1.0)  # of the first N - 1 steps
    shift = 0.1 * left * np.asarray(STEPS.coeffs.noise)[:-1] ** 2
    bias = np.zeros((8, 3))
    bias[:-1, 0] = shift / np.asarray(STEPS.coeffs.eps)[:-1]
    full, quantized = exact_chain(STEPS, 0.0, np.zeros(3)), exact_chain(STEPS, 0.0, bias)
    marginal = float(gaussian.gaussian_kl(
        full.means[-2], full.covs[-2], quantized.means[-2], quantized.covs[-2]))  # fmt: skip
    weights = np.asarray(divergences.kl_weights(STEPS.coeffs))[:-1]
    path = np.sum(weights * bias[:-1, 0] ** 2)
    assert marginal <= path <= 1.05 * marginal


def test_the_path_kl_exceeds_what_is_measured_on_projections_of_samples():
    """x_1 of both chains from independent noise; nearest neighbours against the closed forms."""
    kappa, bias = 0.1, np.array([0.1, 0.0, -0.05])
    laws = [(c.means[-2], c.covs[-2]) for c in (exact_chain(STEPS, 0.0, np.zeros(3)),
                                                exact_chain(STEPS, kappa, bias))]  # fmt: skip
    rng = np.random.default_rng(0)
    x, y = (rng.multivariate_normal(*law, size=3000) for law in laws)
    frames = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0][:, :2]
    found = divergences.projected_kl(x, y, frames)
    exact = [float(divergences.gaussian_projected_kl(*laws[0], *laws[1], a)) for a in frames]
    errors = np.asarray(found.high - found.low) / 2 / 1.96
    assert np.all(np.abs(np.asarray(found.value) - exact) <= 3 * errors)
    assert np.all(np.asarray(found.low) > 0)
    assert np.all(np.asarray(found.high) < closed_form(STEPS, kappa, bias).sum())


def test_two_noisy_steps_give_the_kl_of_the_joint_gaussian():
    """The joint law of (x_T, x_s, x_r) under both chains, and the textbook KL between them."""
    steps = jax.tree.map(lambda leaf: leaf[:2], STEPS)
    kappa, bias = 0.15, np.array([0.1, 0.0, 0.2])

    def joint(kappa, bias):
        matrices, offsets = gaussian.affine_steps(
            MEAN, COV, SCHEDULE, steps, kappa=kappa, bias=bias
        )
        (a, b), (u, v), (s, r) = np.asarray(matrices), np.asarray(offsets), steps.coeffs.noise
        eye, zero = np.eye(3), np.zeros((3, 3))
        root = np.block([[eye, zero, zero], [a, s * eye, zero], [b @ a, s * b, r * eye]])
        return np.concatenate([np.zeros(3), u, b @ u + v]), root @ root.T

    expected = float(gaussian.gaussian_kl(*joint(0.0, np.zeros(3)), *joint(kappa, bias)))
    np.testing.assert_allclose(closed_form(STEPS, kappa, bias)[:2].sum(), expected, rtol=1e-11)
    out = estimates.mean_interval(lab_terms(STEPS, kappa, bias)[:2].sum(axis=0))
    assert abs(float(out.value) - expected) <= 3.5 / 1.96 * float(out.high - out.value)


def test_unequal_noise_gives_the_kl_of_the_joint_gaussian():
    """Two noisy steps, the second chain with less noise; the textbook KL of the joint laws."""
    steps = jax.tree.map(lambda leaf: leaf[:2], STEPS)
    bias, shrink = np.array([0.1, 0.0, 0.2]), np.array([0.9, 0.7])
    noise = np.asarray(steps.coeffs.noise)

    def joint(bias, noise):
        matrices, offsets = gaussian.affine_steps(MEAN, COV, SCHEDULE, steps, bias=bias)
        (a, b), (u, v), (s, r) = np.asarray(matrices), np.asarray(offsets), noise
        eye, zero = np.eye(3), np.zeros((3, 3))
        root = np.block([[eye, zero, zero], [a, s * eye, zero], [b @ a, s * b, r * eye]])
        return np.concatenate([np.zeros(3), u, b @ u + v]), root @ root.T

    expected = gaussian.gaussian_kl(*joint(0 * bias, noise), *joint(bias, noise * shrink))
    # A constant error: the term of every run is the expectation.
    elementwise = np.asarray(STEPS.coeffs.noise)[:, None] * np.append(shrink, [1] * 6)[:, None]
    terms = lab_terms(STEPS, 0.0, bias, np.tile(elementwise, 3))
    assert_close(terms[:2].sum(0)[:3], np.full(3, expected), factor=1e3)


def test_both_modes_of_autodiff_give_the_slope_in_the_noise():
    """Constant error c: d/dv of (c^2 / v^2 + s^2 / v^2 - 1 - log s^2 / v^2) / 2, three elements."""
    call = lambda x, t, inputs, state=(): (0.1 * x, None, state)  # noqa: E731
    shifted = lambda x, t, inputs, state=(): (0.1 * x + 0.2, None, state)  # noqa: E731

    def total(noise_hat):
        args = (call, shifted, np.zeros((1, 3)), STEPS)
        return jnp.sum(divergences.path_kl(*args, key=KEY, noise_hat=noise_hat))

    s, b = STEPS.coeffs.noise[:-1], STEPS.coeffs.eps[:-1]
    hat = 1.1 * s
    slope = -3 * (0.2 * b) ** 2 / hat**3 + 3 * (1 / hat - s**2 / hat**3)
    noise_hat = 1.1 * STEPS.coeffs.noise
    for mode in (jax.grad, jax.jacfwd):
        assert_close(jax.jit(mode(total))(noise_hat), jnp.append(slope, 0.0), factor=1e3)


def test_the_other_direction_swaps_the_networks():
    """KL(P_hat || P): expectation along the quantized chain."""
    kappa, bias = 0.3, np.array([0.2, 0.0, -0.1])
    full = diffusion.bind(EPS_FN, gaussian_law(MEAN, COV))

    def quantized(x, t, inputs, state=()):
        return (1 + kappa) * full(x, t, None)[0] + bias[None], None, state

    x_T = jax.random.normal(jax.random.key(1), (4000, 3))
    terms = jax.jit(lambda: divergences.path_kl(quantized, full, x_T, STEPS, key=KEY))()
    chain = exact_chain(STEPS, kappa, bias)
    forward, reverse = (closed_form(STEPS, kappa, bias, chain=c) for c in (None, chain))
    out = estimates.mean_interval(terms.sum(axis=0))
    half = 3 / 1.96 * float(out.high - out.value)
    assert abs(float(out.value) - reverse.sum()) <= half
    assert abs(float(out.value) - forward.sum()) > half


def test_the_runs_are_those_of_the_sampler():
    """With error eps_hat - eps = x the terms reveal the states: |x_i|^2."""
    full = diffusion.bind(EPS_FN, gaussian_law(MEAN, COV))
    x_T = jax.random.normal(KEY, (5, 3))

    def quantized(x, t, inputs, state=()):
        return full(x, t, None)[0] + inputs * x, None, state

    scale = jnp.linspace(1.0, 2.0, 8)
    args = (full, quantized, x_T, STEPS)
    terms = divergences.path_kl(*args, key=KEY, per_call=scale)
    xs = diffusion.sample(full, x_T, STEPS, key=KEY).xs
    weights = (STEPS.coeffs.eps / STEPS.coeffs.noise)[:-1, None] ** 2 / 2
    expected = weights * scale[:-1, None] ** 2 * jnp.sum(xs[:-2] ** 2, axis=-1)
    assert_close(terms[:-1], expected, factor=1e3)
    assert np.all(terms[-1] == 0)


def test_equal_networks_have_no_kl():
    np.testing.assert_array_equal(lab_terms(STEPS, 0.0, np.zeros(3)), np.zeros((8, 4000)))


def test_a_last_step_with_noise_counts():
    steps = diffusion.make_steps(
        SCHEDULE, np.arange(20, 2, -2)[:9], lambda t, s: diffusion.ddim_coeffs(t, s, eta=1.0)
    )
    terms = lab_terms(steps, 0.0, np.array([0.1, 0.0, 0.0]))
    expected = 0.01 * np.asarray(steps.coeffs.eps) ** 2 / (2 * np.asarray(steps.coeffs.noise) ** 2)
    assert_close(terms[:, 0], expected, factor=100)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_deterministic_samplers_are_refused(num_steps):
    call = diffusion.bind(EPS_FN, gaussian_law(MEAN, COV))
    with pytest.raises(ValueError, match="eta=1"):
        divergences.path_kl(
            call, call, np.zeros((2, 3)), diffusion.ddim(SCHEDULE, num_steps), key=KEY
        )


def test_elbo_weights_of_a_schedule_worked_by_hand():
    """beta = .1, .2: abar = .9, .72; w = beta^2 / (2 var (1 - beta) (1 - abar))."""
    schedule = diffusion.DiscreteSchedule(np.array([1.0, 0.9, 0.72]))
    large = [0.1 / (2 * 0.9 * 0.1), 0.2 / (2 * 0.8 * 0.28)]
    assert_close(divergences.elbo_weights(schedule), np.array(large), factor=100)
    small = divergences.elbo_weights(schedule, diffusion.posterior_variance)
    assert np.isinf(small[0])
    assert_close(small[1:], np.array([0.04 / (2 * (0.2 * 0.1 / 0.28) * 0.8 * 0.28)]), factor=100)


def test_the_elbo_weight_is_the_kl_of_two_reverse_kernels_per_squared_error():
    """Against the KL of the Gaussians themselves, with the survey's eq. 3 for their means."""
    beta = np.concatenate([[0.0], np.linspace(1e-3, 0.3, 20)])
    abar = np.cumprod(1 - beta)
    weights = divergences.elbo_weights(SCHEDULE)
    for t in (1, 7, 20):
        gap = beta[t] / np.sqrt(1 - abar[t]) / np.sqrt(1 - beta[t]) * 0.3
        cov = beta[t] * np.eye(1)
        kl = gaussian.gaussian_kl(np.zeros(1), cov, np.array([gap]), cov)
        assert_close(weights[t - 1] * 0.09, np.array(kl), factor=1e3)

"""Theorems about the probability flow as an ODE, and exact likelihoods through it."""

import builtins
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

MEAN, COV = np.array([0.5, -1.0, 0.2]), np.diag([0.6, 0.9, 0.3]) + 0.1
LAW = gaussian_law(MEAN, COV)
X_0 = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
# process, first and last time, grid. The last is where the marginal is all but Gaussian noise.
CASES = {
    "VP": (d.VP(), 1e-3, 1.0),
    "sub-VP": (d.SubVP(), 1e-2, 1.0),
    "VE": (d.VE(), 0.1, 1.0),
    "EDM": (d.EDM(), 0.02, 80.0),
    "flow": (d.Flow(), 0.02, 0.98),
}
cases = pytest.mark.parametrize("name", CASES)


def ascending(process, first, last, num):
    return d.log_snr_times(process, last, first, num)[::-1]


def prior(process, t):
    return lambda x: gaussian.log_prob(gaussian.marginal(LAW, process(t)), x)


def likelihood(name, num=80, **kwargs):
    process, first, last = CASES[name]
    times = ascending(process, first, last, num)
    kwargs = {"prior_fn": prior(process, last)} | kwargs
    eps_fn = gaussian.eps_fn_for(process)
    return jax.jit(lambda x: d.log_likelihood(eps_fn, LAW, process, x, times, **kwargs))(X_0)


def exact(name):
    process, first, _ = CASES[name]
    return gaussian.log_prob(gaussian.marginal(LAW, process(first)), X_0)


@pytest.mark.slow
@cases
def test_the_likelihood_of_gaussian_data_is_exact_to_a_ten_thousandth_of_a_bit(name):
    bits = d.bits_per_dim(likelihood(name).log_prob, 3)
    assert np.max(np.abs(bits - d.bits_per_dim(exact(name), 3))) < 1e-4


@pytest.mark.slow
def test_runge_kutta_converges_with_slope_minus_four():
    num = np.array([20, 40, 80])
    gaps = [np.max(np.abs(likelihood("EDM", int(n)).log_prob - exact("EDM"))) for n in num]
    coarse, fine = -np.diff(np.log2(gaps))
    assert abs(2 * fine - coarse - 4) < 0.3


@pytest.mark.slow
def test_the_code_of_a_sample_is_its_standardized_self():
    """For N(m, c^2) the flow keeps (x - alpha m) / sqrt(alpha^2 c^2 + sigma^2)."""
    process, m, c = d.VP(), jnp.array([[1.0, -1.0]]), 0.5
    law = gaussian_law(m[0], c**2 * jnp.eye(2))
    times = ascending(process, 1e-3, 0.9, 200)
    eps_fn, x = gaussian.eps_fn_for(process), jnp.array([[0.7, 0.1], [2.0, -3.0]])
    x_T = jax.jit(lambda x: d.solve_pf_ode(eps_fn, law, process, x, times))(x)

    def standard(x, t):
        level = process(t)
        return (x - level.alpha * m) / jnp.sqrt(level.alpha**2 * c**2 + level.sigma**2)

    np.testing.assert_allclose(standard(x_T, 0.9), standard(x, 1e-3), rtol=1e-6)
    back = jax.jit(lambda x: d.solve_pf_ode(eps_fn, law, process, x, times[::-1]))(x_T)
    np.testing.assert_allclose(back, x, rtol=1e-6)


@pytest.mark.slow
def test_all_signs_as_probes_give_the_exact_trace():
    """Hutchinson's mean over all 2^n sign vectors is the trace itself."""
    signs = np.array([[(i >> k) & 1 for k in range(3)] for i in range(8)]) * 2.0 - 1
    probes = np.broadcast_to(signs[:, None, :], (8, 4, 3))
    both = likelihood("VP", 20, probes=probes), likelihood("VP", 20)
    assert_close(both[0].log_prob, both[1].log_prob, factor=1e3)


@pytest.mark.slow
def test_one_probe_is_an_estimate_that_knows_no_sign():
    probe = np.broadcast_to(np.array([1.0, -1.0, 1.0]), (1, 4, 3))
    one, other = (likelihood("VP", 20, probes=sign * probe).log_prob for sign in (1.0, -1.0))
    assert_close(one, other, factor=1e3)  # v^T J v is even in v
    assert np.max(np.abs(one - exact("VP"))) > 1e-2  # and not the trace


@pytest.mark.slow
def test_the_default_prior_is_the_noise_of_the_last_time():
    _, _, last = CASES["EDM"]
    result = likelihood("EDM", prior_fn=None)
    with_own = likelihood("EDM", prior_fn=lambda x: jnp.zeros(x.shape[0]))
    x = np.asarray(result.x_T)
    log_prior = -np.sum((x / last) ** 2, axis=1) / 2 - 3 * np.log(last * np.sqrt(2 * np.pi))
    assert_close(result.log_prob - with_own.log_prob, log_prior, factor=64)


def test_bits_per_dim_of_a_uniform_byte_is_eight():
    """Density 1 / 2 per dim on [-1, 1]; bins of 2 / 256."""
    assert_close(d.bits_per_dim(10 * math.log(0.5), 10, bin_width=2 / 256), np.float64(8.0))
    assert_close(d.bits_per_dim(-10 * math.log(2), 10), np.float64(1.0))


def test_probes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got probes of shape \(4, 3\)"):
        likelihood("VP", probes=np.ones((4, 3)))


@pytest.mark.slow
def test_the_flow_ode_is_the_interpolation_of_its_two_ends():
    """dx/dt = eps - x_0 for rectified flow, alpha' x_0 + sigma' eps for every process."""
    for process, t in ((d.Flow(), 0.3), (d.VP(), 0.4), (d.EDM(), 2.0)):
        field = d.pf_ode(gaussian.eps_fn_for(process), LAW, process)
        eps = gaussian.eps_fn_for(process)(LAW, X_0, jnp.float64(t))
        level, speed = process.exact(t), process.velocity(t)
        x_0 = (X_0 - level.sigma * eps) / level.alpha
        assert_close(field(jnp.float64(t), X_0), speed.alpha * x_0 + speed.sigma * eps, factor=64)


@pytest.mark.slow
def test_an_adaptive_solver_agrees_with_the_exact_likelihood():
    pytest.importorskip("diffrax")
    solver = d.diffrax_solver(rtol=1e-8, atol=1e-8)
    bits = d.bits_per_dim(likelihood("VP", solver=solver).log_prob, 3)
    assert np.max(np.abs(bits - d.bits_per_dim(exact("VP"), 3))) < 1e-4


@pytest.mark.slow
def test_an_adaptive_solver_samples_the_probability_flow():
    pytest.importorskip("diffrax")
    process = d.EDM()
    eps_fn = gaussian.eps_fn_for(process)
    x, times = 3 * X_0, d.log_snr_times(process, 3.0, 0.1, 200)
    adaptive = d.solve_pf_ode(eps_fn, LAW, process, x, times, solver=d.diffrax_solver(1e-9, 1e-9))
    fixed = d.solve_pf_ode(eps_fn, LAW, process, x, times)
    np.testing.assert_allclose(adaptive, fixed, rtol=1e-6, atol=1e-6)


def test_without_diffrax_the_error_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "diffrax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "diffrax", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="or use rk4"):
        d.diffrax_solver()

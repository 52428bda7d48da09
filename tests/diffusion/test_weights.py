"""The weights of multistep methods against the integrals that define them, by quadrature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy import integrate

from qdiffjax import diffusion as d
from tests.tolerances import assert_close

widths = st.floats(0.05, 5.0)


def integral(h, fn):
    """int_0^h e^(tau - h) fn(tau) dtau: variation of constants for x_0-prediction."""
    return integrate.quad(lambda tau: np.exp(tau - h) * fn(tau), 0, h, epsabs=1e-14)[0]


@given(widths)
@settings(max_examples=25, deadline=None)
def test_dpm_solver_weights_are_exact_for_linear_and_quadratic_predictions(h):
    assert_close(d.heun_weight(h), integral(h, lambda tau: tau / h), scale=1.0)
    assert_close(d.quadratic_weight(h), integral(h, lambda tau: (tau / h) ** 2), scale=1 / h + 10)
    assert_close(d.midpoint_weight(h), integral(h, lambda tau: 0.5), scale=1.0)
    assert_close(2 * d.published_quadratic_weight(h), d.quadratic_weight(h))


def x0_polynomial_run(steps, process, polynomial, x):
    """Run a table on a network whose x_0 is a polynomial in lambda, in plain numpy."""
    c = steps.coeffs
    state = np.zeros(c.input.shape[1])
    state[0] = x
    for i, t in enumerate(np.asarray(steps.t)):
        level = process.exact(t)
        x_0 = polynomial(d.half_log_snr(level))
        out = (c.input[i] @ state - level.alpha * x_0) / level.sigma
        state = np.asarray(c.x[i]) @ state + np.asarray(c.eps[i]) * out
    return state[0]


def x0_polynomial_exact(process, times, polynomial, x):
    """x_s = sigma_s (x_t / sigma_t + int e^lambda D(lambda) dlambda)."""
    at, to = process.exact(times[0]), process.exact(times[-1])
    start, end = d.half_log_snr(at), d.half_log_snr(to)
    gained, _ = integrate.quad(lambda u: np.exp(u) * polynomial(u), start, end, epsabs=1e-13)
    return to.sigma * (x / at.sigma + gained)


def one_step_error(method, degree, past):
    """The error of the last of `past` + 1 steps, the state before it exact."""
    process = d.VP()
    # Unequal steps, so that no weight is right by symmetry.
    times = process.time(2 * np.array([-1.0, -0.7, -0.5, -0.1, 0.1]))[-past - 2 :]
    polynomial = Polynomial(np.array([0.5, -1.0, 0.7, 0.4])[: degree + 1])
    whole = x0_polynomial_run(method(process, times), process, polynomial, 0.3)
    before = x0_polynomial_run(method(process, times[:-1]), process, polynomial, 0.3)
    return whole - x0_polynomial_exact(process, times[-2:], polynomial, before)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_dpmpp_3m_is_exact_where_the_prediction_is_a_quadratic(degree):
    assert_close(one_step_error(d.dpmpp_3m, degree, 2), 0.0, scale=10.0)


def test_the_published_3m_is_not_exact_for_a_quadratic():
    def method(process, times):
        return d.dpmpp_3m(process, times, quadratic_weight_fn=d.published_quadratic_weight)

    assert_close(one_step_error(method, 1, 2), 0.0, scale=10.0)
    assert abs(one_step_error(method, 2, 2)) > 1e-4


def test_dpmpp_2m_with_its_heun_weight_is_exact_for_a_linear_prediction():
    def method(process, times):
        return d.dpmpp_2m(process, times, slope_weight_fn=d.heun_weight)

    assert_close(one_step_error(method, 1, 1), 0.0, scale=10.0)
    assert abs(one_step_error(d.dpmpp_2m, 1, 1)) > 1e-4


@pytest.mark.parametrize("order", [3, 4])
def test_the_unipc_predictor_is_exact_for_polynomials_below_its_order(order):
    def end(times, degree):
        process = d.VP()
        polynomial = Polynomial(np.array([0.5, -1.0, 0.7, 0.4])[: degree + 1])
        steps = d.unipc(process, times, order=order, lower_order_final=False)
        # The last call: predicted x_s from the corrected x_t in slot 1.
        c, state = steps.coeffs, np.zeros(order + 2)
        state[0] = 0.3
        for i, t in enumerate(np.asarray(steps.t)):
            level = process.exact(t)
            out = (state[0] - level.alpha * polynomial(d.half_log_snr(level))) / level.sigma
            state = np.asarray(c.x[i]) @ state + np.asarray(c.eps[i]) * out
        return state[0] - x0_polynomial_exact(process, times[-2:], polynomial, state[1])

    times = d.VP().time(2 * np.array([-1.2, -1.0, -0.7, -0.5, -0.1, 0.1]))
    assert_close(end(times, order - 1), 0.0, scale=10.0)


@pytest.mark.parametrize(
    ("coordinate_fn", "inverse"),
    [
        (d.in_log_rho, lambda process, t: -d.half_log_snr(process.exact(t))),
        (d.in_rho, lambda process, t: np.exp(-d.half_log_snr(process.exact(t)))),
        (d.in_time, lambda process, t: t),
    ],
    ids=["log rho", "rho", "time"],
)
@pytest.mark.parametrize("process", [d.VP(), d.Flow()], ids=["VP", "flow"])
def test_deis_is_exact_where_eps_is_a_polynomial_of_its_coordinate(process, coordinate_fn, inverse):
    """x_s / alpha_s = x_t / alpha_t + int eps drho, eps a quadratic in the coordinate."""
    times = np.array([0.8, 0.7, 0.55, 0.3])
    polynomial = Polynomial([0.5, -1.0, 0.7])
    steps = d.deis(process, times, order=3, coordinate_fn=coordinate_fn)
    c, state, states = steps.coeffs, np.array([0.3, 0.0, 0.0]), []
    for i, t in enumerate(np.asarray(steps.t)):
        states.append(state)
        out = polynomial(inverse(process, t))
        state = np.asarray(c.x[i]) @ state + np.asarray(c.eps[i]) * out
    level = process.exact(times)

    def integrand(rho):
        return polynomial(inverse(process, process.time(-2 * np.log(rho))))

    rho = level.sigma / level.alpha
    gained, _ = integrate.quad(integrand, rho[-2], rho[-1], epsabs=1e-13)
    assert_close(state[0], level.alpha[-1] * (states[-1][0] / level.alpha[-2] + gained), factor=64)


def test_adams_bashforth_weights_integrate_cubics():
    """int_0^1 p, from p(0), p(-1), p(-2), p(-3)."""
    from qdiffjax.diffusion.samplers.adams import ADAMS

    for weights in ADAMS:
        for degree in range(len(weights)):
            values = (-np.arange(len(weights), dtype=float)) ** degree
            assert_close(np.dot(weights, values), 1 / (degree + 1), scale=30.0)

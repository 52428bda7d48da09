"""Samplers that are the same method, and methods that keep a network's own prediction."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from tests.tolerances import assert_close

SCHEDULE, VP = d.linear(), d.VP()
TIMES, REAL = d.uniform_times(1000, 8), d.log_snr_times(VP, 0.9, 0.01, 8)
POINT = jnp.array([[2.0, -1.0]])


def coeffs(steps):
    return [np.asarray(leaf) for leaf in steps.coeffs]


def assert_same(first, second, factor=1e3):
    """Up to rounding: eps coefficients are differences of numbers of the size of x's."""
    scale = max(float(np.max(np.abs(leaf))) for leaf in coeffs(second))
    for a, b in zip(coeffs(first), coeffs(second), strict=True):
        assert_close(a, b, factor=factor, scale=scale)
    np.testing.assert_array_equal(first.t, second.t)
    np.testing.assert_array_equal(first.s, second.s)


def test_ddim_dpm_solver_1_and_dpm_solver_plus_plus_1_are_one_method():
    ddim = d.ddim(SCHEDULE, 8)
    assert_same(d.dpm_solver_1(SCHEDULE, TIMES), ddim)
    assert_same(d.dpmpp_1(SCHEDULE, TIMES), ddim)
    assert_same(d.deis(SCHEDULE, TIMES, order=1), ddim)
    assert_same(d.edm(SCHEDULE, TIMES, second_order=False), ddim)
    assert_same(d.from_coeffs(SCHEDULE, TIMES, d.ddim_coeffs), ddim)


def test_euler_of_edm_and_of_flow_is_ddim():
    for process, times in ((d.EDM(), [9.0, 4.0, 1.0, 0.0]), (d.Flow(), [0.9, 0.5, 0.1, 0.0])):
        assert_same(d.euler(process, times), d.dpm_solver_1(process, times))


def test_heun_of_edm_is_heun_in_noise_to_signal():
    assert_same(d.heun(d.EDM(), [9.0, 4.0, 0.0]), d.edm_heun(d.EDM(), [9.0, 4.0, 0.0]))


def test_the_stochastic_first_order_solver_is_ancestral_ddpm():
    assert_same(d.dpmpp_1(SCHEDULE, TIMES, eta=1.0), d.ddpm(SCHEDULE, 8))
    assert_same(d.ancestral(SCHEDULE, TIMES), d.ddpm(SCHEDULE, 8))


def first_call(steps):
    """What the first call does to x_t: its coefficients of x and eps."""
    c = steps.coeffs
    if isinstance(c, d.StepCoeffs):
        return np.array([c.x[0], c.eps[0]])
    return np.array([c.x[0, 0, 0], c.eps[0, 0]])


@pytest.mark.parametrize(
    "method",
    [
        d.dpmpp_2m,
        d.dpmpp_3m,
        d.deis,
        d.unipc,
        partial(d.unipc, order=3, scale=d.bh1),
        partial(d.deis, coordinate_fn=d.in_time),
    ],
)
def test_the_first_step_of_a_multistep_method_is_ddim(method):
    expected = first_call(d.dpm_solver_1(VP, REAL))
    assert_close(first_call(method(VP, REAL)), expected, factor=64)


def test_the_first_stage_of_a_singlestep_method_is_ddim_to_its_middle():
    at, to = VP.exact(REAL[0]), VP.exact(REAL[1])
    middle = VP.time(d.half_log_snr(at) + d.half_log_snr(to))
    c = d.ddim_coeffs(at, VP.exact(middle))
    for steps in (d.dpm_solver_2(VP, REAL),):
        assert_close(steps.coeffs.input[1], np.array([c.x, c.eps]), factor=64)
        assert_close(steps.t[1], middle)


def test_the_stages_of_dpm_solver_3_are_at_thirds_of_the_interval():
    """Lu et al. 2022a, algorithm 2: r1 = 1/3 and r2 = 2/3 of the step in lambda, half the log SNR.

    The first is reached by DDIM.
    """
    at, to = VP.exact(REAL[0]), VP.exact(REAL[1])
    start, end = d.half_log_snr(at), d.half_log_snr(to)
    steps = d.dpm_solver_3(VP, REAL)
    for call, share in ((1, 1 / 3), (2, 2 / 3)):
        assert_close(d.half_log_snr(VP.exact(steps.t[call])), start + share * (end - start))
    c = d.ddim_coeffs(at, VP.exact(steps.t[1]))
    assert_close(steps.coeffs.input[1], np.array([c.x, c.eps, 0.0]), factor=64)


def test_unipc_1_predicts_with_ddim_and_corrects_with_the_trapezoid():
    """x_s = transfer(x, (D_t + D_s) / 2) in D = x_0, in two calls written out."""
    times = REAL[:3]
    steps = d.unipc(VP, times, order=1, lower_order_final=False)
    a, b, c = (d.NoiseLevel(*pair) for pair in zip(*VP.exact(times), strict=True))
    rng = np.random.default_rng(0)
    x, eps_1, eps_2 = rng.normal(size=3)

    def move(x, x_0, at, to):
        decay = at.alpha * to.sigma / (to.alpha * at.sigma)
        return to.sigma / at.sigma * x + to.alpha * (1 - decay) * x_0

    d_1 = (x - a.sigma * eps_1) / a.alpha
    predicted = move(x, d_1, a, b)
    d_2 = (predicted - b.sigma * eps_2) / b.alpha
    corrected = move(x, (d_1 + d_2) / 2, a, b)
    expected = move(corrected, d_2, b, c)
    outputs = iter([eps_1, eps_2])
    state = steps.coeffs.start(np.array([[x]]))
    for i in range(2):
        coeffs = jax.tree.map(lambda leaf, i=i: leaf[i], steps.coeffs)
        state = coeffs.advance(state, np.array([[next(outputs)]]))
    assert_close(state[0, 0, 0], expected, factor=64)


@pytest.mark.parametrize(
    "process", [VP, d.EDM(), d.Flow(), d.Cosine()], ids=lambda p: type(p).__name__
)
def test_the_last_step_of_heun_is_eulers_in_the_time_of_the_process(process):
    """Karras et al. 2022, algorithm 1: x + (0 - t) dx/dt, with f x + g^2 eps / (2 sigma)."""
    t, x, eps = 0.4, 0.7, -1.2
    level, (f, g2) = process.exact(np.array(t)), process.exact_rates(t)

    def last(steps):
        state = steps.coeffs.start(np.array([[x]]))
        coeffs = jax.tree.map(lambda leaf: leaf[-1], steps.coeffs)
        return coeffs.advance(state, np.array([[eps]]))[0, 0, 0]

    speed = f * x + g2 * eps / (2 * level.sigma)
    assert_close(last(d.heun(process, [t, 0.0])), x - t * speed, factor=64)
    denoised = (x - level.sigma * eps) / level.alpha
    assert_close(last(d.heun(process, [t, 0.0], denoise_last=True)), denoised, factor=64)
    assert_close(last(d.edm_heun(process, [t, 0.0])), denoised, factor=64)
    is_linear = isinstance(process, (d.EDM, d.Flow))
    assert np.isclose(x - t * speed, denoised) == is_linear


@pytest.mark.parametrize("prediction", [d.v_prediction, d.flow_prediction, d.x0_prediction])
@pytest.mark.parametrize(
    "method",
    [d.dpm_solver_1, d.dpmpp_2m, d.unipc, d.deis, d.dpm_solver_2, d.dpmpp_2s, d.heun, d.edm],
)
def test_a_network_may_keep_its_own_prediction(method, prediction):
    plain = sample_own(d.eps_prediction, d.pad(method(VP, REAL), 16, 5))
    converted = sample_own(prediction, d.pad(method(VP, REAL, prediction=prediction), 16, 5))
    assert_close(converted, plain, factor=1e3)


@partial(jax.jit, static_argnums=0)
def sample_own(prediction, steps):
    mean, root = jnp.array([[1.0, -0.5]]), 0.6

    def call_fn(x, t, inputs, state=()):
        level = VP(t)
        eps = level.sigma * (x - level.alpha * mean) / (level.alpha**2 * root**2 + level.sigma**2)
        return d.convert(x, eps, level, d.eps_prediction, prediction), None, state

    return d.sample(call_fn, jnp.array([[0.3, -1.1]]), steps).x_0


@pytest.mark.parametrize("method", [d.dpmpp_1, d.dpmpp_2m, d.dpmpp_3m, d.dpm_solver_1])
@pytest.mark.parametrize(
    ("process", "times", "prediction"),
    [
        (d.Flow(), np.linspace(1, 0, 9), d.flow_prediction),
        (d.zero_terminal_snr(SCHEDULE), d.trailing_times(1000, 8), d.v_prediction),
    ],
    ids=["flow", "zero terminal SNR"],
)
def test_sampling_starts_from_pure_noise_with_a_suitable_prediction(
    method, process, times, prediction
):
    """On point-mass data the end is exact."""

    def call_fn(x, t, inputs, state=()):
        level = process(t)
        p, q = prediction(level)
        return p * POINT + q * (x - level.alpha * POINT) / level.sigma, None, state

    steps = method(process, times, prediction=prediction)
    last = jax.jit(lambda x: d.sample(call_fn, x, steps).x_0)(jnp.array([[0.3, -1.1]]))
    assert_close(last, POINT, factor=200)
    with pytest.raises(ValueError, match="needs prediction=v_prediction"):
        method(process, times)

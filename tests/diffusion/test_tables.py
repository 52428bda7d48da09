"""Theorems about samplers written on basis vectors, and identities between samplers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.helpers import assert_close

SCHEDULE, VP = d.linear(), d.VP()
TIMES, REAL = d.uniform_times(1000, 8), d.log_snr_times(VP, 0.9, 0.01, 8)
# Each sampler with memory, on a grid that suits it; calls per grid of 8 intervals to sigma = 0.
TO_ZERO = d.to_zero(d.log_snr_times(VP, 0.9, 0.01, 7))
METHODS = {
    "2m": (d.dpmpp_2m(VP, TO_ZERO), 8),
    "3m": (d.dpmpp_3m(VP, TO_ZERO, lower_order_final=True), 8),
    "sde-2m": (d.dpmpp_2m(VP, TO_ZERO, eta=1.0), 8),
    "unipc-3": (d.unipc(VP, TO_ZERO, order=3), 8),
    "deis-3": (d.deis(VP, TO_ZERO, order=3), 8),
    "plms": (d.plms(SCHEDULE, TIMES), 9),
    "pndm": (d.pndm(d.Interpolated(SCHEDULE), TIMES), 17),
    "dpm-2": (d.dpm_solver_2(VP, TO_ZERO), 15),
    "dpm-3": (d.dpm_solver_3(VP, TO_ZERO), 22),
    "dpmpp-2s": (d.dpmpp_2s(VP, TO_ZERO), 15),
    "heun": (d.heun(VP, TO_ZERO), 15),
    "edm-churn": (d.edm(VP, TO_ZERO, churn=3.0), 15),
    "euler": (d.euler(VP, TO_ZERO), 8),
    "pc": (d.predictor_corrector(VP, TO_ZERO), 16),
    "one step": (d.one_step(VP, 0.9), 1),
}
methods = pytest.mark.parametrize("name", METHODS)


def coeffs(steps):
    return [np.asarray(leaf) for leaf in steps.coeffs]


def assert_same(first, second, factor=1e3):
    """Up to rounding: eps coefficients are differences of numbers of the size of x's."""
    scale = max(float(np.max(np.abs(leaf))) for leaf in coeffs(second))
    for a, b in zip(coeffs(first), coeffs(second), strict=True):
        assert_close(a, b, factor=factor, scale=scale)
    np.testing.assert_array_equal(first.t, second.t)
    np.testing.assert_array_equal(first.s, second.s)


@methods
def test_a_sampler_makes_its_number_of_calls_and_ends_at_time_zero(name):
    steps, num_calls = METHODS[name]
    assert d.nfe(steps) == num_calls
    assert steps.s[-1] == 0.0
    assert all(leaf.shape[0] == num_calls for leaf in jax.tree.leaves(steps))


@pytest.mark.parametrize("name", [n for n in METHODS if d.num_slots(METHODS[n][0].coeffs)])
def test_x_t_never_depends_on_a_slot_that_was_not_written(name):
    steps = METHODS[name][0]
    touched = np.zeros(d.num_slots(steps.coeffs), bool)
    touched[0] = True
    for read, x in zip(steps.coeffs.read, steps.coeffs.x, strict=True):
        assert not np.any(np.asarray(read)[~touched])
        leaks = np.any(np.asarray(x)[:, ~touched] != 0, axis=1)
        # A slot may hand an unwritten slot on, but x_t may not depend on one.
        assert not leaks[0]
        touched = ~leaks


# Euler, Heun and reverse diffusion approximate the process's own solution too.
EXACT = [name for name in METHODS if name not in ("euler", "heun", "pc")]


@pytest.mark.parametrize("name", EXACT)
def test_data_at_one_point_is_reached_exactly_in_any_number_of_steps(name):
    steps, _ = METHODS[name]
    process = SCHEDULE if name == "plms" else d.Interpolated(SCHEDULE) if name == "pndm" else VP
    point = jnp.array([[2.0, -1.0]])
    level = process(steps.t[0])

    def call_fn(x, t, inputs):
        level = process(t)
        return (x - level.alpha * point) / level.sigma, None

    x, key = level.alpha * point + level.sigma * jnp.array([[0.4, -1.3]]), jax.random.key(0)
    last = jax.jit(lambda x: d.sample(call_fn, x, steps, key=key).x_0)(x)
    assert_close(last, point, factor=1e4)


@pytest.mark.parametrize("name", ["sde-2m", "pndm", "euler"])
def test_padding_changes_nothing(name):
    steps, num_calls = METHODS[name]
    process = d.Interpolated(SCHEDULE) if name in ("plms", "pndm") else VP
    call_fn = d.bind(gaussian.eps_fn_for(process), gaussian.gaussian(jnp.ones(2), jnp.eye(2) / 4))
    x, key = jax.random.normal(jax.random.key(1), (3, 2)), jax.random.key(0)
    run = jax.jit(lambda s: d.sample(call_fn, x, s, key=key).x_0)
    assert_close(run(d.pad(steps, num_calls + 2, 6)), run(steps), factor=1e3)


def test_padding_to_less_is_refused():
    with pytest.raises(ValueError, match="expected at most 4, 2; raise both"):
        d.pad(METHODS["2m"][0], 4, 2)


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
        assert_close(steps.coeffs.read[1], np.array([c.x, c.eps]), factor=64)
        assert_close(steps.t[1], middle)


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
    state = d.start(np.array([[x]]), steps)
    for i in range(2):
        state = d.step(state, np.array([[next(outputs)]]),
                       jax.tree.map(lambda leaf, i=i: leaf[i], steps.coeffs))  # fmt: skip
    assert_close(state[0, 0, 0], expected, factor=64)


@pytest.mark.parametrize("prediction", [d.v_prediction, d.flow_prediction, d.x0_prediction])
@pytest.mark.parametrize(
    "method",
    [d.dpm_solver_1, d.dpmpp_2m, d.unipc, d.deis, d.dpm_solver_2, d.dpmpp_2s, d.heun, d.edm],
)
def test_a_network_may_keep_its_own_prediction(method, prediction):
    mean, root = jnp.array([[1.0, -0.5]]), 0.6

    def eps(x, t):
        level = VP(t)
        return level.sigma * (x - level.alpha * mean) / (level.alpha**2 * root**2 + level.sigma**2)

    def own(x, t, inputs):
        return d.convert(x, eps(x, t), VP(t), d.eps_prediction, prediction), None

    x = jnp.array([[0.3, -1.1]])
    plain = d.sample(lambda x, t, inputs: (eps(x, t), None), x, method(VP, REAL)).x_0
    converted = d.sample(own, x, method(VP, REAL, prediction=prediction)).x_0
    assert_close(converted, plain, factor=1e3)


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
    """On point-mass data the end is exact, and from pure noise the first x_0 is the data mean."""
    point = jnp.array([[2.0, -1.0]])
    process_fn = process

    def call_fn(x, t, inputs):
        level = process_fn(t)
        eps = (x - level.alpha * point) / level.sigma
        p, q = prediction(level)
        return p * point + q * eps, None

    steps = method(process, times, prediction=prediction)
    last = jax.jit(lambda x: d.sample(call_fn, x, steps).x_0)(jnp.array([[0.3, -1.1]]))
    assert_close(last, point, factor=200)
    with pytest.raises(ValueError, match="needs prediction=v_prediction"):
        method(process, times)


def test_a_table_that_reads_its_own_output_is_refused():
    (x,), out, z = d.basis(1)
    for wrong in (x + out, x + z):
        with pytest.raises(ValueError, match="reads its own output or noise"):
            d.assemble([d.Call(1.0, 0.0, wrong, (x,))])


@pytest.mark.parametrize("times", [[0.5, 0.7], [0.5], [[0.5, 0.1]], [0.5, 0.0, -0.1]])
def test_grids_that_do_not_descend_or_leave_zero_are_refused(times):
    with pytest.raises(ValueError, match=r"got .* expected"):
        d.dpmpp_2m(d.EDM(), times)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: d.dpmpp_multistep(VP, REAL, order=4), "expected order 1, 2 or 3"),
        (lambda: d.dpmpp_2m(VP, REAL, eta=1.5), "eta from 0"),
        (lambda: d.pndm(VP, REAL[:3]), "expected at least 4"),
        (lambda: d.plms(SCHEDULE, [10.0, 4.5, 0.0]), "Interpolated"),
        (lambda: d.make_steps(d.zero_terminal_snr(SCHEDULE), [1000, 0], d.ddim_coeffs), "alpha"),
    ],
)
def test_bad_requests_are_refused_with_their_remedy(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_table_in_float32_mode_is_the_rounded_float64_table():
    exact = d.unipc(VP, REAL, order=3)
    with jax.enable_x64(False):
        rounded = d.unipc(VP, REAL, order=3)
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, np.asarray(b).astype(np.float32))

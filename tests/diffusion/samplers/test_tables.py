"""Theorems about samplers written on basis vectors, and bad requests."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

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


@methods
def test_a_sampler_makes_its_number_of_calls_and_ends_at_time_zero(name):
    steps, num_calls = METHODS[name]
    assert d.nfe(steps) == num_calls
    assert steps.s[-1] == 0.0
    assert all(leaf.shape[0] == num_calls for leaf in jax.tree.leaves(steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in METHODS if isinstance(METHODS[n][0].coeffs, d.SlotCoeffs)]
)
def test_x_t_never_depends_on_a_slot_that_was_not_written(name):
    steps = METHODS[name][0]
    touched = np.zeros(steps.coeffs.num_slots, bool)
    touched[0] = True
    for read, x in zip(steps.coeffs.input, steps.coeffs.x, strict=True):
        assert not np.any(np.asarray(read)[~touched])
        leaks = np.any(np.asarray(x)[:, ~touched] != 0, axis=1)
        # A slot may hand an unwritten slot on, but x_t may not depend on one.
        assert not leaks[0]
        touched = ~leaks


POINT = jnp.array([[2.0, -1.0]])


@partial(jax.jit, static_argnums=0)
def sample_point(process, steps):
    def call_fn(x, t, inputs, state=()):
        level = process(t)
        return (x - level.alpha * POINT) / level.sigma, None, state

    level = process(steps.t[0])
    x = level.alpha * POINT + level.sigma * jnp.array([[0.4, -1.3]])
    return d.sample(call_fn, x, steps, key=jax.random.key(0)).x_0


# Euler, Heun and reverse diffusion approximate the process's own solution too.
EXACT = [name for name in METHODS if name not in ("euler", "heun", "pc")]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_data_at_one_point_is_reached_exactly_in_any_number_of_steps(name):
    steps, _ = METHODS[name]
    process = SCHEDULE if name == "plms" else d.Interpolated(SCHEDULE) if name == "pndm" else VP
    # Padded, so that all are one program; what it does at the idle calls is not used.
    last = sample_point(process, d.pad(steps, 22, 6))
    assert_close(last, POINT, factor=1e4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sde-2m", "pndm", "euler"])
def test_padding_changes_nothing(name):
    steps, num_calls = METHODS[name]
    process = d.Interpolated(SCHEDULE) if name in ("plms", "pndm") else VP
    call_fn = d.bind(gaussian.eps_fn_for(process), gaussian_law(jnp.ones(2), jnp.eye(2) / 4))
    x, key = jax.random.normal(jax.random.key(1), (3, 2)), jax.random.key(0)
    run = jax.jit(lambda s: d.sample(call_fn, x, s, key=key).x_0)
    assert_close(run(d.pad(steps, num_calls + 2, 6)), run(steps), factor=1e3)


def test_padding_to_less_is_refused():
    with pytest.raises(ValueError, match="expected at most 4, 2; raise both"):
        d.pad(METHODS["2m"][0], 4, 2)


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
        (lambda: d.dpmpp_multistep(VP, REAL, order=4), "order: got 4, expected 1 to 3"),
        (lambda: d.dpmpp_2m(VP, REAL, eta=1.5), "eta: got 1.5"),
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
    expected = jax.tree.map(lambda a: np.asarray(a).astype(np.float32), exact)
    chex.assert_trees_all_equal(rounded, expected, strict=True)

"""Energy models at their own points, meters and clocks that are known, the compiler's memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import hardware
from qdiffjax.hardware import measured
from qdiffjax.hardware.energy import integral
from tests import worlds
from tests.worlds import product


@pytest.mark.parametrize(
    ("bits", "full", "family", "picojoules"),
    [(8, 32, hardware.INTEGER, 0.2 + 0.1), (32, 32, hardware.INTEGER, 3.7 + 0.9)],
)
def test_the_energy_model_passes_through_the_published_points(bits, full, family, picojoules):
    found = hardware.predict_energy(product(3, 5, 7), hardware.uniform(bits, bits), family=family)
    np.testing.assert_allclose(found.compute, 105 * picojoules * 1e-12)


def test_interpolated_multiplications_lie_between_the_published_ones():
    c = product(1, 1, 1)
    pico = lambda w, a, full, family: float(  # noqa: E731
        hardware.predict_energy(c, hardware.uniform(w, a, full=full), family=family).compute[0]
        * 1e12
    )
    bf16, f8 = pico(16, 16, 16, hardware.FLOAT), pico(8, 8, 16, hardware.FLOAT)
    int8, w4a8 = pico(8, 8, 16, hardware.INTEGER), pico(4, 8, 16, hardware.INTEGER)
    assert 0.1 < w4a8 < int8 < f8 < bf16 < 1.1 + 0.9  # that of float16
    assert pico(4, 16, 16, hardware.INTEGER) == bf16


def test_energy_of_memory_is_proportional_to_traffic():
    c, w = product(3, 5, 7), hardware.uniform(8, 8)
    found = hardware.predict_energy(c, w, hardware.HBM)
    np.testing.assert_allclose(found.memory, hardware.traffic(c, w) * 3.92e-12 * 8)
    np.testing.assert_allclose(found.total, (found.compute + found.memory).sum())
    traced = jax.jit(lambda a: hardware.predict_energy(c, hardware.Widths(a, a), hardware.HBM))
    np.testing.assert_allclose(traced(jnp.array([8])).compute, found.compute, rtol=1e-12)


def test_joules_under_a_ramp_are_the_area_of_the_triangle():
    times = np.sort(np.random.default_rng(0).uniform(0, 2, 50))
    times[[0, -1]] = 0, 2
    np.testing.assert_allclose(integral(times, 30 * times), 30 * 2**2 / 2)


def test_constant_power_times_seconds_is_the_energy():
    fn = jax.jit(jnp.sin)
    found = hardware.measured_energy(fn, jnp.ones(4), seconds=0.1, read_watts=lambda: 50.0)
    np.testing.assert_allclose(found.joules, 50 * found.seconds)
    assert found.seconds >= 0.1
    np.testing.assert_allclose(found.per_call * found.calls, found.joules)
    assert found.kind == "measured"


def test_no_meter_is_said_to_be_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no power is reported"):
        hardware.measured_energy(jax.jit(jnp.sin), jnp.ones(4))


def test_a_measurement_is_the_median_of_the_calls_after_the_warm_up():
    ticks = itertools.accumulate(itertools.chain.from_iterable((1.0, s) for s in (3, 9, 4, 8, 5)))
    calls = []
    found = hardware.measure(
        lambda x: calls.append(x), 7, num_rounds=5, num_warmup=2, clock=lambda: next(ticks)
    )
    assert calls == [7] * 7
    np.testing.assert_array_equal(found.seconds, [3, 9, 4, 8, 5])
    assert (found.median, found.low, found.high) == (5, 3, 9)
    assert found.kind == "measured"
    assert found.peak_bytes is None or found.peak_bytes > 0


def test_order_statistics_hold_the_median_as_often_as_they_say():
    low, high, coverage = hardware.median_interval(np.arange(1.0, 21.0))
    assert (low, high) == (6, 15)
    np.testing.assert_allclose(coverage, 0.9586, atol=1e-4)  # of the binomial table
    draws = np.random.default_rng(0).exponential(size=(4000, 20))
    held = [lo <= np.log(2) <= hi for lo, hi, _ in map(hardware.median_interval, draws)]
    assert abs(np.mean(held) - coverage) < 4 * np.sqrt(coverage * (1 - coverage) / 4000)


def test_few_values_give_their_extremes_and_the_coverage_of_those():
    for n in (1, 2, 5):
        low, high, coverage = measured.median_interval(np.arange(n))
        assert (low, high) == (0, n - 1)
        np.testing.assert_allclose(coverage, 1 - 2.0 ** (1 - n))


def test_the_compiler_counts_the_body_of_a_loop_once():
    def loop(x, w, length):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=length)[0]

    found = [
        hardware.compiled_cost(
            lambda x, w, n=n: loop(x, w, n), worlds.shape(16, 8), worlds.shape(8, 8)
        )
        for n in (10, 100)
    ]
    assert found[0].flops == found[1].flops
    assert 1 <= found[0].flops / (2 * 16 * 8 * 8) < 1.01


def test_memory_of_a_program_is_its_arguments_its_results_and_what_it_needs_between():
    shape = worlds.shape(64, 64)
    found = hardware.compiled_cost(lambda a, b: (a @ b) @ b, shape, shape)
    n = 64 * 64 * 4
    assert (found.arguments, found.outputs) == (2 * n, n)
    assert found.temporaries >= n
    assert found.peak == found.arguments + found.outputs + found.temporaries
    donated = hardware.compiled_cost(jax.jit(lambda a: a + 1, donate_argnums=0), shape)
    assert donated.peak == n
    assert donated.kind == "counted by the compiler"

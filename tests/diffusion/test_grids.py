"""Time grids against published values worked by hand, and their algebra."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax import diffusion as d
from tests.tolerances import assert_close


def test_karras_sigmas_are_those_of_equation_5_and_end_in_zero():
    """sigma_max = 80, sigma_min = 0.002, rho = 7, N = 18, the defaults of EDM."""
    times = d.karras_times(d.EDM(), 80.0, 0.002, 18)
    i = np.arange(18)
    roots = 80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert_close(times, np.append(roots**7, 0.0))
    # As printed by many implementations: 80, 57.586, 40.786, 28.375, ...
    np.testing.assert_allclose(times[:4], [80.0, 57.586, 40.786, 28.375], atol=5e-4)


def test_karras_times_of_another_process_have_the_same_noise_to_signal():
    process = d.VP()
    times = d.karras_times(process, 1.0, 1e-3, 7)
    ends = np.exp(-d.half_log_snr(process.exact(np.array([1.0, 1e-3]))))
    level = process.exact(times[:-1])
    expected = d.karras_times(d.EDM(), float(ends[0]), float(ends[1]), 7)[:-1]
    assert_close(level.sigma / level.alpha, expected, factor=1e3)


def test_uniform_and_quadratic_times_by_hand():
    assert_close(d.power_times(1.0, 0.0, 4), np.array([1.0, 0.75, 0.5, 0.25, 0.0]))
    assert_close(d.quadratic_times(1.0, 0.0, 4), np.array([16, 9, 4, 1, 0]) / 16)
    assert_close(d.to_zero(d.power_times(1.0, 0.5, 1)), np.array([1.0, 0.5, 0.0]))


def test_log_snr_times_of_edm_are_a_geometric_sequence():
    assert_close(d.log_snr_times(d.EDM(), 8.0, 0.5, 4), np.array([8.0, 4.0, 2.0, 1.0, 0.5]))


def test_log_snr_times_of_any_process_have_equal_steps_of_log_snr():
    for process in (d.VP(), d.Flow(), d.Interpolated(d.cosine())):
        end = 990.0 if isinstance(process, d.Interpolated) else 0.99
        times = d.log_snr_times(process, end, end / 1000, 10)
        width = np.diff(d.half_log_snr(process.exact(times)))
        assert_close(width, np.full(10, np.mean(width)), factor=1e3)


def test_named_integer_grids_are_table_2_of_lin_et_al():
    """T = 1000, 5 steps; theirs run 0 ... 999, ours 1 ... 1000 and a last 0."""
    theirs = {
        d.linspace_times: [999, 749, 500, 250, 0],
        d.leading_times: [800, 600, 400, 200, 0],
        d.trailing_times: [999, 799, 599, 399, 199],
        d.multistep_linspace_times: [999, 799, 599, 400, 200],
        d.multistep_leading_times: [830, 664, 498, 332, 166],
    }
    for grid_fn, timesteps in theirs.items():
        np.testing.assert_array_equal(grid_fn(1000, 5), np.append(np.add(timesteps, 1), 0))
    np.testing.assert_array_equal(d.leading_times(1000, 5, offset=1)[:2], [802, 602])
    np.testing.assert_array_equal(d.ending_at(d.trailing_times(1000, 2), 1), [1000, 500, 1])


@given(st.integers(2, 1000), st.data())
@settings(max_examples=50, deadline=None)
def test_integer_grids_are_valid_for_every_number_of_steps(num_train_steps, data):
    num_steps = data.draw(st.integers(1, num_train_steps))
    for grid_fn in (d.linspace_times, d.leading_times, d.trailing_times):
        times = grid_fn(num_train_steps, num_steps)
        assert times.shape == (num_steps + 1,)
        assert np.all(np.diff(times) < 0)
        assert np.all(times == np.floor(times))
        assert times[-1] == 0
        assert 1 <= times[0] <= num_train_steps


@given(st.integers(2, 1000), st.integers(0, 3), st.data())
@settings(max_examples=50, deadline=None)
def test_grids_that_would_repeat_a_time_or_pass_the_last_one_are_refused(num_train, offset, data):
    num_steps = data.draw(st.one_of(st.just(num_train), st.integers(1, num_train)))
    for grid_fn in (
        d.multistep_linspace_times,
        functools.partial(d.leading_times, offset=offset),
        functools.partial(d.multistep_leading_times, offset=offset),
    ):
        try:
            times = grid_fn(num_train, num_steps)
        except ValueError as error:
            assert f"num_steps = {num_steps}" in str(error)  # noqa: PT017
            assert "trailing_times" in str(error)  # noqa: PT017
            assert num_steps == num_train or offset
        else:
            assert np.all(np.diff(times) < 0)
            assert times[0] <= num_train


def test_as_many_steps_as_there_are_times_is_a_grid_of_all_or_is_refused_in_words():
    for grid_fn in (d.uniform_times, d.trailing_times, d.linspace_times, d.leading_times):
        np.testing.assert_array_equal(grid_fn(7, 7), np.arange(7, -1, -1))
    for grid_fn in (d.multistep_linspace_times, d.multistep_leading_times):
        with pytest.raises(
            ValueError, match=r"num_steps = 7.*expected distinct times of at most 7"
        ):
            grid_fn(7, 7)
        assert grid_fn(7, 6).size == 7


@given(st.floats(0.1, 10), st.floats(0.0, 0.9), st.integers(1, 50), st.floats(0.5, 8))
@settings(max_examples=50, deadline=None)
def test_power_times_descend_between_their_ends_and_are_homogeneous(t_max, ratio, num, power):
    times = d.power_times(t_max, ratio * t_max, num, power)
    assert (times[0], times[-1]) == (t_max, ratio * t_max)
    assert np.all(np.diff(times) < 0)
    assert_close(d.power_times(2 * t_max, 2 * ratio * t_max, num, power), 2 * times, factor=64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: d.power_times(0.5, 1.0, 3),
        lambda: d.power_times(1.0, 0.0, 0),
        lambda: d.log_snr_times(d.VP(), 1.0, 0.0, 3),
        lambda: d.trailing_times(10, 11),
        lambda: d.leading_times(10, 0),
    ],
)
def test_impossible_grids_are_refused(call):
    with pytest.raises(ValueError, match=r"got .*, expected .*; "):
        call()


def test_a_number_of_steps_alone_takes_the_default_grid_of_its_schedule():
    """Discrete: DDIM's uniform times. A process: Karras et al.'s sigma_edm from 80 to 0.002, 0."""
    np.testing.assert_array_equal(d.default_times(d.linear(), 5), d.uniform_times(1000, 5))
    edm = d.default_times(d.EDM(), 3)
    root = (80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2
    np.testing.assert_allclose(edm, [80, root**7, 0.002, 0], rtol=1e-9)
    ve = d.default_times(d.VE(), 3)
    assert ve[0] == pytest.approx(1.0)
    flow = d.default_times(d.Flow(), 4)
    assert flow[0] == pytest.approx(80 / 81)
    for sampler in (d.dpmpp_2m, d.heun, d.euler, d.unipc):
        by_number, by_times = sampler(d.Flow(), 4), sampler(d.Flow(), flow)
        np.testing.assert_array_equal(by_number.t, by_times.t)
    with pytest.raises(ValueError, match="expected a DiscreteSchedule or a Process"):
        d.default_times(None, 3)

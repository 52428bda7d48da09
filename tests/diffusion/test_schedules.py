"""Theorems about noise schedules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax import diffusion
from tests.tolerances import assert_close

SCHEDULES = [
    diffusion.linear(),
    diffusion.cosine(),
    diffusion.linear(7, 0.1, 0.5),
    diffusion.sqrt(),
    diffusion.scaled_linear(),
    diffusion.zero_terminal_snr(diffusion.linear()),
    diffusion.sigmoid(),
    diffusion.sigmoid_betas(),
]
names = ["linear", "cosine", "short", "sqrt", "scaled-linear", "zero-terminal-snr", "sigmoid"]
names += ["sigmoid-betas"]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=names)


def test_alpha_bar_is_the_product_of_one_minus_beta():
    schedule = diffusion.linear(3, beta_min=0.1, beta_max=0.3)
    assert schedule.num_train_steps == 3
    assert_close(schedule.alpha_bar, np.array([1.0, 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))


def test_cosine_follows_its_angle_until_the_last_beta_is_clipped():
    num_steps, offset = 10, 0.008
    schedule = diffusion.cosine(num_steps, offset, max_beta=0.999)
    angle = (np.arange(num_steps) / num_steps + offset) / (1 + offset) * np.pi / 2
    expected = (1 + np.cos(2 * angle)) / (1 + np.cos(2 * angle[0]))  # 2 cos^2 = 1 + cos 2
    assert_close(schedule.alpha_bar[:-1], expected)
    assert_close(schedule.alpha_bar[-1], 0.001 * expected[-1], factor=1e3)


def test_sqrt_is_diffusion_lm_until_the_last_beta_is_clipped():
    """T = 4, offset 0: alpha_bar = 1, 1 - 1/2, 1 - sqrt(1/2), 1 - sqrt(3/4), clipped."""
    schedule = diffusion.sqrt(4, offset=0.0, max_beta=0.999)
    table = np.array([1.0, 0.5, 1 - np.sqrt(0.5), 1 - np.sqrt(0.75)])
    assert_close(schedule.alpha_bar[:4], table)
    assert_close(schedule.alpha_bar[4], 0.001 * table[3], factor=1e3)


def test_sigmoid_by_hand_is_symmetric_about_its_middle_and_tends_to_the_linear_one():
    schedule = diffusion.sigmoid(4, start=-np.log(3), end=np.log(3))  # sigmoids 1/4 ... 3/4
    outer = 1 / (1 + 3**0.5)  # at t = T / 4: of -log(3) / 2
    expected = np.array([1, (0.75 - outer) / 0.5, 0.5, (0.75 - 1 + outer) / 0.5])
    assert_close(schedule.alpha_bar[:-1], expected)
    table = diffusion.sigmoid(100, -2.0, 2.0, 0.7, max_beta=1.0 - 1e-12).alpha_bar
    assert_close(table[1:-1] + table[-2:0:-1], np.ones(99), factor=64)
    hot = diffusion.sigmoid(
        10, temperature=1e4
    ).alpha_bar  # a straight sigmoid: alpha_bar = 1 - t/T
    np.testing.assert_allclose(hot[:-1], 1 - np.arange(10) / 10, atol=1e-7)
    with pytest.raises(ValueError, match="expected start < end"):
        diffusion.sigmoid(10, 3.0, -3.0)


def test_sigmoid_betas_run_between_their_ends_by_the_sigmoid_of_minus_to_plus_six():
    table = diffusion.sigmoid_betas(3, 0.1, 0.3).alpha_bar
    ends = 1 / (1 + np.exp([6.0, 0.0, -6.0]))
    assert_close(1 - table[1:] / table[:-1], 0.1 + 0.2 * ends, factor=64)


def test_scaled_linear_betas_have_equispaced_roots():
    schedule = diffusion.scaled_linear(3, 0.01, 0.25)
    betas = 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]
    assert_close(np.sqrt(betas), np.array([0.1, 0.3, 0.5]))


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_pure_noise():
    """Lin et al. 2024, algorithm 1: sqrt(alpha_bar) shifted by its last and scaled by its first."""
    before = diffusion.linear(5, 0.1, 0.5)
    after = diffusion.zero_terminal_snr(before)
    assert after.alpha_bar[-1] == 0.0
    assert_close(after.alpha_bar[:2], before.alpha_bar[:2])
    ratios = np.diff(np.sqrt(after.alpha_bar[1:])) / np.diff(np.sqrt(before.alpha_bar[1:]))
    assert_close(ratios, np.full(4, ratios[0]), factor=64)


@pytest.mark.parametrize("read", [diffusion.linear(), diffusion.linear().exact])
def test_times_between_the_integers_are_refused_with_the_remedy(read):
    with pytest.raises(ValueError, match=r"expected integers; .* Interpolated"):
        read(np.array([10.5, 3.0]))


@schedules
def test_variance_is_preserved_and_time_zero_is_clean(schedule):
    times = jnp.arange(schedule.num_train_steps + 1)
    level = schedule(times)
    assert_close(level.alpha**2 + level.sigma**2, np.ones(times.shape))
    assert (level.alpha[0], level.sigma[0]) == (1.0, 0.0)
    assert np.all(np.diff(level.alpha) < 0)
    assert np.all(np.diff(level.sigma) > 0)


@schedules
def test_lookup_has_the_shape_and_the_float_dtype_of_t(schedule):
    t = jnp.array([[1, 3], [5, 0]])
    for dtype in (jnp.float32, jnp.float64):
        level = schedule(t.astype(dtype))
        chex.assert_shape(level, t.shape)
        chex.assert_type(level, dtype)
        assert_close(level.alpha**2, schedule.alpha_bar[np.asarray(t)].astype(dtype))
    chex.assert_type(schedule(t), jnp.float64)
    chex.assert_type(schedule(t.astype(jnp.bfloat16)), jnp.float32)
    chex.assert_shape(schedule(3), ())


def test_float32_sigma_keeps_its_relative_accuracy_near_time_zero():
    sigma = diffusion.linear()(jnp.float32(1)).sigma
    assert_close(sigma, np.float32(1e-2), factor=1)  # sqrt(beta_1), not sqrt(1 - alpha^2)


def test_lookup_is_the_same_with_64_bit_types_off():
    schedule = diffusion.linear()
    with jax.enable_x64(False):
        level = schedule(jnp.array([10, 500]))
        assert level.alpha.dtype == jnp.float32
    assert_close(level.alpha, np.sqrt(schedule.alpha_bar[[10, 500]]))


def test_equal_schedules_are_one_static_argument():
    @chex.assert_max_traces(n=2)
    def sigma(schedule, t):
        return schedule(t).sigma

    compiled = jax.jit(sigma, static_argnums=0)
    for schedule in (diffusion.linear(20), diffusion.linear(20), diffusion.linear(21)):
        compiled(schedule, jnp.array(3))
    assert diffusion.linear(20) != diffusion.cosine(20)
    assert diffusion.linear(20) != "linear"


def test_the_table_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        diffusion.linear(5).alpha_bar[0] = 2.0


@pytest.mark.parametrize(
    "table", [[1.0], [[1.0, 0.5]], [0.9, 0.5], [1.0, 0.5, 0.5], [1.0, -0.1], [1.0, np.nan]]
)
def test_tables_that_are_no_schedule_are_refused(table):
    with pytest.raises(ValueError, match="expected"):
        diffusion.DiscreteSchedule(np.array(table))


@pytest.mark.parametrize("t", [-1, 1001, np.array([0.0, 2000.0])])
def test_concrete_times_outside_the_table_are_refused(t):
    with pytest.raises(ValueError, match=r"expected 0 \.\.\. 1000"):
        diffusion.linear()(t)


def test_uniform_times_step_by_twenty_for_fifty_of_a_thousand():
    np.testing.assert_array_equal(diffusion.uniform_times(1000, 50), np.arange(1000, -1, -20))


@given(st.integers(1, 200), st.data())
@settings(max_examples=50, deadline=None)
def test_uniform_times_descend_with_spacings_that_differ_by_one_at_most(num_train_steps, data):
    num_steps = data.draw(st.integers(1, num_train_steps))
    times = diffusion.uniform_times(num_train_steps, num_steps)
    spacing = -np.diff(times)
    assert (times[0], times[-1], times.size) == (num_train_steps, 0, num_steps + 1)
    assert spacing.min() >= 1
    assert spacing.max() - spacing.min() <= 1


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=r"expected 1 to 1000"):
        diffusion.uniform_times(1000, num_steps)

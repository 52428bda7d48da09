"""Recipes chosen as samples run: exact cases, samples alone, and what tolerances keep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import diffusion, strategies
from tests import worlds
from tests.tolerances import assert_close

NUM_STEPS, WIDTHS, COSTS = 5, (4, 6, 8), (16.0, 36.0, 64.0)
TOLERANCE = 0.02
pytestmark = pytest.mark.usefixtures("compile_fast")


def linear_fn(params, x, t):
    """eps of Gaussian data, up to a factor: linear in x, by two products."""
    return (x @ params["in"]) @ params["out"] * (1 + t / 50)


def conditional_fn(params, x, t, shift):
    return linear_fn(params, x, t) + shift


def world(net_fn=linear_fn, cond=None):
    """Three recipes of a linear denoiser, the cheapest first, and their sampler."""
    params = {"in": worlds.normal32(1, 4, 6), "out": worlds.normal32(2, 6, 4, scale=0.1)}
    denoiser = qd.Denoiser(net_fn, params, qd.linear(50), (4,), cond=cond)
    steps = qd.ddim(denoiser.schedule, NUM_STEPS)
    calibration = qd.calibrate(denoiser, steps, jax.random.key(0))
    return [qd.quantize(calibration, f"W{b}A{b}", sites=("*",)) for b in WIDTHS], steps


@functools.cache
def fitted():
    """The recipes with a controller, and noises to choose on and to score, 64 and 128."""
    qs, steps = world()
    noises = [strategies.reference(qs[0], steps, worlds.normal32(seed, num, 4))
              for seed, num in ((3, 64), (4, 128), (5, 128))]  # fmt: skip
    made = strategies.dynamic(qs, COSTS, noises[0], TOLERANCE, num_rungs=7, num_forecast=8)
    return qs, steps, made, noises


@functools.cache
def stack():
    return fitted()[2].stack


def final(q, x_T, steps):
    return qd.precision.final_samples(q, x_T, steps)


def test_a_number_takes_its_recipe_out_of_a_stack():
    qs, steps = fitted()[:2]
    x = worlds.normal32(6, 3, 4)
    for k, q in enumerate(qs):
        expected = qd.precision.quantized_call(q)(x, steps.times(x)[0])[0]
        actual = stack().predict(jnp.full(3, k), x, steps.times(x)[0])
        assert_close(actual, expected)


def test_recipes_that_differ_in_activations_hold_their_weights_once():
    qs, steps = fitted()[:2]
    calibration = qd.calibrate(qs[0].denoiser, steps, jax.random.key(0))
    made = strategies.stacked(
        [qd.quantize(calibration, f"W8A{b}", sites=("*",)) for b in WIDTHS], steps
    )
    assert {leaf.shape for leaf in made.varying} == {(3,)}  # bits alone
    assert all(leaf.ndim >= 1 for leaf in stack().varying)
    assert max(leaf.size for leaf in stack().varying) == 3 * 24  # and weights of all three


@pytest.mark.parametrize(("tolerance", "index"), [(np.inf, 0), (0.0, 2)])
def test_no_limit_takes_the_cheapest_and_no_tolerance_the_dearest(tolerance, index):
    qs, steps, made, noises = fitted()
    run = jax.jit(strategies.run_dynamic)(made.within(tolerance), noises[2].x_T, steps)
    assert np.all(np.asarray(run.choices) == index)
    assert np.all(np.asarray(run.cost(COSTS)) == COSTS[index])
    assert_close(run.x_0, final(qs[index], noises[2].x_T, steps), factor=64)


def test_each_sample_runs_as_if_it_were_alone():
    _, steps, made, noises = fitted()
    x_T = noises[2].x_T[:8]
    run = jax.jit(strategies.run_dynamic)
    together = run(made, x_T, steps)
    assert len(np.unique(together.choices)) > 1
    for i in range(len(x_T)):
        alone = run(made, x_T[i : i + 1], steps)
        np.testing.assert_array_equal(alone.choices[:, 0], together.choices[:, i])
        assert_close(alone.x_0[0], together.x_0[i], factor=64)


def test_choices_that_are_given_are_run():
    """What a controller chose, run again as data, and by a loop over the recipes themselves."""
    qs, steps, made, noises = fitted()
    x_T = noises[2].x_T[:4]
    run = strategies.run_dynamic(made, x_T, steps)
    again = strategies.run_choices(made.stack, run.choices, x_T, steps)
    assert_close(again.x_0, run.x_0, factor=64)
    x = x_T
    for i, t in enumerate(steps.times(x_T)):
        each = jnp.stack([qd.precision.quantized_call(q)(x, t)[0] for q in qs])
        coeffs = jax.tree.map(lambda leaf, i=i: leaf[i], steps.coeffs)
        x = coeffs.advance(x, each[run.choices[i], jnp.arange(4)])
    assert_close(run.x_0, x, factor=64)


def test_features_are_seen_where_other_choices_are_taken():
    """Before the first call nothing differs; after it what was predicted by the recipe taken."""
    qs, steps, made, noises = fitted()
    x_T = noises[2].x_T[:4]
    choices = np.tile([[0, 1, 2, 0]], (NUM_STEPS, 1)).astype(np.int32)
    run = strategies.run_dynamic(made, x_T, steps, choices=jnp.asarray(choices))
    np.testing.assert_array_equal(run.choices, choices)
    assert_close(run.x_0, strategies.run_choices(made.stack, choices, x_T, steps).x_0, factor=64)
    for s, k in enumerate(choices[0]):
        eps = qd.precision.quantized_call(qs[k])(x_T[s : s + 1], steps.times(x_T)[0])[0]
        expected = np.log(np.sqrt(np.mean(np.asarray(eps) ** 2)))
        np.testing.assert_allclose(run.features[1, s, 1], expected, rtol=1e-4)


def by_hand(controller, i, spent, features):
    """The rule of `Controller` for one sample, written out."""
    ladder, rest, adds, centers, slopes = (np.asarray(a, np.float64)[i] for a in controller[:5])
    difficulty = np.clip(np.exp(slopes @ (features - centers)), 0.5, 2)
    left = 1.00001 * float(controller.tolerance) / difficulty - spent
    rung = next((g for g in range(len(rest)) if rest[g] <= left), len(rest) - 1)
    index = int(ladder[rung])
    return index, spent + adds[index]


def test_a_controller_decides_by_its_rule():
    _, steps, made, noises = fitted()
    run = strategies.run_dynamic(made, noises[2].x_T[:16], steps)
    for s in range(16):
        spent = 0.0
        for i in range(NUM_STEPS):
            index, spent = by_hand(made.controller, i, spent, np.asarray(run.features)[i, s])
            assert index == run.choices[i, s]


def test_without_slopes_every_rung_of_the_ladder_runs_as_it_is():
    _, steps, made, noises = fitted()
    for schedule, forecast in zip(made.schedules, made.forecasts, strict=True):
        run = strategies.run_dynamic(made.blind().within(forecast), noises[2].x_T[:4], steps)
        took = np.asarray(run.choices)
        assert np.all(took == took[:, :1])
        costs = np.asarray(COSTS)
        assert costs[took[:, 0]].sum() <= costs[schedule].sum()
        assert took[0, 0] == schedule[0]


def test_features_are_what_they_say():
    x, eps, before = (np.asarray(worlds.normal(s, 3, 2, 2)) for s in (1, 2, 3))
    seen = strategies.Seen(*map(jnp.asarray, (x, eps, before)), jnp.asarray(0.8), jnp.asarray(0.6))
    found = np.asarray(strategies.sampler_features(seen))
    for row, a, b, c in zip(found, x, eps, before, strict=True):
        x_0 = (a - 0.6 * b) / 0.8
        logs = [0.5 * np.log(np.mean(each**2)) for each in (a, b, b - c, x_0)]
        assert_close(row, np.array([*logs, x_0.mean()]))


def test_what_a_step_adds_is_the_difference_of_two_runs():
    qs, steps, made, noises = fitted()
    x_T = noises[0].x_T[:8]
    plain = final(qs[2], x_T, steps)
    x = x_T
    for i, t in enumerate(steps.times(x_T)):  # step 1 at the cheapest, by hand
        eps = qd.precision.quantized_call(qs[0 if i == 1 else 2])(x, t)[0]
        x = jax.tree.map(lambda leaf, i=i: leaf[i], steps.coeffs).advance(x, eps)
    expected = np.sqrt(np.mean((np.asarray(x) - np.asarray(plain)) ** 2))
    np.testing.assert_allclose(made.controller.adds[1, 0], expected, rtol=1e-3)
    assert np.all(np.asarray(made.controller.adds)[:, 2] == 0)


def test_the_ladder_has_schedules_of_least_sum_within_their_cost():
    adds = np.array([[4.0, 1.0, 2.0], [1.0, 0.5, 0.25], [0.0, 0.0, 0.0]])
    ladder = strategies.schedule_ladder(adds, (1.0, 2.0, 3.0), 5)
    every = np.array(list(np.ndindex(3, 3, 3)))
    sums, prices = adds[every, np.arange(3)].sum(1), (every + 1).sum(1)
    assert ladder[0].tolist() == [0, 0, 0]
    assert ladder[-1].tolist() == [2, 2, 2]
    for row in ladder:
        own = adds[row, np.arange(3)].sum()
        assert own == sums[prices <= (row + 1).sum()].min()


def test_a_tolerance_that_is_chosen_is_kept():
    """Where all of it is drawn anew, more than 5 % break it in at most 5 % of the draws."""
    _, _, made, noises = fitted()
    start = float(made.controller.tolerance) or float(made.forecasts[-2])
    ladder = [start * 1.2**k for k in range(-8, 8)]
    chosen, tests = strategies.within_budget(made, ladder, noises[1], TOLERANCE, share=0.1)
    assert tests.passed
    assert float(chosen.controller.tolerance) == pytest.approx(float(tests.passed[-1]), rel=1e-4)
    errors = strategies.score_dynamic(chosen, noises[2]).errors
    assert np.mean(errors > TOLERANCE) <= 0.1
    with pytest.raises(ValueError, match="noise that was calibrated or chosen on"):
        strategies.score_dynamic(chosen, noises[1])


def test_coverage_of_chosen_tolerances_on_a_toy():
    """300 choices among errors that grow with the tolerance, whose law is known: Exp(1) t."""
    rng, broken = np.random.default_rng(0), 0
    for _ in range(300):
        scores = rng.exponential(size=96)
        tolerances = np.linspace(0.1, 0.6, 26)
        p_values = {str(t): float(qd.analysis.guarantees.share_p_value(scores * t, 1.0, 0.1))
                    for t in tolerances}  # fmt: skip
        passed = qd.analysis.guarantees.fixed_sequence(p_values, 0.05).passed
        broken += bool(passed) and np.exp(-1 / float(passed[-1])) > 0.1
    assert broken <= 300 * 0.05 + 2.6 * np.sqrt(300 * 0.05 * 0.95)


def test_nothing_that_is_kept_leaves_the_dearest():
    _, _, made, noises = fitted()
    chosen, tests = strategies.within_budget(made, [1e-3, 1.0], noises[1], 1e-7)
    assert tests.passed == ()
    assert float(chosen.controller.tolerance) == 0


def test_conditions_go_with_their_samples():
    shifts = worlds.normal32(8, 6, 4)
    qs, steps = world(conditional_fn, cond=shifts)
    made, x_T = strategies.stacked(qs, steps), worlds.normal32(9, 6, 4)
    choices = np.tile([[0, 1, 2, 2, 1, 0]], (NUM_STEPS, 1))
    run = strategies.run_choices(made, choices, x_T, steps)
    for i, k in enumerate(choices[0]):
        expected = final(qs[k].at(slice(i, i + 1)), x_T[i : i + 1], steps)
        assert_close(run.x_0[i], expected[0], factor=64)


def test_samplers_that_add_noise_run_with_it():
    qs, steps = fitted()[0], diffusion.ddim(fitted()[0][0].denoiser.schedule, NUM_STEPS, eta=1.0)
    made, key, x_T = strategies.stacked(qs, steps), jax.random.key(3), worlds.normal32(9, 3, 4)
    run = strategies.run_choices(made, np.full((NUM_STEPS, 3), 1), x_T, steps, key)
    assert_close(run.x_0, qd.precision.final_samples(qs[1], x_T, steps, key), factor=64)


def wrong():
    qs, steps, made, noises = fitted()
    other = diffusion.dpmpp_2m(qs[0].denoiser.schedule, diffusion.uniform_times(50, NUM_STEPS))
    x_T, short = noises[2].x_T, qd.ddim(qs[0].denoiser.schedule, 3)
    calibration = qd.calibrate(qs[0].denoiser, steps, jax.random.key(0))
    shaped = [qd.quantize(calibration, r, sites=("*",)) for r in ("A4 shaped", "A8 shaped")]
    broken = noises[2]._replace(x_0=np.full_like(noises[2].x_0, np.nan))
    dearest_first = dataclasses.replace(made, costs=COSTS[::-1]).costs
    return {
        "a sampler with memory": lambda: strategies.stacked(qs, other),
        "memory of other calls": lambda: strategies.stacked(shaped, steps),
        "two recipes or more": lambda: strategies.stacked(qs[:1], steps),
        "3 calls": lambda: strategies.run_dynamic(made, x_T, short),
        "costs that rise": lambda: strategies.dynamic(qs, dearest_first, noises[1], 0.1),
        "numbers that rise": lambda: strategies.within_budget(made, [2.0, 1.0], noises[1], 0.1),
        "noise that was calibrated": lambda: strategies.score_dynamic(made, noises[0]),
        "finite samples": lambda: strategies.score_dynamic(made, broken),
        "above 0": lambda: strategies.dynamic(qs, COSTS, noises[1], 0.0),
    }  # fmt: skip


@pytest.mark.parametrize("words", ["a sampler with memory", "memory of other calls", "3 calls",
                                   "two recipes or more", "costs that rise", "numbers that rise",
                                   "noise that was calibrated", "finite samples",
                                   "above 0"])  # fmt: skip
def test_what_means_nothing_is_refused(words):
    with pytest.raises(ValueError, match=words):
        wrong()[words]()

"""Promises of a quantized denoiser: noise is scored once, and what is promised of it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import precision, promises, strategies
from qdiffjax.analysis import guarantees
from tests.worlds import normal

PARAMS = {"in": jnp.asarray(normal(0, 2, 8, scale=0.5), jnp.float32),
          "out": jnp.asarray(normal(1, 8, 2, scale=0.5), jnp.float32)}  # fmt: skip


def net_fn(params, x, t):
    return jnp.tanh(x @ params["in"]) @ params["out"]


DENOISER = qd.Denoiser(net_fn, PARAMS, qd.linear(), (2,))
STEPS = qd.ddim(DENOISER.schedule, 3)
SPLITS = qd.split_noise(jax.random.key(0))
CALIBRATION = qd.calibrate(DENOISER, STEPS, SPLITS.calibrate, num_samples=8)
Q = qd.quantize(CALIBRATION, "W4A4")
KEY = jax.random.key(11)


def from_noise(num):
    """Calibrated on samples that `draw_scores` draws of the same key, given as arrays."""
    x_T = DENOISER.draw(jax.random.split(SPLITS.calibrate)[0], num).x_T
    return qd.quantize(qd.calibrate(DENOISER, STEPS, x_T=x_T), "W4A4")


SEEN = {
    "ranges of its key": Q,
    "ranges of its noise": from_noise(8),
    "ranges of one sample of it": from_noise(1),
    "wider ranges": qd.quantize(CALIBRATION.widened(1.2), "W4A4"),
    "lowered": qd.lower(CALIBRATION, "W8A8"),
    "other parameters": Q.with_params(PARAMS),
    "one structure for several recipes": precision.alike([Q, Q], STEPS)[1],
    "as an argument of jit": jax.tree.map(lambda leaf: leaf, Q),
}  # fmt: skip


@pytest.mark.parametrize("way", SEEN)
def test_noise_that_calibrated_is_not_scored(way):
    with pytest.raises(ValueError, match=r"key: got noise that was calibrated or chosen on"):
        qd.draw_scores(SEEN[way], STEPS, SPLITS.calibrate, 4)


def test_noise_that_cured_is_not_scored_nor_that_of_the_ranges_before():
    key = jax.random.key(5)
    made = strategies.improve(CALIBRATION, "W4A8", [strategies.gptq()], STEPS, key, num_samples=4)
    for seen in (key, SPLITS.calibrate):
        with pytest.raises(ValueError, match="calibrated or chosen on"):
            qd.draw_scores(made.quantized(), STEPS, seen, 4)
    assert len(qd.draw_scores(made.quantized(), STEPS, SPLITS.promise, 4).rmse) == 4


def test_marks_share_compilations():
    other = qd.quantize(qd.calibrate(DENOISER, STEPS, jax.random.key(9), num_samples=8), "W4A4")
    assert jax.tree.structure(Q) == jax.tree.structure(other)
    assert Q.noise.marks.isdisjoint(other.noise.marks)
    assert len(Q.noise.marks) == 1 + 8


def test_scores_are_the_errors_of_the_coupled_runs_of_the_same_key():
    scores = qd.draw_scores(Q, STEPS, SPLITS.promise, 6, box=(-0.5, 0.75))
    run = qd.couple(Q, STEPS, SPLITS.promise, 6)
    x, x_hat = (np.asarray(xs[-1], np.float64) for xs in (run.xs, run.xs_hat))
    np.testing.assert_allclose(scores.rmse, np.sqrt(((x_hat - x) ** 2).mean(1)), rtol=1e-4)
    clipped = np.clip(x_hat, -0.5, 0.75) - np.clip(x, -0.5, 0.75)
    np.testing.assert_allclose(scores.squares, (clipped**2).mean(1), rtol=1e-3, atol=1e-9)
    assert (scores.most, scores.size) == (1.25**2, 2)


def test_scores_do_not_hang_on_the_size_of_a_batch():
    whole, parts = (qd.draw_scores(Q, STEPS, SPLITS.promise, 5, batch_size=b) for b in (5, 2))
    np.testing.assert_allclose(whole.rmse, parts.rmse, rtol=1e-5)
    assert whole.noise.marks == parts.noise.marks


def test_what_is_promised_is_the_rank_and_the_bound_of_the_mean():
    scores = qd.draw_scores(Q, STEPS, SPLITS.promise, 39)
    promised = qd.promise(scores, 0.1, 0.2)
    assert promised.next_sample.bound == np.sort(scores.rmse)[35]
    np.testing.assert_allclose(
        promised.w2, guarantees.betting_upper(scores.squares / 4, 0.2) ** 0.5 * 2
    )
    assert promised.w2_measured < promised.w2
    assert promised.w2_floor < promised.w2
    text = str(promised)
    assert "guaranteed (0.9, 0.8)" in text
    assert "of no chosen seed" in text


def test_the_samples_for_w2_are_enough_where_samples_are_alike():
    num = promises.samples_for_w2(0.1, 0.05)
    squares = np.full(num, 0.01)
    scores = promises.Scores(squares**0.5, squares, 4.0, 16, precision.NoiseMarks())
    assert qd.promise(scores).w2 <= 0.3 * (1 + 1e-9)
    assert promises.samples_for_w2(0.01) > 50 * num  # 1 / m^2


RECIPES = {words: qd.quantize(CALIBRATION, words) for words in ("W8A8", "W6A6", "W2A2", "W7A7")}


def at_most(tolerance):
    return lambda scores: guarantees.share_p_value(scores.rmse, tolerance, 0.1)


def test_the_choice_is_the_last_before_the_first_failure_and_has_seen_its_noise():
    largest = {name: qd.draw_scores(q, STEPS, SPLITS.choose, 60).rmse.max()
               for name, q in RECIPES.items()}  # fmt: skip
    assert largest["W8A8"] < largest["W6A6"] < largest["W2A2"] / 3
    keeps = at_most(largest["W6A6"])  # none of 60 is above: p = .9^60
    choice = qd.choose_recipe(RECIPES, STEPS, SPLITS.choose, 60, keeps)
    assert (choice.name, choice.tests.failed) == ("W6A6", "W2A2")
    assert [*choice.p_values] == ["W8A8", "W6A6", "W2A2"]  # nothing is scored after a failure
    with pytest.raises(ValueError, match="calibrated or chosen on"):
        qd.draw_scores(choice.q, STEPS, SPLITS.choose, 4)
    with pytest.raises(ValueError, match="calibrated or chosen on"):
        qd.choose_recipe({"again": choice.q}, STEPS, SPLITS.choose, 4, keeps)
    assert qd.draw_scores(choice.q, STEPS, SPLITS.promise, 4).rmse.shape == (4,)


def test_where_no_promise_is_kept_nothing_is_chosen():
    choice = qd.choose_recipe({"W2A2": RECIPES["W2A2"]}, STEPS, SPLITS.choose, 40, at_most(1e-6))
    assert choice.name is None
    assert choice.q is None
    assert choice.tests == ((), "W2A2", promises.DELTA)


def test_samples_that_are_not_finite_are_refused():
    broken = Q.with_params({**PARAMS, "out": PARAMS["out"].at[0, 0].set(jnp.nan)})
    with pytest.raises(ValueError, match="samples with NaN"):
        qd.draw_scores(broken, STEPS, SPLITS.promise, 4)


def test_a_study_promises_the_next_sample_and_keeps_it_on_disk(tmp_path):
    study = qd.study(Q, STEPS, KEY, 19, progress=False)
    errors = qd.couple(Q, STEPS, jax.random.split(KEY)[0], 19).errors[-1]
    rmse = np.sort(np.sqrt(np.mean(np.asarray(errors, np.float64) ** 2, axis=1)))
    np.testing.assert_allclose(study.next_sample.bound, rmse[17], rtol=1e-4)  # ceil(20 * .9) = 18
    study.save(tmp_path)
    assert qd.Study.load(tmp_path).next_sample == study.next_sample
    assert "guaranteed (0.9, 0.95)" in str(study)


@pytest.mark.parametrize("why", ["too few", "noise that was calibrated on"])
def test_a_study_promises_nothing(why, tmp_path):
    own = jax.random.split(jax.random.split(KEY)[0])[0]  # of what a study draws
    q, num = Q, 8
    if why != "too few":
        x_T = DENOISER.draw(own, 1).x_T
        q, num = qd.quantize(qd.calibrate(DENOISER, STEPS, x_T=x_T), "W4A4"), 19
    study = qd.study(q, STEPS, KEY, num, progress=False)
    assert study.next_sample is None
    study.save(tmp_path)
    assert qd.Study.load(tmp_path).next_sample is None
    assert "guaranteed" not in str(study)

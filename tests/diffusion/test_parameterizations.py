"""Theorems about what networks predict, and about the wrappers of clipping and guidance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdiffjax import diffusion as d
from qdiffjax.diffusion import NoiseLevel, gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

PREDICTIONS = [d.eps_prediction, d.x0_prediction, d.v_prediction, d.flow_prediction]
PREDICTIONS += [d.score_prediction]
LAW = gaussian_law(jnp.array([0.5, -1.0]), jnp.array([[0.6, 0.3], [0.3, 0.9]]))
SCHEDULE = d.linear()
EPS_FN = jax.jit(gaussian.eps_fn_for(SCHEDULE))


def output(prediction, level, x_0, eps):
    """Definitions written out, with x' = alpha' x_0 + sigma' eps on each paper's own path."""
    return {
        d.eps_prediction: eps,
        d.x0_prediction: x_0,
        d.v_prediction: level.alpha * eps - level.sigma * x_0,
        d.flow_prediction: eps - x_0,
        d.score_prediction: -eps / level.sigma,
    }[prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.__name__)
def test_denoise_recovers_the_two_parts_from_any_prediction(prediction):
    rng = np.random.default_rng(0)
    x_0, eps = rng.normal(size=(2, 5))
    for level in (NoiseLevel(0.8, 0.6), NoiseLevel(1.0, 7.0), NoiseLevel(0.3, 0.7)):
        x = level.alpha * x_0 + level.sigma * eps
        parts = d.denoise(x, output(prediction, level, x_0, eps), level, prediction)
        assert_close(parts.x_0, x_0, factor=200)
        assert_close(parts.eps, eps, factor=200)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(PREDICTIONS, 2)))
def test_conversions_agree_with_the_definitions(source, target):
    level, x_0, eps = NoiseLevel(0.6, 0.8), np.array([0.3, -2.0]), np.array([1.1, 0.4])
    x = level.alpha * x_0 + level.sigma * eps
    converted = d.convert(x, output(source, level, x_0, eps), level, source, target)
    assert_close(converted, output(target, level, x_0, eps))


@given(st.floats(0.05, 0.999), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_v_prediction_of_a_variance_preserving_level_is_a_rotation(alpha, x, v):
    """x_0 = alpha x - sigma v, eps = sigma x + alpha v; Salimans & Ho 2022, appendix D."""
    level = NoiseLevel(alpha, np.sqrt(1 - alpha**2))
    parts = d.denoise(x, v, level, d.v_prediction)
    assert_close(parts.x_0, level.alpha * x - level.sigma * v, scale=10.0)
    assert_close(parts.eps, level.sigma * x + level.alpha * v, scale=10.0)


def test_v_and_flow_predictions_mean_something_in_pure_noise():
    noise, x_0 = np.array([0.7, -1.0]), np.array([2.0, 3.0])
    for prediction, out in ((d.v_prediction, -x_0), (d.flow_prediction, noise - x_0)):
        parts = d.denoise(noise, out, NoiseLevel(0.0, 1.0), prediction)
        assert_close(parts.x_0, x_0)
        assert_close(parts.eps, noise)


@pytest.mark.slow
@pytest.mark.parametrize("t", [700, np.array([3, 500, 1000])], ids=["scalar", "batch"])
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.__name__)
def test_as_eps_of_a_network_that_predicts_otherwise_is_the_eps_network(prediction, t):
    def net_fn(params, x, t):
        level = NoiseLevel(*(jnp.reshape(leaf, (-1, 1)) for leaf in SCHEDULE(t)))
        return d.convert(x, EPS_FN(params, x, t), level, d.eps_prediction, prediction)

    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.asarray(t, jnp.float64)
    actual = jax.jit(d.as_eps(net_fn, SCHEDULE, prediction))(LAW, x, t)
    # At t = 3 sigma is 0.02, and x_0 determines eps to eps / sigma.
    assert_close(actual, EPS_FN(LAW, x, t), factor=500)


def test_clipping_moves_eps_so_that_x_0_is_in_range_and_nothing_else():
    fn = jax.jit(d.clipped(EPS_FN, SCHEDULE, -0.5, 0.5))
    x, t = 3 * jax.random.normal(jax.random.key(0), (50, 2)), jnp.float64(600)
    level = SCHEDULE(t)
    before, after = EPS_FN(LAW, x, t), fn(LAW, x, t)
    x_0 = (x - level.sigma * before) / level.alpha
    assert_close((x - level.sigma * after) / level.alpha, jnp.clip(x_0, -0.5, 0.5), factor=64,
                 scale=float(jnp.max(jnp.abs(x)) / level.alpha))  # fmt: skip
    inside = np.asarray(jnp.abs(x_0) <= 0.5)
    assert 0.1 < np.mean(inside) < 0.9
    np.testing.assert_array_equal(np.asarray(after)[inside], np.asarray(before)[inside])


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("keeps_eps", [False, True])
def test_ddim_with_clipping_is_the_loop_by_hand_both_ways(keeps_eps, eta):
    """Song et al. 2021, eq. 12, on the clipped x_0, with eps kept or derived from it anew."""
    steps, key = d.ddim(SCHEDULE, 6, eta=eta), jax.random.key(3)
    x_T = 2 * jax.random.normal(jax.random.key(0), (7, 2))
    clip = (steps, -0.5, 0.5) if keeps_eps else (-0.5, 0.5)
    fn = (d.clipped_x0 if keeps_eps else d.clipped)(EPS_FN, SCHEDULE, *clip)
    run = jax.jit(lambda x: d.sample(d.bind(fn, LAW), x, steps, key=key).x_0)
    x, num_clipped = np.asarray(x_T), 0
    for i, (t, s) in enumerate(zip(*map(np.asarray, (steps.t, steps.s)), strict=True)):
        level, to = SCHEDULE.exact(t), SCHEDULE.exact(s)
        eps = np.asarray(EPS_FN(LAW, jnp.asarray(x), jnp.float64(t)))
        x_0 = (x - level.sigma * eps) / level.alpha
        clipped = np.clip(x_0, -0.5, 0.5)
        num_clipped += np.sum(x_0 != clipped)
        if not keeps_eps:
            eps = (x - level.alpha * clipped) / level.sigma
        ratio = level.alpha * to.sigma / (to.alpha * level.sigma)
        noise = eta * to.sigma * np.sqrt(1 - ratio**2)
        x = to.alpha * clipped + np.sqrt(to.sigma**2 - noise**2) * eps
        x = x + noise * np.asarray(d.step_noise(key, i, x_T))
    assert num_clipped > 10
    assert_close(run(x_T), x, factor=1e4)


def test_clipping_that_keeps_eps_serves_first_order_steps_at_their_own_times():
    with pytest.raises(TypeError, match="got SlotCoeffs"):
        d.clipped_x0(EPS_FN, SCHEDULE, d.dpmpp_2m(SCHEDULE, d.uniform_times(1000, 4)))
    twice = d.predictor_corrector(SCHEDULE, d.uniform_times(1000, 4))
    with pytest.raises(ValueError, match="two steps from one time"):
        d.clipped_x0(EPS_FN, SCHEDULE, twice)
    fn = d.clipped_x0(EPS_FN, SCHEDULE, d.ddim(SCHEDULE, 4))
    assert np.isnan(fn(LAW, jnp.ones((1, 2)), jnp.float64(3))).all()
    each = fn(LAW, jnp.ones((2, 2)), jnp.array([1000.0, 250.0]))
    alone = [fn(LAW, jnp.ones((1, 2)), jnp.float64(t))[0] for t in (1000, 250)]
    np.testing.assert_array_equal(each, np.stack(alone))


def test_clipping_at_time_zero_changes_nothing():
    x = jnp.array([[5.0, -7.0]])
    np.testing.assert_array_equal(d.clipped(EPS_FN, SCHEDULE)(LAW, x, jnp.float64(0)), [[0.0, 0.0]])


def test_dynamic_thresholding_by_hand():
    """The 0.75 quantile of |x_0| = 0, 1, 2, 3, 4 is 3; a sample within [-1, 1] is only clipped."""
    x_0 = jnp.array([[0.0, -1.0, 2.0, -3.0, 4.0], [0.1, 0.2, -0.3, 0.4, 1.0]])
    out = d.dynamic_threshold(0.75)(x_0)
    assert_close(out, np.array([[0, -1 / 3, 2 / 3, -1, 1], [0.1, 0.2, -0.3, 0.4, 1.0]]))
    capped = d.dynamic_threshold(0.75, largest=2.0)(x_0)
    assert_close(capped[0], np.array([0, -0.5, 1, -1, 1]))


def cond_eps(params, x, t, cond):
    return jnp.tanh(params * x + cond[:, None] + jnp.mean(t))


COND, NULL = jnp.array([1.0, -2.0, 0.5]), jnp.array(0.0)


@pytest.mark.parametrize("t", [jnp.float64(3), jnp.array([1.0, 2.0, 3.0])], ids=["one", "each"])
def test_guidance_is_the_combination_of_two_networks_in_one_call(t):
    calls = []

    def counted(params, x, t, cond):
        calls.append(x.shape)
        return cond_eps(params, x, t, cond)

    x = jax.random.normal(jax.random.key(0), (3, 2))
    without, given = cond_eps(0.7, x, t, jnp.zeros(3)), cond_eps(0.7, x, t, COND)
    for scale, expected in ((1.0, given), (0.0, without), (7.5, without + 7.5 * (given - without))):
        assert_close(d.guided(counted, NULL, scale)(0.7, x, t, COND), expected)
    assert calls == [(6, 2)] * 3
    np.testing.assert_array_equal(d.guided(cond_eps, NULL, 1.0)(0.7, x, t, COND), given)


def test_the_guidance_scale_may_be_traced_and_may_depend_on_time():
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.float64(3)
    swept = jax.vmap(lambda w: d.guided(cond_eps, NULL, w)(0.7, x, t, COND))(jnp.array([1.0, 4.0]))
    assert_close(swept[1], d.guided(cond_eps, NULL, 4.0)(0.7, x, t, COND))
    interval = d.guided(cond_eps, NULL, lambda t: jnp.where(t > 2, 4.0, 1.0))
    assert_close(interval(0.7, x, t, COND), swept[1])
    assert_close(interval(0.7, x, t - 2, COND), cond_eps(0.7, x, t - 2, COND))


def test_guidance_of_exact_scores_samples_the_tempered_product_direction():
    """eps is linear in the score: guided eps = -sigma grad log(p(x) (p(x|c) / p(x))^w)."""
    schedule, w, t = SCHEDULE, 3.0, jnp.float64(400)
    narrow = gaussian_law(jnp.array([1.0, 1.0]), 0.3 * jnp.eye(2))
    x = jax.random.normal(jax.random.key(1), (4, 2))

    def eps_fn(params, x, t, cond):
        return jnp.where(cond[:, None], EPS_FN(narrow, x, t), EPS_FN(LAW, x, t))

    guided = jax.jit(d.guided(eps_fn, jnp.array(False), w))(None, x, t, jnp.ones(4, bool))
    level = schedule(t)

    def log_tilted(v):
        plain, given = (
            gaussian.log_prob(gaussian.marginal(law, level), v) for law in (LAW, narrow)
        )
        return plain + w * (given - plain)

    assert_close(guided, -level.sigma * jax.jit(jax.vmap(jax.grad(log_tilted)))(x), factor=64)

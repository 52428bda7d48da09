"""Sensitivities against formulas of a linear network, and against sites alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qdiffjax as qd
from qdiffjax import strategies
from tests.strategies import parallel
from tests.tolerances import assert_close

KEY = jax.random.key(11)


def algebra_of(choices=("W3", "W5", "W4 shaped")):
    offered = strategies.offer(parallel.calibrated(4), parallel.STEPS, choices, sites=("*",))
    noise = strategies.trial(offered, jax.random.key(2), 4)
    return strategies.error_algebra(noise), noise


def test_fisher_is_the_mean_square_of_the_gradient_of_each_example():
    """L = |sum_k tanh(k x) w_k / 4 - eps|^2 has the gradient tanh(k x)^T r / 2, r the residual."""
    algebra, noise = algebra_of()
    found = strategies.sensitivity_of(algebra, noise, KEY, num_times=2)
    times = np.asarray(parallel.STEPS.t)[[0, 3]]
    keys, traces = jax.random.split(KEY, 8), {name: [] for name in parallel.NAMES}
    params = parallel.denoiser().params
    for i, x_0 in enumerate(noise.full):
        for j, t in enumerate(times):
            eps = jax.random.normal(keys[2 * i + j], (1, 6), jnp.float32)
            level = parallel.SCHEDULE(jnp.float32(t))
            x_t = jnp.float32(level.alpha) * x_0[None] + jnp.float32(level.sigma) * eps
            residual = parallel.net_fn(params, x_t, t) - eps
            for k, name in enumerate(parallel.NAMES):
                gradient = jnp.tanh((1 + k) * x_t).T @ residual / 2
                traces[name].append(float(jnp.sum(gradient**2)))
    q = qd.quantize(parallel.calibrated(4), "W3", sites=("*",))
    for i, site in enumerate(algebra.choices.sites):
        apart = np.asarray(q.site_inputs[site].weight) - np.asarray(params[site])
        expected = np.sqrt(np.mean(traces[site]) * np.mean(apart**2))
        assert_close(np.float32(found.fisher[i, 0]), expected)
        assert np.isnan(found.weight_rmse[i, 2])


def test_hessian_traces_are_those_of_a_quadratic_loss():
    """tr H_k = 2 * 6 |tanh(k x) / 4|^2; signs add noise of mean zero, told by twelve keys."""
    _, noise = algebra_of(("W4",))
    times, misses = np.asarray(parallel.STEPS.t)[[0, 3]], []
    for key in jax.random.split(KEY, 12):
        exact = np.zeros(4)
        keys = jax.random.split(key, 8)
        for i, x_0 in enumerate(noise.full):
            for j, t in enumerate(times):
                level = parallel.SCHEDULE(jnp.float32(t))
                eps = jax.random.normal(keys[2 * i + j], (1, 6), jnp.float32)
                x_t = jnp.float32(level.alpha) * x_0[None] + jnp.float32(level.sigma) * eps
                exact += [12 * float(jnp.sum(jnp.tanh((1 + k) * x_t) ** 2)) / 16 for k in range(4)]
        found = strategies.hessian_traces(noise, key, num_times=2)
        misses.append(found / (exact / 8) - 1)
    error = np.std(misses, 0, ddof=1) / np.sqrt(12)
    assert np.all(error < 0.25)
    assert np.all(np.abs(np.mean(misses, 0)) < 4 * error)


def test_the_table_is_sorted_by_what_each_site_alone_does():
    algebra, noise = algebra_of(("W3", "W5"))
    found = strategies.sensitivity_of(algebra, noise, KEY, num_times=2)
    errors = [row[2] for row in found.table("W3").rows]
    assert errors == sorted(errors, reverse=True)
    assert_close(np.sort(errors), np.sort(algebra.alone[:, 0]))
    assert -1 <= found.spearman("fisher", "W3") <= 1
    assert np.all(found.weight_rmse[:, 0] > found.weight_rmse[:, 1])


def test_cosines_of_equal_and_opposite_errors():
    algebra, _ = algebra_of(("W3", "W5"))
    cosines = algebra.cosines(algebra.choices.pick("W3"))
    assert_close(np.diag(cosines), np.ones(4))
    assert np.all(np.abs(cosines) <= 1 + 1e-9)
    e = algebra.vectors[0, 0].astype(np.float64), algebra.vectors[2, 0].astype(np.float64)
    expected = np.sum(e[0] * e[1]) / np.linalg.norm(e[0]) / np.linalg.norm(e[1])
    assert_close(cosines[0, 2], expected, factor=64)


def test_what_has_no_site_alone_is_refused():
    algebra, noise = algebra_of(("W3", "W5"))
    around = strategies.error_algebra(noise, algebra.choices.pick("W3"))
    with pytest.raises(ValueError, match="around a pick"):
        strategies.sensitivity_of(around, noise, KEY, num_times=2)
    with pytest.raises(ValueError, match="num_times"):
        strategies.sensitivity_of(algebra, noise, KEY, num_times=9)
    found = strategies.sensitivity_of(algebra, noise, KEY, num_times=1)
    with pytest.raises(ValueError, match="alone is what"):
        found.spearman("alone", "W3")

"""Random local errors against dense algebra, quadratic maps and runs that really round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis.errors import (
    propagation,
    random_errors,
    runs,
)
from qdiffjax.analysis.errors import (
    propagation as curvature,
)
from tests import worlds
from tests.analysis import coupled
from tests.analysis.coupled import DENSE_CASES, Dense
from tests.tolerances import assert_close, slope
from tests.worlds import normal

# ------------------------------------------------------------------ variance


@pytest.fixture(scope="module", params=DENSE_CASES)
def dense(request):
    return Dense(*DENSE_CASES[request.param])


def local_covariances(steps, variances, slots):
    """R_i of the state [N, batch, K n, K n]: one error of the prediction enters every slot."""
    weights = np.asarray(steps.coeffs.eps).reshape(worlds.NUM_STEPS, 1, slots)
    placed = np.einsum("nbk,ij->nbkij", weights, np.eye(2))
    return np.einsum("nbkij,nbj,nblmj->nbkilm", placed, variances, placed).reshape(
        worlds.NUM_STEPS, worlds.BATCH, 2 * slots, 2 * slots
    )


def test_the_final_variance_is_the_trace_of_the_propagated_covariance(dense):
    """tr of sum_i J_{i+1} R_i J_{i+1}^T, step by step, by dense algebra; exact probes."""
    variances = np.abs(normal(50, worlds.NUM_STEPS, worlds.BATCH, 2))
    r = local_covariances(dense.steps, variances, dense.size // 2)
    j = dense.to_end[1:]
    by_step = np.einsum("nbij,nbjk,nbik->nb", j, r, j)
    found = jax.jit(lambda xs: random_errors.final_variance(
        dense.call, xs, dense.steps, variances, coupled.axes(worlds.X_T)
    ))(dense.xs)  # fmt: skip
    np.testing.assert_allclose(found.by_step.value, by_step, rtol=1e-11)
    np.testing.assert_allclose(found.total.value, by_step.sum(0), rtol=1e-11)
    covariance = np.zeros_like(r[0])
    for jacobian, local in zip(np.asarray(dense.steps_of), r, strict=True):
        covariance = jacobian @ covariance @ np.swapaxes(jacobian, -1, -2) + local
    last = np.einsum("bii->b", covariance[:, :2, :2])
    np.testing.assert_allclose(last, by_step.sum(0), rtol=1e-11)


def test_random_signs_estimate_it_within_their_own_error_bar(dense):
    variances = np.abs(normal(50, worlds.NUM_STEPS, worlds.BATCH, 2))
    run = jax.jit(
        lambda v: (
            random_errors.final_variance(dense.call, dense.xs, dense.steps, variances, v).total
        )
    )
    exact = run(coupled.axes(worlds.X_T)).value
    found = run(runs.signs(worlds.KEY, 200, worlds.X_T))
    assert np.all(np.abs(found.value - exact) < 4 * found.standard_error)
    assert np.all(found.standard_error > 0)


# ------------------------------------------------------------------ second order

A, B, C = np.array([0.9, 1.2, 0.7]), np.array([0.3, -0.2, 0.5]), np.array([0.4, 0.3, -0.6])
ONES = np.ones(3)
SCALAR = diffusion.Steps(
    jnp.asarray(C), jnp.zeros(3), diffusion.StepCoeffs(*map(jnp.asarray, (A, B, 0 * ONES)))
)


def square(x, t, inputs, state=()):
    """eps = t x^2, so that a step is the scalar map F(x) = a x + b t x^2."""
    return t * x**2, None, state


def scalar_run(x, e):
    """The map three times, e added after each, by hand."""
    xs = [np.asarray(x, float)]
    for a, b, c, local in zip(A, B, C, e, strict=True):
        xs.append(a * xs[-1] + b * c * xs[-1] ** 2 + local)
    return np.stack(xs)


def test_first_and_second_order_of_a_quadratic_map_are_its_taylor_coefficients():
    """error(s) of local errors s e is a polynomial; its coefficients by differences are exact."""
    x, e = np.array([[0.5], [-0.8]]), normal(51, 3, 2, 1)
    xs = scalar_run(x, 0 * e)
    found = curvature.propagate_second_order(square, jnp.asarray(xs), SCALAR, e)
    s = np.linspace(-1, 1, 9)  # degree 8 after three squarings
    errors = np.stack([scalar_run(x, v * e) - xs for v in s])
    coefficients = np.polynomial.polynomial.polyfit(s, errors.reshape(9, -1), 8)
    np.testing.assert_allclose(found.first.ravel(), coefficients[1], atol=1e-11)
    np.testing.assert_allclose(found.second.ravel(), coefficients[2], atol=1e-11)


def test_the_predicted_failure_is_the_relative_error_of_first_order_to_leading_order():
    x, e = np.array([[0.5], [-0.8]]), normal(51, 3, 2, 1)
    xs, sizes, gaps = scalar_run(x, 0 * e), np.array([4e-3, 2e-3, 1e-3]), []
    for size in sizes:
        found = curvature.propagate_second_order(square, jnp.asarray(xs), SCALAR, size * e)
        predicted = curvature.predicted_failure(found, SCALAR)
        error = (scalar_run(x, size * e) - xs)[-1, :, 0]
        actual = np.abs(found.first[-1, :, 0] - error) / np.abs(error)
        assert np.all(actual > 1e-4)
        gaps.append(np.max(np.abs(predicted - actual)))
    assert slope(sizes, gaps) == pytest.approx(2, abs=0.15)  # both are of first order in size


@pytest.mark.parametrize("case", DENSE_CASES)
def test_what_second_order_leaves_is_of_third_order_for_any_sampler(case):
    steps, call = DENSE_CASES[case]

    @jax.jit
    def leftover(size):
        pair = runs.couple(call, bent(size), worlds.X_T, steps, key=worlds.KEY)
        found = curvature.propagate_second_order(call, pair.xs, steps, pair.local_errors)
        first = propagation.propagate(call, pair.xs, steps, pair.local_errors)
        gap = pair.errors - found.first - found.second
        return jnp.linalg.norm(gap), jnp.max(jnp.abs(first - found.first)), found

    def bent(size):
        return lambda x, t, i, state=(): (
            call(x, t, i)[0] + size * jnp.sin(2 * x + t / 20),
            None,
            state,
        )

    sizes = np.array([4e-3, 2e-3, 1e-3])
    found = [leftover(size) for size in sizes]
    assert slope(sizes, [f[0] for f in found]) == pytest.approx(3, abs=0.1)
    assert max(f[1] for f in found) < 1e-14
    ratio = curvature.predicted_failure(found[0][2], steps)
    second, first = (np.asarray(a)[-1] for a in (found[0][2].second, found[0][2].first))
    if isinstance(steps.coeffs, diffusion.SlotCoeffs):
        first, second = first[:, 0], second[:, 0]
    assert_close(ratio, np.linalg.norm(second, axis=1) / np.linalg.norm(first, axis=1))


def test_the_mean_bias_of_a_quadratic_map_is_its_closed_form():
    """m' = (a + 2 g x) m + g S + e_mean, S' = (a + 2 g x)^2 S + r, g = b c, by hand."""
    x = np.array([[0.5], [-0.8]])
    xs, eps_variances = scalar_run(x, np.zeros(3)), np.abs(normal(52, 3, 2, 1, scale=0.1))
    eps_means = normal(53, 3, 2, 1, scale=0.01)
    m, s = np.zeros((2, 1)), np.zeros((2, 1))
    for i, (a, b, c) in enumerate(zip(A, B, C, strict=True)):
        j, g = a + 2 * b * c * xs[i], b * c
        m, s = j * m + g * s + b * eps_means[i], j**2 * s + b**2 * eps_variances[i]
    run = jax.jit(lambda num_key: random_errors.mean_bias(
        square, jnp.asarray(xs), SCALAR, eps_variances, key=num_key, num=4000, eps_means=eps_means
    ))  # fmt: skip
    found = run(worlds.KEY)
    assert np.all(np.abs(found.value - m) < 4 * found.standard_error)
    assert np.all(found.standard_error < 0.1 * np.abs(m))


def test_the_mean_error_of_random_rounding_is_the_bias_to_second_order():
    """Signs added to the prediction in 4096 runs of the sampler, and their opposites."""
    steps, call, size = worlds.DDIM, worlds.fast, 0.1
    many = jnp.repeat(worlds.X_T[:1], 8192, axis=0)
    noise = size * jax.random.rademacher(worlds.KEY, (worlds.NUM_STEPS, 4096, 2)).astype(many.dtype)
    noise = jnp.concatenate([noise, -noise], axis=1)  # first order cancels in pairs

    @jax.jit
    def run(key):
        xs = diffusion.sample(call, many[:1], steps).states
        noisy = diffusion.sample(
            lambda x, t, z, state=(): (call(x, t, None)[0] + z, None, state),
            many,
            steps,
            per_call=noise,
        )
        v = jnp.full((worlds.NUM_STEPS, 1, 2), size**2)
        bias = random_errors.mean_bias(call, xs, steps, v, key=key, num=4096)
        var = random_errors.final_variance(call, xs, steps, v, coupled.axes(many[:1]))
        return noisy.x_0 - xs[-1], bias, var.total.value

    errors, bias, variance = run(worlds.KEY)
    pairs = (np.asarray(errors)[:4096] + np.asarray(errors)[4096:]) / 2
    measured, error = np.mean(pairs, 0), np.std(pairs, 0) / 64
    combined = 4 * np.hypot(error, bias.standard_error[0])
    assert np.all(np.abs(measured - bias.value[0]) < combined + 0.05 * np.abs(bias.value[0]))
    assert np.all(np.abs(bias.value[0]) > 3 * combined)  # a bias there is
    assert np.mean(np.sum(np.asarray(errors) ** 2, 1)) == pytest.approx(float(variance[0]), rel=0.1)

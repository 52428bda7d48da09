"""Which errors add up and which cancel: Gram matrices, the two parts, laws in step counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from qdiffjax import diffusion
from qdiffjax.analysis.errors import coherence, laws, propagation, runs
from qdiffjax.analysis.errors import random_errors as covariance
from qdiffjax.diffusion import gaussian
from tests import worlds
from tests.analysis import coupled
from tests.analysis.coupled import DENSE_CASES, Dense
from tests.laws import gaussian_law
from tests.tolerances import assert_close
from tests.worlds import normal


@pytest.fixture(scope="module", params=DENSE_CASES)
def dense(request):
    return Dense(*DENSE_CASES[request.param])


def correlation(gram):
    sizes = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    return gram / (sizes[..., :, None] * sizes[..., None, :])


def random_errors(dense, seed=70):
    return normal(seed, *dense.xs[1:].shape, scale=0.1)


def flat(e):
    return np.asarray(e).reshape(worlds.NUM_STEPS, worlds.BATCH, -1)


# ------------------------------------------------------------------ Gram matrices


def test_the_probed_gram_matrix_is_that_of_the_densely_propagated_errors(dense):
    e = random_errors(dense)
    terms = np.einsum("ibjk,ibk->ibj", dense.to_end[1:], flat(e))
    expected = np.einsum("nbj,mbj->bnm", terms, terms)
    run = jax.jit(lambda v: coherence.probed_gram(dense.call, dense.xs, dense.steps, e, v))
    np.testing.assert_allclose(run(coupled.axes(worlds.X_T)), expected, atol=1e-13)
    np.testing.assert_allclose(coherence.gram(jnp.asarray(terms)), expected, atol=1e-14)
    # Its sum is the squared first-order error, which one forward sweep gives.
    error = jax.jit(lambda xs: propagation.propagate(dense.call, xs, dense.steps, e))(dense.xs)[-1]
    error = np.asarray(dense.steps.coeffs.current(error))
    np.testing.assert_allclose(expected.sum((1, 2)), np.sum(error**2, axis=1), rtol=1e-11)


def test_coherence_is_n_for_equal_one_for_orthogonal_and_zero_for_cancelling_terms():
    equal = jnp.ones((5, 2, 3))
    orthogonal = jnp.eye(5)[:, None]
    cancelling = jnp.asarray([1.0, -1.0])[:, None, None] * jnp.ones((2, 1, 3))
    for terms, kappa in ((equal, 5.0), (orthogonal, 1.0), (cancelling, 0.0)):
        found = coherence.coherence_factor(coherence.gram(terms))
        assert_close(found, np.full(terms.shape[1], kappa), scale=1.0)
    assert_close(correlation(coherence.gram(equal))[0], np.ones((5, 5)))
    assert_close(correlation(coherence.gram(orthogonal))[0], np.eye(5), scale=1.0)


def test_independent_errors_have_coherence_one_on_average(dense):
    """Summed over 400 draws of signs; a single draw is anywhere."""
    e = jax.random.rademacher(worlds.KEY, (400, *dense.xs[1:].shape)).astype(dense.xs.dtype)
    run = jax.jit(lambda e: jax.lax.map(lambda e: coherence.probed_gram(
        dense.call, dense.xs, dense.steps, e, coupled.axes(worlds.X_T)
    ), e))  # fmt: skip
    grams = np.asarray(run(e))
    assert np.max(np.abs(coherence.coherence_factor(grams.sum(0)) - 1)) < 0.25
    unlike = np.asarray(correlation(grams.sum(0))) - np.eye(worlds.NUM_STEPS)
    assert np.max(np.abs(unlike)) < 0.25
    assert np.max(coherence.coherence_factor(grams)) > 2


# ------------------------------------------------------------------ weights and activations


def test_the_shares_of_weights_and_activations_add_up_to_the_error_that_happened():
    q = coupled.quantized(6, 6)
    full, hat = coupled.calls(q)
    _, weights = coupled.calls(coherence.weights_only(q))

    @jax.jit
    def run(x_T):
        pair = runs.couple(full, hat, x_T, coupled.MULTISTEP)
        w = runs.local_errors(full, weights, pair.xs_hat, coupled.MULTISTEP)
        a = runs.local_errors(weights, hat, pair.xs_hat, coupled.MULTISTEP)
        parts = jnp.stack([w, a])
        return pair, parts, coherence.split_error(full, x_T, coupled.MULTISTEP, parts, num_nodes=5)

    pair, parts, shares = run(worlds.X_T)
    assert_close(parts.sum(0), pair.local_errors, factor=1e3)
    np.testing.assert_allclose(shares.sum(0), pair.errors[-1][:, 0], rtol=1e-6, atol=1e-9)
    assert np.all(np.linalg.norm(shares, axis=2) > 1e-4)


def test_without_activations_nothing_is_left_for_them():
    q = coupled.quantized(6, None)
    hat = coupled.calls(q)[1]
    weights = coupled.calls(coherence.weights_only(q))[1]
    xs = jax.jit(lambda x: diffusion.sample(hat, x, worlds.DDIM).states)(worlds.X_T)
    rest = jax.jit(lambda xs: runs.local_errors(weights, hat, xs, worlds.DDIM))(xs)
    assert_close(rest, np.zeros(rest.shape), scale=1.0)
    with pytest.raises(ValueError, match="SiteQuant"):
        coherence.weights_only(type(q)(q.eps_fn, q.params, {"in": (True, None)}))


# ------------------------------------------------------------------ the survey's formulas


def test_on_gaussian_data_the_survey_misses_by_the_factor_of_the_worked_case():
    """Data of std 1/4, DDIM-20 on linear beta, eps off by a constant."""
    schedule, eta = diffusion.linear(1000, 1e-4, 0.02), 0.01
    steps = diffusion.ddim(schedule, 20)
    mean, cov = np.zeros(1), np.full((1, 1), 1 / 16)
    matrices, plain = gaussian.affine_steps(mean, cov, schedule, steps)
    _, moved = gaussian.affine_steps(mean, cov, schedule, steps, bias=eta)
    runs = np.ones((2, 1))
    for m, b, c in zip(np.asarray(matrices)[:, 0, 0], np.asarray(plain)[:, 0],
                       np.asarray(moved)[:, 0], strict=True):  # fmt: skip
        runs = m * runs + np.array([[b], [c]])
    true = runs[1, 0] - runs[0, 0]

    call = diffusion.bind(gaussian.eps_fn_for(schedule), gaussian_law(mean, cov))
    e = (steps.coeffs.eps * eta)[:, None, None]
    xs = jnp.zeros((21, 1, 1))
    first = jax.jit(lambda xs: propagation.propagate(call, xs, steps, e))(xs)[-1, 0, 0]
    assert_close(first, true, factor=1e3)

    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])[::-50]
    a = np.sqrt(alpha_bar[1:] / alpha_bar[:-1])
    sigma = np.sqrt(1 - alpha_bar)
    b = sigma[1:] - a * sigma[:-1]
    j = a + b * sigma[:-1] / (alpha_bar[:-1] / 16 + sigma[:-1] ** 2)
    # E = sum_t J_t e_t, and E = sum_t prod_{k=t}^T J_k e_t with a product over the steps done.
    by_9, by_16 = np.sum(b * eta), np.sum(np.cumprod(j) * b * eta)
    assert by_16 / true == pytest.approx(3.644, rel=1e-3)
    assert by_9 / true == pytest.approx(4.091, rel=1e-3)


# ------------------------------------------------------------------ laws in the number of steps


def test_a_fitted_exponent_is_that_of_a_power_law_and_its_error_that_of_a_regression():
    sizes = np.array([10, 20, 50, 100, 200])
    exact = laws.fit_exponent(sizes, np.stack([3 * sizes**-0.5, 2.0 * sizes**0.0], axis=1))
    np.testing.assert_allclose(exact.exponent, [-0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(exact.prefactor, [3, 2], rtol=1e-12)
    np.testing.assert_allclose(exact.standard_error, 0, atol=1e-12)
    noisy = 3 * sizes**-0.5 * np.exp(np.asarray(normal(71, 5, scale=0.1)))
    found = laws.fit_exponent(sizes, noisy)
    line = scipy.stats.linregress(np.log(sizes), np.log(noisy))
    np.testing.assert_allclose(found.exponent, line.slope, rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, line.stderr, rtol=1e-10)
    for bad in ((sizes[:2], noisy[:2]), (sizes, noisy - noisy.max())):
        with pytest.raises(ValueError, match=r"at least three|above 0"):
            laws.fit_exponent(*bad)


def test_the_floor_is_what_is_left_after_infinitely_many_steps():
    n = np.array([10, 20, 50, 100, 200])
    found = laws.fit_floor(n, 0.02 + 1.3 * 0.5 / n)
    np.testing.assert_allclose((found.floor, found.slope), (0.02, 0.65), rtol=1e-10)
    np.testing.assert_allclose((found.floor_error, found.slope_error), 0, atol=1e-10)


def padded(steps, num):
    """The same sampler followed by steps that stay where they are: one compilation for all."""
    stay = diffusion.Steps(steps.t[-1], steps.s[-1], diffusion.StepCoeffs(1.0, 0.0, 0.0))
    extra = num - steps.t.shape[0]
    return jax.tree.map(lambda a, v: jnp.concatenate([a, jnp.full(extra, v)]), steps, stay)


def test_coherent_errors_tend_to_an_integral_and_incoherent_ones_decay_as_the_root():
    """Gaussian data, DDIM: eta asinh(sqrt(m) s) / sqrt(m), m = 1 / c^2; and slope -1/2."""
    schedule, eta, c = diffusion.linear(6400, 1e-5, 3e-3), 0.01, 0.5
    call = diffusion.bind(gaussian.eps_fn_for(schedule), gaussian_law(*map(
        np.asarray, ([0.0], [[c**2]]))))  # fmt: skip
    counts, coherent, incoherent = np.array([100, 200, 400, 800]), [], []

    def both(steps):
        xs = jnp.zeros((steps.t.shape[0] + 1, 1, 1))
        e = (steps.coeffs.eps * eta)[:, None, None]
        v = jnp.full_like(e, eta**2)
        axes = jnp.concatenate([coupled.axes(xs[0])] * 2)
        variance = covariance.final_variance(call, xs, steps, v, axes).total.value
        return propagation.propagate(call, xs, steps, e)[-1, 0, 0], jnp.sqrt(variance[0])

    run = jax.jit(both)
    for n in counts:
        found = run(padded(diffusion.ddim(schedule, int(n)), 800))
        coherent.append(-float(found[0]))
        incoherent.append(float(found[1]))
    top = schedule.exact(np.array(6400))
    limit = eta * c * np.arcsinh(top.sigma / top.alpha / c)
    assert laws.fit_exponent(counts, incoherent).exponent == pytest.approx(-0.5, abs=0.05)
    assert abs(laws.fit_exponent(counts, coherent).exponent) < 0.05
    gaps = np.abs(np.array(coherent) - limit)
    assert laws.fit_exponent(counts, gaps).exponent == pytest.approx(-1, abs=0.15)

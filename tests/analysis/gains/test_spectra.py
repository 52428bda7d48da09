"""Spectra of steps and samplers against dense algebra and matrices built from their spectrum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis.errors import runs
from qdiffjax.analysis.gains import spectra
from qdiffjax.analysis.gains import spectra as lyapunov
from qdiffjax.analysis.gains import steps as gains
from qdiffjax.diffusion import gaussian
from tests import worlds
from tests.analysis import coupled
from tests.analysis.coupled import DENSE_CASES, Dense
from tests.laws import gaussian_law
from tests.tolerances import assert_close
from tests.worlds import normal

# ------------------------------------------------------------------ one linear map


def built(values, rows, columns, seed=0):
    """A matrix with these singular values."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (rows, columns))
    k = len(values)
    return left[:, :k] @ np.diag(values) @ right[:, :k].T


@functools.partial(jax.jit, static_argnums=2)
def found_of(matrix, v0, num):
    return spectra.singular_values(lambda v: matrix @ v, v0, num)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_singular_values_and_vectors_are_those_the_matrix_was_built_from(dtype):
    values = np.array([9.0, 5.0, 4.0, 2.5, 1.0, 0.3])
    matrix = jnp.asarray(built(values, 9, 6), dtype)
    found = found_of(matrix, jnp.asarray(normal(1, 6), dtype), 6)
    precise = np.finfo(dtype).eps
    np.testing.assert_allclose(found.values, values, atol=200 * precise)
    for u, s, v in zip(found.left, found.values, found.right, strict=True):
        np.testing.assert_allclose(np.asarray(matrix, np.float64) @ v, s * u, atol=1e3 * precise)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(6), atol=1e3 * precise)


@pytest.mark.parametrize(
    "values", [[3.0] * 6, [2.0, 2.0, 2.0, 1.0, 1.0, 0.0], [5.0, 0, 0, 0, 0, 0], [0.0] * 6]
)
def test_an_exhausted_krylov_space_leaves_zeros_and_no_false_values(values):
    """Each distinct value is found once: the identity has no second Krylov direction."""
    found = found_of(jnp.asarray(built(np.array(values), 6, 6, seed=2)), normal(3, 6), 6)
    expected = sorted(set(values), reverse=True)
    expected = np.array(expected + [0.0] * (6 - len(expected)))
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert np.all(np.isfinite(found.left))
    assert np.all(np.isfinite(found.right))


def test_values_come_from_below_and_the_first_is_the_spectral_norm_of_the_other_krylov_method():
    matrix, v0 = normal(4, 30, 20), normal(5, 20)
    truth = np.linalg.svd(matrix)[1]
    for num in (4, 8):
        found = found_of(matrix, v0, num).values
        assert np.all(found <= truth[:num] * (1 + 1e-12))
        norm = jax.jit(
            lambda v0, num=num: gains.spectral_norm(lambda v: v @ matrix.T, v0[None], num).norm[0]
        )(v0)
        np.testing.assert_allclose(found[0], norm, rtol=1e-10)


@pytest.mark.slow
def test_the_derivative_of_a_singular_value_is_the_product_of_its_vectors():
    """d sigma = u^T dA v, in both modes, through matfree's iteration."""
    matrix, v0, tangent = normal(4, 5, 4), normal(5, 4), normal(6, 5, 4)
    left, _, right = np.linalg.svd(matrix)
    expected = np.outer(left[:, 0], right[0])

    def largest(a):
        return spectra.singular_values(lambda v: a @ v, v0, 4).values[0]

    forward = jax.jit(lambda a, d: jax.jvp(largest, (a,), (d,))[1])(matrix, tangent)
    np.testing.assert_allclose(forward, np.sum(expected * tangent), rtol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.grad(largest))(matrix), expected, atol=1e-8)


def test_more_values_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="1 to 2"):
        spectra.singular_values(lambda v: v, jnp.ones(2), 3)


# ------------------------------------------------------------------ steps and samplers


@pytest.fixture(scope="module", params=DENSE_CASES)
def dense(request):
    return Dense(*DENSE_CASES[request.param])


def test_the_spectrum_of_every_step_is_that_of_its_dense_jacobian(dense):
    run = jax.jit(
        lambda xs: spectra.step_spectra(dense.call, xs, dense.steps, num=dense.size, key=worlds.KEY)
    )
    expected = np.linalg.svd(dense.steps_of)[1]
    found = run(dense.xs)
    np.testing.assert_allclose(found.values, expected, atol=1e-10)
    assert found.right.shape == (worlds.NUM_STEPS, worlds.BATCH, dense.size, *dense.xs.shape[2:])


def test_the_spectrum_of_the_sampler_is_that_of_the_product_of_dense_jacobians(dense):
    run = jax.jit(
        lambda xs, i: (
            spectra.sampler_spectrum(
                dense.call, xs, dense.steps, num=2, key=worlds.KEY, first=i
            ).values
        )
    )
    for first in (0, 3, worlds.NUM_STEPS - 1):
        expected = np.linalg.svd(dense.to_end[first])[1]
        np.testing.assert_allclose(run(dense.xs, first), expected, rtol=1e-9, atol=1e-12)


def test_adjoints_are_rows_of_the_dense_jacobians_and_their_squares_average_to_the_norm(dense):
    v = normal(6, worlds.BATCH, 2)
    found = jax.jit(lambda xs: runs.adjoints(dense.call, xs, dense.steps, v))(dense.xs)
    expected = np.einsum("ibjk,bj->ibk", dense.to_end, v)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-12)
    norms = jax.jit(lambda xs, v: spectra.squared_frobenius(dense.call, xs, dense.steps, v))
    probed = norms(dense.xs, runs.signs(worlds.KEY, 64, worlds.X_T))
    truth = np.sum(dense.to_end**2, axis=(2, 3))
    np.testing.assert_allclose(probed.value[-1], 2.0, rtol=1e-12)  # |I|_F^2 = n, without variance
    error = np.abs(probed.value - truth)
    assert np.all(error <= 4 * probed.standard_error + 1e-12)
    assert np.mean(error[:-1]) > 1e-6  # it is an estimate
    exact = norms(dense.xs, coupled.axes(worlds.X_T)).value
    np.testing.assert_allclose(exact, truth, rtol=1e-11)
    with pytest.raises(ValueError, match="at least 2"):
        runs.probed(lambda v: v, jnp.ones((1, 3)))


def test_log_volumes_are_log_determinants_in_the_mean_over_signs():
    """In the plane the probes (1, 1) and (1, -1) are orthogonal: their mean is exact."""
    dense = Dense(*DENSE_CASES["ddpm"])
    run = jax.jit(
        lambda key: spectra.probed_log_volumes(dense.call, dense.xs, dense.steps, num=2, key=key)
    )
    found = np.stack([run(jax.random.key(seed)) for seed in range(24)])
    two = (found.min(axis=0) + found.max(axis=0)) / 2  # each probe occurred, but for 2^-23
    np.testing.assert_allclose(two, np.linalg.slogdet(dense.steps_of)[1], atol=1e-11)


def test_too_few_nodes_hide_contraction_but_do_not_invent_it():
    dense = Dense(*DENSE_CASES["ddpm"])
    few, enough = (
        jax.jit(lambda n=n: spectra.probed_log_volumes(
            dense.call, dense.xs, dense.steps, num=n, key=worlds.KEY
        ))()
        for n in (1, 2)
    )  # fmt: skip
    assert np.all(few >= enough - 1e-12)
    assert np.max(few - enough) > 1e-4


# ------------------------------------------------------------------ Lyapunov exponents


@functools.partial(jax.jit, static_argnums=(0, 3), static_argnames="every")
def stretches(call, xs, steps, num, every=1):
    return lyapunov.stretches(call, xs, steps, num=num, key=worlds.KEY, every=every)


def test_log_stretches_of_all_directions_sum_to_the_log_volume():
    dense = Dense(*DENSE_CASES["ddpm"])
    volumes = np.cumsum(np.linalg.slogdet(dense.steps_of)[1], axis=0)
    found = stretches(dense.call, dense.xs, dense.steps, 2)
    np.testing.assert_allclose(np.sum(found[1:], axis=2), volumes, rtol=1e-11)
    assert_close(found[0], np.zeros((worlds.BATCH, 2)), scale=1.0)
    sparse = stretches(dense.call, dense.xs, dense.steps, 2, every=4)
    np.testing.assert_allclose(sparse[-1], found[-1], rtol=1e-10)
    np.testing.assert_allclose(sparse[4], found[4], rtol=1e-10)
    assert_close(sparse[3], np.zeros((worlds.BATCH, 2)), scale=1.0)


def test_partial_sums_of_log_stretches_are_at_most_those_of_log_singular_values():
    dense = Dense(*DENSE_CASES["multistep"])
    product = functools.reduce(lambda p, m: m @ p, dense.steps_of)
    found = stretches(dense.call, dense.xs, dense.steps, 2)[-1]
    singular = np.log(np.linalg.svd(product)[1][:, :2])
    assert np.all(np.cumsum(found, axis=1) <= np.cumsum(singular, axis=1) + 1e-9)


def test_stretches_of_a_rotation_times_a_diagonal_are_its_logarithms_once_aligned():
    """A constant symmetric step: exponents are the logarithms of its eigenvalues."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    matrix = jnp.asarray(rotation @ np.diag([2.0, 0.7, 0.1]) @ rotation.T)
    ones = jnp.ones(60)
    steps = diffusion.Steps(ones, 0 * ones, diffusion.StepCoeffs(0 * ones, ones, 0 * ones))

    def call(x, t, inputs, state=()):
        return x @ matrix, None, state

    found = stretches(call, jnp.zeros((61, 1, 3)), steps, 3)
    np.testing.assert_allclose(found[-1, 0] - found[-2, 0], np.log([2.0, 0.7, 0.1]), rtol=1e-12)


# ------------------------------------------------------------------ logarithmic norms

VP = diffusion.VP()
TS = np.array([0.9, 0.5, 0.2])


@pytest.mark.slow
def test_log_norms_of_the_flow_of_gaussian_data_are_their_closed_form():
    """A = f I + g^2 C_t^-1 / 2 with eigenvalues f + g^2 / (2 v)."""
    variances = np.array([2.0, 0.5, 0.1])
    field = diffusion.pf_ode(
        gaussian.eps_fn_for(VP), gaussian_law(np.zeros(3), np.diag(variances)), VP
    )
    xs = normal(8, 3, 2, 3)
    run = jax.jit(lambda xs: lyapunov.log_norms(field, TS, xs, key=worlds.KEY, num_iterations=3))
    found = run(xs)
    rates, levels = VP.exact_rates(TS), VP.exact(TS)
    v = levels.alpha[:, None] ** 2 * variances + levels.sigma[:, None] ** 2
    eigen = rates.drift[:, None] + rates.diffusion_squared[:, None] / (2 * v)
    for mine, expected in ((found.smallest, eigen.min(1)), (found.largest, eigen.max(1))):
        np.testing.assert_allclose(mine, np.repeat(expected[:, None], 2, 1), rtol=1e-9)


@pytest.mark.slow
def test_the_one_sided_quotient_is_the_rate_of_separation_and_lies_between_the_log_norms():
    def field(t, x):
        return jnp.tanh(x @ MATRIX + t) @ MATRIX.T - x

    xs, xs_hat = normal(9, 3, 5, 4), normal(10, 3, 5, 4)

    def rate(t, x, x_hat):
        """< field(x_hat) - field(x), x_hat - x > / |x_hat - x|^2 = d log|x_hat - x| / dt."""
        gap = x_hat - x
        return jnp.sum((field(t, x_hat) - field(t, x)) * gap, axis=1) / jnp.sum(gap**2, axis=1)

    @jax.jit
    def run(xs, xs_hat):
        at = [
            lyapunov.log_norms(field, TS, xs + u * (xs_hat - xs), key=worlds.KEY, num_iterations=4)
            for u in np.linspace(0, 1, 9)
        ]
        return jax.vmap(rate)(TS, xs, xs_hat), at

    quotient, at = run(xs, xs_hat)
    h = 1e-6
    speeds = [np.stack([field(t, x) for t, x in zip(TS, a, strict=True)]) for a in (xs, xs_hat)]
    gaps = [np.linalg.norm(xs_hat + s * speeds[1] - xs - s * speeds[0], axis=2) for s in (-h, h)]
    np.testing.assert_allclose(quotient, np.log(gaps[1] / gaps[0]) / (2 * h), rtol=1e-6)
    # Eigenvalues of a mean are within the extremes of what is averaged; the nodes are dense here.
    assert np.all(quotient <= np.max([a.largest for a in at], axis=0) + 1e-2)
    assert np.all(quotient >= np.min([a.smallest for a in at], axis=0) - 1e-2)


MATRIX = normal(11, 4, 4, scale=0.8)

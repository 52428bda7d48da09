"""Theorems about the gains of steps and the bounds built on them: valid, and tight."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.gains import flows
from qdiffjax.analysis.gains import steps as step_norms
from qdiffjax.diffusion import gaussian
from tests.laws import gaussian_law
from tests.tolerances import assert_close

SCHEDULE = diffusion.linear(40, 1e-3, 0.2)
STEPS = diffusion.ddim(SCHEDULE, 10)
KEY = jax.random.key(0)


n, batch, num_steps = 6, 4, 10


def network(seed):
    """Weights of a smooth random eps(x, t) of gain about 2."""
    rng = np.random.default_rng(seed)
    w_in, w_t, w_out = rng.normal(size=(n, 12)), rng.normal(size=12), rng.normal(size=(12, n))
    return w_in / np.sqrt(n), w_t, 2 * w_out / np.sqrt(12)


def network_fn(params, x, t):
    w_in, w_t, w_out = params
    return jnp.tanh(x @ w_in + (t / 20 * w_t)[None]) @ w_out


def mixture(seed):
    rng = np.random.default_rng(seed)
    roots = 0.4 * rng.normal(size=(3, n, n))
    covs = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(n)
    return gaussian.GaussianMixture(np.full(3, 1 / 3), rng.normal(size=(3, n)), covs)


def normal(cov, mean=0.0):
    """N(mean, cov) as a mixture of three equal components: one compilation for all mixtures."""
    means = np.broadcast_to(mean, (3, n)).astype(float)
    return gaussian.GaussianMixture(np.full(3, 1 / 3), means, np.stack([cov] * 3))


class Lab(NamedTuple):
    """Two runs and everything about them that the bounds need, by plain dense algebra."""

    xs: Any
    xs_hat: Any
    jacobians: Any  # dense, along xs [N, batch, n, n]
    first_order: Any
    remainders: Any
    gains: Any
    segment: Any
    log_gains: Any


@partial(jax.jit, static_argnums=0)
def run(eps_fn, params, steps, local, x_T):
    """Run with and without the local errors [N, batch, n]."""
    call = diffusion.bind(eps_fn, params)

    def body(state, slices):
        x, x_hat, first = state
        t, c, e = slices

        def fn(x):
            return c.x * x + c.eps * eps_fn(params, x, t)

        jac = jax.vmap(jax.jacfwd(lambda v: fn(v[None])[0]))(x)
        change = fn(x_hat) - fn(x)
        rho = change - jnp.einsum("bij,bj->bi", jac, x_hat - x)
        new = fn(x), fn(x_hat) + e, jnp.einsum("bij,bj->bi", jac, first) + e
        return new, (*new, jac, rho)

    start = x_T, x_T, jnp.zeros_like(x_T)
    _, (*states, jac, rho) = jax.lax.scan(body, start, (steps.t, steps.coeffs, local))
    xs, xs_hat, first = (jnp.concatenate([a[None], b]) for a, b in zip(start, states, strict=True))
    gains = step_norms.step_gains(call, xs, steps, key=KEY)
    segment = step_norms.segment_gains(call, xs, xs_hat, steps, key=KEY)
    log_gains = step_norms.log_norm_gains(call, xs, steps, key=KEY)
    return Lab(xs, xs_hat, jac, first, rho, gains, segment, log_gains)


MIXTURE_FN = gaussian.eps_fn_for(SCHEDULE)
CASES = [(network_fn, network(seed)) for seed in range(8)]
CASES += [(MIXTURE_FN, mixture(seed)) for seed in range(8)]


def case(index):
    rng = np.random.default_rng(100 + index)
    local = 10 ** rng.uniform(-3, -0.5) * rng.normal(size=(num_steps, batch, n))
    return local, run(*CASES[index], STEPS, local, rng.normal(size=(batch, n)))


def size(a):
    return np.linalg.norm(np.asarray(a), axis=-1)


def dense_norms(jacobians):
    return np.linalg.norm(np.asarray(jacobians), 2, axis=(2, 3))


# Spectral norms.


def matrix_map(matrices):
    return lambda v: jnp.einsum("bij,bj->bi", matrices, v)


@partial(jax.jit, static_argnums=2)
def matrix_norms(matrices, v0, num):
    return step_norms.spectral_norm(matrix_map(matrices), v0, num)


def test_the_full_krylov_space_gives_the_largest_singular_value():
    matrices = np.random.default_rng(0).normal(size=(5, 9, 7))
    v0 = jax.random.normal(KEY, (5, 7))
    out = matrix_norms(matrices, v0, 7)
    _, singular, right = np.linalg.svd(matrices)
    assert_close(out.norm, singular[:, 0], factor=100)
    assert_close(jnp.abs(jnp.sum(out.vector * right[:, 0], axis=1)), np.ones(5), factor=1e4)


@pytest.mark.parametrize("num", [2, 3, 5])
def test_the_norm_lies_between_the_power_method_and_the_truth(num):
    matrices = np.random.default_rng(num).normal(size=(8, 20, 20))
    v0 = np.random.default_rng(1).normal(size=(8, 20))
    power = v0.copy()
    for _ in range(num - 1):
        power = np.einsum("bji,bjk,bk->bi", matrices, matrices, power)
        power /= size(power)[:, None]
    out = matrix_norms(matrices, v0, num)
    assert np.all(out.norm >= (1 - 1e-12) * size(np.einsum("bij,bj->bi", matrices, power)))
    assert np.all(out.norm <= (1 + 1e-12) * np.linalg.norm(matrices, 2, axis=(1, 2)))
    assert np.all(out.gauge >= 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_multiple_of_an_isometry_takes_one_iteration_and_never_more(dtype):
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    matrices = jnp.asarray(np.stack([3 * rotation, 0 * rotation]), dtype)
    out = matrix_norms(matrices, jnp.ones((2, 6), dtype), 5)
    assert_close(out.norm, np.array([3, 0], dtype))
    assert_close(out.gauge, np.zeros(2, dtype), scale=1.0)


def test_extremes_are_those_of_the_symmetric_part():
    matrices = np.random.default_rng(3).normal(size=(4, 8, 8))
    extremes = jax.jit(lambda v0: step_norms.symmetric_extremes(matrix_map(matrices), v0, 8))
    low, high = extremes(np.ones((4, 8)))
    values = np.linalg.eigvalsh((matrices + matrices.transpose(0, 2, 1)) / 2)
    assert_close(low, values[:, 0], factor=100)
    assert_close(high, values[:, -1], factor=100)


def test_one_iteration_cannot_be_gauged():
    with pytest.raises(ValueError, match="at least 2"):
        step_norms.spectral_norm(lambda v: v, np.ones((1, 3)), 1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [STEPS, diffusion.ddpm(SCHEDULE, 10)], ids=["ddim", "ddpm"])
@pytest.mark.parametrize("index", [0, 8])
def test_step_gains_are_the_norms_of_the_dense_jacobians(index, steps):
    local = np.zeros((num_steps, batch, n))
    lab = run(*CASES[index], steps, local, jax.random.normal(KEY, (batch, n)))
    assert_close(lab.gains.norms, dense_norms(lab.jacobians), factor=1e4)


@partial(jax.jit, static_argnums=0)
def gains(call, xs, steps, per_call=None):
    return step_norms.step_gains(
        call, xs, steps, key=KEY, num_iterations=6, num_burn_in=6, per_call=per_call
    )


def test_the_warm_start_sees_an_overtaking_eigenvector():
    """Without fresh directions the first step's vector would stay an exact eigenvector."""
    steps = diffusion.make_steps(SCHEDULE, [40, 30, 20, 10, 0], diffusion.ddim_coeffs)
    peak = jnp.asarray([[3.0, 0, 0, 0], [0, 0, 4.0, 0], [0, 5.0, 0, 0], [0, 0, 0, 6.0]])

    def call(x, t, gains, state=()):
        return gains * x, None, state

    xs = jnp.ones((5, 1, 4))
    per_call = -peak[:, None, :]
    out = gains(call, xs, steps, per_call=per_call)
    expected = steps.coeffs.x - steps.coeffs.eps * jnp.asarray([3.0, 4, 5, 6])
    assert_close(out.norms[:, 0], expected, factor=100)


def test_the_state_shape_is_free():
    def call(x, t, inputs, state=()):
        return network_fn(network(0), x.reshape(-1, n), t).reshape(x.shape), None, state

    _, lab = case(0)
    images = gains(call, lab.xs.reshape(num_steps + 1, batch, 2, 3, 1), STEPS).norms
    assert_close(images, dense_norms(lab.jacobians), factor=1e4)


@pytest.mark.parametrize("index", range(16))
def test_the_logarithmic_norm_bounds_the_gain(index):
    _, lab = case(index)
    assert np.all(lab.log_gains >= dense_norms(lab.jacobians) * (1 - 1e-9))


def test_the_logarithmic_norm_is_the_gain_of_isotropic_gaussian_data():
    lab = run(MIXTURE_FN, normal(0.3 * np.eye(n)), STEPS, np.zeros((num_steps, batch, n)), X_T)
    # The square is a difference of numbers of order 1.
    np.testing.assert_allclose(lab.log_gains, np.abs(lab.jacobians[..., 0, 0]), atol=1e-7)


# Bounds along the run: valid.


@pytest.mark.parametrize("index", range(16))
def test_gronwall_with_segment_gains_bounds_the_error(index):
    local, lab = case(index)
    bound = pathwise.gronwall(lab.segment.norms, size(local))
    assert bound.shape == (num_steps + 1, batch)
    assert np.all(size(lab.xs_hat - lab.xs) <= bound * (1 + 1e-9))


@pytest.mark.parametrize("index", range(16))
def test_first_order_plus_remainder_bounds_the_error(index):
    _, lab = case(index)
    delta = lab.xs_hat - lab.xs
    bound, radius = pathwise.remainder_bound(lab.gains.norms, size(lab.remainders), lab.first_order)
    assert np.all(size(delta) <= bound * (1 + 1e-9))
    assert np.all(size(delta - lab.first_order) <= radius * (1 + 1e-9) + 1e-14)


def test_the_nodes_are_points_of_the_segment_and_the_largest_counts():
    """Scalar steps F(x) = x - x^2 / 2 with gain |1 - x|: nodes 0, 1/2, 1 of [0.2, 3.2]."""
    unit = diffusion.StepCoeffs(*jnp.asarray([[1.0], [-0.5], [0.0]]))
    steps = diffusion.Steps(jnp.ones(1), jnp.zeros(1), unit)

    def call(x, t, inputs, state=()):
        return x**2, None, state

    xs, xs_hat = np.full((2, 1, 1), 0.2), np.full((2, 1, 1), 3.2)
    segment = jax.jit(lambda u: step_norms.segment_gains(call, xs, xs_hat, steps, nodes=u, key=KEY))
    for nodes, expected in [([0.0, 0.5, 1.0], 2.2), ([0.0, 0.5, 0.5], 0.8), ([0.5, 0.5, 0.5], 0.7)]:
        assert_close(segment(np.array(nodes)).norms, np.array([[expected]]), factor=100)


def test_nodes_may_miss_a_maximum_that_the_curvature_accounts_for():
    """F(x) = sin(4 pi x) / (4 pi): its gain |cos(4 pi x)| is 0 at 1/8 and 3/8, 1 between them."""
    x = np.linspace(1 / 8, 3 / 8, 1001)
    gain = np.abs(np.cos(4 * np.pi * x))
    nodes = gain[[0, -1]].max()
    assert nodes < 1e-12
    sound = pathwise.gains_between_nodes(nodes, 4 * np.pi, 0.25, 2)
    assert gain.max() <= sound


def test_the_correction_between_nodes_is_attained_by_a_tent():
    """|J| rises with slope M to the middle of two nodes and falls again."""
    found = pathwise.gains_between_nodes(np.array([0.3]), np.array([2.0]), np.array([0.6]), 4)
    assert_close(found, np.array([0.3 + 2.0 * 0.6 / 3 / 2]))


# Bounds along the run: tight.

ISOTROPIC, ANISOTROPIC = 0.5 * np.eye(n), np.diag([2.0, 0.3, 0.1, 0.1, 0.2, 0.2])
X_T = np.random.default_rng(7).normal(size=(batch, n))


def gaussian_case(cov, axis):
    """Constant error of the network along one axis, on Gaussian data."""
    local = np.zeros((num_steps, batch, n))
    local[..., axis] = 0.3 * np.asarray(STEPS.coeffs.eps)[:, None]
    return local, run(MIXTURE_FN, normal(cov, mean=0.5), STEPS, local, X_T)


@pytest.mark.parametrize("cov", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
def test_gronwall_is_attained_by_errors_along_the_top_eigenvector(cov):
    local, lab = gaussian_case(cov, 0)
    bound = pathwise.gronwall(lab.segment.norms, size(local))
    np.testing.assert_allclose(size(lab.xs_hat - lab.xs), bound, rtol=1e-9)


def test_errors_across_the_top_eigenvector_stay_strictly_below():
    local, lab = gaussian_case(ANISOTROPIC, 2)
    bound = pathwise.gronwall(lab.segment.norms, size(local))
    assert np.all(size(lab.xs_hat - lab.xs)[-1] < 0.5 * bound[-1])


def test_the_remainder_bound_is_exact_for_affine_steps():
    _, lab = gaussian_case(ANISOTROPIC, 2)
    bound, radius = pathwise.remainder_bound(lab.gains.norms, size(lab.remainders), lab.first_order)
    assert np.max(radius) < 1e-13
    assert_close(bound, size(lab.xs_hat - lab.xs), factor=100)


def test_the_remainder_radius_is_attained_by_an_aligned_remainder():
    """J = 2 I in each step; the only remainder enters first: |delta - E| = 2^(N-1) |rho_0|."""
    rho = np.array([[0.7], [0.0], [0.0]])
    _, radius = pathwise.remainder_bound(np.full((3, 1), 2.0), rho, np.zeros((4, 1, 2)))
    assert_close(radius[:, 0], np.array([0, 0.7, 1.4, 2.8]))


# Data of a known class.


def levels(steps, schedule):
    level = schedule.exact(np.asarray(steps.t))
    return level.sigma / level.alpha


@pytest.mark.parametrize("steps", [STEPS, diffusion.ddpm(SCHEDULE, 7)], ids=["ddim", "ddpm"])
def test_isotropic_gaussian_data_attain_the_log_concave_gain(steps):
    m = 2.5
    posterior = pathwise.log_concave_posterior(levels(steps, SCHEDULE), m)
    matrices, _ = gaussian.affine_steps(np.zeros(2), np.eye(2) / m, SCHEDULE, steps)
    gains = pathwise.posterior_gains(SCHEDULE, steps, posterior)
    assert_close(gains, jnp.abs(matrices[:, 0, 0]), factor=1e3)


RADIUS, STD = 1.0, 0.3
CENTRE = RADIUS * np.eye(n)[0]
PAIR = gaussian.GaussianMixture(
    np.array([0.5, 0.25, 0.25]),
    np.stack([CENTRE, -CENTRE, -CENTRE]),
    STD**2 * np.stack([np.eye(n)] * 3),
)


def test_the_mixture_gain_is_attained_between_two_centres_and_nowhere_exceeded():
    posterior = pathwise.mixture_posterior(levels(STEPS, SCHEDULE), RADIUS, STD)
    gains = pathwise.posterior_gains(SCHEDULE, STEPS, posterior)[:, None]
    local = np.zeros((num_steps, batch, n))
    at_rest = run(MIXTURE_FN, PAIR, STEPS, local, np.zeros((batch, n)))
    np.testing.assert_allclose(dense_norms(at_rest.jacobians), np.tile(gains, batch), rtol=1e-9)
    for scale in (0.1, 0.3, 1.0):
        lab = run(MIXTURE_FN, PAIR, STEPS, local, scale * X_T)
        assert np.all(dense_norms(lab.jacobians) <= gains * (1 + 1e-12))


def test_the_mixture_flow_gain_is_the_limit_of_the_step_gains():
    """Many DDIM steps on the separatrix; coordinates x / alpha, so the factors alpha drop out."""
    schedule = diffusion.linear(4000, 1e-6, 1.5e-3)
    steps = diffusion.ddim(schedule, 4000)
    s = levels(steps, schedule)
    posterior = pathwise.mixture_posterior(s, RADIUS, STD)
    product = np.prod(pathwise.posterior_gains(schedule, steps, posterior) / steps.coeffs.x)
    flow = flows.mixture_flow_gain(s[0], 0.0, RADIUS, STD)
    np.testing.assert_allclose(product, flow, rtol=0.01)


def test_the_log_concave_bound_holds_and_tends_to_the_integral_gaussians_attain():
    """Constant eta: eta m^(-1/2) asinh(sqrt(m) s_max); aligned errors on N(0, I / m)."""
    schedule, m, eta = diffusion.linear(2000, 1e-6, 3e-3), 2.5, 0.01
    steps = diffusion.ddim(schedule, 2000)
    law = gaussian_law(np.zeros(2), np.eye(2) / m)
    # eps coefficients are negative, so a constant error of eps adds up coherently.
    matrices, _ = gaussian.affine_steps(law.means[0], law.covs[0], schedule, steps)
    error = 0.0
    for gain, c in zip(np.asarray(matrices[:, 0, 0]), np.asarray(steps.coeffs.eps), strict=True):
        error = gain * error - c * eta
    s = np.concatenate([levels(steps, schedule), [0.0]])
    bound = float(pathwise.log_concave_bound(s, np.full(2000, eta), m))
    integral = eta / np.sqrt(m) * np.arcsinh(np.sqrt(m) * s[0])
    assert error <= bound <= 1.01 * error
    np.testing.assert_allclose(bound, integral, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
def test_the_log_concave_bound_holds_on_any_grid(num_steps):
    """Data N(0, diag) with smallest precision m and errors in random directions."""
    rng = np.random.default_rng(num_steps)
    steps, cov = diffusion.ddim(SCHEDULE, num_steps), np.diag([0.4, 0.2, 0.05])
    eta = rng.uniform(0, 0.1, size=num_steps)
    units = rng.normal(size=(num_steps, 3))
    noise = eta[:, None] * units / size(units)[:, None]
    matrices, _ = gaussian.affine_steps(np.zeros(3), cov, SCHEDULE, steps)
    error = np.zeros(3)
    for matrix, c, d in zip(np.asarray(matrices), np.asarray(steps.coeffs.eps), noise, strict=True):
        error = matrix @ error + c * d
    s = np.concatenate([levels(steps, SCHEDULE), [0.0]])
    assert size(error) <= float(pathwise.log_concave_bound(s, eta, 1 / 0.4)) * (1 + 1e-12)


def test_the_log_concave_bound_refuses_a_grid_that_does_not_end_in_clean_data():
    """Of normal data, m = 1, an error of the last level s_N > 0 is not in the sum."""
    for levels in ([2.0, 1.0, 0.5], [1.0, 2.0, 0.0]):
        with pytest.raises(ValueError, match="expected strictly descending to 0"):
            pathwise.log_concave_bound(np.asarray(levels), np.ones(2), 1.0)

"""From local errors to the final error: exact identities, exact cases, convergence orders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion
from qdiffjax.analysis.errors import propagation, runs
from qdiffjax.diffusion import gaussian
from tests import worlds
from tests.analysis import coupled
from tests.laws import gaussian_law
from tests.tolerances import assert_close, slope
from tests.worlds import normal

couple = functools.partial(jax.jit, static_argnums=(0, 1))(runs.couple)

fan = functools.partial(jax.jit, static_argnums=0)(propagation.fan)
homotopy = functools.partial(jax.jit, static_argnums=0, static_argnames="num_nodes")(
    coupled.homotopy
)

# ------------------------------------------------------------------ fan


@pytest.fixture(scope="module", params=["ddim", "ddpm"])
def fanned(request):
    """Sampler, coupled runs of a doubly rounded mixture denoiser, and the terms of their fan."""
    steps, key = coupled.SAMPLERS[request.param]
    pair = couple(worlds.EXACT, worlds.rounded, worlds.X_T, steps, key=worlds.KEY)
    return steps, key, pair, fan(worlds.EXACT, pair.xs_hat, steps, key=worlds.KEY)


def test_the_terms_of_the_fan_sum_to_the_error(fanned):
    *_, pair, terms = fanned
    assert np.min(np.abs(pair.errors[-1])) > 1e-3
    assert_close(np.sum(terms, axis=0), pair.errors[-1], factor=256)


def test_a_term_of_the_fan_is_the_path_integrated_jacobian_of_the_rest_times_the_local_error(
    fanned,
):
    steps, key, pair, terms = fanned
    zs = coupled.noise_path(steps, key, worlds.X_T)
    nodes, weights = np.polynomial.legendre.leggauss(20)

    def at_node(i, x, e, u):
        suffix = lambda x: coupled.run_from(worlds.EXACT, x, i + 1, steps, zs)  # noqa: E731
        return jax.jvp(suffix, (x - (1 - u) * e,), (e,))[1]  # from F_i(x_hat_i) to x_hat_i+1

    def integral(slices):
        values = jax.vmap(functools.partial(at_node, *slices))(jnp.asarray((nodes + 1) / 2))
        return jnp.tensordot(jnp.asarray(weights / 2), values, 1)

    index = jnp.arange(worlds.NUM_STEPS)
    expected = jax.jit(functools.partial(jax.lax.map, integral))(
        (index, pair.xs_hat[1:], pair.local_errors)
    )
    np.testing.assert_allclose(terms, expected, rtol=0, atol=1e-11)


# ------------------------------------------------------------------ first order


@pytest.fixture(scope="module")
def smooth():
    """Runs of the trained network and its rounded self, dense Jacobians along the first."""
    q = coupled.quantized(6, 6)
    full, hat = coupled.calls(q)
    pair = couple(full, hat, worlds.X_T, worlds.DDIM)

    def jacobian(x, t, c):
        return jax.jacfwd(lambda x: c.x * x + c.eps * full(x[None], t, None)[0][0])(x)

    over_batch = jax.vmap(jacobian, in_axes=(0, None, None))
    jacobians = jax.jit(jax.vmap(over_batch))(pair.xs[:-1], worlds.DDIM.t, worlds.DDIM.coeffs)
    return full, pair, np.asarray(jacobians)


def test_propagation_is_the_sum_of_dense_jacobian_products_of_the_steps_still_to_do(smooth):
    full, pair, jacobians = smooth
    e = np.asarray(pair.local_errors)
    expected = [np.zeros_like(e[0])]
    for end in range(worlds.NUM_STEPS):
        total = np.zeros_like(e[0])
        for i in range(end + 1):
            product = np.eye(2)
            for j in range(i + 1, end + 1):
                product = jacobians[j] @ product
            total += np.squeeze(product @ e[i][..., None], -1)
        expected.append(total)
    actual = propagation.propagate(full, pair.xs, worlds.DDIM, pair.local_errors)
    assert_close(actual, np.stack(expected), factor=64)


def test_with_the_remainders_first_order_is_exact(smooth):
    full, pair, jacobians = smooth
    rho = coupled.remainders(full, pair.xs, pair.xs_hat, worlds.DDIM)
    moved = np.squeeze(jacobians @ np.asarray(pair.errors)[:-1, ..., None], -1)
    assert_close(moved + pair.local_errors + rho, pair.errors[1:], factor=64, scale=3.0)
    _, found = propagation.propagate_with_remainders(
        full, pair.xs, pair.xs_hat, worlds.DDIM, pair.local_errors
    )
    assert_close(found, rho, factor=64, scale=3.0)
    exact = propagation.propagate(full, pair.xs, worlds.DDIM, pair.local_errors + found)
    assert_close(exact, pair.errors, factor=64, scale=3.0)
    assert np.max(np.abs(rho)) > 1e-5  # first order alone is not


def test_remainders_are_of_second_order(smooth):
    full, pair, _ = smooth
    direction, sizes = normal(20, *pair.xs.shape), jnp.array([4e-3, 2e-3, 1e-3])
    rho = jax.jit(jax.vmap(
        lambda s: coupled.remainders(full, pair.xs, pair.xs + s * direction, worlds.DDIM)
    ))  # fmt: skip
    norms = np.linalg.norm(rho(sizes).reshape(3, -1), axis=1)
    assert slope(sizes, norms) == pytest.approx(2, abs=0.1)


# ------------------------------------------------------------------ Gaussian data: affine, exact

MEAN, COV = np.array([0.3, -0.5]), np.array([[1.5, 0.6], [0.6, 0.4]])
KAPPA, BIAS = 0.2, np.array([0.1, -0.3])
gaussian_full = diffusion.bind(gaussian.eps_fn_for(worlds.SCHEDULE), gaussian_law(MEAN, COV))


def gaussian_hat(x, t, inputs, state=()):
    return (1 + KAPPA) * gaussian_full(x, t, None)[0] + BIAS[None], None, state


def affine_run(**kwargs):
    """States of the sampler by its closed-form affine maps."""
    maps = gaussian.affine_steps(MEAN, COV, worlds.SCHEDULE, worlds.DDIM, **kwargs)
    xs = [np.asarray(worlds.X_T)]
    for matrix, offset in zip(*map(np.asarray, maps), strict=True):
        xs.append(xs[-1] @ matrix.T + offset)
    return np.stack(xs)


@pytest.fixture(scope="module")
def gaussian_pair():
    return couple(gaussian_full, gaussian_hat, worlds.X_T, worlds.DDIM)


def test_on_gaussian_data_first_order_is_the_closed_form_error(gaussian_pair):
    pair = gaussian_pair
    expected = affine_run(kappa=KAPPA, bias=BIAS) - affine_run()
    actual = propagation.propagate(gaussian_full, pair.xs, worlds.DDIM, pair.local_errors)
    assert np.min(np.abs(expected[-1])) > 1e-2
    assert_close(actual, expected, factor=256)


def test_an_affine_denoiser_leaves_no_remainder(gaussian_pair):
    pair = gaussian_pair
    _, rho = propagation.propagate_with_remainders(
        gaussian_full, pair.xs, pair.xs_hat, worlds.DDIM, pair.local_errors
    )
    assert_close(rho, np.zeros(rho.shape), factor=64, scale=3.0)


def test_jacobians_multiply_over_the_steps_still_to_do_not_over_those_done():
    """The survey's eq. 16 read literally is another number, here a third too large.

    Scalar Gaussian data of variance v: J_t = a_t + b_t sigma_t / v_t, v_t that of x_t, by hand.
    """
    alpha_bar, v = np.array([1.0, 0.8, 0.5, 0.2]), 4.0
    schedule = diffusion.DiscreteSchedule(alpha_bar)
    steps = diffusion.ddim(schedule, 3)
    a = np.sqrt(alpha_bar[2::-1] / alpha_bar[:0:-1])
    sigma = np.sqrt(1 - alpha_bar)
    b = sigma[2::-1] - a * sigma[:0:-1]
    j = a + b * sigma[:0:-1] / (alpha_bar * v + 1 - alpha_bar)[:0:-1]  # J_3, J_2, J_1
    e = np.array([0.01, 0.02, 0.06])  # committed by steps 3, 2, 1
    true = j[2] * j[1] * e[0] + j[2] * e[1] + e[2]
    literal = j[0] * e[0] + j[0] * j[1] * e[1] + j[0] * j[1] * j[2] * e[2]  # k = t ... T
    call = diffusion.bind(
        gaussian.eps_fn_for(schedule), gaussian_law(np.zeros(1), np.full((1, 1), v))
    )
    xs = jnp.zeros((4, 1, 1))
    actual = propagation.propagate(call, xs, steps, jnp.asarray(e)[:, None, None])[-1, 0, 0]
    assert_close(actual, true)
    assert literal / true == pytest.approx(4 / 3, rel=0.01)


# ------------------------------------------------------------------ homotopy


MANY = normal(21, 64, 2)  # so that no leading coefficient vanishes by chance


@jax.jit
def relative_errors(size, steps):
    """Of the homotopy estimate with K = 1, 2, 3 nodes, for a smooth error of some size."""
    pair = runs.couple(worlds.fast, bent(size), MANY, steps, key=worlds.KEY)
    e, scale = pair.local_errors, jnp.linalg.norm(pair.errors[-1])
    estimates = [
        coupled.homotopy(worlds.fast, MANY, steps, e, num_nodes=k, key=worlds.KEY)
        for k in (1, 2, 3)
    ]
    return jnp.stack([jnp.linalg.norm(h - pair.errors[-1]) / scale for h in estimates])


def bent(size):
    return lambda x, t, i, state=(): (
        worlds.fast(x, t, i)[0] + size * jnp.sin(2 * x + t / 20),
        None,
        state,
    )


@pytest.mark.parametrize("sampler", coupled.SAMPLERS)
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_k_nodes_of_the_homotopy_have_relative_error_of_order_2k(sampler, num_nodes):
    sizes = np.array([0.04, 0.02])  # larger: not yet asymptotic; smaller: round-off at K = 3
    steps = coupled.SAMPLERS[sampler][0]
    errors = [relative_errors(s, steps)[num_nodes - 1] for s in sizes]
    assert slope(sizes, errors) == pytest.approx(2 * num_nodes, abs=0.2)


def test_the_homotopy_reconstructs_the_error_of_a_piecewise_constant_denoiser(fanned):
    steps, _, pair, _ = fanned
    actual = homotopy(
        worlds.EXACT, worlds.X_T, steps, pair.local_errors, num_nodes=6, key=worlds.KEY
    )
    np.testing.assert_allclose(actual, pair.errors[-1], rtol=1e-8)


def test_local_errors_injected_at_full_strength_turn_one_run_into_the_other(fanned):
    steps, key, pair, _ = fanned
    zs = coupled.noise_path(steps, key, worlds.X_T)
    end = coupled.run_from(worlds.EXACT, worlds.X_T, 0, steps, zs, pair.local_errors)
    assert_close(end, pair.xs_hat[-1], factor=256)


@pytest.mark.parametrize(("level", "degree"), [(0, 1), (1, 5), (2, 11), (3, 23)])
def test_nested_rules_keep_their_nodes_and_are_exact_to_their_degree(level, degree):
    nodes, weights = propagation.nested_rule(level)
    before, _ = propagation.nested_rule(max(0, level - 1))
    np.testing.assert_array_equal(nodes[: len(before)], before)
    assert np.all((nodes > 0) & (nodes < 1) & (weights > 0))
    powers = np.arange(degree + 1)
    np.testing.assert_allclose(weights @ nodes[:, None] ** powers, 1 / (powers + 1), atol=1e-14)
    assert abs(weights @ nodes ** (degree + 1) - 1 / (degree + 2)) > 1e-16


def test_the_first_nested_rules_are_those_of_gauss_and_kronrod():
    nodes, weights = (np.sort(a) for a in propagation.nested_rule(1))
    gauss = propagation.gauss_legendre(3)
    np.testing.assert_allclose([nodes, weights], [gauss[0], np.sort(gauss[1])], atol=1e-14)
    kronrod = 0.434243749346802, 0.774596669241483, 0.960491268708020  # published to 15 digits
    np.testing.assert_allclose(np.sort(2 * propagation.nested_rule(2)[0] - 1)[4:], kronrod,
                               atol=1e-14)  # fmt: skip


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_gauss_legendre_integrates_monomials_up_to_degree_2k_minus_1(num_nodes):
    nodes, weights = propagation.gauss_legendre(num_nodes)
    for degree in range(2 * num_nodes):
        assert_close(weights @ nodes**degree, np.float64(1 / (degree + 1)))
    assert abs(weights @ nodes ** (2 * num_nodes) - 1 / (2 * num_nodes + 1)) > 1e-6


# ------------------------------------------------------------------ mean values between two runs


def chain(call, pair, steps, rule=None):
    """The error at the end by mean Jacobians between the two runs of a pair."""
    fn = propagation.propagate_mean_value
    return fn(call, pair.xs, pair.xs_hat, steps, pair.local_errors, rule)[-1]


def test_the_chain_of_mean_values_is_exact_for_any_quantized_network():
    pair = couple(worlds.EXACT, worlds.rounded, worlds.X_T, worlds.DDIM)
    rule = propagation.gauss_legendre(24)
    found = jax.jit(lambda pair: propagation.propagate_mean_value(
        worlds.EXACT, pair.xs, pair.xs_hat, worlds.DDIM, pair.local_errors, rule
    ))(pair)  # fmt: skip
    np.testing.assert_allclose(found, pair.errors, rtol=0, atol=1e-10)
    assert np.min(np.abs(pair.errors[-1])) > 1e-3


RULES = {
    "trapezoid": (propagation.TRAPEZOID, 3), "midpoint": (propagation.gauss_legendre(1), 3),
    "two nodes": (propagation.gauss_legendre(2), 5),
    "first order": ((np.array([0.0]), np.array([1.0])), 2),
}  # fmt: skip


def test_what_is_left_falls_with_the_power_of_the_rule_between_the_runs():
    sizes = np.array([0.1, 0.05, 0.025])
    left = {name: [] for name in RULES}

    @jax.jit
    def all_rules(size):
        full = worlds.fast
        pair = runs.couple(full, bent(size), MANY, worlds.DDIM)
        ends = {name: chain(full, pair, worlds.DDIM, rule) for name, (rule, _) in RULES.items()}
        by_name = propagation.propagate_trapezoid(
            full, pair.xs, pair.xs_hat, worlds.DDIM, pair.local_errors
        )
        first = propagation.propagate(full, pair.xs, worlds.DDIM, pair.local_errors)
        return ends, pair.errors[-1], by_name[-1], first[-1]

    for size in sizes:
        ends, error, trapezoid, first = all_rules(size)
        assert_close(trapezoid, ends["trapezoid"], factor=64)
        assert_close(first, ends["first order"], factor=64)
        for name, end in ends.items():
            left[name].append(np.linalg.norm(end - error))
    for name, (_, power) in RULES.items():
        assert slope(sizes, left[name]) == pytest.approx(power, abs=0.1), name

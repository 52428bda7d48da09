"""When errors amplify: closed forms against samplers, quadrature and other closed forms."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from qdiffjax import diffusion
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import flips
from qdiffjax.analysis.gains import flows
from qdiffjax.diffusion import NoiseLevel, gaussian
from tests import worlds
from tests.analysis.gains import oracles
from tests.laws import gaussian_law
from tests.tolerances import assert_close, slope
from tests.worlds import normal

VP, VE = diffusion.VP(), diffusion.VE()
VARIANCES = np.array([4.0, 1.0, 0.09])


def level(alpha, sigma):
    return NoiseLevel(np.float64(alpha), np.float64(sigma))


@jax.jit
def map_line(mixture, t, s, x):
    return oracles.rearrange(mixture, t, s, x)


def rearrange(mixture, t, s, x):
    """The function under test, compiled once: x is padded to one length."""
    x = np.asarray(x)
    padded = np.concatenate([x, np.zeros(4001 - x.size)])
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: x.size], map_line(mixture, t, s, padded))


# ------------------------------------------------------------------ Gaussian data


@pytest.mark.parametrize("process", [VP, VE], ids=["vp", "ve"])
def test_the_flow_of_gaussian_data_multiplies_errors_by_the_ratio_of_standard_deviations(process):
    call = gaussian.eps_fn_for(process)
    law = gaussian_law(np.full(3, 0.4), np.diag(VARIANCES))
    times = np.linspace(1.0, 0.2, 161)
    x, v = jnp.ones((1, 3)), jnp.ones((1, 3))
    end = jax.jit(lambda x: diffusion.solve_pf_ode(call, law, process, x, times))
    found = jax.jvp(end, (x,), (v,))[1][0]
    t, s = process.exact(times[0]), process.exact(times[-1])
    np.testing.assert_allclose(oracles.gaussian_flow_gain(t, s, VARIANCES), found, rtol=2e-6)


def test_down_to_data_the_flow_gain_is_c_over_the_root_of_c2_plus_s2():
    for s in (0.1, 1.0, 5.0):
        gain = oracles.gaussian_flow_gain(level(1, s), level(1, 0), VARIANCES)
        assert_close(gain, np.sqrt(VARIANCES / (VARIANCES + s**2)))


@pytest.mark.parametrize("num_steps", [1, 8])
def test_ancestral_steps_of_gaussian_data_telescope_whatever_the_grid(num_steps):
    """Their product is alpha_T c^2 / v_T, by the sampler's own table of coefficients."""
    steps = diffusion.ddpm(worlds.SCHEDULE, num_steps)
    matrices, _ = gaussian.affine_steps(np.zeros(3), np.diag(VARIANCES), worlds.SCHEDULE, steps)
    product = functools.reduce(lambda p, m: m @ p, np.asarray(matrices))
    top, data = worlds.SCHEDULE.exact(np.array(40)), level(1, 0)
    expected = top.alpha * VARIANCES / (top.alpha**2 * VARIANCES + top.sigma**2)
    assert_close(np.diag(product), expected, factor=64)
    assert_close(oracles.gaussian_mean_gain(top, data, VARIANCES), expected)
    mid = worlds.SCHEDULE.exact(np.array(17))
    first = oracles.gaussian_mean_gain(top, mid, VARIANCES)
    assert_close(first * oracles.gaussian_mean_gain(mid, data, VARIANCES), expected)


# ------------------------------------------------------------------ log-concave, mixtures, balls


def test_the_log_concave_flow_bound_is_the_integral_and_gaussians_attain_it():
    m, eta, s = 2.5, np.array([0.1, 0.3, 0.2]), np.array([4.0, 2.0, 1.0, 0.0])
    found = flows.log_concave_flow_bound(s, eta, m)
    expected = sum(
        e * scipy.integrate.quad(lambda v: (1 + m * v**2) ** -0.5, b, a)[0]
        for e, a, b in zip(eta, s[:-1], s[1:], strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # d delta / d s = delta m s / (1 + m s^2) - eta along N(0, 1/m): exact in s.
    delta = 0.0
    for e, a, b in zip(eta, s[:-1], s[1:], strict=True):
        slope = lambda v, d, e=e: d * m * v / (1 + m * v**2) - e  # noqa: E731
        run = scipy.integrate.solve_ivp(slope, (a, b), [delta], rtol=1e-11, atol=1e-13)
        delta = run.y[0, -1]
    np.testing.assert_allclose(found, delta, rtol=1e-9)
    assert_close(
        flows.log_concave_flow_bound(np.array([4.0, 0.0]), np.array([1.0]), m),
        np.float64(np.arcsinh(np.sqrt(m) * 4.0) / np.sqrt(m)),
    )


def test_a_flow_that_ends_above_zero_keeps_the_gain_of_its_last_level():
    m, s = 2.5, np.array([4.0, 1.0])
    run = scipy.integrate.solve_ivp(
        lambda v, d: d * m * v / (1 + m * v**2) - 1.0, s, [0.0], rtol=1e-11, atol=1e-13
    )
    found = flows.log_concave_flow_bound(s, np.ones(1), m)
    np.testing.assert_allclose(found, run.y[0, -1], rtol=1e-9)


def test_ddim_may_exceed_the_flow_by_no_more_than_its_own_sum():
    s, eta = np.linspace(4.0, 0.0, 9), np.ones(8)
    assert pathwise.log_concave_bound(s, eta, 2.5) > flows.log_concave_flow_bound(s, eta, 2.5)


@pytest.mark.parametrize(("radius", "std"), [(1.0, 0.3), (0.0, 0.5), (2.0, 1.0)])
def test_the_mixture_gain_is_the_integrated_logarithmic_norm(radius, std):
    def log_norm(s):
        return (pathwise.mixture_posterior(s, radius, std) - 1) / s

    for start, end in ((3.0, 0.5), (0.8, 0.01)):
        integral = scipy.integrate.quad(lambda s: float(log_norm(s)), end, start, epsabs=1e-13)[0]
        found = flows.mixture_flow_gain(start, end, radius, std)
        np.testing.assert_allclose(found, np.exp(integral), rtol=1e-9)


def test_the_mixture_gain_of_a_worked_case_and_on_the_separatrix():
    assert abs(float(flows.mixture_flow_gain(3.0, 0.0, 1.0, 0.3)) - 24.3612) < 5e-5
    pair = gaussian.GaussianMixture(
        np.full(2, 0.5), np.array([[1.0], [-1.0]]), np.full((2, 1, 1), 0.09)
    )
    middle = rearrange(pair, level(1, 3), level(1, 0), np.zeros(1))
    np.testing.assert_allclose(
        middle.gain[0], flows.mixture_flow_gain(3.0, 0.0, 1.0, 0.3), rtol=1e-9
    )


def test_two_opposite_points_attain_the_bound_of_data_in_a_ball():
    """Between +R and -R the posterior is tanh(R x / s^2) R, so N = (R / s)^2 at x = 0."""
    radius, start, end = 1.5, 3.0, 0.6

    def slope(s, v):
        x, delta = v
        gain = (radius / np.cosh(radius * x / s**2)) ** 2 / s**2
        return [(x - radius * np.tanh(radius * x / s**2)) / s, delta * (1 - gain) / s]

    run = scipy.integrate.solve_ivp(slope, (start, end), [0.0, 1.0], rtol=1e-11, atol=1e-13)
    found = flows.mixture_flow_gain(start, end, radius, 0.0)
    np.testing.assert_allclose(found, run.y[1, -1], rtol=1e-8)
    classical = np.exp(radius**2 / (2 * end**2))
    assert found < classical  # the usual statement forgets the contraction s' / s


def test_euler_steps_on_the_separatrix_attain_the_euler_gain():
    radius, std = 1.0, 0.3
    s = np.geomspace(3.0, 0.05, 13)
    pair = gaussian.GaussianMixture(
        np.full(2, 0.5), np.array([[radius], [-radius]]), np.full((2, 1, 1), std**2)
    )
    bounds = pathwise.mixture_posterior(s[:-1], radius, std)
    ratio = s[1:] / s[:-1]
    found = np.append(np.cumprod((ratio + (1 - ratio) * bounds)[::-1])[::-1], 1.0)

    @jax.jit
    @jax.vmap
    def posterior_variance(s):
        """Tweedie: Cov[x_0 | x_t = 0] = s^2 (1 + s^2 d^2 log p / dx^2)."""
        law = gaussian.marginal(pair, NoiseLevel(jnp.ones_like(s), s))
        curvature = jax.hessian(lambda x: gaussian.log_prob(law, x))(jnp.zeros(1))
        return s**2 * (1 + s**2 * curvature[0, 0])

    covs = posterior_variance(s[:-1])
    factors = [
        end / start + (1 - end / start) * cov / start**2
        for (start, end), cov in zip(itertools.pairwise(s), covs, strict=True)
    ]
    gain = np.cumprod(factors[::-1])[::-1]
    assert_close(found, np.append(gain, 1.0), factor=1e3)


# ------------------------------------------------------------------ the entropy identity


def test_the_log_volumes_of_a_gaussian_chain_sum_to_its_change_of_entropy():
    mean, cov = np.array([0.3, -0.5]), np.array([[1.5, 0.6], [0.6, 0.4]])
    call = diffusion.bind(gaussian.eps_fn_for(worlds.SCHEDULE), gaussian_law(mean, cov))
    run = jax.jit(lambda x_T: diffusion.sample(call, x_T, worlds.DDIM).states)
    xs = run(worlds.X_T)
    chain = gaussian.gaussian_chain(mean, cov, worlds.SCHEDULE, worlds.DDIM)
    log_dets = np.linalg.slogdet(np.asarray(chain.covs))[1] / 2
    found = jax.jit(lambda xs: oracles.log_volumes(call, xs, worlds.DDIM))(xs)
    assert_close(found, np.repeat(np.diff(log_dets)[:, None], worlds.BATCH, 1), factor=100)


def test_volumes_of_a_mixture_contract_on_average_by_its_change_of_entropy():
    """DDIM in the plane against E log p_t - E log p_s, within the discretization's 1/N."""
    schedule = diffusion.linear(400, 1e-4, 0.03)
    steps = diffusion.ddim(schedule, 50)
    mixture = worlds.mixture()
    call = diffusion.bind(gaussian.eps_fn_for(schedule), mixture)
    top, bottom = schedule.exact(np.array(400)), schedule.exact(np.array(0))
    x_T = gaussian.sample_mixture(worlds.KEY, gaussian.marginal(mixture, top), 256)

    @jax.jit
    def both(x_T):
        xs = diffusion.sample(call, x_T, steps).states
        change = oracles.entropy_change(mixture, top, bottom, key=worlds.KEY, num=20_000)
        return jnp.sum(oracles.log_volumes(call, xs, steps), axis=0), change

    total, change = both(x_T)
    error = 3 * np.std(total) / 256**0.5 + 3 * (change.high - change.value) / 1.96
    assert abs(change.value) > 0.4
    assert abs(np.mean(total) - change.value) < error + 0.02
    assert error < 0.2


# ------------------------------------------------------------------ one dimension

LINE = gaussian.GaussianMixture(
    np.array([0.3, 0.7]), np.array([[-1.2], [0.8]]), np.array([[[0.04]], [[0.15]]])
)


def law(t, function):
    """A scipy distribution function of x_t of LINE."""
    means, stds = t.alpha * LINE.means[:, 0], np.sqrt(t.alpha**2 * LINE.covs[:, 0, 0] + t.sigma**2)
    return lambda x: np.sum(LINE.weights * function(np.asarray(x)[..., None], means, stds), axis=-1)


def test_the_rearrangement_keeps_probabilities_and_is_solved_by_the_flow():
    t, s = VP.exact(0.8), VP.exact(0.05)
    x = np.linspace(-5, 5, 41)
    found = rearrange(LINE, t, s, x)
    for function in (scipy.stats.norm.cdf, scipy.stats.norm.sf):
        np.testing.assert_allclose(law(s, function)(found.x), law(t, function)(x), rtol=1e-10)
    call = gaussian.eps_fn_for(VP)
    times = np.linspace(0.8, 0.05, 129)
    end = jax.jit(lambda x: diffusion.solve_pf_ode(call, LINE, VP, x, times))
    flow, gain = jax.jvp(end, (x[:, None],), (np.ones((41, 1)),))
    np.testing.assert_allclose(found.x, flow[:, 0], atol=2e-6)
    np.testing.assert_allclose(found.gain, gain[:, 0], rtol=2e-4)


def test_the_gain_of_the_rearrangement_is_its_derivative_in_both_modes():
    t, s = VP.exact(0.8), VP.exact(0.05)
    x = np.linspace(-3, 3, 7)

    def end(x):
        return oracles.rearrange(LINE, t, s, x).x

    gain = rearrange(LINE, t, s, x).gain
    assert_close(jax.jit(lambda x, v: jax.jvp(end, (x,), (v,))[1])(x, np.ones(7)), gain, factor=1e4)
    assert_close(jax.jit(jax.grad(lambda x: jnp.sum(end(x))))(x), gain, factor=1e4)


def test_the_mean_log_gain_in_one_dimension_is_the_change_of_entropy():
    """Typical contraction, rare large amplification: geometric mean below one, rms above."""
    t, s = VP.exact(1.0), VP.exact(0.01)
    y = np.linspace(-4, 4, 4001)
    density = law(s, scipy.stats.norm.pdf)(y)
    gain = 1 / rearrange(LINE, s, t, y).gain  # of the inverse map, where its steps are even
    mean_log = np.trapezoid(density * np.log(gain), y)
    x = np.linspace(-9, 9, 4001)
    entropies = [
        -np.trapezoid(p * np.log(np.maximum(p, 1e-300)), v)
        for p, v in ((density, y), (law(t, scipy.stats.norm.pdf)(x), x))
    ]
    np.testing.assert_allclose(mean_log, entropies[0] - entropies[1], rtol=1e-7)
    change = jax.jit(
        lambda key: oracles.entropy_change(LINE, t, s, key=key, num=20_000)
    )(worlds.KEY)  # fmt: skip
    assert abs(change.value - mean_log) < 3 * (change.high - change.value) / 1.96
    assert np.exp(mean_log) < 1 < np.sqrt(np.trapezoid(density * gain**2, y))


# ------------------------------------------------------------------ mode flips


def test_flips_and_the_rest_share_out_the_squared_error():
    x_0 = normal(40, 50, 3)
    x_hat_0 = x_0 + normal(41, 50, 3, scale=0.4)
    centres = normal(42, 4, 3)
    found = flips.mode_flips(x_0, x_hat_0, flips.nearest(centres))
    distances = [np.linalg.norm(x[:, None] - centres[None], axis=2) for x in (x_0, x_hat_0)]
    flipped = np.argmin(distances[0], axis=1) != np.argmin(distances[1], axis=1)
    np.testing.assert_array_equal(found.flipped, flipped)
    assert 0.1 < found.rate.value < 0.9
    shared = found.rate.value * found.rms_flipped**2 + (1 - found.rate.value) * found.rms_kept**2
    assert_close(shared, np.mean(np.sum((x_hat_0 - x_0) ** 2, axis=1)))
    wilson = scipy.stats.binomtest(int(flipped.sum()), 50).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((found.rate.low, found.rate.high), wilson, rtol=1e-4)


def test_without_flips_the_rate_is_zero_and_its_interval_is_not():
    x_0 = jnp.ones((100, 2))
    found = flips.mode_flips(x_0, x_0 + 0.1, lambda x: x[:, 0] > 0)
    assert found.rate.value == 0
    assert 0.01 < found.rate.high < 0.05
    assert np.isnan(found.rms_flipped)


def test_the_flipped_mass_is_density_times_displacement_to_first_order():
    """Exact mass between the two boundaries of x_T; the boundary of x_0 lies at zero."""
    t, s = VP.exact(1.0), VP.exact(0.05)
    boundary = float(rearrange(LINE, s, t, np.zeros(1)).x[0])
    sizes, gaps = np.array([0.08, 0.04, 0.02]), []
    for size in sizes:
        # The disturbed sampler ends at x_0 + size (1 + x_0 / 2): its boundary moved down.
        moved = float(rearrange(LINE, s, t, np.array([-size / (1 + size / 2)])).x[0])
        exact = law(t, scipy.stats.norm.cdf)(boundary) - law(t, scipy.stats.norm.cdf)(moved)
        at_end = np.sum(law(s, scipy.stats.norm.pdf)(np.zeros(1)) * size)
        gain = rearrange(LINE, t, s, np.array([boundary])).gain
        at_start = np.sum(law(t, scipy.stats.norm.pdf)(np.array([boundary])) * size / gain)
        assert_close(at_start, at_end, factor=1e5)  # the same mass at either end
        gaps.append(abs(float(at_end) - exact))
    assert slope(sizes, gaps) == pytest.approx(2, abs=0.15)

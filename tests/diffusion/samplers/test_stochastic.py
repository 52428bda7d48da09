"""Weak and strong orders of stochastic samplers: on Gaussian data all moments are exact numbers.

Such a sampler is a chain of affine maps with Gaussian noise (`gaussian_chain`), so no draw is made.
The reverse SDE that starts in the law of x_t ends in the law of x_s: that is the exact answer.
"""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian
from tests.tolerances import assert_close

MEAN, VARIANCE = np.array([1.0]), 0.36
NUM_STEPS = np.array([128, 256, 512])
PROCESSES = {
    "VP": (d.VP(), 0.6, 0.2),
    "VE": (d.VE(), 0.65, 0.35),
    "EDM": (d.EDM(), 3.0, 0.5),
    "flow": (d.Flow(), 0.8, 0.2),
}


def first_order(coeffs_fn):
    return partial(d.from_coeffs, coeffs_fn=coeffs_fn, denoise_last=False)


def uniform(process, start, end, num):
    return d.power_times(start, end, num)


LOG_SNR = d.log_snr_times
METHODS = {
    "euler-maruyama": (partial(d.euler_maruyama, denoise_last=False), uniform, 1),
    "ancestral": (first_order(d.ddpm_coeffs), LOG_SNR, 1),
    "ddim eta 0.5": (first_order(partial(d.ddim_coeffs, eta=0.5)), LOG_SNR, 1),
    "reverse diffusion": (first_order(d.reverse_diffusion_coeffs), LOG_SNR, 1),
    "sde-dpmpp-1": (partial(d.dpmpp_1, eta=1.0), LOG_SNR, 1),
    "sde-dpmpp-2m": (partial(d.dpmpp_2m, eta=1.0), LOG_SNR, 2),
    "sde-dpmpp-2m-heun": (
        partial(d.dpmpp_2m, eta=1.0, slope_weight_fn=d.heun_weight),
        LOG_SNR,
        2,
    ),
    "dpmpp-2m eta 0.5": (partial(d.dpmpp_2m, eta=0.5), LOG_SNR, 2),
    "sde-dpmpp-3m": (partial(d.dpmpp_3m, eta=1.0), LOG_SNR, 2),
    "edm churn": (partial(d.edm, churn=2.0), LOG_SNR, 2),
    "edm churn, euler": (partial(d.edm, churn=2.0, second_order=False), LOG_SNR, 1),
}


def law(process, t):
    level = process.exact(t)
    return level.alpha * MEAN, level.alpha**2 * VARIANCE + level.sigma**2


@pytest.fixture(scope="module", params=PROCESSES)
def errors(request):
    """The error of the final variance of every method at every number of steps."""
    process, start, end = PROCESSES[request.param]
    tables = [
        method(process, grid_fn(process, start, end, int(num)))
        for method, grid_fn, _ in METHODS.values()
        for num in NUM_STEPS
    ]
    num_calls = max(map(d.nfe, tables))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[d.pad(s, num_calls, 3) for s in tables])

    def variance(steps):
        level = process(steps.t[0])
        spread = (level.alpha**2 * VARIANCE + level.sigma**2) * jnp.eye(1)
        begin = (level.alpha * jnp.asarray(MEAN), spread)
        chain = gaussian.gaussian_chain(MEAN, VARIANCE * np.eye(1), process, steps, start=begin)
        return chain.covs[-1, 0, 0]

    ends = np.asarray(jax.jit(jax.vmap(variance))(stacked)).reshape(len(METHODS), -1)
    return dict(zip(METHODS, np.abs(ends - law(process, end)[1]), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_stochastic_sampler_has_its_weak_order(errors, name):
    coarse, fine = -np.diff(np.log2(errors[name]))
    # Local slopes approach the order as O(1 / N); this is their limit.
    assert abs(2 * fine - coarse - METHODS[name][2]) < 0.1


STRONG = ["euler-maruyama", "ancestral", "ddim eta 0.5", "reverse diffusion", "sde-dpmpp-1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_first_order_stochastic_sampler_has_strong_order_one(process, name):
    """E |x^N - x^2N|^2 on one Brownian path, by the joint covariance of both chains, is O(N^-2)."""
    process, start, end = PROCESSES[process]

    def table(num):
        steps = METHODS[name][0](process, d.power_times(start, end, num))
        x, eps, noise = (np.asarray(leaf) for leaf in steps.coeffs)
        level = process.exact(steps.t)
        # eps = sigma x / v for centred data.
        return x + eps * level.sigma / law(process, np.asarray(steps.t))[1], noise

    def gap(num):
        (slow, noise), (fast, fine) = table(num), table(2 * num)
        # State (x^N, x^2N, sum of increments); the coarse step sees the sum of two increments.
        cov = np.zeros((3, 3))
        cov[:2, :2] = law(process, start)[1]
        for i in range(num):
            for j in (2 * i, 2 * i + 1):
                move = np.diag([1.0, fast[j], 1.0])
                kick = np.array([0.0, fine[j], np.sqrt(0.5)])
                cov = move @ cov @ move.T + np.outer(kick, kick)
            close = np.array([[slow[i], 0.0, noise[i]], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
            cov = close @ cov @ close.T
        difference = np.array([1.0, -1.0, 0.0])
        return np.sqrt(difference @ cov @ difference)

    slopes = -np.diff(np.log2([gap(num) for num in (64, 128, 256)]))
    assert abs(2 * slopes[1] - slopes[0] - 1) < 0.1


@pytest.mark.parametrize("process", [d.linear(), d.cosine()], ids=["linear", "cosine"])
def test_reverse_diffusion_of_ddpm_is_song_et_al_equation_47(process):
    """x = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    times = np.array([600, 599])
    beta = 1 - process.alpha_bar[600] / process.alpha_bar[599]
    c = d.reverse_diffusion_coeffs(*(d.NoiseLevel(*p) for p in zip(*process.exact(times))))  # noqa: B905
    assert_close(c.x, 2 - np.sqrt(1 - beta))
    # beta, a difference of alpha_bar, is known to eps / beta.
    assert_close(c.eps, -beta / process.exact(600).sigma, factor=16 / beta)
    assert_close(c.noise, np.sqrt(beta), factor=16 / beta)


def test_reverse_diffusion_of_ve_is_song_et_al_equation_46():
    """x = x + (s_t^2 - s_s^2) score + sqrt(s_t^2 - s_s^2) z, without noise at the end."""
    steps = d.reverse_diffusion(d.EDM(), [5.0, 3.0, 1.0])
    assert_close(steps.coeffs.x, np.ones(2))
    assert_close(steps.coeffs.eps, np.array([-16 / 5, -8 / 3]))
    assert_close(steps.coeffs.noise, np.array([4.0, 0.0]))


@pytest.mark.parametrize("snr", [0.05, 0.16, 0.5])
def test_langevin_settles_at_its_own_variance(snr):
    """x <- (1 - e / v) x + sqrt(2 e) z has stationary variance v / (1 - e / (2 v))."""
    level = d.EDM().exact(1.5)
    c = d.langevin_coeffs(level, snr)
    v = VARIANCE + level.sigma**2
    gain = c.x + c.eps * level.sigma / v  # eps = sigma x / v for centred data
    e = 2 * (snr * level.sigma) ** 2
    stationary = v / (1 - e / (2 * v))
    assert_close(gain**2 * stationary + c.noise**2, stationary)
    assert_close(gain, 1 - e / v)


def test_predictor_corrector_interleaves_its_calls():
    steps = d.predictor_corrector(d.EDM(), [5.0, 3.0, 0.5], num_corrector=2)
    np.testing.assert_array_equal(steps.t, [5, 5, 5, 3, 3, 3])
    np.testing.assert_array_equal(steps.s, [5, 5, 3, 3, 3, 0.5])
    assert np.all(np.asarray(steps.coeffs.noise[:-1]) > 0)
    assert steps.coeffs.noise[-1] == 0
    without = d.predictor_corrector(d.EDM(), [5.0, 3.0, 0.5], num_corrector=0)
    plain = d.reverse_diffusion(d.EDM(), [5.0, 3.0, 0.5])
    chex.assert_trees_all_equal(without, plain)


def algorithm_2(denoiser, x, times, noises, churn, limits, scale):
    """EDM's stochastic sampler, copied from Karras et al. 2022, algorithm 2, line by line."""
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        inside = limits[0] <= t <= limits[1]
        gamma = min(churn / (len(times) - 1), np.sqrt(2) - 1) if inside else 0.0
        t_hat = t + gamma * t
        x_hat = x + np.sqrt(t_hat**2 - t**2) * scale * noises[i]
        slope = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * slope
        if t_next != 0:
            after = (x - denoiser(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (slope + after) / 2
    return x


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
def test_edm_is_algorithm_2_of_karras_et_al(churn):
    process, limits, scale = d.EDM(), (0.1, 40.0), 1.003
    times = d.karras_times(process, 80.0, 0.002, 7)

    def denoiser(x, t):
        return MEAN[0] + VARIANCE / (VARIANCE + t**2) * (x - MEAN[0])

    noises, x = np.random.default_rng(0).normal(size=(7, 5)), 80 * np.linspace(-1, 1, 5)
    expected = algorithm_2(denoiser, x, times, noises, churn, limits, scale)
    steps = d.edm(process, times, churn=churn, churn_range=limits, noise_scale=scale)
    c, state = steps.coeffs, np.stack([x, 0 * x])  # 80 is out of limits: no churn at the start
    ends = [i for i in range(d.nfe(steps)) if i % 2 == 1]  # the calls that complete an interval
    for i, t in enumerate(np.asarray(steps.t)):
        seen = np.asarray(c.input[i]) @ state
        z = noises[ends.index(i) + 1] if i in ends else 0 * x
        kick = np.outer(c.eps[i], (seen - denoiser(seen, t)) / t) + np.outer(c.noise[i], z)
        state = np.asarray(c.x[i]) @ state + kick
    assert d.nfe(steps) == 13
    assert_close(state[0], expected, factor=64, scale=80.0)


def test_churn_of_the_first_interval_raises_the_start():
    steps = d.edm(d.EDM(), [2.0, 1.0, 0.0], churn=0.5)
    assert_close(steps.t[0], 2.0 * 1.25)
    assert_close(steps.t, np.array([2.5, 1.0, 1.25]))
    assert_close(steps.coeffs.noise[1], np.array([0.75, 0.0]))  # sqrt(1.25^2 - 1)


def test_churn_keeps_the_law_of_x_t_on_a_scaled_process():
    """Raised noise is the forward process: alpha-hat / alpha and the conditional variance."""
    process, times = d.VP(), np.array([0.8, 0.5, 0.2])
    steps, plain = d.edm(process, times, churn=0.4), d.edm(process, times)
    hat = process.exact(steps.s[1])
    mid = process.exact(0.5)
    assert_close(hat.sigma / hat.alpha, 1.2 * mid.sigma / mid.alpha, factor=64)
    variance = d.forward_variance(hat, mid)
    assert_close(steps.coeffs.noise[1, 0] ** 2, variance, factor=64)
    assert steps.t[0] > plain.t[0]


def test_consistency_sampling_adds_all_the_noise_anew():
    steps = d.consistency(d.EDM(), [80.0, 5.0, 1.0, 0.5], sigma_min=0.5)
    assert_close(steps.coeffs.x, np.ones(3))
    assert_close(steps.coeffs.eps, -np.array([80.0, 5.0, 1.0]))
    assert_close(steps.coeffs.noise, np.array([np.sqrt(25 - 0.25), np.sqrt(1 - 0.25), 0.0]))


def test_one_step_generation_is_the_predicted_x_0():
    level, steps = d.VP().exact(0.9), d.one_step(d.VP(), 0.9)
    assert_close(steps.coeffs.x, 1 / level.alpha[None])
    assert_close(steps.coeffs.eps, -(level.sigma / level.alpha)[None])
    assert d.nfe(steps) == 1

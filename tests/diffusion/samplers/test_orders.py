"""Every deterministic sampler converges to the probability flow of a mixture at its own order.

The exact end of the flow in one dimension is the monotone rearrangement of the marginals. All
methods and step numbers are one program: their tables are padded to one shape and mapped over.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from qdiffjax import diffusion as d
from qdiffjax.diffusion import gaussian

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.4, 0.6])
MIXTURE = gaussian.GaussianMixture(WEIGHTS, MEANS[:, None], (STDS**2)[:, None, None])
NUM_STEPS = np.array([64, 128, 256])
STANDARD = np.array([-1.2, 0.1, 0.9])
# process: from, to. Away from the ends, where the number of steps is large enough for the order.
PROCESSES = {
    "VP": (d.VP(), 0.45, 0.2),
    "sub-VP": (d.SubVP(), 0.5, 0.2),
    "VE": (d.VE(), 0.65, 0.35),
    "EDM": (d.EDM(), 2.5, 0.3),
    "flow": (d.Flow(), 0.9, 0.2),
    "cosine": (d.Cosine(), 0.9, 0.1),
}


def uniform(process, start, end, num):
    return d.power_times(start, end, num)


def warm(grid_fn, power):
    """The grid with a first step of O(h^(1 + power)), so that the start of order 1 is no matter."""

    def grid(*args):
        times = grid_fn(*args)
        first = times[0] + float(args[-1]) ** -power * (times[1] - times[0])
        return np.insert(np.asarray(times, np.float64), 1, first)

    return grid


LOG_SNR, WARM, WARMER = d.log_snr_times, warm(d.log_snr_times, 1), warm(d.log_snr_times, 2)
published = partial(d.dpmpp_3m, quadratic_weight_fn=d.published_quadratic_weight)
unipc = partial(d.unipc, lower_order_final=False)
tab = partial(d.deis, coordinate_fn=d.in_time)
rhoab = partial(d.deis, coordinate_fn=d.in_rho)
METHODS = {
    "euler": (d.euler, uniform, 1),
    "ddim": (d.dpm_solver_1, LOG_SNR, 1),
    "dpmpp-1": (d.dpmpp_1, LOG_SNR, 1),
    "heun": (d.heun, uniform, 2),
    "edm": (d.edm_heun, LOG_SNR, 2),
    "dpm-2": (d.dpm_solver_2, LOG_SNR, 2),
    "dpm-2, ratio 0.4": (partial(d.dpm_solver_2, ratio=0.4), LOG_SNR, 2),
    "dpm-3": (d.dpm_solver_3, LOG_SNR, 3),
    "dpmpp-2s": (d.dpmpp_2s, LOG_SNR, 2),
    "dpmpp-2m": (d.dpmpp_2m, LOG_SNR, 2),
    "dpmpp-2m-heun": (partial(d.dpmpp_2m, slope_weight_fn=d.heun_weight), LOG_SNR, 2),
    "dpmpp-3m": (d.dpmpp_3m, WARM, 3),
    "dpmpp-3m-published": (published, WARM, 2),
    "unipc-1": (partial(unipc, order=1), LOG_SNR, 2),
    "unipc-2-bh1": (partial(unipc, order=2, scale=d.bh1), WARM, 3),
    "unipc-2-bh2": (partial(unipc, order=2), WARM, 3),
    "unipc-3": (partial(unipc, order=3), WARMER, 4),
    "deis-2": (partial(d.deis, order=2), LOG_SNR, 2),
    "deis-3": (partial(d.deis, order=3), WARM, 3),
    "tab-2": (partial(tab, order=2), LOG_SNR, 2),
    "tab-3": (partial(tab, order=3), WARM, 3),
    "rhoab-2": (partial(rhoab, order=2), LOG_SNR, 2),
    "plms": (d.plms, uniform, 2),
    "pndm": (d.pndm, uniform, 2),
}


def exact(process, start, end, x):
    """Move each x to the point of the same probability."""

    def cdf(y, level):
        std = np.sqrt((level.alpha * STDS) ** 2 + level.sigma**2)
        return float(np.sum(WEIGHTS * stats.norm.cdf(y, level.alpha * MEANS, std)))

    first, last = process.exact(start), process.exact(end)
    return [
        optimize.brentq(
            lambda y, v=v: cdf(y, last) - cdf(v, first), -99, 99, xtol=1e-14, rtol=1e-14
        )
        for v in x
    ]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(n, marks=() if n in ("VP", "EDM") else pytest.mark.slow) for n in PROCESSES
    ],
)
def errors(request):
    """The error of every method at every number of steps, in one compilation for the process."""
    process, start, end = PROCESSES[request.param]
    x = STANDARD * np.hypot(*process.exact(start))
    tables = [
        method(process, grid_fn(process, start, end, int(num)))
        for method, grid_fn, _ in METHODS.values()
        for num in NUM_STEPS
    ]
    num_calls = max(map(d.nfe, tables))
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[d.pad(table, num_calls, 6) for table in tables]
    )
    call_fn = d.bind(gaussian.eps_fn_for(process), MIXTURE)

    def run(steps):
        return d.sample(call_fn, jnp.asarray(x)[:, None], steps, keep_trajectory=False).x_0[:, 0]

    ends = np.asarray(jax.jit(jax.vmap(run))(stacked)).reshape(len(METHODS), len(NUM_STEPS), -1)
    gaps = np.linalg.norm(ends - np.array(exact(process, start, end, x)), axis=-1)
    return request.param, dict(zip(METHODS, gaps, strict=True))


def limit_slope(gaps):
    """The slope at infinitely many steps; at N it is off by O(1 / N)."""
    coarse, fine = -np.diff(np.log2(gaps))
    return 2 * fine - coarse


@pytest.mark.parametrize("name", METHODS)
def test_a_sampler_converges_to_the_probability_flow_at_its_order(errors, name):
    process, gaps = errors
    if process == "EDM" and name in ("plms", "pndm"):
        # Their transfer is linear in t there: the order of Adams-Bashforth, or of its start.
        assert limit_slope(gaps[name]) > 2.9
    else:
        assert abs(limit_slope(gaps[name]) - METHODS[name][2]) < 0.1

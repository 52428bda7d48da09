"""The ledger and the bounds of the spine hold for every sampler and every architecture.

All tables are padded to one shape, so that an architecture is compiled once for all samplers, and
that is nearly all the time of this file.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdiffjax import diffusion, precision
from qdiffjax.analysis.bounds import pathwise
from qdiffjax.analysis.errors import ledger, propagation, runs
from qdiffjax.analysis.gains import steps as step_norms
from qdiffjax.denoiser import Denoiser
from qdiffjax.networks.models.dit import DiT
from qdiffjax.networks.models.unet import UNet
from qdiffjax.networks.models.video import VideoDiT
from tests.worlds import quick_jit

SCHEDULE = diffusion.linear(100, 1e-3, 0.1)
VP = diffusion.VP()
TIMES, GRID = diffusion.uniform_times(100, 4), diffusion.power_times(0.9, 0.1, 4)
KEY = jax.random.key(3)

SAMPLERS = {
    "ddim": lambda: diffusion.ddim(SCHEDULE, 4),
    "ddpm": lambda: diffusion.ddpm(SCHEDULE, 4),
    "euler": lambda: diffusion.euler(VP, GRID),
    "heun": lambda: diffusion.heun(VP, GRID),
    "edm_heun": lambda: diffusion.edm_heun(SCHEDULE, TIMES),
    "edm_churn": lambda: diffusion.edm(VP, GRID, churn=0.5),
    "euler_maruyama": lambda: diffusion.euler_maruyama(VP, GRID),
    "reverse_diffusion": lambda: diffusion.reverse_diffusion(SCHEDULE, TIMES),
    "predictor_corrector": lambda: diffusion.predictor_corrector(SCHEDULE, TIMES),
    "dpm_solver_2": lambda: diffusion.dpm_solver_2(VP, GRID),
    "dpm_solver_3": lambda: diffusion.dpm_solver_3(VP, GRID),
    "dpmpp_2s": lambda: diffusion.dpmpp_2s(VP, GRID),
    "dpmpp_2m": lambda: diffusion.dpmpp_2m(SCHEDULE, TIMES),
    "dpmpp_3m": lambda: diffusion.dpmpp_3m(SCHEDULE, TIMES),
    "sde_dpmpp_2m": lambda: diffusion.dpmpp_2m(SCHEDULE, TIMES, eta=1.0),
    "unipc": lambda: diffusion.unipc(SCHEDULE, TIMES),
    "deis": lambda: diffusion.deis(SCHEDULE, TIMES),
    "plms": lambda: diffusion.plms(SCHEDULE, TIMES),
    "pndm": lambda: diffusion.pndm(VP, GRID),
    "one_step": lambda: diffusion.one_step(SCHEDULE, 100),
}
NETWORKS = {
    "unet": (UNet((8,), 1, (False,), patch=1), (4, 4, 1)),
    "dit": (DiT(patch=2, width=8, depth=1, num_heads=2), (4, 4, 1)),
    "video": (VideoDiT(patch=2, width=8, depth=1, num_heads=2), (2, 4, 4, 1)),
}


@functools.cache
def tables():
    """All samplers as tables of one shape."""
    found = {name: make() for name, make in SAMPLERS.items()}
    slots = max(s.coeffs.num_slots for s in found.values())
    calls = max(diffusion.nfe(s) for s in found.values())
    return {name: diffusion.pad(s, calls, slots) for name, s in found.items()}


# Of the state (x, v), which has matrix coefficients instead of slots.
CLD = diffusion.CLD(beta=1.0)
CLD_SAMPLERS = {
    "euler_maruyama": diffusion.cld_euler_maruyama(CLD, GRID),
    "euler": diffusion.cld_euler_maruyama(CLD, GRID, eta=0.0),
    "sscs": diffusion.sscs(CLD, GRID),
}


def pair_net(params, u, t):
    """eps of (x, v) [batch, 2, n] from both of them."""
    batch, _, size = u.shape
    h = jnp.tanh(u.reshape(batch, 2 * size) @ params["in"] + t * params["time"][None])
    return (h @ params["out"]).reshape(batch, 2, size)


def random_params(model, *inputs):
    """Parameters drawn at random: initial zeros would leave nothing to quantize."""
    shapes = jax.eval_shape(model.init, KEY, *inputs)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.1 if leaf.ndim < 2 else 0.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        one = 1.0 if path[-1].key == "scale" else 0.0  # of a normalization
        return jnp.asarray(one + scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def network(name):
    """A network at W6A8, noise, and the spine compiled once for all samplers."""
    model, shape = NETWORKS[name]
    x_T = jnp.asarray(np.random.default_rng(1).normal(size=(2, *shape)), jnp.float32)
    params = random_params(model, x_T, jnp.float32(50))
    return quantized(model.apply, params, x_T, tables()["ddim"]), x_T, quick_jit(spine)


@functools.cache
def pair_network():
    """The same of `pair_net`; half its eps, that of x, is read by no sampler."""
    rng, shapes = np.random.default_rng(2), {"in": (6, 8), "time": (8,), "out": (8, 6)}
    params = {k: jnp.asarray(rng.normal(size=v), jnp.float32) / 2 for k, v in shapes.items()}
    u_T = rng.normal(size=(2, 2, 3)) * CLD.equilibrium[None, :, None]
    u_T = jnp.asarray(u_T, jnp.float32)
    return quantized(pair_net, params, u_T, CLD_SAMPLERS["euler"]), u_T, quick_jit(spine)


def quantized(eps_fn, params, x_T, steps):
    """The network with weights of 6 bits and activations of 8, calibrated on a sampler."""
    measured = precision.calibrate(Denoiser(eps_fn, params), single(steps), x_T=x_T)
    recipe = precision.uniform(measured.sites, weight_bits=6, activation_bits=8)
    return precision.quantize(measured, recipe)


def single(steps):
    """The table in float32, as the networks."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), steps)


def spine(q, x_T, steps):
    """Everything that the analysis says of one sampler, by sample."""
    full, quantized = precision.full_call(q), precision.quantized_call(q)
    pair = runs.couple(full, quantized, x_T, steps, key=KEY)
    e, sizes = pair.local_errors, runs.norms
    first_order, rho = propagation.propagate_with_remainders(full, pair.xs, pair.xs_hat, steps, e)
    exact = propagation.propagate(full, pair.xs, steps, e + rho)
    # Both runs in one loop, so that the program holds one copy: the nodes of `segment_gains`.
    both = jnp.stack([pair.xs, pair.xs_hat])
    step_gains = functools.partial(step_norms.step_gains, full, steps=steps, key=KEY, num_burn_in=1)
    gains = jax.lax.map(lambda xs: step_gains(xs).norms, both)
    return {
        "error": sizes(pair.errors),
        "residual": sizes(exact - pair.errors)[-1] / sizes(pair.errors)[-1],
        "gronwall": pathwise.gronwall(jnp.max(gains, axis=0), sizes(e)),
        "remainder": pathwise.remainder_bound(gains[0], sizes(rho), first_order)[0],
        "defect": ledger.defect(ledger.attribution(q, x_T, steps, num_nodes=3, key=KEY)),
    }


SLOW = ("video", "unet", "dit")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS],
)
def test_the_ledger_is_complete_and_the_bounds_hold(name, sampler):
    q, x_T, run = network(name)
    check(run(q, x_T, single(tables()[sampler])))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", CLD_SAMPLERS)
def test_the_same_holds_for_a_process_on_position_and_velocity(sampler):
    q, u_T, run = pair_network()
    check(run(q, u_T, single(CLD_SAMPLERS[sampler])))


def check(found):
    assert np.all(found["error"][-1] > 1e-4)
    assert np.all(found["residual"] < 1e-3)
    assert np.all(found["defect"] < 1e-3)
    for bound in ("gronwall", "remainder"):
        assert np.all(np.isfinite(found[bound]))
        assert np.all(found["error"] <= found[bound] * (1 + 1e-3))

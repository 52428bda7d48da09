"""One trial of `experiments.random_trials`: two runs, and every bound beside what it pathwise."""

import functools

import jax
import jax.numpy as jnp

from experiments.random_trials.draws import DIMS, NUM_STEPS, World
from qdiffjax import diffusion
from qdiffjax.analysis import bounds, divergences, errors
from qdiffjax.analysis.gains import log_norm_gains, step_gains
from qdiffjax.diffusion import NoiseLevel, gaussian
from qdiffjax.quant import E2M1, E3M2, E4M3FN, E5M2, IntFormat, fake_quant, nf4, rounding

NUM_NODES = 9
TANH_CURVATURE = 4 / 27**0.5  # max |tanh''|
STATIC = (E4M3FN, E5M2, E3M2, E2M1, nf4())


def table_schedule(levels: NoiseLevel):
    """Read levels [N] at 'times' 0 ... N-1: a schedule as data, the same program for all."""
    return lambda t: NoiseLevel(*(leaf[jnp.asarray(t).astype(int)] for leaf in levels))


def rounded(world: World, key):
    """Return q(v): v [..., k] on the trial's grid, scaled by its largest entry in the last axis."""
    bits = IntFormat(world.bits)

    def q(v, index):
        high = jnp.max(jnp.abs(v), axis=-1, keepdims=True)
        safe = jnp.where(high > 0, high, 1)
        uniform = rounding.uniform_like(jax.random.fold_in(key, index), v)
        noisy = functools.partial(rounding.stochastic, uniform=uniform)
        scale = safe / jnp.asarray(bits.high).astype(v.dtype)
        branches = [
            *(functools.partial(fake_quant, scale=scale, format=bits, round_fn=round_fn)
              for round_fn in (rounding.nearest_even, noisy)),
            *(functools.partial(fake_quant, scale=safe / format.high, format=format)
              for format in STATIC),
        ]  # fmt: skip
        return jax.lax.switch(world.format, branches, v)

    return q


def network_eps(params, x, t, q):
    """Return eps of the small network; q rounds what a site multiplies."""
    weights = [q(params[name].T, i).T for i, name in enumerate(("skip", "in", "out"))]
    x, time = q(x, 3), t / NUM_STEPS
    h = jnp.tanh(x @ weights[1] + (time * params["time"] + params["bias"])[None])
    return x @ weights[0] + q(h, 4) @ weights[2]


def denoisers(world: World, family: str):
    """Return the full-precision and the quantized call_fn, whose inputs are the roundings' key."""
    if family == "data":
        mixture = gaussian.GaussianMixture(*world.params["mixture"])
        optimal = gaussian.eps_fn_for(table_schedule(world.levels))
        eps = lambda x, t, q: q(optimal(mixture, q(x, 0), t), 1)  # noqa: E731
    else:
        eps = functools.partial(network_eps, world.params)
    full = lambda x, t, key, state: (eps(x, t, lambda v, index: v), None, state)  # noqa: E731
    return full, lambda x, t, key, state: (eps(x, t, rounded(world, key)), None, state)


def sup_gains(world: World, steps, family: str):
    """Return gains of every step that hold at every x [N]."""
    if family == "data":
        p, s = world.params, world.levels.sigma / world.levels.alpha
        posterior = jnp.where(
            p["strength"] > 0,
            bounds.log_concave_posterior(s, p["strength"]),
            bounds.mixture_posterior(s, p["radius"], p["std"]),
        )
        return bounds.posterior_gains(table_schedule(world.levels), steps, posterior)
    p, a, b = world.params, steps.coeffs.x, steps.coeffs.eps
    norm = functools.partial(jnp.linalg.norm, ord=2, axis=(-2, -1))
    linear = a[:, None, None] * jnp.eye(p["skip"].shape[0])[None]
    linear = norm(linear + b[:, None, None] * p["skip"][None])
    return linear + jnp.abs(b) * norm(p["in"]) * norm(p["out"])


def trial(world: World, family: str, key, num_samples: int):
    """Run one trial.

    Returns:
      {bound: (what it bounds [N+1, batch], bound [N+1, batch])}, and the coupled pair.
    """
    full, quantized = denoisers(world, family)
    times = jnp.arange(NUM_STEPS, dtype=float)
    steps = diffusion.Steps(times, times, world.coeffs)
    key_x, key_z, key_q, key_g = jax.random.split(key, 4)
    x_T = world.scale * jax.random.normal(key_x, (num_samples, DIMS))
    keys = jax.random.split(key_q, NUM_STEPS)
    pair = errors.couple(full, quantized, x_T, steps, key=key_z, per_call=keys)
    e, norms = pair.local_errors, errors.norms
    first, rho = errors.propagate_with_remainders(full, pair.xs, pair.xs_hat, steps, e)
    delta, local = norms(pair.errors), norms(e)
    krylov = {"key": key_g, "num_iterations": pair.xs[0, 0].size + 1}

    def at(u):
        xs = pair.xs + u * pair.errors
        return step_gains(full, xs, steps, num_burn_in=0, **krylov).norms

    gains = jax.lax.map(at, jnp.linspace(0.0, 1.0, NUM_NODES))
    remainder, radius = bounds.remainder_bound(gains[0], norms(rho), first)
    nine = jnp.max(gains, axis=0)
    pairs = {
        "first order + remainder": (delta, remainder),
        "radius of the remainder": (norms(pair.errors - first), radius),
        "Gronwall, 3 nodes": (delta, bounds.gronwall(jnp.max(gains[::4], axis=0), local)),
        "Gronwall, 9 nodes": (delta, bounds.gronwall(nine, local)),
    }
    if family != "data":
        curvature = _curvature(world, steps)[:, None]
        sound = bounds.gains_between_nodes(nine, curvature, delta[:-1], NUM_NODES)
        pairs["Gronwall, 9 nodes + curvature"] = delta, bounds.gronwall(sound, local)
    if family == "multistep":
        return pairs, pair
    sup = sup_gains(world, steps, family)
    pairs["Gronwall, every x"] = delta, bounds.gronwall(sup[:, None], local)
    spread = jnp.sqrt(jnp.mean(delta**2, axis=1))
    minkowski = bounds.minkowski_bound(sup, local).value
    pairs["Minkowski, every x"] = spread[:, None], minkowski[:, None]
    if family == "data":
        pairs["log-concave, DDIM"] = _log_concave(world, steps, delta, local)
    else:
        # From one end, the mean Jacobian of the segment is half its length away.
        log = log_norm_gains(full, pair.xs, steps, **krylov) + curvature * delta[:-1] / 2
        pairs["Gronwall, log-norm + curvature"] = delta, bounds.gronwall(log, local)
    return pairs, pair


def _curvature(world: World, steps):
    """Return a bound of |D^2 F| of every step of the network, at every state [N]."""
    p = world.params
    out, inner = (jnp.linalg.norm(p[name], ord=2) for name in ("out", "in"))
    written, read = jnp.abs(steps.coeffs.eps), 1.0
    if not steps.is_first_order:
        written, read = (
            jnp.linalg.norm(a, axis=-1) for a in (steps.coeffs.eps, steps.coeffs.input)
        )
    return written * TANH_CURVATURE * out * (inner * read) ** 2


def _log_concave(world: World, steps, delta, local):
    """Return the bound of the last state; not a number where it does not apply."""
    s = jnp.append(world.levels.sigma / world.levels.alpha, world.next_sigma_edm[-1])
    eta = local / jnp.abs(steps.coeffs.eps)[:, None]
    last = bounds.log_concave_bound(s, eta, world.params["strength"])
    applies = world.is_ddim & (world.params["strength"] > 0)
    empty = jnp.full_like(delta, jnp.nan)
    return delta, empty.at[-1].set(jnp.where(applies, last, jnp.nan))


def bracket(pair, key):
    """Return the final samples, which are the first slot, and a lower bound of their W2."""
    x, y = (a[-1] if a.ndim == 3 else a[-1][:, 0] for a in (pair.xs, pair.xs_hat))
    return x, y, divergences.w2_lower(x, y, key)


def gaussian_trial(world: dict):
    """Return laws instead of samples: {bound: (what it bounds [], bound [])}, all closed forms.

    The path KL of the steps before the last against the KL of the law of x_1, that against one
    projection's, and W2 of the two laws of x_1 against Minkowski's sum.
    """
    schedule, mean, cov = table_schedule(world["levels"]), world["mean"], world["cov"]
    times = jnp.arange(NUM_STEPS, dtype=float)
    steps = diffusion.Steps(times, times, world["coeffs"])
    start = jnp.zeros(DIMS), world["scale"] ** 2 * jnp.eye(DIMS)
    error = {"kappa": world["kappa"], "bias": world["bias"]}
    full, hat = (gaussian.gaussian_chain(mean, cov, schedule, steps, start=start, **shift)
                 for shift in ({}, error))  # fmt: skip

    def mean_square(chain):
        """E |kappa eps + bias|^2 of each step under a chain."""

        def one(level, kappa, bias, m, c):
            cov_t = level.alpha**2 * cov + level.sigma**2 * jnp.eye(DIMS)
            jac = kappa * level.sigma * jnp.linalg.inv(cov_t)
            shift = jac @ (m - level.alpha * mean) + bias
            return shift @ shift + jnp.trace(jac @ c @ jac)

        laws = chain.means[:-1], chain.covs[:-1]
        return jax.vmap(one)(schedule(times), world["kappa"], world["bias"], *laws)

    laws = full.means[-2], full.covs[-2], hat.means[-2], hat.covs[-2]
    path = jnp.sum((divergences.kl_weights(world["coeffs"]) * mean_square(full))[:-1])
    marginal = divergences.gaussian_kl(*laws)
    s = world["levels"].sigma / world["levels"].alpha
    posterior = bounds.log_concave_posterior(s, 1 / jnp.linalg.eigvalsh(cov)[-1])
    gains = bounds.posterior_gains(schedule, steps, posterior)
    local = jnp.abs(steps.coeffs.eps) * jnp.sqrt(mean_square(hat))
    minkowski = bounds.gronwall(gains[:, None], local[:, None])[-2, 0]
    return {
        "path KL": (marginal, path),
        "KL of a projection": (divergences.gaussian_projected_kl(*laws, world["frame"]), marginal),
        "Minkowski, laws": (divergences.gaussian_w2(*laws), minkowski),
    }

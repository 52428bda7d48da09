"""Small worlds for the tests: an exact mixture denoiser, a network with sites of all kinds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion, precision
from qdiffjax.diffusion import gaussian
from qdiffjax.sites import list_sites

SCHEDULE = diffusion.linear(40, 1e-3, 0.2)
KEY = jax.random.key(7)
NUM_STEPS, BATCH = 6, 4
DDIM = diffusion.ddim(SCHEDULE, NUM_STEPS)
DDPM = diffusion.ddim(SCHEDULE, NUM_STEPS, eta=1.0)
SAMPLERS = {"ddim": (DDIM, None), "ddpm": (DDPM, KEY)}


def adams_bashforth(steps: diffusion.Steps) -> diffusion.Steps:
    """PLMS of order 2: eps is replaced by 3/2 eps - 1/2 of the last one, which slot 1 remembers."""
    c, n = steps.coeffs, NUM_STEPS
    zero, one = jnp.zeros(n), jnp.ones(n)
    extrapolate = jnp.where(jnp.arange(n) == 0, 0.0, 0.5)
    x = jnp.stack([c.x, -c.eps * extrapolate, zero, zero], axis=1).reshape(n, 2, 2)
    coeffs = diffusion.SlotCoeffs(
        jnp.stack([one, zero], axis=1), x,
        jnp.stack([c.eps * (1 + extrapolate), one], axis=1), jnp.stack([c.noise, zero], axis=1),
    )  # fmt: skip
    return steps._replace(coeffs=coeffs)


MULTISTEP = adams_bashforth(DDIM)
ALL_SAMPLERS = SAMPLERS | {"multistep": (MULTISTEP, None)}


def normal(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


X_T = normal(0, BATCH, 2)

# ------------------------------------------------------------------ exact denoiser of a mixture


def mixture():
    """Three tilted components in the plane, near enough that their flow is smooth."""
    means = np.array([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.1]])
    roots = 0.5 * np.random.default_rng(3).normal(size=(3, 2, 2))
    covs = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(2)
    return gaussian.GaussianMixture(np.array([0.5, 0.3, 0.2]), means, covs)


EXACT = diffusion.bind(gaussian.eps_fn_for(SCHEDULE), mixture())


def grid(x, scale=0.125):
    return scale * jnp.round(x / scale)


def rounded(x, t, inputs):
    """The exact denoiser between two roundings: discontinuous in x, zero derivative."""
    return grid(EXACT(grid(x), t, None)[0]), None


def fast(x, t, inputs):
    """A denoiser that compiles at once, for what holds for any denoiser."""
    return jnp.tanh(0.8 * x + jnp.flip(x, axis=-1) / 3 + t / 60), None


# ---------------------------------------------------------------- network with many kinds of sites


def net_fn(params, x, t):
    """eps(x [batch, 2], t): time embedding without batch axis, scan over layers, a q.k product."""
    features = jnp.stack([jnp.cos(t / 20), jnp.sin(t / 20), jnp.cos(t / 5)])
    emb = jnp.tanh(features @ params["time"])
    h = jnp.tanh(x @ params["in"] + emb[None])

    def layer(h, w):
        return h + jnp.tanh(h @ w) / 2, None

    h, _ = jax.lax.scan(layer, h, params["layers"])
    q, k = h @ params["query"], h @ params["key"]
    gate = jax.nn.sigmoid(jnp.einsum("bi,bi->b", q, k))
    return (h * (0.5 + gate[:, None])) @ params["out"]


WIDTH = 8
PARAMS = {
    "time": normal(1, 3, WIDTH),
    "in": normal(2, 2, WIDTH, scale=0.7),
    "layers": normal(3, 2, WIDTH, WIDTH, scale=0.5),
    "query": normal(4, WIDTH, WIDTH, scale=0.3),
    "key": normal(5, WIDTH, WIDTH, scale=0.3),
    "out": jnp.eye(WIDTH),
}


def fitted_out():
    """Last layer fitted to the exact denoiser at five times: a trained network, cheaply."""
    x_0 = gaussian.sample_mixture(KEY, mixture(), 200)
    times = jnp.arange(8.0, 41.0, 8.0)
    level = SCHEDULE(times)
    x_t = level.alpha[:, None, None] * x_0[None] + level.sigma[:, None, None] * normal(8, 5, 200, 2)
    features = jax.jit(jax.vmap(partial(net_fn, PARAMS)))(x_t, times)
    targets = jax.jit(jax.vmap(lambda x, t: EXACT(x, t, None)[0]))(x_t, times)
    return jnp.linalg.lstsq(features.reshape(-1, WIDTH), targets.reshape(-1, 2))[0]


PARAMS["out"] = fitted_out()
SITES = list_sites(net_fn, PARAMS, X_T, jnp.float64(1))
NAMES = ("input", "time", "in", "layers[0]", "layers[1]", "query", "key", "dot_0", "out", "output")


def round_weight(w, bits):
    """One symmetric scale for the whole weight; bits may be any positive number."""
    scale = jnp.max(jnp.abs(w)) / (2.0 ** (bits - 1) - 1)
    return scale * jnp.round(w / scale)


def symmetric(high, bits):
    """Activation grid -high ... high."""
    qmax = 2.0 ** (bits - 1) - 1
    return precision.ActivationQuant(
        jnp.float64(high / qmax), None, jnp.float64(-qmax), jnp.float64(qmax)
    )


def weights(fn=net_fn, params=PARAMS):
    return precision.weight_operands(fn, params, X_T, jnp.float64(1))


def quantized(weight_bits=8, activation_bits=8, *, high=4.0, params=PARAMS) -> precision.Quantized:
    """The network with weights and every activation operand rounded; None leaves either alone."""
    operands, inputs = weights(params=params), {}
    for s in SITES:
        w = operands.get(s.name) if weight_bits else None
        how = symmetric(high, activation_bits) if activation_bits else None
        inputs[s.name] = precision.SiteQuant(
            None if w is None else round_weight(w, weight_bits), (how,) * len(s.activations)
        )
    return precision.Quantized(net_fn, params, inputs)


def nudged(size, bits=4) -> precision.Quantized:
    """The network with its weights moved by `size` times their rounding error: smooth in size."""
    inputs = {
        name: precision.SiteQuant(w + size * (round_weight(w, bits) - w))
        for name, w in weights().items()
    }
    return precision.Quantized(net_fn, PARAMS, inputs)


def calls(q):
    """The two denoisers (x, t, inputs) -> (eps, outputs) of the library."""
    return precision.full_call(q), precision.quantized_call(q)


# ------------------------------------------------------------------ independent tools


def noise_path(steps, key, like):
    """Noise of every step, zeros without a key."""
    if key is None:
        return jnp.zeros((steps.t.shape[0], *like.shape))
    return jnp.stack([
        jax.random.normal(jax.random.fold_in(key, i), like.shape) for i in range(steps.t.shape[0])
    ])  # fmt: skip


@partial(jax.jit, static_argnums=0)
def run_from(call, x, start, steps, zs, local=None):
    """All steps from `start` on, earlier ones skipped; `local` [N, ...] is added after each."""

    def body(x, slices):
        i, t, c, z, e = slices
        y = c.x * x + c.eps * call(x, t, None)[0] + c.noise * z
        return jnp.where(i >= start, y if e is None else y + e, x), None

    index = jnp.arange(steps.t.shape[0])
    return jax.lax.scan(body, x, (index, steps.t, steps.coeffs, zs, local))[0]


def slope(sizes, values):
    """Least-squares slope of log value against log size."""
    return np.polyfit(np.log(np.asarray(sizes)), np.log(np.asarray(values)), 1)[0]

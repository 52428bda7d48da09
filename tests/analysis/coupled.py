"""Coupled runs of the worlds' network, and the independent tools that check them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import diffusion, precision
from qdiffjax.analysis.errors import coherence
from qdiffjax.denoiser import Denoiser
from qdiffjax.quant import ActivationGrid, IntFormat
from tests.worlds import BATCH, DDIM, DDPM, KEY, NUM_STEPS, PARAMS, SITES, X_T, fast, net_fn


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


SAMPLERS = {"ddim": (DDIM, None), "ddpm": (DDPM, KEY)}
MULTISTEP = adams_bashforth(DDIM)
ALL_SAMPLERS = SAMPLERS | {"multistep": (MULTISTEP, None)}


def round_weight(w, bits):
    """One symmetric scale for the whole weight; bits may be any positive number."""
    scale = jnp.max(jnp.abs(w)) / (2.0 ** (bits - 1) - 1)
    return scale * jnp.round(w / scale)


def symmetric(high, bits):
    """Activation grid -high ... high."""
    return ActivationGrid(IntFormat(jnp.int32(bits)), jnp.float64(high / (2.0 ** (bits - 1) - 1)))


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
    return precision.Quantized(Denoiser(net_fn, params), inputs)


def nudged(size, bits=4) -> precision.Quantized:
    """The network with its weights moved by `size` times their rounding error: smooth in size."""
    inputs = {
        name: precision.SiteQuant(w + size * (round_weight(w, bits) - w))
        for name, w in weights().items()
    }
    return precision.Quantized(Denoiser(net_fn, PARAMS), inputs)


def calls(q):
    """The two denoisers (x, t, inputs, state) -> (eps, outputs, state) of the library."""
    return precision.full_call(q), precision.quantized_call(q)


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


def axes(like):
    """The n axes of a sample times sqrt(n) [n, *like.shape]: probes whose mean is exact."""
    n = like[0].size
    basis = jnp.sqrt(jnp.asarray(n, like.dtype)) * jnp.eye(n, dtype=like.dtype)
    return jnp.broadcast_to(basis.reshape(n, 1, *like.shape[1:]), (n, *like.shape))


def remainders(call, xs, xs_hat, steps):
    """What first order drops in each step: F_i(x_hat_i) - F_i(x_i) - J_i (x_hat_i - x_i)."""

    def one(row):
        x, x_hat, t, coeffs = row
        f = lambda y: coeffs.advance(y, call(coeffs.read(y), t, None)[0])  # noqa: E731
        y, jv = jax.jvp(f, (x,), (x_hat - x,))
        return f(x_hat) - y - jv

    return jax.lax.map(one, (xs[:-1], xs_hat[:-1], steps.times(xs), steps.coeffs))


def homotopy(call, x_T, steps, local_errors, *, num_nodes, key=None):
    """The final error by the path-integrated Jacobian: all local errors as one part."""
    parts = local_errors[None]
    return coherence.split_error(call, x_T, steps, parts, num_nodes=num_nodes, key=key)[0]


DENSE_CASES = {"ddpm": (DDPM, fast), "multistep": (MULTISTEP, fast)}


class Dense:
    """States of a run and dense Jacobians of its steps [N, batch, K n, K n], by forward mode."""

    def __init__(self, steps, call):
        self.steps, self.call = steps, call
        self.xs = jax.jit(lambda: diffusion.sample(call, X_T, steps, key=KEY).states)()
        self.size = self.xs[0, 0].size
        jacobians = jax.jit(jax.vmap(jax.vmap(self.jacobian, (0, None, None))))
        self.steps_of = np.asarray(jacobians(self.xs[:-1], steps.t, steps.coeffs))
        done = [np.broadcast_to(np.eye(self.size)[:2], (BATCH, 2, self.size))]
        for jacobian in self.steps_of[::-1]:
            done.append(done[-1] @ jacobian)
        self.to_end = np.stack(done[::-1])  # d x_0 / d state_i [N+1, batch, 2, K n]

    def jacobian(self, state, t, coeffs):
        def move(flat):
            y = flat.reshape(1, *state.shape)
            eps = self.call(coeffs.read(y), t, None)[0]
            return coeffs.advance(y, eps).ravel()

        return jax.jacfwd(move)(state.ravel())

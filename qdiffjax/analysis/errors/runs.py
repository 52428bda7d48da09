"""Two runs of one sampler on the same noise, and the error each step commits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, Key, PyTree, float_dtype
from qdiffjax.compiling import canonical_convolutions
from qdiffjax.diffusion import (
    SlotCoeffs,
    StepCoeffs,
    Steps,
    commit,
    current,
    read,
    sample,
    step,
    step_noise,
)


class Coupled(NamedTuple):
    """A full-precision and a quantized run on common random numbers.

    xs, xs_hat: states [N+1, batch, *shape], noisiest first; local_errors [N, batch, *shape], a
    posteriori: committed at the quantized run's states. With a sampler that has memory a state
    is [batch, K, *shape], here and in everything that reads states.
    """

    xs: Array
    xs_hat: Array
    local_errors: Array

    @property
    def errors(self) -> Array:
        """Accumulated error x_hat - x [N+1, batch, *shape]; the first is zero."""
        return self.xs_hat - self.xs


def norms(values: Array) -> Array:
    """Euclidean norm of each sample: [lead, batch, *shape] -> [lead, batch]."""
    return jnp.sqrt(jnp.sum(values**2, axis=tuple(range(2, values.ndim))))


def times(steps: Steps, like: Array) -> Array:
    """Times of the steps [N] in the dtype in which `sample` gives them to the network."""
    return steps.t.astype(float_dtype(like))


def noises(key: Key | None, steps: Steps, like: Array) -> Array | None:
    """The noise of every step [N, *like.shape] as `sample` draws it, or None without a key.

    Raises:
      ValueError: no key for steps that add noise; traced coefficients are not checked.
    """
    if key is None:
        noise = steps.coeffs.noise
        if not isinstance(noise, jax.core.Tracer) and np.any(np.asarray(noise) != 0):
            raise ValueError(
                "got key=None for steps with noise, expected the key of the runs to be analysed; "
                "pass key= or use deterministic steps such as ddim(eta=0)"
            )
        return None
    return jax.vmap(lambda i: step_noise(key, i, like))(jnp.arange(steps.t.shape[0]))


def step_map(call: CallFn, t, coeffs: StepCoeffs | SlotCoeffs, z=None, inputs: PyTree = None):
    """The sampler's step as a map F(x) = c.x x + c.eps eps(x, t) + c.noise z of its state alone."""
    return lambda x: step(x, call(read(x, coeffs), t, inputs)[0], coeffs, z)


def local_errors(
    full: CallFn, quantized: CallFn, xs: Array, steps: Steps, *, per_call: PyTree = None
) -> Array:
    """What each step of the quantized sampler commits when started at given states.

        e_i = F_hat_i(x_i) - F_i(x_i) = c_eps,i (eps_hat(x_i, t_i) - eps(x_i, t_i))

    At the quantized run's states it is the a-posteriori error, which makes the propagation
    identities exact; at the full-precision run's it is the a-priori error, which predicts.
    Survey, eqs. 9 and 16, leave open which.

    Args:
      full, quantized: the two denoisers, (x, t, inputs) -> (eps, outputs).
      xs: states [N+1, batch, *shape]; the last is not used.
      steps: the sampler, leaves [N].
      per_call: inputs of the quantized denoiser, leaves [N, ...].

    Returns:
      Local errors in units of x [N, batch, *shape].
    """

    def one(slices):
        x, t, coeffs, inputs = slices
        seen = read(x, coeffs)
        return commit(quantized(seen, t, inputs)[0] - full(seen, t, None)[0], coeffs)

    return jax.lax.map(one, (xs[:-1], times(steps, xs), steps.coeffs, per_call))


def couple(
    full: CallFn,
    quantized: CallFn,
    x_T: Array,
    steps: Steps,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
) -> Coupled:
    """Run both denoisers from x_T [batch, *shape] on the same noise; costs 4 sampling runs."""
    xs = sample(full, x_T, steps, key=key).states
    xs_hat = sample(quantized, x_T, steps, key=key, per_call=per_call).states
    e = local_errors(full, quantized, xs_hat, steps, per_call=per_call)
    return Coupled(xs, xs_hat, e)


class Probed(NamedTuple):
    """Mean over probes and its standard error, two pytrees of one structure."""

    value: Any
    standard_error: Any


def signs(key: Key, num: int, like) -> Array:
    """Return random signs [num, *like.shape], of least variance among independent entries."""
    return jax.random.rademacher(key, (num, *jnp.shape(like))).astype(like.dtype)


def axes(like) -> Array:
    """Return the n axes of a sample times sqrt(n) [n, *like.shape]; like [batch, *shape].

    Means over these probes are exact, for small n.
    """
    n = like[0].size
    basis = jnp.sqrt(jnp.asarray(n, like.dtype)) * jnp.eye(n, dtype=like.dtype)
    return jnp.broadcast_to(basis.reshape(n, 1, *like.shape[1:]), (n, *like.shape))


def probed(fn: Callable[[Array], Any], probes) -> Probed:
    """Return the mean of fn(probe) over probes [num, ...], one after another, and its error.

    The standard error assumes random probes; for `axes`, whose mean is exact, it means nothing.

    Raises:
      ValueError: fewer than two probes.
    """
    num = probes.shape[0]
    if num < 2:
        raise ValueError(f"got {num} probe(s), expected at least 2 for an error bar; draw more")
    values = jax.lax.map(fn, probes)
    mean = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
    return Probed(mean, jax.tree.map(lambda v: jnp.std(v, axis=0, ddof=1) / num**0.5, values))


def adjoints(call: CallFn, xs, steps: Steps, v) -> Array:
    """Return l_i = J_{i->N}^T v of every state for v [batch, *shape] of x_0 [N+1, batch, *state].

        l_i = J_i^T l_{i+1},   l_N = v in slot 0

    One VJP a step in a reverse scan.
    """
    _, place = jax.vjp(lambda state: current(state, steps.coeffs), xs[-1])
    (last,) = place(v)

    def body(l, slices):
        x, t, coeffs = slices
        (l,) = jax.vjp(step_map(call, t, coeffs), x)[1](l)
        return l, l

    table = (xs[:-1], times(steps, xs), steps.coeffs)
    sweep = canonical_convolutions(lambda l, rows: jax.lax.scan(body, l, rows, reverse=True))
    _, ls = sweep(last, table)
    return jnp.concatenate([ls, last[None]])

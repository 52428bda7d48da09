"""A sampler is a table of coefficients of its network calls; one loop runs them all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._typing import Array, CallFn, EpsFn, Key, PyTree, float_dtype


class StepCoeffs(NamedTuple):
    """One first-order step t -> s:  x_s = x * x_t + eps * eps_fn(x_t, t) + noise * z.

    Scalars, or matrices [D, D] that act on axis 1 of a state [batch, D, *shape], as for a process
    on (position, velocity); prediction and noise then have the shape of that state too.
    """

    x: Any
    eps: Any
    noise: Any


class SlotCoeffs(NamedTuple):
    """One network call of a linear method whose state y has K slots, slot 0 being x_t itself.

        u   = sum_k read_k y_k,      eps = eps_fn(u, t)
        y'_j = sum_k x_jk y_k + eps_j eps + noise_j z

    The other slots remember what a multistep or multistage method needs (earlier states, earlier
    outputs), so that such a method is a chain of maps of its state too, whose Jacobians multiply.

    Attributes:
      read: what the network sees [K].
      x: of the state [K, K].
      eps: of the prediction [K].
      noise: of the noise [K].
    """

    read: Any
    x: Any
    eps: Any
    noise: Any


class Steps(NamedTuple):
    """A sampler as data: N network calls, noisiest first.

    t [N]: the times that the network is given; s [N]: the time of slot 0 after the call;
    coeffs: `StepCoeffs` (one call a step, no memory) or `SlotCoeffs`, leaves [N, ...].
    """

    t: Array
    s: Array
    coeffs: StepCoeffs | SlotCoeffs


class Trajectory(NamedTuple):
    """What one sampling run leaves behind.

    x_0 [*shape]; states [N+1, *state], noisiest first, or None if not kept; outputs of the N
    network calls, leaves [N, ...]. A state is x [*shape] or, with memory, [batch, K, *shape].
    """

    x_0: Array
    states: Any
    outputs: PyTree

    @property
    def xs(self) -> Any:
        """The states' x_t [N+1, *shape], noisiest first; the last is x_0."""
        if self.states is None or self.states.ndim == self.x_0.ndim + 1:
            return self.states
        return self.states[:, :, 0]


def num_slots(coeffs: StepCoeffs | SlotCoeffs) -> int | None:
    """Return K, or None for a sampler without memory."""
    return jnp.shape(coeffs.read)[-1] if isinstance(coeffs, SlotCoeffs) else None


def start(x_T, steps: Steps) -> Array:
    """Return the state before the first call: x_T [*shape] itself, or [batch, K, *shape].

    The slots other than the first are zero: a method's first calls must not read them.
    """
    x_T = jnp.asarray(x_T).astype(float_dtype(x_T))
    slots = num_slots(steps.coeffs)
    if slots is None:
        return x_T
    empty = jnp.zeros((x_T.shape[0], slots - 1, *x_T.shape[1:]), x_T.dtype)
    return jnp.concatenate([x_T[:, None], empty], axis=1)


def current(state, coeffs: StepCoeffs | SlotCoeffs) -> Array:
    """Return x_t [*shape] of a state."""
    return state[:, 0] if isinstance(coeffs, SlotCoeffs) else state


def read(state, coeffs: StepCoeffs | SlotCoeffs) -> Array:
    """Return what the network is given [*shape]: x_t, or sum_k read_k y_k."""
    if not isinstance(coeffs, SlotCoeffs):
        return state
    return jnp.einsum("k,bk...->b...", _like(coeffs.read, state), state, precision="highest")


def commit(change, coeffs: StepCoeffs | SlotCoeffs) -> Array:
    """Return what a change of eps [*shape] does to the state after the call [*state].

    coeffs.eps * change
    """
    weights = _like(coeffs.eps, change)
    if not isinstance(coeffs, SlotCoeffs):
        return _scaled(weights, change)
    return jnp.einsum("k,b...->bk...", weights, change, precision="highest")


def step(state, eps, coeffs: StepCoeffs | SlotCoeffs, z=None) -> Array:
    """Return the next state; no network evaluation.

        x_s = coeffs.x * x_t + coeffs.eps * eps + coeffs.noise * z           (`StepCoeffs`)
        y'_j = sum_k x_jk y_k + eps_j eps + noise_j z                        (`SlotCoeffs`)

    Args:
      state: x_t [*shape], or y [batch, K, *shape].
      eps: the network's prediction at `read(state)` [*shape], any float dtype.
      coeffs: scalar or matrix coefficients, or those of slots.
      z: standard normal noise [*shape], or None for no noise.

    Returns:
      State like `state`, in float64 if that is, else float32.
    """
    dtype = float_dtype(state)
    state, eps = jnp.asarray(state).astype(dtype), jnp.asarray(eps).astype(dtype)
    if isinstance(coeffs, SlotCoeffs):
        x = _like(coeffs.x, state)
        moved = jnp.einsum("jk,bk...->bj...", x, state, precision="highest")
    else:
        moved = _scaled(_like(coeffs.x, state), state)
    moved = moved + commit(eps, coeffs)
    if z is None:
        return moved
    return moved + commit(jnp.asarray(z).astype(dtype), coeffs._replace(eps=coeffs.noise))


def _scaled(weight, array) -> Array:
    """Return weight * array, or the product of a matrix [D, D] with axis 1 of array."""
    if jnp.ndim(weight) == 0:
        return weight * array
    return jnp.einsum("jk,bk...->bj...", weight, array, precision="highest")


def _like(leaf, array) -> Array:
    return jnp.asarray(leaf).astype(array.dtype)


def step_noise(key: Key, index, like) -> Array:
    """Return the noise z of step `index` (0 = noisiest), with the shape of `like`.

        z = normal(fold_in(key, index))

    This is its definition: any loop that uses it replays the noise path of `sample`.
    """
    return jax.random.normal(jax.random.fold_in(key, index), like.shape, float_dtype(like))


def bind(eps_fn: EpsFn, params: PyTree) -> CallFn:
    """Return call_fn(x, t, inputs) -> (eps_fn(params, x, t), None), which ignores its inputs."""
    return lambda x, t, inputs: (eps_fn(params, x, t), None)


def sample(
    call_fn: CallFn,
    x_T,
    steps: Steps,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
    keep_trajectory: bool = True,
) -> Trajectory:
    """Run the sampler from x_T: one `lax.scan`, one network call after another.

    Steps, key and per_call are data, so runs that differ only in them share one compilation.

    Args:
      call_fn: (x [*shape], t scalar, inputs) -> (eps [*shape], outputs); see `bind`.
      x_T: initial noise [*shape], the first axis a batch if the sampler has memory. The state is
        float64 if x_T is, else float32.
      steps: coefficients of the N calls, leaves [N, ...].
      key: the noise of call i is `step_noise(key, i, x_T)`. None only for deterministic steps;
        traced coefficients are not checked.
      per_call: pytree with leaves [N, ...]; call i gets slice i as `inputs` (None: None).
      keep_trajectory: whether to return the states of all steps.

    Raises:
      ValueError: if steps that add noise get no key, or per_call has not N slices.
    """
    num_steps = steps.t.shape[0]
    _check_per_call(per_call, num_steps)
    if not _adds_noise(steps.coeffs.noise, key):
        key = None
    dtype = float_dtype(x_T)

    def body(state, slices):
        index, t, coeffs, inputs = slices
        x = read(state, coeffs)
        eps, outputs = call_fn(x, t.astype(dtype), inputs)
        state = step(state, eps, coeffs, None if key is None else step_noise(key, index, x))
        return state, (state if keep_trajectory else None, outputs)

    first = start(x_T, steps)
    slices = (jnp.arange(num_steps), steps.t, steps.coeffs, per_call)
    last, (states, outputs) = jax.lax.scan(body, first, slices)
    states = jnp.concatenate([first[None], states]) if keep_trajectory else None
    return Trajectory(current(last, steps.coeffs), states, outputs)


def _adds_noise(noise, key: Key | None) -> bool:
    """Say whether noise must be drawn; raise if it must and there is no key."""
    if isinstance(noise, jax.core.Tracer):
        return key is not None
    noisy = bool(np.any(np.asarray(noise) != 0.0))
    if noisy and key is None:
        raise ValueError(
            f"got key=None for steps with noise coefficients up to {np.max(noise):.3g}, expected a "
            "PRNG key; pass key=jax.random.key(seed) or use deterministic steps such as ddim(eta=0)"
        )
    return noisy


def _check_per_call(per_call: PyTree, num_steps: int) -> None:
    for leaf in jax.tree.leaves(per_call):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != num_steps:
            raise ValueError(
                f"got a per_call leaf of shape {jnp.shape(leaf)}, expected leading axis "
                f"{num_steps}; give one slice per network call"
            )

"""A sampler is a table of coefficients of its network calls; one loop runs them all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_callable, check_key, check_numbers, check_type, checked, require
from qdiffjax._conditions import as_arguments
from qdiffjax._typing import Array, CallFn, EpsFn, Key, PyTree, float_dtype


class StepCoeffs(NamedTuple):
    """One first-order step t -> s:  x_s = x * x_t + eps * eps_fn(x_t, t) + noise * z.

    Scalars, or matrices [D, D] that act on axis 1 of a state [batch, D, *shape], as for a process
    on (position, velocity); prediction and noise then have the shape of that state too.
    """

    x: Any
    eps: Any
    noise: Any

    @property
    def num_slots(self) -> int:
        """One: the state is x_t itself."""
        return 1

    def start(self, x_T) -> Array:
        """Return the state before the first call, x_T [*shape] in the dtype to compute in."""
        return jnp.asarray(x_T).astype(float_dtype(x_T))

    def current(self, state) -> Array:
        """Return x_t [*shape] of a state."""
        return state

    def read(self, state) -> Array:
        """Return what the network is given [*shape]: x_t."""
        return state

    def commit(self, change) -> Array:
        """Return eps * change, what a change of the prediction does to the next state [*shape]."""
        return _scaled(_like(self.eps, change), change)

    def advance(self, state, eps, z=None) -> Array:
        """Return the next state [*shape] from the prediction eps and the noise z; no network call.

        In float64 if the state is, else float32, whatever the dtype of eps. No noise if z is None.
        """
        return _advance(self, state, eps, z)


class SlotCoeffs(NamedTuple):
    """One network call of a linear method whose state y has K slots, slot 0 being x_t itself.

        u   = sum_k input_k y_k,      eps = eps_fn(u, t)
        y'_j = sum_k x_jk y_k + eps_j eps + noise_j z

    The other slots remember what a multistep or multistage method needs (earlier states, earlier
    outputs), so that such a method is a chain of maps of its state too, whose Jacobians multiply.

    Attributes:
      input: of the state, what the network sees [K].
      x: of the state [K, K].
      eps: of the prediction [K].
      noise: of the noise [K].
    """

    input: Any
    x: Any
    eps: Any
    noise: Any

    @property
    def num_slots(self) -> int:
        """K."""
        return jnp.shape(self.input)[-1]

    def start(self, x_T) -> Array:
        """Return the state before the first call [batch, K, *shape].

        The slots other than the first are zero: a method's first calls must not read them.
        """
        x_T = jnp.asarray(x_T).astype(float_dtype(x_T))
        empty = jnp.zeros((x_T.shape[0], self.num_slots - 1, *x_T.shape[1:]), x_T.dtype)
        return jnp.concatenate([x_T[:, None], empty], axis=1)

    def current(self, state) -> Array:
        """Return x_t [batch, *shape] of a state."""
        return state[:, 0]

    def read(self, state) -> Array:
        """Return what the network is given [batch, *shape]: sum_k input_k y_k."""
        return jnp.einsum("k,bk...->b...", _like(self.input, state), state, precision="highest")

    def commit(self, change) -> Array:
        """Return what a change of the prediction does to the next state [batch, K, *shape]."""
        return jnp.einsum("k,b...->bk...", _like(self.eps, change), change, precision="highest")

    def advance(self, state, eps, z=None) -> Array:
        """Return the next state [batch, K, *shape]; as `StepCoeffs.advance`."""
        return _advance(self, state, eps, z)


def _advance(coeffs, state, eps, z) -> Array:
    dtype = float_dtype(state)
    state, eps = jnp.asarray(state).astype(dtype), jnp.asarray(eps).astype(dtype)
    moved = _scaled(_like(coeffs.x, state), state) + coeffs.commit(eps)
    if z is None:
        return moved
    return moved + coeffs._replace(eps=coeffs.noise).commit(jnp.asarray(z).astype(dtype))


def _scaled(weight, array) -> Array:
    """Return weight * array, or the product of a matrix [D, D] with axis 1 of array."""
    if jnp.ndim(weight) == 0:
        return weight * array
    return jnp.einsum("jk,bk...->bj...", weight, array, precision="highest")


def _like(leaf, array) -> Array:
    return jnp.asarray(leaf).astype(array.dtype)


class Steps(NamedTuple):
    """A sampler as data: N network calls, noisiest first.

    t [N]: the times that the network is given; s [N]: the time of slot 0 after the call;
    coeffs: `StepCoeffs` (one call a step, no memory) or `SlotCoeffs`, leaves [N, ...].

    Example:
      >>> import qdiffjax as qd
      >>> steps = qd.ddim(qd.linear(), 4)
      >>> [int(t) for t in steps.t], [int(s) for s in steps.s]
      ([1000, 750, 500, 250], [750, 500, 250, 0])
    """

    t: Array
    s: Array
    coeffs: StepCoeffs | SlotCoeffs

    @property
    def is_first_order(self) -> bool:
        """Whether the state is x_t alone, moved by scalars: no memory, no second part."""
        return jnp.ndim(self.coeffs.x) == jnp.ndim(self.t)

    @property
    def adds_noise(self) -> bool:
        """Whether any call adds noise; of steps that are data, not traced."""
        return bool(np.any(np.asarray(self.coeffs.noise) != 0))

    def noise_key(self, key: Key) -> Key | None:
        """Return the key of the sampler's own noise, None where it adds none."""
        return key if self.adds_noise else None

    def times(self, x) -> Array:
        """Return t [N] in the dtype in which a network at states like x is given it."""
        return jnp.asarray(self.t).astype(float_dtype(x))


class Point(NamedTuple):
    """Where a run is between two calls, if they hand on more than the sampler's state.

    x: the sampler's state; state: what a network call carries to the next one, () for nothing.
    A run without it is at an array, x alone: `bare` and `as_point` go from one to the other.
    """

    x: Any
    state: PyTree = ()

    def bare(self):
        """Return the point, or x alone if there is no state."""
        return self if jax.tree.leaves(self.state) else self.x


def as_point(value) -> Point:
    """Return a point as it is, and an array x as a point without state."""
    return value if isinstance(value, Point) else Point(value)


class Trajectory(NamedTuple):
    """What one sampling run leaves behind.

    x_0 [*shape]; states [N+1, *state], noisiest first, or None if not kept; outputs of the N
    network calls, leaves [N, ...]; state: what the last call hands on. A state of the sampler is
    x [*shape] or, with memory, [batch, K, *shape]; `states` is a `Point` if calls hand on a state.
    """

    x_0: Array
    states: Any
    outputs: PyTree
    state: PyTree = ()

    @property
    def xs(self) -> Any:
        """The states' x_t [N+1, *shape], noisiest first; the last is x_0."""
        states = as_point(self.states).x
        if states is None or states.ndim == self.x_0.ndim + 1:
            return states
        return states[:, :, 0]


@checked(key=check_key)
def step_noise(key: Key, index, like) -> Array:
    """Return the noise z of step `index` (0 = noisiest), with the shape of `like`.

        z = normal(fold_in(key, index))

    This is its definition: any loop that uses it replays the noise path of `sample`.
    """
    return jax.random.normal(jax.random.fold_in(key, index), like.shape, float_dtype(like))


def bind(eps_fn: EpsFn, params: PyTree, cond: PyTree = None) -> CallFn:
    """Return the call of eps_fn(params, x, t) or, with conditions, eps_fn(params, x, t, cond).

    Without outputs; inputs and state pass it by.
    """
    rest = as_arguments(cond)
    return lambda x, t, inputs=None, state=(): (eps_fn(params, x, t, *rest), None, state)


def sample(
    call_fn: CallFn,
    x_T,
    steps: Steps,
    *,
    key: Key | None = None,
    per_call: PyTree = None,
    state: PyTree = (),
    keep_trajectory: bool = True,
) -> Trajectory:
    """Run the sampler from x_T: one `lax.scan`, one network call after another.

    Steps, key and per_call are data, so runs that differ only in them share one compilation.

    Args:
      call_fn: (x [*shape], t scalar, inputs, state) -> (eps [*shape], outputs, state); see `bind`.
      x_T: initial noise [*shape], the first axis a batch if the sampler has memory. The state is
        float64 if x_T is, else float32.
      steps: coefficients of the N calls, leaves [N, ...].
      key: the noise of call i is `step_noise(key, i, x_T)`. None only for deterministic steps;
        traced coefficients are not checked.
      per_call: pytree with leaves [N, ...]; call i gets slice i as `inputs` (None: None).
      state: what the first call is handed; each call hands on one of the same shapes and dtypes.
      keep_trajectory: whether to return the states of all steps.

    Raises:
      ValueError: if steps that add noise get no key, or per_call has not N slices.
    """
    check_callable("call_fn", call_fn, "(x, t, inputs, state) -> (eps, outputs, state)")
    check_type("steps", steps, Steps, remedy="such as ddim(schedule, 50)")
    check_state("x_T", x_T)
    if key is not None:
        check_key("key", key)
    num_steps = steps.t.shape[0]
    _check_per_call(per_call, num_steps)
    if not _adds_noise(steps.coeffs.noise, key):
        key = None

    def body(point, slices):
        index, t, coeffs, inputs = slices
        x = coeffs.read(point.x)
        eps, outputs, state = call_fn(x, t, inputs, point.state)
        z = None if key is None else step_noise(key, index, x)
        point = Point(coeffs.advance(point.x, eps, z), state)
        return point, (point if keep_trajectory else None, outputs)

    first = Point(steps.coeffs.start(x_T), state)
    slices = (jnp.arange(num_steps), steps.times(x_T), steps.coeffs, per_call)
    last, (rest, outputs) = jax.lax.scan(body, first, slices)
    states = stack(first, rest).bare() if keep_trajectory else None
    return Trajectory(steps.coeffs.current(last.x), states, outputs, last.state)


def stack(first: PyTree, rest: PyTree, *, reverse: bool = False) -> PyTree:
    """Return leaves [N+1, ...] of `first`, the one before or, in reverse, after `rest` [N, ...]."""

    def join(one, many):
        return jnp.concatenate([many, one[None]] if reverse else [one[None], many])

    return jax.tree.map(join, first, rest)


def check_state(what: str, x) -> None:
    """Refuse what is no array of finite floating-point numbers [batch, *shape].

    An integer state has no derivative: a ledger of it would be of zeros.

    Raises:
      TypeError: another dtype, or no array.
      ValueError: concrete numbers that are not finite.
    """
    check_numbers(what, x, least_rank=1)
    require(jnp.issubdtype(jnp.result_type(x), jnp.floating), what,
            got=f"an array of {jnp.result_type(x)}", expected="floating-point numbers",
            remedy=f"{what}.astype(jnp.float32)", error=TypeError)  # fmt: skip


def _adds_noise(noise, key: Key | None) -> bool:
    """Say whether noise must be drawn; raise if it must and there is no key."""
    if isinstance(noise, jax.core.Tracer):
        return key is not None
    noise = np.asarray(noise)  # not an operation of a trace, where the steps are constants
    noisy = bool(np.any(noise != 0.0))
    require(
        not noisy or key is not None,
        "key",
        got=f"key=None for steps with noise coefficients up to {np.max(noise):.3g}",
        expected="a PRNG key",
        remedy="pass key=jax.random.key(seed) or use deterministic steps such as ddim(eta=0)",
    )
    return noisy


def _check_per_call(per_call: PyTree, num_steps: int) -> None:
    for leaf in jax.tree.leaves(per_call):
        require(
            jnp.ndim(leaf) != 0 and jnp.shape(leaf)[0] == num_steps,
            "per_call",
            got=f"a leaf of shape {jnp.shape(leaf)}",
            expected=f"leading axis {num_steps}",
            remedy="give one slice per network call",
        )

"""What is done around a product so that rounding hurts less, and leaves the exact product as it is.

    y = gain * (op(Q(B(x)), Q(B^-T(w) - L)) + op(B(x), L)) + shift

with B a change of basis along the channels that are summed, which activations and weights undo for
each other, L a low-rank part of the weight that is not rounded, and a correction of the result.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array, float_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """Channels divided by numbers of their own: x_j / s_j and s_j w_j, as SmoothQuant (eq. 3).

    Attributes:
      scale: s > 0 [channels], or one for each of the sampler's network calls [num_calls, channels].
    """

    scale: Any

    @property
    def num_calls(self) -> int | None:
        """How many calls it is made for; None if it is the same for all."""
        return len(self.scale) if jnp.ndim(self.scale) == 2 else None

    def activation(self, x: Array, axis: int, call=None) -> Array:
        """Return x [*shape] in the new basis along an axis."""
        return x / _along(self._at(call), x, axis)

    def weight(self, w: Array, axis: int, call=None) -> Array:
        """Return w [*shape] such that products with what `activation` returns stay."""
        return w * _along(self._at(call), w, axis)

    def _at(self, call):
        return self.scale if self.num_calls is None else jnp.asarray(self.scale)[call]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """Channels mixed by a randomized Hadamard transform, which is orthogonal.

        x' = H diag(signs) x,   H = H_b / sqrt(b) on each block of b channels

    Attributes:
      signs: +1 or -1 [channels].
      block: b, a power of two that divides the number of channels. Static.
    """

    signs: Any
    block: int = dataclasses.field(metadata={"static": True})
    num_calls = None

    def activation(self, x: Array, axis: int, call=None) -> Array:
        """Return x [*shape] in the new basis along an axis."""
        moved = jnp.moveaxis(x * _along(self.signs, x, axis), axis, -1)
        return jnp.moveaxis(hadamard(moved, self.block), -1, axis)

    weight = activation  # orthogonal: the inverse transposed is the map itself


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """Channels in another order, which matters where neighbours share a scale.

    Attributes:
      order: which channel comes at each place [channels].
    """

    order: Any
    num_calls = None

    def activation(self, x: Array, axis: int, call=None) -> Array:
        """Return x [*shape] in the new order along an axis."""
        return jnp.take(x, jnp.asarray(self.order), axis)

    weight = activation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Affine:
    """A correction of a result: gain * y + shift.

    Attributes:
      gain, shift: for each network call [num_calls, ...] or for all [1, ...]; what follows
        broadcasts to a sample of the result.
    """

    gain: Any
    shift: Any

    @property
    def num_calls(self) -> int | None:
        """How many calls it is made for; None if it is the same for all."""
        return len(self.shift) if len(self.shift) > 1 else None

    def __call__(self, y: Array, call=None) -> Array:
        """Return a result y [batch, *shape], corrected for this call."""
        index = 0 if self.num_calls is None else call
        gain, shift = (jnp.asarray(part)[index] for part in (self.gain, self.shift))
        wide = y.astype(float_dtype(y))
        return (_lift(gain, y) * wide + _lift(shift, y)).astype(y.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Around:
    """What is done around one site's product; see above.

    Attributes:
      bases: changes of basis, applied one after the other to the activation; the weight that the
        rule is given has undone them already.
      branch: L, of the shape of the weight operand; None for none.
      correction: an `Affine` of the result; None for none.
    """

    bases: tuple = ()
    branch: Any = None
    correction: Any = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of calls that its parts are made for."""
        return tuple(part.num_calls for part in (*self.bases, self.correction)
                     if part is not None and part.num_calls is not None)  # fmt: skip

    def enter(self, x: Array, axis: int | None, call=None) -> Array:
        """Return an activation operand [*shape] in the basis in which it is rounded."""
        wide = x.astype(float_dtype(x))
        for basis in self.bases:
            wide = basis.activation(wide, axis, call)
        return wide.astype(x.dtype)

    def weight(self, w: Array, axis: int | None, call=None) -> Array:
        """Return a weight operand [*shape] in that basis, without the branch."""
        wide = w.astype(float_dtype(w))
        for basis in self.bases:
            wide = basis.weight(wide, axis, call)
        return wide if self.branch is None else wide - self.branch


def hadamard(x: Array, block: int) -> Array:
    """Return H x / sqrt(block) on each block of neighbours of the last axis [..., n].

    Sylvester's H_2b = [[H, H], [H, -H]], in log2(block) sums and differences.

    Raises:
      ValueError: a block that is no power of two, or does not divide n.
    """
    n = x.shape[-1]
    require(block > 0 and block & (block - 1) == 0 and n % block == 0, "block", got=block,
            expected=f"a power of two that divides {n}",
            remedy=f"{largest_block(n)} is the largest")  # fmt: skip
    y, half = x.reshape(*x.shape[:-1], n // block, block), 1
    while half < block:
        pairs = y.reshape(*y.shape[:-1], block // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = jnp.stack([first + second, first - second], -2).reshape(y.shape)
        half *= 2
    return (y / np.sqrt(block).astype(y.dtype)).reshape(x.shape)


def largest_block(n: int) -> int:
    """Return the largest power of two that divides n."""
    return n & -n


def _along(values, x: Array, axis: int) -> Array:
    """Return values [n] so that they multiply an axis of x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return jnp.asarray(values).astype(x.dtype).reshape(shape)


def _lift(part, y: Array) -> Array:
    part = jnp.asarray(part).astype(float_dtype(y))
    return part.reshape((1,) * (y.ndim - part.ndim) + part.shape)

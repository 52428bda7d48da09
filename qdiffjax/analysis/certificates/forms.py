"""Forms: sets of arrays, closed under arithmetic, with every float64 rounding inside.

    x = mid + sum_k eps_k gens_k + r,    |eps_k| <= 1,   |r| <= rad

Symbols eps_k are shared by all forms of one computation, so that what cancels in reality cancels
here; `rad` is what has lost its origin, an interval. Without gens this is interval arithmetic in
centre and radius. (Affine arithmetic: de Figueiredo & Stolfi 2004.)

Outward rounding. JAX computes in float64 to nearest. A sum of n products has an error of at most
gamma_n = n u / (1 - n u) times the same sum of absolute values, u = 2^-53, whatever the order and
whether or not products are fused (Higham 2002, section 3.1): that goes into rad, and rad itself,
a sum of nonnegative numbers, is enlarged by as much again. TINY pays for underflow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import check_numbers, concrete, require
from qdiffjax._typing import Array

U = 2.0**-53
TINY = 1e-290


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Form:
    """A set of arrays: mid [*shape], gens [K, *shape], rad [*shape] >= 0, all float64.

    NaN or infinity in any part says that nothing is known; both travel by themselves, and `settle`
    turns them into an infinite rad.
    """

    mid: Any
    gens: Any
    rad: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the arrays in the set."""
        return self.mid.shape

    def __len__(self) -> int:
        """Return K."""
        return self.gens.shape[0]


def parts(form: Form) -> tuple:
    """Return mid, gens, rad."""
    return form.mid, form.gens, form.rad


def upward(x, length) -> Array:
    """Bound a nonnegative number that was computed with at most `length` roundings."""
    return x * (1 + 4 * U * (length + 8)) + TINY


def exactly(x) -> Form:
    """Return the form that is only x [*shape]."""
    x = jnp.asarray(x).astype(jnp.float64)
    return Form(x, jnp.zeros((0, *x.shape)), jnp.zeros(x.shape))


def settle(form: Form) -> Form:
    """Turn NaN and infinities of any part into "nothing is known"."""
    size = jnp.abs(form.mid) + jnp.sum(jnp.abs(form.gens), 0)
    lost = ~(jnp.isfinite(size) & jnp.isfinite(form.rad))
    zero = jnp.zeros(())
    rad = jnp.where(lost, jnp.full((), jnp.inf), form.rad)
    mid, gens = jnp.where(lost, zero, form.mid), jnp.where(lost[None], zero, form.gens)
    return dataclasses.replace(form, mid=mid, gens=gens, rad=rad)


def spread(form: Form) -> Array:
    """Return the largest |x - mid| [*shape], rounded up."""
    return upward(jnp.sum(jnp.abs(form.gens), 0) + form.rad, len(form))


def magnitude(form: Form) -> Array:
    """Return the largest |x| [*shape], rounded up."""
    return upward(jnp.abs(form.mid) + spread(form), 1)


def bounds(form: Form) -> tuple[Array, Array]:
    """Return the smallest and the largest x [*shape], rounded outwards."""
    width = spread(form)
    width = width + 4 * U * (jnp.abs(form.mid) + width)
    return form.mid - width, form.mid + width


def check_ends(low, high) -> None:
    """Refuse ends that are not finite, or descend; traced ones are trusted."""
    for end in (low, high):
        check_numbers("low, high", end)
    gap = concrete(high - low)
    require(gap is None or bool(np.all(gap >= 0)), "low, high", got="low above high",
            expected="low <= high", remedy="swap them")  # fmt: skip


def between(low, high) -> Form:
    """Return the interval [low, high] [*shape] without symbols."""
    mid = low / 2 + high / 2
    rad = jnp.maximum(high - mid, mid - low)
    return Form(mid, jnp.zeros((0, *mid.shape)), upward(rad + 2 * U * jnp.abs(mid), 2))


def box(low, high) -> Form:
    """Return the box [low, high] [*shape] with one symbol for each element, in order.

    Raises:
      ValueError: concrete ends that descend, or are not finite.
    """
    check_ends(low, high)
    return symbolize(between(jnp.asarray(low), jnp.asarray(high)), 0)


def symbolize(form: Form, first: int) -> Form:
    """Give the radius of each element a symbol of its own, numbered from `first`."""
    form = pad(form, first)
    gens = jnp.concatenate([form.gens, one_hot(form.rad)])
    return dataclasses.replace(form, gens=gens, rad=jnp.zeros_like(form.rad))


def one_hot(rad) -> Array:
    """Return [n, *shape] with element i of rad alone in row i; n elements."""
    return jnp.diag(rad.ravel()).reshape(rad.size, *rad.shape)


def pad(form: Form, num: int) -> Form:
    """Give the form at least `num` gens."""
    missing = max(0, num - len(form))
    empty = jnp.zeros((missing, *form.gens.shape[1:]))
    gens = jnp.concatenate([form.gens, empty]) if missing else form.gens
    return dataclasses.replace(form, gens=gens)


def together(forms) -> list[Form]:
    """Pad the forms to one number of gens."""
    num = max(len(f) for f in forms)
    return [pad(f, num) for f in forms]


def move(fn: Callable, *forms: Form) -> Form:
    """Apply a function that only copies elements from its arguments: reshape, concatenate, ..."""
    forms = tuple(together(forms))
    mids, gens, rads = zip(*map(parts, forms), strict=True)
    return Form(fn(*mids), jax.vmap(fn)(*gens), fn(*rads))


def add(a: Form, b: Form) -> Form:
    """Return a + b, of one shape or broadcasting."""
    a, b = together((a, b))
    mid, gens = a.mid + b.mid, jax.vmap(jnp.add)(a.gens, b.gens)
    lost = U * (jnp.abs(mid) + jnp.sum(jnp.abs(gens), 0))
    return Form(mid, gens, upward(a.rad + b.rad + lost, len(a) + 2))


def negate(a: Form) -> Form:
    """Return -a."""
    return dataclasses.replace(a, mid=-a.mid, gens=-a.gens)


def subtract(a: Form, b: Form) -> Form:
    """Return a - b."""
    return add(a, negate(b))


def scale(a: Form, factor) -> Form:
    """Return factor * a for an array of known numbers."""
    return linear(lambda v, w: v * w, a, factor, length=1)


def widen(a: Form, more) -> Form:
    """Return a + [-more, more]."""
    return dataclasses.replace(a, rad=upward(a.rad + more, 1))


def linear(op: Callable, a: Form, known, *, length: int) -> Form:
    """Return op(a, known) for a bilinear op and an array of known numbers.

        mid = op(mid, w),  gens_k = op(gens_k, w),  rad = op(rad + gamma (|mid| + sum |gens|), |w|)

    Args:
      op: bilinear with |op(x, y)| <= op(|x|, |y|): a product, a dot, a convolution.
      a: the form.
      known: array w, exact.
      length: how many products are summed in an element of the result.
    """
    gamma = 2 * U * (length + 2)
    total = jnp.abs(a.mid) + jnp.sum(jnp.abs(a.gens), 0)
    rad = op(a.rad + gamma * total, jnp.abs(known))
    gens = jax.vmap(lambda g: op(g, known))(a.gens)
    return Form(op(a.mid, known), gens, upward(rad, length + len(a)))


def bilinear(op: Callable, a: Form, b: Form, *, length: int) -> Form:
    """Return op(a, b), see `linear`.

    With a = A + da, b = B + db:  op(A, B) + op(A, db) + op(da, B), where da and db keep their
    symbols, and op(da, db), bounded by op(|da|, |db|).
    """
    a, b = together((a, b))
    mid = op(a.mid, b.mid)
    gens = jax.vmap(lambda g, h: op(g, b.mid) + op(a.mid, h))(a.gens, b.gens)
    size_a, size_b = jnp.abs(a.mid), jnp.abs(b.mid)
    spread_a, spread_b = spread(a), spread(b)
    gamma = 2 * U * (length + 4)
    rad = (
        op(size_a, b.rad) + op(a.rad, size_b) + op(spread_a, spread_b)
        + gamma * op(size_a + spread_a, size_b + spread_b)
    )  # fmt: skip
    return Form(mid, gens, upward(rad, length + len(a)))


def sums(op: Callable, a: Form, *, length: int) -> Form:
    """Return op(a) for an op that adds up to `length` elements of its argument."""
    return linear(lambda v, _: op(v), a, jnp.ones(()), length=length)


def hull(a: Form, b: Form) -> Form:
    """Return a form that holds both a and b."""
    centre = scale(add(a, b), 0.5)
    return widen(centre, magnitude(subtract(a, b)) / 2)

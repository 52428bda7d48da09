"""A float run and its difference to the quantized run, carried together through operations.

The quantized run is z + dz, and dz is computed for itself, never as a difference of two sets:

    sum, copy      d(a + b)  = da + db
    product        d(a b)    = da b + (a + da) db,  with a known weight da W_hat + a (W_hat - W)
    function       d f(a)    = s da,     s = int_0^1 f'(a + u da) du, the mean slope
    rounding       d Q(a)    = da + e,   |e| <= scale / 2 (nearest) or scale (stochastic), and what
                                         a + da may lie beyond the grid
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qdiffjax.analysis.certificates import forms, functions
from qdiffjax.analysis.certificates.forms import Form


class Pair(NamedTuple):
    """z: the full-precision value; dz: the quantized value minus it, None if they are the same."""

    z: Form
    dz: Form | None = None

    @property
    def shape(self):
        """Shape of the value."""
        return self.z.shape

    @property
    def difference(self) -> Form:
        """The difference as a form, zero if there is none."""
        return nothing(self.shape) if self.dz is None else self.dz

    @property
    def quantized(self) -> Form:
        """The value in the quantized run."""
        return self.z if self.dz is None else forms.add(self.z, self.dz)


# Of one operand: a known array, the same in both runs, or a pair.
Value = Any


def nothing(shape) -> Form:
    """Return the form of zeros, exactly."""
    return Form(jnp.zeros(shape), jnp.zeros((0, *shape)), jnp.zeros(shape))


def as_pair(value: Value) -> Pair:
    """Return a pair of what may be a known array."""
    return value if isinstance(value, Pair) else Pair(forms.exactly(value))


def each(fn: Callable[..., Form], *pairs: Pair) -> Pair:
    """Apply a function that is linear in all its forms together to both parts."""
    z = fn(*(p.z for p in pairs))
    if all(p.dz is None for p in pairs):
        return Pair(z)
    return Pair(z, fn(*(p.difference for p in pairs)))


def multiply(op: Callable, a: Value, b: Value, *, length: int) -> Pair:
    """Return op(a, b) for a bilinear op, see `forms.linear`; known arrays stay known."""
    if not isinstance(b, Pair) and isinstance(a, Pair):
        return each(lambda f: forms.linear(op, f, b, length=length), a)
    if not isinstance(a, Pair):
        return multiply(lambda x, y: op(y, x), b, as_pair(a) if not isinstance(b, Pair) else a,
                        length=length)  # fmt: skip

    def times(x, y):
        return forms.bilinear(op, x, y, length=length)

    z, parts = times(a.z, b.z), []
    if a.dz is not None:
        parts.append(times(a.dz, b.z))
    if b.dz is not None:
        parts.append(times(a.quantized, b.dz))
    return Pair(z, None if not parts else parts[0] if len(parts) == 1 else forms.add(*parts))


def times_weight(op: Callable, a: Pair, weight, weight_hat, *, length: int) -> Pair:
    """Return op(a, W) whose quantized run has the weight W_hat.

        dz' = op(dz, W_hat) + op(z, W_hat - W)

    Both are known arrays; their difference is rounded once.
    """
    z = forms.linear(op, a.z, weight, length=length)
    change = weight_hat - weight
    error = Form(change, jnp.zeros((0, *change.shape)), forms.U * jnp.abs(change))
    dz = forms.bilinear(op, a.z, error, length=length)
    if a.dz is not None:
        dz = forms.add(dz, forms.linear(op, a.dz, weight_hat, length=length))
    return Pair(z, dz)


def function(f: functions.Scalar, a: Pair) -> Pair:
    """Return f(a)."""
    z = functions.apply(f, a.z)
    if a.dz is None:
        return Pair(z)
    return Pair(z, _product(functions.mean_slope(f, a.z, a.dz), a.dz))


def relu(a: Pair) -> Pair:
    """Return max(a, 0)."""
    z = functions.relu(a.z)
    if a.dz is None:
        return Pair(z)
    return Pair(z, _product(functions.relu_slope(a.z, a.dz), a.dz))


def _product(a: Form, b: Form) -> Form:
    return forms.bilinear(jnp.multiply, a, b, length=1)


def reciprocal(a: Pair) -> Pair:
    """Return 1 / a, unknown where a may be zero."""
    sign = jnp.where(a.z.mid < 0, -jnp.ones(()), jnp.ones(()))
    flip = lambda form: forms.scale(form, sign)  # noqa: E731
    return each(flip, function(functions.SCALARS["reciprocal"], each(flip, a)))


def largest(a: Pair, axes: tuple[int, ...]) -> Pair:
    """Return the maximum over axes: the element of largest mid, plus how far others exceed it.

    Correlations stay, so that x - max(x) in a softmax keeps the symbols of x.
    """
    kept = [i for i in range(len(a.shape)) if i not in axes]

    def rows(v):
        return v.transpose(*kept, *axes).reshape(*(v.shape[i] for i in kept), -1)

    a = each(lambda f: forms.move(rows, f), a)
    index = jnp.argmax(a.z.mid, -1)[..., None]
    pick = lambda v: jnp.take_along_axis(v, index, -1)  # noqa: E731
    best = each(lambda f: forms.move(pick, f), a)

    def excess(value: Form, top: Form):
        """max_i x_i - x_best in [0, most]."""
        wide = forms.move(lambda v: jnp.broadcast_to(v, a.shape), top)
        most = jnp.maximum(forms.bounds(forms.subtract(value, wide))[1].max(-1), 0.0)
        return most

    over = excess(a.z, best.z)
    best = each(lambda f: forms.move(lambda v: v[..., 0], f), best)
    z = forms.add(best.z, forms.between(jnp.zeros_like(over), over))
    if a.dz is None:
        return Pair(z)
    over_hat = excess(a.quantized, forms.move(pick, a.quantized))
    # The excesses of both runs, each within its bound.
    return Pair(z, forms.add(best.difference, forms.between(-over, over_hat)))


def rounding_error(a: Pair, step, low, high, *, is_random: bool) -> Form:
    """Return what rounding the quantized run to a grid adds to it, as intervals.

    Args:
      a: the operand [*shape].
      step: distance of the grid's points, broadcasts to [*shape].
      low, high: its ends, in the same units.
      is_random: stochastic rounding, |e| <= step; else nearest, |e| <= step / 2.
    """
    least, most = forms.bounds(a.quantized)
    within = jnp.broadcast_to(jnp.abs(step) * (1.0 if is_random else 0.5), a.shape)
    slack = functions.ACCURACY * (jnp.abs(low) + jnp.abs(high) + jnp.abs(least) + jnp.abs(most))
    return forms.between(
        -jnp.maximum(within, most - high + slack), jnp.maximum(within, low - least + slack)
    )


def choose(predicate: tuple[jax.Array, jax.Array], no: Pair, yes: Pair) -> Pair:
    """Return `yes` where a predicate holds, `no` where it does not, both where it is undecided.

    Args:
      predicate: (may hold, may fail), the same for both runs unless undecided.
      no, yes: the two branches.
    """
    may, may_not = predicate
    picked = each(lambda a, b: forms.move(lambda x, y: jnp.where(may, y, x), a, b), no, yes)
    unsure = may & may_not
    both_z = forms.hull(no.z, yes.z)
    z = forms.move(lambda x, y: jnp.where(unsure, y, x), picked.z, both_z)
    jump = forms.magnitude(forms.subtract(no.z, yes.z))
    both_dz = forms.widen(forms.hull(no.difference, yes.difference), jump)
    dz = forms.move(lambda x, y: jnp.where(unsure, y, x), picked.difference, both_dz)
    return Pair(z, dz)

"""What each JAX primitive does to pairs: RULES[name](eqn, values) -> the values of its results.

A value is a known array (integers, booleans, and floats that are exact) or a pair; where both are
known, primitives that compute exactly give known arrays. Comparisons of pairs give a `Truth`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax import _compat
from qdiffjax.analysis.certificates import forms, functions, pairs
from qdiffjax.analysis.certificates.pairs import Pair


class Truth(NamedTuple):
    """A comparison of sets, of both runs together: whether it may hold, and whether it may fail."""

    may: jax.Array
    may_not: jax.Array


def run(eqn, values) -> list:
    """Evaluate an equation on known arrays, in float64."""
    params = dict(eqn.params)
    if params.get("preferred_element_type") is not None and is_real(eqn.outvars[0].aval):
        params["preferred_element_type"] = jnp.dtype(jnp.float64)
    outs = _compat.bind(eqn.replace(params=params), list(values))
    return [wide(out) for out in outs]


def wide(value):
    """Return a float array as float64, exactly; others as they are."""
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    return value.astype(jnp.float64) if is_array and is_real(value) else value


def is_real(value) -> bool:
    """Say whether an array or abstract value holds reals."""
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def copies(eqn, values):
    """Primitives that only copy elements, chosen by known integers."""
    at = [i for i, v in enumerate(values) if isinstance(v, Pair) or is_real(v)]
    if any(isinstance(v, Truth) for v in values):
        return [Truth(*(run(eqn, [part])[0] for part in values[0]))]

    def result(number):
        def fn(*moved):
            whole = list(values)
            for i, v in zip(at, moved, strict=True):
                whole[i] = v
            return run(eqn, whole)[number]

        return fn

    operands = [pairs.as_pair(values[i]) for i in at]
    return [
        pairs.each(lambda *f, n=n: forms.move(result(n), *f), *operands)
        for n in range(len(eqn.outvars))
    ]


def identity(eqn, values):
    """Primitives that change nothing in real arithmetic, such as casts between floats."""
    return list(values)


def convert(eqn, values):
    """Casts: to reals exact (from integers below 2^53); of unknown reals to integers none."""
    if is_real(eqn.outvars[0].aval) and not isinstance(values[0], Truth):
        return [values[0]]
    raise NotImplementedError(
        f"no enclosure of a cast to {eqn.params['new_dtype']}: got numbers that are not known "
        "exactly, expected to round only at sites; leave rounding to the recipe"
    )


def add(eqn, values):
    """Return a + b."""
    return [pairs.each(forms.add, *map(pairs.as_pair, values))]


def subtract(eqn, values):
    """Return a - b."""
    return [pairs.each(forms.subtract, *map(pairs.as_pair, values))]


def negate(eqn, values):
    """Return -a."""
    return [pairs.each(forms.negate, values[0])]


def multiply(eqn, values):
    """Return a b; of one value with itself, the square."""
    if eqn.invars[0] is eqn.invars[1]:
        return [pairs.function(functions.SCALARS["square"], pairs.as_pair(values[0]))]
    return [pairs.multiply(jnp.multiply, *values, length=1)]


def divide(eqn, values):
    """Return a / b."""
    return [pairs.multiply(jnp.multiply, values[0], pairs.reciprocal(pairs.as_pair(values[1])),
                           length=1)]  # fmt: skip


def product(eqn, values):
    """Matrix products and convolutions."""
    return [pairs.multiply(product_op(eqn), *values, length=product_length(eqn))]


def product_op(eqn) -> Callable:
    """Return the bilinear op(a, b) of a product's equation."""
    return lambda a, b: run(eqn, [a, b])[0]


def product_length(eqn) -> int:
    """How many products are summed in an element of the result, at most."""
    contract = eqn.params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    if eqn.primitive.name == "dot_general":
        return math.prod(left[a] for a in contract[0][0])
    return math.prod(right[a] for a in range(len(right)) if a != contract.rhs_spec[0])


def sums(eqn, values):
    """Sums of elements of one operand."""
    size = math.prod(eqn.invars[0].aval.shape)
    return [pairs.each(lambda f: forms.sums(lambda v: run(eqn, [v])[0], f, length=size),
                       pairs.as_pair(values[0]))]  # fmt: skip


def scalar(name: str):
    """Rule of a scalar function of one argument."""
    return lambda eqn, values: [pairs.function(functions.SCALARS[name], pairs.as_pair(values[0]))]


def integer_power(eqn, values):
    """x^n for an integer n."""
    n, x = eqn.params["y"], pairs.as_pair(values[0])
    if n == 0:
        return [pairs.as_pair(jnp.ones(x.shape))]
    y = x if abs(n) == 1 else pairs.function(functions.power(abs(n)), x)
    return [y if n > 0 else pairs.reciprocal(y)]


def maximum(eqn, values):
    """max(a, b) = a + max(b - a, 0); -inf is the neutral element."""
    for i in (0, 1):
        if _is_infinite(values[i], -np.inf):
            return [values[1 - i]]
    a, b = (pairs.as_pair(v) for v in values)
    if not isinstance(values[1], Pair) and _is_infinite(values[1], 0.0):
        return [pairs.relu(a)]
    over = pairs.relu(pairs.each(forms.subtract, b, a))
    return [pairs.each(forms.add, a, over)]


def minimum(eqn, values):
    """min(a, b) = -max(-a, -b)."""
    for i in (0, 1):
        if _is_infinite(values[i], np.inf):
            return [values[1 - i]]
    minus = [pairs.each(forms.negate, pairs.as_pair(v)) for v in values]
    return [pairs.each(forms.negate, maximum(eqn, minus)[0])]


def _is_infinite(value, which) -> bool:
    return isinstance(value, np.ndarray | np.generic) and bool(np.all(value == which))


def clamp(eqn, values):
    """Return min(max(x, low), high)."""
    low, x, high = values
    return minimum(eqn, [maximum(eqn, [x, low])[0], high])


def absolute(eqn, values):
    """|a| = max(a, -a)."""
    a = values[0]
    return maximum(eqn, [a, pairs.each(forms.negate, a)])


def largest(eqn, values):
    """Maximum over axes."""
    return [pairs.largest(pairs.as_pair(values[0]), tuple(eqn.params["axes"]))]


def smallest(eqn, values):
    """Minimum over axes."""
    a = pairs.each(forms.negate, pairs.as_pair(values[0]))
    return [pairs.each(forms.negate, pairs.largest(a, tuple(eqn.params["axes"])))]


def compare(eqn, values):
    """A < b and its kin, of both runs; negated, so that the unknown (NaN) may be either."""
    a, b = (pairs.as_pair(v) for v in values)
    if eqn.primitive.name in ("gt", "ge"):
        a, b = b, a
    gap = pairs.each(forms.subtract, a, b)
    low, high = functions.joint_bounds(gap.z, gap.difference)
    if eqn.primitive.name in ("lt", "gt"):
        return [Truth(~(low >= 0), ~(high < 0))]
    return [Truth(~(low > 0), ~(high <= 0))]


def choose(eqn, values):
    """select_n by a known predicate, or by a comparison of two branches."""
    if not isinstance(values[0], Truth):
        return copies(eqn, values)
    return [pairs.choose((values[0].may, values[0].may_not), *map(pairs.as_pair, values[1:]))]


Rule = Callable[[Any, list], list]

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "rev",
         "concatenate", "split", "pad", "gather", "dynamic_slice", "dynamic_update_slice"),
        copies,
    ),
    **dict.fromkeys(
        ("copy", "copy_p", "name", "stop_gradient", "optimization_barrier", "reduce_precision",
         "sharding_constraint"), identity,
    ),
    **dict.fromkeys(("reduce_sum", "cumsum", "reduce_window_sum"), sums),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), product),
    **dict.fromkeys(("lt", "gt", "le", "ge"), compare),
    **{name: scalar(name) for name in functions.SCALARS if name != "reciprocal"},
    "convert_element_type": convert, "add": add, "add_any": add, "sub": subtract, "neg": negate,
    "mul": multiply, "div": divide, "integer_pow": integer_power, "max": maximum,
    "min": minimum, "clamp": clamp, "abs": absolute, "reduce_max": largest,
    "reduce_min": smallest, "select_n": choose,
}  # fmt: skip

# Operations of first order only: their results' rad is worth symbols of its own.
NONLINEAR = {*functions.SCALARS, "mul", "div", "integer_pow", "max", "min", "clamp", "abs",
             "dot_general", "conv_general_dilated", "reduce_max", "reduce_min"}  # fmt: skip

# On known arrays these give exact results, which stay known.
EXACT = {name for name, rule in RULES.items() if rule in (copies, identity)} | {
    "iota", "neg", "max", "min", "abs", "select_n", "reduce_max", "reduce_min", "sign", "floor",
    "ceil", "round", "clamp", "convert_element_type", "eq", "ne", "lt", "gt", "le", "ge",
    "is_finite", "sort", "argmax", "argmin",
}  # fmt: skip


def apply(eqn, values) -> list:
    """Return the results of an equation that is no site and holds no jaxpr.

    Raises:
      NotImplementedError: there is no enclosure of this primitive.
    """
    name = eqn.primitive.name
    known = not any(isinstance(v, Pair | Truth) for v in values)
    if known and (name in EXACT or not any(is_real(v.aval) for v in (*eqn.invars, *eqn.outvars))):
        return run(eqn, values)
    if name not in RULES:
        raise NotImplementedError(
            f"no enclosure of the primitive {name!r}, which the network applies to "
            f"{[str(v.aval) for v in eqn.invars]}; expected one of {', '.join(sorted(RULES))}. "
            "Write that part of the network with these, or add a rule to "
            "qdiffjax.analysis.certificates.primitives.RULES."
        )
    return RULES[name](eqn, values)

"""Values that are stored between kernels and belong to no product, as sites on request.

residual   the result of an addition of two branches
skip       the operands of a concatenation of branches, such as a UNet's
softmax    the result of a softmax
norm       the result of a normalization, with the gains and shifts that follow it
named      what the network's author calls by `jax.ad_checkpoint.checkpoint_name(x, name)`

They are what fused kernels write to memory: the sum and not its terms, the probabilities and not
their logits, the normalized and modulated value and not its statistics; but of a concatenation,
which copies, the parts, each of which has its own grid. Two values are of two branches if both
depend on x and the last products before them differ: GELU adds too, but what one product made.
How they are recognised is said in `sites.structure`; what is not can be named.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qdiffjax import _compat
from qdiffjax._checks import check_names, require
from qdiffjax.sites.structure import RULES, Value, last

KINDS = ("residual", "skip", "softmax", "norm", "named")
REQUEST = "values:"  # prefix of the names between which values are looked for; bare, it ends that


def with_values(fn, *kinds: str):
    """Return fn(params, x, ...) whose values of these kinds are sites too: the same numbers.

    Args:
      fn: of any framework, with one array for its result.
      kinds: some of "residual", "skip", "softmax", "norm", "named"; none for all of them.

    Raises:
      ValueError: a word that is none of them.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> from qdiffjax import sites
      >>> eps_fn = lambda params, x, t: x + jax.nn.softmax(x @ params["in"])
      >>> fn = sites.with_values(eps_fn, "residual", "softmax")
      >>> [s.name for s in qd.list_sites(fn, {"in": jnp.eye(2)}, jnp.ones((1, 2)), 0.0)]
      ['input', 'in', 'softmax_0', 'residual_0', 'output']
    """
    word = REQUEST + ",".join(checked_kinds(kinds))

    def marked(params, x, *rest, **options):
        return checkpoint_name(fn(params, checkpoint_name(x, word), *rest, **options), REQUEST)

    return marked


def checked_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds in their order, all of them for none.

    Raises:
      TypeError: one text in place of several.
      ValueError: a word that is no kind.
    """
    require(not isinstance(kinds, str), "values", got=repr(kinds), expected="a tuple of words",
            remedy=f"({kinds!r},)", error=TypeError)  # fmt: skip
    kinds = tuple(kinds) or KINDS
    check_names("values", kinds, KINDS)
    return tuple(kind for kind in KINDS if kind in kinds)


def requested(eqn) -> tuple[str, ...] | None:
    """Return the kinds that are looked for from an equation on; None where it says nothing."""
    if eqn.primitive.name != "name" or not eqn.params["name"].startswith(REQUEST):
        return None
    return tuple(filter(None, eqn.params["name"].removeprefix(REQUEST).split(",")))


def find_values(jaxpr, is_data: Sequence[bool], calls: dict[str, str], products) -> list:
    """Return what each equation makes: None, a kind, or such a list of the jaxpr that it calls.

    Args:
      jaxpr: one that holds a request, see `with_values`.
      is_data: whether each of its constants and inputs depends on the network's inputs.
      calls: for primitives that are walked into, the parameter that holds their jaxpr.
      products: names of the primitives that multiply and add.
    """
    walk = _Walk(calls, frozenset(products))
    inputs = [
        _source(v.aval, data)
        for v, data in zip([*jaxpr.constvars, *jaxpr.invars], is_data, strict=True)
    ]
    entries, results = walk.jaxpr(jaxpr, inputs)
    _unseen(results)
    for kind, value in walk.found:
        stored = last(value, kind)
        if stored is not None and stored.entries is not None:
            stored.entries[stored.index] = kind
    return entries


def _source(value, is_data: bool, on_x: bool = False) -> Value:
    """Return an input, of which nothing more is known than its shape."""
    made = Value("", (), tuple(getattr(value, "shape", ())), is_data=is_data, on_x=on_x)
    made.near = frozenset({made}) if is_data else frozenset()
    return made


def _unseen(values: Iterable[Value]) -> None:
    for value in values:
        value.readers.append(None)


class _Walk:
    """One pass over a jaxpr and those that it calls, in the order of evaluation.

    kinds: those looked for at the moment; found: (kind, value) of what was.
    """

    def __init__(self, calls: dict[str, str], products: frozenset[str]):
        self.calls, self.products = calls, products
        self.kinds: tuple[str, ...] = ()
        self.found: list[tuple[str, Value]] = []

    def jaxpr(self, jaxpr, inputs: list[Value]) -> tuple[list, list[Value]]:
        """Return the entries of a jaxpr's equations, and its results."""
        env: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

        def read(atom):
            return _source(atom.aval, False) if isinstance(atom, _compat.Literal) else env[atom]

        entries: list = [None] * len(jaxpr.eqns)
        for index, eqn in enumerate(jaxpr.eqns):
            operands = [read(v) for v in eqn.invars]
            if eqn.primitive.name in self.calls:
                entries[index], outs = self.call(eqn, operands)
            else:
                outs = self.equation(eqn, operands, entries, index)
            env.update(zip(eqn.outvars, outs, strict=True))
        return entries, [read(v) for v in jaxpr.outvars]

    def call(self, eqn, operands: list[Value]) -> tuple[list, list[Value]]:
        """Return the same of a jaxpr that an equation calls, as if it stood in its place."""
        inner, consts = _compat.open_jaxpr(eqn.params[self.calls[eqn.primitive.name]])
        own = [_source(c, False) for c in consts]
        if eqn.primitive.name != "scan":
            return self.jaxpr(inner, [*own, *operands])
        # What goes around a loop is an input of its body, and its results are the loop's.
        num_consts, num_carry = _compat.scan_counts(eqn.params)
        moving = operands[num_consts:]
        any_data, any_x = (any(getattr(v, what) for v in moving) for what in ("is_data", "on_x"))
        shapes = inner.invars[-len(moving) :] if moving else []
        fresh = [
            _source(var.aval, any_data, any_x) if i < num_carry
            else _source(var.aval, v.is_data, v.on_x)
            for i, (var, v) in enumerate(zip(shapes, moving, strict=True))
        ]  # fmt: skip
        entries, results = self.jaxpr(inner, [*own, *operands[:num_consts], *fresh])
        _unseen([*operands, *results])
        return entries, [
            _source(var.aval, v.is_data, v.on_x)
            for var, v in zip(eqn.outvars, results, strict=True)
        ]

    def equation(self, eqn, operands: list[Value], entries: list, index: int) -> list[Value]:
        """Return the results of an equation, each read by it; notes of which kind it is."""
        name, asked = eqn.primitive.name, requested(eqn)
        on_x = bool(asked) or any(v.on_x for v in operands)
        is_data = any(v.is_data for v in operands)
        near = frozenset().union(*(v.near for v in operands))
        makes_branch = is_data and (name in self.products or bool(_compat.sub_jaxprs(eqn)))
        outs = []
        for var in eqn.outvars:
            is_real = bool(jnp.issubdtype(getattr(var.aval, "dtype", bool), jnp.floating))
            value = Value(name, tuple(operands), tuple(getattr(var.aval, "shape", ())), is_real,
                          is_data, on_x, near, eqn.params.get("y"))  # fmt: skip
            value.entries, value.index = entries, index
            value.near = frozenset({value}) if makes_branch else near
            outs.append(value)
        for v in operands:
            v.readers.append(outs[0] if len(outs) == 1 else None)
        if asked is not None:
            self.kinds = asked
        elif len(outs) == 1 and is_data and outs[0].is_real:
            kind = next((k for k in self.kinds if _is_kind(k, eqn, outs[0])), None)
            self.found += [] if kind is None else [(kind, outs[0])]
        return outs


def _is_kind(kind: str, eqn, value: Value) -> bool:
    if kind == "named":
        return eqn.primitive.name == "name" and ":" not in eqn.params["name"]
    return RULES[kind](value)

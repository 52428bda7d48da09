"""Which equations of a jaxpr are sites, and which jaxprs to walk into.

A plan is made once, before anything is evaluated: names never depend on how often JAX traces a
loop body. It mirrors the jaxpr: one entry per equation, None where the equation runs unchanged.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from qdiffjax import _compat
from qdiffjax.sites.naming import Names
from qdiffjax.sites.products import Conv, contract_axes, macs_of, product_of
from qdiffjax.sites.provenance import (
    Label,
    Leaf,
    computed,
    is_product_of_data,
    join,
    size,
    weight_of,
)
from qdiffjax.sites.records import Site
from qdiffjax.sites.values import find_values, requested

MARK = "site:"  # prefix of the names that `sites.site` gives to its identities
EDGE = "edge:"  # the same for `sites.edge`
PRODUCTS = {"dot_general": "dot", "conv_general_dilated": "conv"}
# Equations whose body is walked into, and the parameter that holds it.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "scan": "jaxpr",
}
HIDDEN_PRODUCTS = {*PRODUCTS, "ragged_dot", "ragged_dot_general", "scaled_dot", "pallas_call"}


class Plan(NamedTuple):
    """One entry per equation: None, a Site, or the Plan of the jaxpr it calls."""

    entries: tuple

    def sites(self) -> list[Site]:
        """All sites, in the order of evaluation, loops not yet expanded."""
        listed: list[Site] = []
        for entry in self.entries:
            if isinstance(entry, Site):
                listed.append(entry)
            elif entry is not None:
                listed.extend(entry.sites())
        return listed


class Place(NamedTuple):
    """Where equations are: lengths of the scans around them; the line of a call of JAX's own; what
    values they make, see `find_values`, None where nobody asks.
    """

    loops: tuple[int, ...] = ()
    line: str | None = None
    values: list | None = None

    def line_of(self, eqn) -> str | None:
        """Return the line of the network's source that makes an equation, as file.py:12."""
        return self.line or _compat.source_line(eqn)


def make_plan(
    jaxpr, labels: Sequence[Label], names: Names, place: Place
) -> tuple[Plan, list[Label]]:
    """Plan a jaxpr whose constants and inputs carry `labels`; also returns its outputs' labels."""
    env: dict[Any, Label] = {}

    def read(atom):
        is_literal = isinstance(atom, _compat.Literal)
        return Label(constant=size(atom.aval)) if is_literal else env[atom]

    env.update(zip([*jaxpr.constvars, *jaxpr.invars], labels, strict=True))
    entries, values = [], place.values
    if values is None and any(map(requested, jaxpr.eqns)):
        values = find_values(jaxpr, [label.is_data for label in labels], CALLS, PRODUCTS)
    for eqn, value in zip(jaxpr.eqns, values or [None] * len(jaxpr.eqns), strict=True):
        here = place._replace(values=value if isinstance(value, list) else None)
        entry, outs = (
            _plan_value(value, eqn, [read(v) for v in eqn.invars], names, here)
            if isinstance(value, str)
            else _plan_eqn(eqn, [read(v) for v in eqn.invars], names, here)
        )
        entries.append(entry)
        env.update(zip(eqn.outvars, outs, strict=True))
    return Plan(tuple(entries)), [read(v) for v in jaxpr.outvars]


def _plan_eqn(eqn, labels, names: Names, place: Place):
    name, is_data = eqn.primitive.name, any(label.is_data for label in labels)
    outs = computed(eqn, labels)
    is_product = name in PRODUCTS and is_product_of_data(labels)
    if is_product or (is_data and _is_mark(eqn)):
        site_fn = _product_site if is_product else _marked_site
        site = site_fn(eqn, labels, names, place)
        return site, [Label(sites=frozenset({site.name}), is_data=True)]
    if name in CALLS and (is_data or any(label.leaves for label in labels)):
        plan_fn = _plan_scan if name == "scan" else _plan_call
        plan, inner = plan_fn(eqn, labels, names, place)
        if plan.sites():
            return plan, inner
        outs = inner
    elif is_data and (hidden := _hidden(eqn)):
        line = place.line_of(eqn)
        where = f" at {line}" if line else ""
        names.opaque.append(f"{name} hides {', '.join(sorted(hidden))}{where}")
    if is_data:
        names.use(None, labels)  # run whole, it takes all its operands
    return None, outs


def _plan_value(kind: str, eqn, labels, names: Names, place: Place):
    """Plan a value that is a site on request; sites after it are called as without it."""
    leaves = frozenset().union(*(label.leaves for label in labels))
    upstream = frozenset().union(*(label.sites for label in labels))
    if kind == "named":
        name = names.of_weight(eqn.params["name"])
    else:
        name = names.of_value(kind, [leaf.path for leaf in leaves] or upstream)
    names.use(None, labels)
    site = identity_site(name, kind, eqn.outvars[0].aval, place.loops)
    if kind == "skip":
        shapes = tuple(tuple(v.aval.shape) for v in eqn.invars)
        site = dataclasses.replace(site, shapes=shapes, contract_axes=((),) * len(shapes))
    return site, computed(eqn, labels)


def _is_mark(eqn) -> bool:
    return eqn.primitive.name == "name" and eqn.params["name"].startswith((MARK, EDGE))


def _marked_site(eqn, labels, names: Names, place: Place) -> Site:
    aval, word = eqn.invars[0].aval, eqn.params["name"]
    if word.startswith(EDGE):
        kind = word.removeprefix(EDGE)
        return identity_site(names.of_edge(kind), kind, aval, place.loops)
    return identity_site(names.of_weight(word.removeprefix(MARK)), "mark", aval, place.loops)


def identity_site(name: str, kind: str, value, loops=()) -> Site:
    """Site where nothing is multiplied: an edge of the network, or a mark."""
    shape = tuple(value.shape)
    return Site(name, kind, None, None, (shape,), shape, ((),), loops=loops, dtype=str(value.dtype))


def _plan_call(eqn, labels, names: Names, place: Place):
    body = eqn.params[CALLS[eqn.primitive.name]]
    inner, consts = _compat.open_jaxpr(body)
    if _compat.is_of_jax(body):  # its own lines may be those of another caller
        place = place._replace(line=place.line_of(eqn))
    return make_plan(inner, [*_constants(consts), *labels], names, place)


def _constants(consts) -> list[Label]:
    return [Label(constant=size(c)) for c in consts]


def _plan_scan(eqn, labels, names: Names, place: Place):
    inner, consts = _compat.open_jaxpr(eqn.params["jaxpr"])
    num_consts, num_carry = _compat.scan_counts(eqn.params)
    place = place._replace(loops=(*place.loops, eqn.params["length"]))
    carry = slice(num_consts, num_consts + num_carry)
    labels = list(labels)
    # The carry's label is a fixed point: what comes out of an iteration goes into the next.
    while True:
        trial = names.copy()
        plan, outs = make_plan(inner, [*_constants(consts), *labels], trial, place)
        joined = [join([a, b]) for a, b in zip(labels[carry], outs[:num_carry], strict=True)]
        if joined == labels[carry]:
            break
        labels[carry] = joined
    names.accept(trial)
    return plan, outs


def _product_site(eqn, labels, names: Names, place: Place) -> Site:
    shapes = tuple(tuple(v.aval.shape) for v in eqn.invars)
    aval = eqn.outvars[0].aval
    weight = weight_of(labels)
    is_constant = weight is not None and labels[weight].is_constant
    path, leaf = None, Leaf("", 0)
    if weight is None:
        name = names.of_product(frozenset().union(*(label.sites for label in labels)))
    elif is_constant:
        line = place.line_of(eqn)
        name = path = names.of_weight(f"const@{line}" if line else "const")
    else:
        leaf = labels[weight].leaf
        name, path = names.of_weight(leaf.path), leaf.path
    for i, label in enumerate(labels):
        names.use(name if i == weight else None, [label])
    product = product_of(eqn)
    contract = contract_axes(product, shapes)
    parameters = 0 if weight is None else math.prod(shapes[weight])
    return Site(
        name, PRODUCTS[eqn.primitive.name], weight, path, shapes, tuple(aval.shape), contract,
        macs_of(product, shapes, aval.shape), parameters, place.loops, product, is_constant,
        str(aval.dtype), leaf.size, leaf.part, _summed_pieces(product, labels, weight),
    )  # fmt: skip


def _summed_pieces(product, labels, weight: int | None) -> tuple[int, ...]:
    """Return the lengths of the pieces that an activation is made of, along summed channels."""
    pieces = None if weight is None else labels[1 - weight].pieces
    if pieces is None:
        return ()
    axis, lengths = pieces
    if isinstance(product, Conv):
        is_whole = product.feature_groups == product.batch_groups == 1
        return lengths if is_whole and weight == 1 and axis == product.lhs[1] else ()
    assert weight is not None
    return lengths if product.contract[1 - weight] == (axis,) else ()


def _hidden(eqn) -> set[str]:
    """Names of the products and marked sites that an equation is or contains, but hides."""
    hidden = {eqn.primitive.name} & (HIDDEN_PRODUCTS - set(PRODUCTS))
    inner = [s for jaxpr in _compat.sub_jaxprs(eqn) for s in _compat.open_jaxpr(jaxpr)[0].eqns]
    for sub in inner:
        hidden |= {sub.primitive.name} & HIDDEN_PRODUCTS | _hidden(sub)
        hidden |= {"a marked site"} if _is_mark(sub) else set()
    return hidden

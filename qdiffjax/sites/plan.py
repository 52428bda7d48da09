"""Which equations of a jaxpr are sites, what they are called, and which jaxprs to walk into.

A plan is made once, before anything is evaluated: names never depend on how often JAX traces a
loop body. It mirrors the jaxpr: one entry per equation, None where the equation runs unchanged.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from qdiffjax import _compat
from qdiffjax.sites.products import Conv, Dot, contract_axes, product_of

MARK = "site:"  # prefix of the names that `sites.site` gives to its identities
EDGE = "edge:"  # the same for `sites.edge`
EDGES = ("input", "output")
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


@dataclasses.dataclass(frozen=True)
class Site:
    """One operation of a network that can be given its own precision.

    Attributes:
      name: path of its weight, or common path of the sites upstream plus `dot_0`, `dot_1`, ...;
        `[i]` is the iteration of a scan over layers, `#2` the second use of one weight.
      kind: "dot", "conv", "input", "output" or "mark".
      weight: which operand is the weight, 0 or 1; None if all operands are activations.
      weight_path: path of the parameter the weight comes from; tied sites share it.
      shapes: of the operands.
      out_shape: of the result.
      contract_axes: for each operand, its axes that are summed over.
      macs: multiply-accumulates of one call at the shapes it was listed with.
      parameters: number of elements of the weight operand.
      loops: lengths of the scans around it, outermost first.
      product: which axes multiply and how, or None if it is no product.
    """

    name: str
    kind: str
    weight: int | None
    weight_path: str | None
    shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    contract_axes: tuple[tuple[int, ...], ...]
    macs: int = 0
    parameters: int = 0
    loops: tuple[int, ...] = ()
    product: Dot | Conv | None = None

    @property
    def activations(self) -> tuple[int, ...]:
        """Indices of the operands that are activations."""
        return tuple(i for i in range(len(self.shapes)) if i != self.weight)


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


class Label(NamedTuple):
    """Where a value comes from.

    leaves: parameters it is made of, as (path, size); sites: the nearest sites upstream;
    is_data: whether it depends on the network's inputs.
    """

    leaves: frozenset = frozenset()
    sites: frozenset = frozenset()
    is_data: bool = False


def join(labels: Sequence[Label]) -> Label:
    """Label of a value computed from values with these labels."""
    is_data = any(label.is_data for label in labels)
    leaves = frozenset().union(*(label.leaves for label in labels))
    sites = frozenset().union(*(label.sites for label in labels))
    # Parameters mixed into data (a bias, a gain) do not make it a weight.
    return Label(frozenset() if is_data else leaves, sites, is_data)


class Names:
    """Gives every site its name; copied while a loop body is tried out.

    opaque: what hides products; uses: who reads parameters, as (site or None, paths).
    """

    def __init__(self, counts: dict[str, int] | None = None):
        # The two edges of the network own their names, whatever its parameters are called.
        self.counts = dict({"input": 1, "output": 1} if counts is None else counts)
        self.opaque: list[str] = []
        self.uses: list[tuple[str | None, frozenset[str]]] = []

    def copy(self) -> "Names":
        """Return an independent copy."""
        return Names(self.counts)

    def use(self, reader: str | None, labels: Sequence[Label]) -> None:
        """Note that a site, or None for anything else, reads what carries these labels."""
        paths = frozenset(path for label in labels for path, _ in label.leaves)
        if paths:
            self.uses.append((reader, paths))

    def of_weight(self, path: str) -> str:
        """Name of the next use of a weight."""
        self.counts[path] = self.counts.get(path, 0) + 1
        return path if self.counts[path] == 1 else f"{path}#{self.counts[path]}"

    def of_edge(self, edge: str) -> str:
        """Name of the next place where the network itself begins or ends: input, input#2, ..."""
        count = self.counts[EDGE + edge] = self.counts.get(EDGE + edge, 0) + 1
        return edge if count == 1 else f"{edge}#{count}"

    def of_product(self, upstream: frozenset) -> str:
        """Name of the next product of activations under the sites upstream of it."""
        folder = common_folder(upstream)
        count = self.counts.get(folder + "/dot", 0)
        self.counts[folder + "/dot"] = count + 1
        return self.of_weight(f"{folder}/dot_{count}" if folder else f"dot_{count}")


def common_folder(names) -> str:
    """Longest path of folders that all `names` share."""
    folders = [name.split("/")[:-1] for name in names]
    if not folders:
        return ""
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def make_plan(jaxpr, labels: Sequence[Label], names: Names, loops=()) -> tuple[Plan, list[Label]]:
    """Plan a jaxpr whose constants and inputs carry `labels`; also returns its outputs' labels."""
    env: dict[Any, Label] = {}

    def read(atom):
        return Label() if isinstance(atom, _compat.Literal) else env[atom]

    env.update(zip([*jaxpr.constvars, *jaxpr.invars], labels, strict=True))
    entries = []
    for eqn in jaxpr.eqns:
        entry, outs = _plan_eqn(eqn, [read(v) for v in eqn.invars], names, loops)
        entries.append(entry)
        env.update(zip(eqn.outvars, outs, strict=True))
    return Plan(tuple(entries)), [read(v) for v in jaxpr.outvars]


def _plan_eqn(eqn, labels, names: Names, loops):
    name, joined = eqn.primitive.name, join(labels)
    outs = [joined] * len(eqn.outvars)
    if not joined.is_data:
        return None, outs
    if name in PRODUCTS or _is_mark(eqn):
        site_fn = _product_site if name in PRODUCTS else _marked_site
        site = site_fn(eqn, labels, names, loops)
        return site, [Label(sites=frozenset({site.name}), is_data=True)]
    if name in CALLS:
        plan_fn = _plan_scan if name == "scan" else _plan_call
        plan, outs = plan_fn(eqn, labels, names, loops)
        if plan.sites():
            return plan, outs
    elif hidden := _hidden(eqn):
        names.opaque.append(f"{name} hides {', '.join(sorted(hidden))}")
    names.use(None, labels)  # run whole, it takes all its operands
    return None, outs


def _is_mark(eqn) -> bool:
    return eqn.primitive.name == "name" and eqn.params["name"].startswith((MARK, EDGE))


def _marked_site(eqn, labels, names: Names, loops) -> Site:
    shape, word = tuple(eqn.invars[0].aval.shape), eqn.params["name"]
    if word.startswith(EDGE):
        kind = word.removeprefix(EDGE)
        return edge_site(names.of_edge(kind), kind, shape, loops)
    name = names.of_weight(word.removeprefix(MARK))
    return Site(name, "mark", None, None, (shape,), shape, ((),), loops=loops)


def edge_site(name: str, kind: str, shape: tuple[int, ...], loops=()) -> Site:
    """Site at an edge of the network, where x_t enters or its prediction leaves."""
    return Site(name, kind, None, None, (shape,), shape, ((),), loops=loops)


def _plan_call(eqn, labels, names: Names, loops):
    inner, consts = _compat.open_jaxpr(eqn.params[CALLS[eqn.primitive.name]])
    return make_plan(inner, [Label()] * len(consts) + labels, names, loops)


def _plan_scan(eqn, labels, names: Names, loops):
    inner, consts = _compat.open_jaxpr(eqn.params["jaxpr"])
    num_consts, num_carry = _compat.scan_counts(eqn.params)
    loops = (*loops, eqn.params["length"])
    prefix = [Label()] * len(consts)
    carry = slice(num_consts, num_consts + num_carry)
    labels = list(labels)
    # The carry's label is a fixed point: what comes out of an iteration goes into the next.
    while True:
        trial = names.copy()
        plan, outs = make_plan(inner, [*prefix, *labels], trial, loops)
        joined = [join([a, b]) for a, b in zip(labels[carry], outs[:num_carry], strict=True)]
        if joined == labels[carry]:
            break
        labels[carry] = joined
    names.counts, names.opaque = trial.counts, names.opaque + trial.opaque
    names.uses = names.uses + trial.uses
    return plan, outs


def _product_site(eqn, labels, names: Names, loops) -> Site:
    shapes = tuple(tuple(v.aval.shape) for v in eqn.invars)
    out_shape = tuple(eqn.outvars[0].aval.shape)
    weight = next((i for i in (1, 0) if not labels[i].is_data), None)
    path = None
    if weight is None:
        name = names.of_product(frozenset().union(*(label.sites for label in labels)))
    else:
        leaves = labels[weight].leaves
        # Largest leaf first; equal sizes by name, so that the choice is stable.
        path = min(leaves, key=lambda leaf: (-leaf[1], leaf[0]))[0] if leaves else "const"
        name = names.of_weight(path)
    for i, label in enumerate(labels):
        names.use(name if i == weight else None, [label])
    product = product_of(eqn)
    contract = contract_axes(product, shapes)
    side = int(isinstance(product, Conv))  # groups of channels see their own only: count by kernel
    summed = math.prod(shapes[side][a] for a in contract[side])
    parameters = 0 if weight is None else math.prod(shapes[weight])
    return Site(
        name, PRODUCTS[eqn.primitive.name], weight, path, shapes, out_shape, contract,
        math.prod(out_shape) * summed, parameters, loops, product,
    )  # fmt: skip


def _hidden(eqn) -> set[str]:
    """Names of the products and marked sites that an equation is or contains, but hides."""
    hidden = {eqn.primitive.name} & (HIDDEN_PRODUCTS - set(PRODUCTS))
    inner = [s for jaxpr in _compat.sub_jaxprs(eqn) for s in _compat.open_jaxpr(jaxpr)[0].eqns]
    for sub in inner:
        hidden |= {sub.primitive.name} & HIDDEN_PRODUCTS | _hidden(sub)
        hidden |= {"a marked site"} if _is_mark(sub) else set()
    return hidden

"""Where a value comes from: parameters, constants or data.

What does not come from `params` is data. A product of data with something else has that for its
weight. A product of a constant with a parameter, such as a frozen context with its projection, has
the parameter for its weight, and its result is data. A product of parameters alone is a parameter,
one of constants alone a constant.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from qdiffjax import _compat


class Leaf(NamedTuple):
    """A parameter that a value is made of.

    path: its name; size: its number of elements; part: the slices that were taken of it, one after
    the other, () for the whole, None for a part that is not known before it is computed.
    """

    path: str
    size: int
    part: tuple | None = ()


class Label(NamedTuple):
    """Where a value comes from; a constant if it has no leaves and is no data.

    leaves: parameters it is made of, as `Leaf`; sites: the nearest sites upstream;
    is_data: whether it depends on the network's inputs, or on a product of a constant with a
    parameter; constant: size of the largest array of constants alone that it is made of; pieces:
    (axis, lengths) of the values of different branches that it is a concatenation of, None if it is
    none.
    """

    leaves: frozenset = frozenset()
    sites: frozenset = frozenset()
    is_data: bool = False
    constant: int = 0
    pieces: tuple[int, tuple[int, ...]] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it depends on constants of the function alone."""
        return not self.is_data and not self.leaves

    @property
    def is_mostly_constant(self) -> bool:
        """Whether constants outweigh its parameters, as in a context scaled by a norm's gain."""
        return not self.is_data and self.constant > max((n for _, n, _ in self.leaves), default=-1)

    @property
    def leaf(self) -> Leaf:
        """Largest parameter it is made of; of equal ones the first by name, which is stable."""
        return min(self.leaves, key=lambda leaf: (-leaf.size, leaf.path))


def join(labels: Sequence[Label]) -> Label:
    """Label of a value computed from values with these labels."""
    sites = frozenset().union(*(label.sites for label in labels))
    # Parameters mixed into data (a bias, a gain) do not make it a weight.
    if any(label.is_data for label in labels):
        return Label(sites=sites, is_data=True)
    leaves = _one_part_each(leaf for label in labels for leaf in label.leaves)
    return Label(leaves, sites, constant=max((label.constant for label in labels), default=0))


def _one_part_each(leaves: Iterable[Leaf]) -> frozenset[Leaf]:
    """Several parts of one parameter are a part of it that is not known."""
    parts: dict[tuple[str, int], set] = {}
    for path, number, part in leaves:
        parts.setdefault((path, number), set()).add(part)
    return frozenset(
        Leaf(*leaf, found.pop() if len(found) == 1 else None) for leaf, found in parts.items()
    )


def computed(eqn, labels: Sequence[Label]) -> list[Label]:
    """Labels of the results of an equation whose operands carry `labels`."""
    joined, avals = join(labels), [v.aval for v in eqn.outvars]
    if joined.is_data and len(avals) == 1:
        return [joined._replace(pieces=_pieces(eqn, labels))]
    if joined.is_constant:
        return [joined._replace(constant=size(aval)) for aval in avals]
    if not joined.leaves or not _takes_part(eqn, labels):
        return [joined] * len(avals)
    return [joined._replace(leaves=_sliced(joined.leaves, s)) for s in _slices(eqn)]


def _pieces(eqn, labels: Sequence[Label]) -> tuple[int, tuple[int, ...]] | None:
    """Return (axis, lengths) of what a result is a concatenation of, itself or before a cast."""
    name, shapes = eqn.primitive.name, [tuple(v.aval.shape) for v in eqn.invars]
    if name == "concatenate":
        axis = eqn.params["dimension"]
        branches = {label.sites for label in labels if label.is_data}
        return (axis, tuple(shape[axis] for shape in shapes)) if len(branches) > 1 else None
    known, out = labels[0].pieces if labels else None, tuple(eqn.outvars[0].aval.shape)
    if known is None or name in ("convert_element_type", "name", "copy", "stop_gradient"):
        return known
    is_last = known[0] == len(shapes[0]) - 1 and bool(out) and out[-1] == shapes[0][-1]
    return (len(out) - 1, known[1]) if name == "reshape" and is_last else None


def _sliced(leaves: frozenset[Leaf], taken: tuple | None) -> frozenset[Leaf]:
    return frozenset(
        leaf._replace(part=None if taken is None or leaf.part is None else (*leaf.part, *taken))
        for leaf in leaves
    )


def _takes_part(eqn, labels: Sequence[Label]) -> bool:
    """Whether the results hold fewer elements than an operand with parameters, or are several."""
    largest = max(size(v.aval) for v, label in zip(eqn.invars, labels, strict=True) if label.leaves)
    return len(eqn.outvars) > 1 or size(eqn.outvars[0].aval) < largest


def _slices(eqn) -> list[tuple | None]:
    """For each result, the slice of the first operand that it is: (its shape, starts, limits,
    strides), nothing if it is all of it, None where that is not known before it is computed.
    """
    name, params, shape = eqn.primitive.name, eqn.params, tuple(eqn.invars[0].aval.shape)
    starts: Any
    if name == "slice":
        ends = [(params["start_indices"], params["limit_indices"])]
        strides = params["strides"] or (1,) * len(shape)
    elif name in ("split", "unstack"):
        axis, ends, at = params["axis"], [], 0
        for length in params["sizes"] if name == "split" else [1] * shape[params["axis"]]:
            starts, limits = [0] * len(shape), list(shape)
            starts[axis], limits[axis] = at, at + length
            ends, at = [*ends, (starts, limits)], at + length
        strides = (1,) * len(shape)
    elif name == "dynamic_slice" and all(isinstance(v, _compat.Literal) for v in eqn.invars[1:]):
        lengths = params["slice_sizes"]
        starts = [  # as it clips them
            min(max(int(v.val), 0), n - length)
            for v, n, length in zip(eqn.invars[1:], shape, lengths, strict=True)
        ]
        ends = [(starts, [a + length for a, length in zip(starts, lengths, strict=True)])]
        strides = (1,) * len(shape)
    else:
        return [None] * len(eqn.outvars)
    found = [tuple(tuple(map(int, at)) for at in (*end, strides)) for end in ends]
    whole = ((0,) * len(shape), shape, (1,) * len(shape))
    return [() if each == whole else ((shape, *each),) for each in found]


def size(value) -> int:
    """Number of elements of an array, or of what has none of its own (a number, a token): one."""
    return math.prod(getattr(value, "shape", ()))


def weight_of(labels: Sequence[Label]) -> int | None:
    """Which operand of a product is its weight, the second before the first; None for none."""
    candidates = [i for i in (1, 0) if not labels[i].is_data]
    if len(candidates) < 2:
        return next(iter(candidates), None)
    return next((i for i in candidates if not labels[i].is_mostly_constant), None)


def is_product_of_data(labels: Sequence[Label]) -> bool:
    """Whether a product is a site: one operand is data, or a constant that meets a parameter."""
    return any(label.is_data for label in labels) or (
        {label.is_mostly_constant for label in labels} == {True, False}
    )

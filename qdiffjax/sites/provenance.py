"""Where a value comes from: parameters, constants or data.

What does not come from `params` is data. A product of data with something else has that for its
weight. A product of a constant with a parameter, such as a frozen context with its projection, has
the parameter for its weight, and its result is data. A product of parameters alone is a parameter,
one of constants alone a constant.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Label(NamedTuple):
    """Where a value comes from; a constant if it has no leaves and is no data.

    leaves: parameters it is made of, as (path, size); sites: the nearest sites upstream;
    is_data: whether it depends on the network's inputs, or on a product of a constant with a
    parameter; constant: size of the largest array of constants alone that it is made of.
    """

    leaves: frozenset = frozenset()
    sites: frozenset = frozenset()
    is_data: bool = False
    constant: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether it depends on constants of the function alone."""
        return not self.is_data and not self.leaves

    @property
    def is_mostly_constant(self) -> bool:
        """Whether constants outweigh its parameters, as in a context scaled by a norm's gain."""
        return not self.is_data and self.constant > max((n for _, n in self.leaves), default=-1)

    @property
    def path(self) -> str:
        """Largest parameter it is made of; of equal ones the first by name, which is stable."""
        return min(self.leaves, key=lambda leaf: (-leaf[1], leaf[0]))[0]


def join(labels: Sequence[Label]) -> Label:
    """Label of a value computed from values with these labels."""
    sites = frozenset().union(*(label.sites for label in labels))
    # Parameters mixed into data (a bias, a gain) do not make it a weight.
    if any(label.is_data for label in labels):
        return Label(sites=sites, is_data=True)
    leaves = frozenset().union(*(label.leaves for label in labels))
    return Label(leaves, sites, constant=max((label.constant for label in labels), default=0))


def computed(labels: Sequence[Label], avals) -> list[Label]:
    """Labels of the results, with their `avals`, of an equation whose operands carry `labels`."""
    joined = join(labels)
    if not joined.is_constant:
        return [joined] * len(avals)
    return [joined._replace(constant=size(aval)) for aval in avals]


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

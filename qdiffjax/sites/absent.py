"""Parameters that are not there: shapes that hold their place, so that nothing keeps the floats."""

import dataclasses
from typing import Any

import jax
import numpy as np

from qdiffjax._checks import require


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Absent:
    """An array known by its shape only; a pytree without leaves, so that jit takes no bytes.

    Whatever is computed from absent arrays alone is absent; a rule that never reads it, such as
    `precision.lower_site`, runs without.
    """

    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})


def absent_like(array) -> Absent:
    """Keep the place of an array."""
    return Absent(tuple(array.shape), np.dtype(array.dtype))


def is_absent(value) -> bool:
    """Whether `value` is a shape without an array."""
    return isinstance(value, Absent)


def check_present(name: str, operands) -> None:
    """Raise ValueError if an operand of the site `name` is absent."""
    require(
        not any(map(is_absent, operands)), name, got="parameters that were dropped",
        expected="arrays", remedy="run it with the rule and the site inputs that they were dropped "
        "for, or with the full parameters",
    )  # fmt: skip


def shapes(tree):
    """Return the tree with `jax.ShapeDtypeStruct` for what is absent, to trace with."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if is_absent(a) else a,
        tree, is_leaf=is_absent,
    )  # fmt: skip


def leaves(tree) -> list:
    """Leaves of a tree, the absent ones too."""
    return jax.tree.leaves(tree, is_leaf=is_absent)


def results(eqn) -> list[Absent]:
    """The absent results of an equation."""
    return [absent_like(v.aval) for v in eqn.outvars]


def sliced(values) -> list:
    """Rows of absent arrays, as a scan would slice them; others unchanged."""
    return [Absent(v.shape[1:], v.dtype) if is_absent(v) else v for v in values]

"""What a number is: measured, predicted, counted, compiled, or a bound and what it assumes.

`@bound(kind, assumption)` labels a function; `record(fn, value)` puts the label on its value.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Fn = TypeVar("Fn", bound=Callable)


class Kind(enum.StrEnum):
    """What a bound holds for, or where a cost comes from."""

    ALONG_RUN = "a posteriori along the run"  # the two runs that were measured
    DISTRIBUTIONAL = "distributional"  # the laws of the samples
    CERTIFIED = "certified"  # every input of a stated set
    COUNTED = "counted"  # exact, from shapes and widths
    PREDICTED = "predicted"  # a model of a machine
    COMPILED = "counted by the compiler"  # of one compiled program, nothing was run
    MEASURED = "measured"  # on the machine that is named


class Label(NamedTuple):
    """Name, kind and assumption of a bound function."""

    name: str
    kind: Kind
    assumption: str


class Bound(NamedTuple):
    """A bound with its label; value: any pytree of arrays, finite: whether each entry is finite."""

    name: str
    kind: Kind
    assumption: str
    value: Any
    finite: Any


def bound(kind: Kind, assumption: str) -> Callable[[Fn], Fn]:
    """Label a function whose result is a bound; the function itself does not change."""

    def mark(fn: Fn) -> Fn:
        fn.label = Label(fn.__name__, kind, assumption)  # type: ignore[attr-defined]
        return fn

    return mark


def label(fn: Callable) -> Label:
    """Return the label of a bound function, compiled or not.

    Raises:
      ValueError: if it has none.
    """
    found = getattr(fn, "label", None)
    if found is None:
        raise ValueError(f"got {fn!r} without a label, expected a bound function; decorate it with "
                         "@bound(kind, assumption)")  # fmt: skip
    return found


def record(fn: Callable, value) -> Bound:
    """Return a value of a bound function, computed anywhere, with what it is."""
    return Bound(*label(fn), value, jax.tree.map(np.isfinite, value))

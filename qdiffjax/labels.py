"""What a number is: measured, predicted, counted, compiled, or a bound and what it assumes.

`@bound(kind, assumption)` labels a function; `label(fn)` reads what it says.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from qdiffjax._checks import require

Fn = TypeVar("Fn", bound=Callable)


class Kind(enum.StrEnum):
    """What a bound holds for, or where a cost comes from."""

    ALONG_RUN = "a posteriori along the run"  # the two runs that were measured
    DISTRIBUTIONAL = "distributional"  # the laws of the samples
    GUARANTEED = "guaranteed"  # the next random sample, or a mean, with a stated probability
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
    require(hasattr(fn, "label"), got=f"{fn!r} without a label", expected="a bound function",
            remedy="decorate it with @bound(kind, assumption)")  # fmt: skip
    return fn.label  # type: ignore[attr-defined]

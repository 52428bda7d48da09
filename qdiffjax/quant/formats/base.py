"""What a number format is: which codes exist. Nothing here touches data."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant import rounding


@runtime_checkable
class Format(Protocol):
    """What every quantizer asks of a number format: a grid of numbers, in units of the scale.

    The grid value of v is clip(round(v, round_fn), low, high), so that every format saturates.
    Fields may be traced arrays unless the method says static.
    """

    @property
    def bits(self) -> Any:
        """Width of one stored code."""

    @property
    def low(self) -> Any:
        """Smallest grid value, a number or an array."""

    @property
    def high(self) -> Any:
        """Largest grid value, a number or an array."""

    @property
    def is_static(self) -> bool:
        """Whether every field is known before tracing, and the format hashable."""

    @property
    def storage_dtype(self) -> np.dtype:
        """Smallest whole-byte integer dtype that holds every code."""

    def round(self, v: Array, round_fn: rounding.RoundFn) -> Array:
        """Round v [*shape] to the grid as if it had no ends; float32 or float64 kept."""

    def encode(self, values: Array) -> Array:
        """Return codes [*shape], in storage_dtype, of grid values [*shape]; static formats only."""

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the grid values [*shape] of codes [*shape], exactly; the inverse of encode."""

    def levels(self) -> np.ndarray:
        """Return all distinct grid values, ascending, float64 [n]; static formats only."""


T = TypeVar("T")


def format_pytree(*data: str) -> Callable[[type[T]], type[T]]:
    """Return the decorator that makes a format a pytree.

    It has no leaves while it is static, which makes it a static argument too; else its leaves are
    the fields `data`, so that formats that differ in them share one compilation.
    """

    def register(cls: type[T]) -> type[T]:
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

        def flatten(format):
            if format.is_static:
                return (), format
            leaves = tuple(getattr(format, name) for name in data)
            return leaves, tuple(getattr(format, name) for name in names if name not in data)

        def unflatten(static, leaves):
            """Leaves may be what JAX puts in place of arrays: nothing is checked."""
            if not leaves:
                return static
            values = dict(zip(data, leaves, strict=True))
            values |= zip((name for name in names if name not in data), static, strict=True)
            format = object.__new__(cls)
            for name in names:
                object.__setattr__(format, name, values[name])
            return format

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register


def check_integer(
    name: str, value: Any, low: int, high: int, remedy: str = "see the docstring"
) -> None:
    """Raise unless value is an int or an integer array, in low..high where that is known.

    Raises:
      TypeError: value is not an integer.
      ValueError: it is concrete and out of range.
    """
    is_array = isinstance(value, jax.Array | np.ndarray) and value.dtype.kind in "iu"
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(
        is_array or is_int, name, got=(value, type(value).__name__),
        expected="an int or an integer array",
        remedy="round a real number first, for example jnp.round(bits).astype(jnp.int32)",
        error=TypeError,
    )  # fmt: skip
    known = np.asarray(low if isinstance(value, jax.core.Tracer) else value)
    require(
        np.all((known >= low) & (known <= high)),
        name,
        got=value,
        expected=f"{low}..{high}",
        remedy=remedy,
    )


def check_number_format(name: str, format: Any) -> None:
    """Raise TypeError unless format is a number format; none of its fields is looked at."""
    require(hasattr(format, "is_static"), name, got=repr(format), expected="a number format",
            remedy="such as IntFormat(8) or E4M3FN", error=TypeError)  # fmt: skip


def check_static_integer(name: str, value: Any, most: int) -> None:
    """Raise ValueError unless value is an int in 1..most, known before tracing."""
    require(
        isinstance(value, int | np.integer) and 1 <= value <= most,
        name,
        got=repr(value),
        expected=f"an int in 1..{most}",
        remedy="it must be known before tracing",
    )


def shift(number: int | Array, places: int | Array) -> Any:
    """Return number 2^places: an int if both are, else int32; exp2 of an integer may round."""
    if isinstance(number, int) and isinstance(places, int):
        return number << places
    number, places = (jnp.asarray(a).astype(jnp.int32) for a in (number, places))
    return jnp.left_shift(number, places)

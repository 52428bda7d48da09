"""Codes of number formats of a user's own: the place of a number in the list of all of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qdiffjax._checks import require
from qdiffjax._typing import Array
from qdiffjax.quant import CodebookFormat, QTensor, dequantize, expand, fake_quant

ROUNDED = 1e-6  # of the largest number, by which float32 may miss a level


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OwnCodes:
    """A format of a user's own, and of each of its numbers the place in `levels()` as its code.

    Attributes:
      own: the format, which rounds.
    """

    own: Any
    is_static = True

    bits = property(lambda self: self.own.bits)
    low = property(lambda self: self.own.low)
    high = property(lambda self: self.own.high)

    @property
    def storage_dtype(self) -> np.dtype:
        """Smallest whole-byte unsigned dtype that holds every place."""
        return self._book.storage_dtype

    def round(self, v: Array, round_fn) -> Array:
        """Round v [*shape] as the format does."""
        return self.own.round(v, round_fn)

    def encode(self, values: Array) -> Array:
        """Return the places [*shape] of the levels that values [*shape] are next to."""
        return self._book.encode(values)

    def decode(self, codes: Array, dtype: Any) -> Array:
        """Return the levels [*shape] at places [*shape]."""
        return self._book.decode(codes, dtype)

    def levels(self) -> np.ndarray:
        """Return all numbers, ascending, float64 [n]."""
        return self._book.levels()

    @property
    def _book(self) -> CodebookFormat:
        return CodebookFormat(self.own.levels())


def with_codes(format: Any, what: str) -> Any:
    """Return the format itself if it has codes, or with those of its `levels()`.

    Raises:
      ValueError: a format with neither, or with more levels than its bits can tell apart.
    """
    if hasattr(format, "encode"):
        return format
    name = type(format).__name__
    require(hasattr(format, "levels"), what, got=f"a {name} without codes",
            expected="a method levels() that returns all its numbers, ascending",
            remedy="add it, or simulate the recipe by `quantize`")  # fmt: skip
    made = OwnCodes(format)
    num = len(made.levels())
    require(num <= 2**format.bits, what, got=f"{num} levels of a {name} of {format.bits} bits",
            expected=f"at most {2**format.bits}", remedy="let it say more bits")  # fmt: skip
    return made


def check_codes(codes: QTensor, w: Array, what: str) -> None:
    """Refuse codes of a format that rounds to numbers which its `levels()` does not list.

    Raises:
      ValueError: a number that is far from all levels.
    """
    format: Any = codes.format
    far = float(_distance(codes, w, format.own))
    require(far <= ROUNDED * abs(float(format.high)), what,
            got=f"numbers {far:.3g} away from the levels of a {type(format.own).__name__}",
            expected="levels() that returns all that it rounds to",
            remedy="add them")  # fmt: skip


@functools.partial(jax.jit, static_argnums=2)
def _distance(codes: QTensor, w: Array, own: Any) -> Array:
    """Return how far codes are from what the format rounds to, in units of the scale."""
    rounded = fake_quant(w, codes.scale, format=own)
    far = jnp.abs(rounded.astype(codes.scale.dtype) - dequantize(codes, codes.scale.dtype))
    return jnp.max(far / expand(codes.scale, codes.shape), initial=0)

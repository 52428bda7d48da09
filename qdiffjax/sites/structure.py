"""What a value is, told by the equations that made it: a softmax, a normalization, a sum, a skip.

Nothing is told by the names of functions, so that every framework's layers, and layers written by
hand, are the same. What is recognised:

softmax    e / sum(e) or e * (1 / sum(e)) with e = exp(...), masked or not; exp(z - log sum exp z)
norm       c * rsqrt(v), c / sqrt(v) or c * (1 / sqrt(v)), where v is made of a sum of squares of
           what c is, each with its mean subtracted or not: layer, group, instance and RMS norms,
           weight-free ones, lengths of vectors; gains and shifts that do not depend on x follow it
residual   a + b of two branches;  skip: concatenate(a, b, ...) of at least two

A batch norm with stored statistics is a gain and a shift and no normalization of the data.
"""

import dataclasses
import math
from collections.abc import Iterator

SHAPES = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose"}
CASTS = {"convert_element_type", "reduce_precision", "copy", "stop_gradient", "name"}
SAME = SHAPES | CASTS  # what changes no number


@dataclasses.dataclass(eq=False)
class Value:
    """A value of a function, and what made it of which values.

    Attributes:
      made: name of the primitive; "" for an input.
      operands: what it was made of.
      shape: its own.
      is_real: whether it is a floating-point number.
      is_data: whether it depends on the network's inputs.
      on_x: whether it depends on x, which conditions and times do not.
      near: the last products before it, or inputs where there is none.
      power: of an integer power.
      readers: what reads it; None for a reader that is not seen.
      entries, index: where its equation is noted.
    """

    made: str
    operands: tuple["Value", ...]
    shape: tuple[int, ...]
    is_real: bool = True
    is_data: bool = False
    on_x: bool = False
    near: frozenset = frozenset()
    power: int | None = None
    readers: list = dataclasses.field(default_factory=list)
    entries: list | None = None
    index: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def first(self) -> "Value":
        """What it was made of first."""
        return self.operands[0]


def is_residual(value: Value) -> bool:
    """Whether a value is the sum of two branches."""
    return (
        value.made == "add"
        and len(_branches(value)) == 2
        and all(_is_whole(v, value.size) for v in value.operands)
    )


def is_skip(value: Value) -> bool:
    """Whether a value is a concatenation of at least two branches."""
    return value.made == "concatenate" and len(_branches(value)) >= 2


def _branches(value: Value) -> set[frozenset]:
    return {v.near for v in value.operands if v.on_x}


def _is_whole(v: Value, size: int) -> bool:
    """Whether a value has so many elements, not spread from fewer, as a bias of channels is."""
    while v.made in SAME:
        v = v.first
    return v.size == size


def is_softmax(value: Value) -> bool:
    """Whether a value is a softmax."""
    if value.made == "exp":
        return _is_log_softmax(stripped(value.first, CASTS))
    pair = quotient(value)
    if pair is None:
        return False
    e, total = exponential(pair[0]), stripped(pair[1])
    return e is not None and total.made == "reduce_sum" and exponential(total.first) is e


def _is_log_softmax(value: Value) -> bool:
    """Whether a value is z - log sum exp(z)."""
    if value.made != "sub":
        return False
    log = stripped(value.operands[1])
    if log.made == "add":  # the maximum, taken away before and added again
        log = next((v for v in map(stripped, log.operands) if v.made == "log"), log)
    total = stripped(log.first, SAME | {"abs"}) if log.made == "log" else log
    return total.made == "reduce_sum" and exponential(total.first) is not None


def exponential(v: Value) -> Value | None:
    """Return the exponential that a value is, where it is not masked; None if it is none."""
    while v.made in CASTS:
        v = v.first
    if v.made == "exp":
        return v
    if v.made in ("select_n", "mul"):  # a mask, by choice or by factor
        found = [e for e in map(exponential, v.operands) if e is not None]
        return found[0] if len(found) == 1 else None
    return None


def is_norm(value: Value) -> bool:
    """Whether a value is a normalized one, before gains and shifts."""
    if value.made not in ("mul", "div"):
        return False
    pairs = [value.operands] if value.made == "div" else [value.operands, value.operands[::-1]]
    for centred, factor in pairs:
        square = root(factor) if value.made == "div" else inverse_root(factor)
        if square is None or not centred.is_data or centred.size != value.size:
            continue
        own = set(map(id, lineage(centred)))
        if any(id(v) in own for base in squared(square, value.size) for v in lineage(base)):
            return True
    return False


def inverse_root(v: Value) -> Value | None:
    """Return r of a value 1 / sqrt(r), with a gain or without; None if it is none."""
    v = _without_gain(v)
    if v.made == "rsqrt":
        return v.first
    if v.made == "integer_pow" and v.power == -1:
        return root(v.first)
    if v.made == "div" and not v.first.is_data:
        return root(v.operands[1])
    return None


def root(v: Value) -> Value | None:
    """Return r of a value sqrt(r), at least a constant or with one added; None if it is none."""
    v = stripped(v)
    while v.made in ("add", "max") and sum(o.is_data for o in v.operands) == 1:
        v = stripped(next(o for o in v.operands if o.is_data))
    return v.first if v.made == "sqrt" else None


def _without_gain(v: Value) -> Value:
    v = stripped(v)
    while v.made == "mul" and sum(o.is_data for o in v.operands) == 1:
        v = stripped(next(o for o in v.operands if o.is_data))
    return v


def squared(v: Value, size: int) -> Iterator[Value]:
    """Yield what a statistic of fewer than `size` elements sums the squares of."""
    seen, todo = set(), [v]
    while todo:
        v = todo.pop()
        if id(v) in seen or not v.is_data:
            continue
        seen.add(id(v))
        if v.made == "reduce_sum" and (base := _square_root(stripped(v.first, CASTS))) is not None:
            yield base
        else:
            todo.extend(o for o in v.operands if o.size < size)


def _square_root(v: Value) -> Value | None:
    """Return x of a value x^2; None if it is none."""
    is_product = v.made == "mul" and v.operands[0] is v.operands[1]
    is_square = v.made == "square" or is_product or (v.made == "integer_pow" and v.power == 2)
    return v.first if is_square else None


def lineage(v: Value) -> Iterator[Value]:
    """Yield a value, and what it was before its mean was subtracted and its shape changed."""
    yield v
    while v.made in SAME or v.made in ("sub", "abs"):
        v = v.first
        yield v


def stripped(v: Value, what: set[str] = SAME) -> Value:
    """Return a value before changes of its shape or dtype."""
    while v.made in what:
        v = v.first
    return v


def quotient(value: Value) -> tuple[Value, Value] | None:
    """Return (numerator, denominator) of a / b or a * (1 / b); None if it is neither."""
    if value.made == "div":
        return value.operands  # type: ignore[return-value]
    if value.made == "mul":
        for a, b in (value.operands, value.operands[::-1]):
            b = stripped(b)
            if b.made == "integer_pow" and b.power == -1:
                return a, b.first
            if b.made == "div" and not b.first.is_data:
                return a, b.operands[1]
    return None


RULES = {"softmax": is_softmax, "norm": is_norm, "residual": is_residual, "skip": is_skip}


def last(value: Value, kind: str) -> Value | None:
    """Return the value that is stored where one of a kind was found; None where none is.

    A norm goes on through gains and shifts that do not depend on x, a softmax through a mask, both
    through a cast, as long as nothing else reads what is in between. A sum that only another sum of
    branches reads is not stored.
    """
    if kind == "residual":
        reader = _reader(value)
        return None if reader is not None and is_residual(reader) else value
    goes_on = {"norm": _is_modulated, "softmax": _is_masked}.get(kind)
    stored = v = value
    while goes_on is not None and len(v.readers) == 1 and (reader := v.readers[0]) is not None:
        if reader.made not in SAME:
            if not goes_on(reader, v):
                break
            stored = reader
        elif reader.made == "convert_element_type":
            stored = reader
        v = reader
    return stored


def _reader(v: Value) -> Value | None:
    while len(v.readers) == 1 and v.readers[0] is not None:
        v = v.readers[0]
        if v.made not in SAME:
            return v
    return None


def _is_modulated(reader: Value, v: Value) -> bool:
    if reader.made not in ("mul", "add", "sub", "div") or len(reader.operands) != 2:
        return False
    other = reader.operands[1] if reader.operands[0] is v else reader.operands[0]
    is_first = reader.operands[0] is v or reader.made in ("mul", "add")
    return is_first and not (other.on_x if v.on_x else other.is_data)


def _is_masked(reader: Value, v: Value) -> bool:
    if reader.made not in ("select_n", "mul"):
        return False
    others = [o for o in reader.operands[reader.made == "select_n" :] if o is not v]
    return not any(o.is_data for o in others)

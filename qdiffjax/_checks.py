"""Errors that say what was got, what was expected, and what to do."""

import difflib
import functools
import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

Fn = TypeVar("Fn", bound=Callable)


def require(
    condition: Any,
    what: str = "",
    *,
    got: Any,
    expected: str,
    remedy: str,
    error: type[Exception] = ValueError,
) -> None:
    """Raise an error unless the condition holds.

        <what>: got <got>, expected <expected>; <remedy>.

    Args:
      condition: a concrete truth value.
      what: the argument, site or file that the message is about.
      got: the value, formatted only on failure; pass `repr(text)` to quote a text.
      expected: what would have been accepted, in words.
      remedy: what to do about it, in words.
      error: type of the exception.

    Raises:
      error: the condition is false.
    """
    if not condition:
        about = f"{what}: " if what else ""
        raise error(f"{about}got {got}, expected {expected}; {remedy}.")


def concrete(value: Any) -> np.ndarray | None:
    """Return a value as a NumPy array; None if it is traced, so known only when the program runs.

    The checks below trust what is traced: they look at concrete values alone.
    """
    if isinstance(value, (int, float, np.ndarray, np.generic)):
        return np.asarray(value)
    return None if _is_traced(value) else np.asarray(value)


def check_count(
    what: str, value: Any, *, least: int = 1, most: int | None = None, remedy: str = ""
) -> None:
    """Refuse what is no whole number from `least` to `most`.

    Raises:
      ValueError: another number, or no number at all; NaN and 2.5 are none.
    """
    number = _whole(value)
    wanted = f"at least {least}" if most is None else f"{least} to {most}"
    is_one = number is not None and least <= number <= (number if most is None else most)
    require(is_one, what, got=repr(value), expected=f"{wanted}, an int",
            remedy=remedy or f"pass an int, such as {what}={least}")  # fmt: skip


def _whole(value: Any) -> int | None:
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def check_number(
    what: str, value: Any, *, least: float = -np.inf, above: float = -np.inf,
    most: float = np.inf, below: float = np.inf, remedy: str = "",
) -> None:  # fmt: skip
    """Refuse what is not finite, or not in least <= value <= most, above < value < below.

    Args:
      what: the argument.
      value: a number or an array of numbers, all of which are looked at; trusted if it is traced.
      least, above: lower ends, included and not.
      most, below: upper ends, included and not; a finite number is wanted whatever they are.
      remedy: what to do, in words.

    Raises:
      ValueError: says which numbers are taken.
    """
    numbers = _numbers(value)
    if numbers is None and _is_traced(value):
        return
    inside = numbers is not None and bool(np.all(
        np.isfinite(numbers) & (numbers >= least) & (numbers > above)
        & (numbers <= most) & (numbers < below)
    ))  # fmt: skip
    require(inside, what, got=_shown(value, numbers), expected=_interval(least, above, most, below),
            remedy=remedy or f"pass {what} as a finite number in that range")  # fmt: skip


def _is_traced(value: Any) -> bool:
    jax = sys.modules.get("jax")  # results are read without it
    return jax is not None and isinstance(value, jax.core.Tracer)


def _numbers(value: Any) -> np.ndarray | None:
    """Return real numbers as float64, None for what has none."""
    try:
        numbers = concrete(value)
        is_real = numbers is not None and _is_real(numbers.dtype)
        return np.asarray(numbers, np.float64) if is_real else None
    except (TypeError, ValueError):
        return None


def _shown(value: Any, numbers: np.ndarray | None) -> str:
    if numbers is None or not numbers.ndim:
        return repr(value) if numbers is None else str(numbers)
    if not np.isfinite(numbers).all():
        return f"NaN or infinity in an array {list(numbers.shape)}"
    return f"numbers from {numbers.min():g} to {numbers.max():g}" if numbers.size else "no numbers"


def _interval(least: float, above: float, most: float, below: float) -> str:
    low = f" of at least {least:g}" if np.isfinite(least) else ""
    low += f" above {above:g}" if np.isfinite(above) else ""
    high = f"at most {most:g}" if np.isfinite(most) else ""
    high += f"below {below:g}" if np.isfinite(below) else ""
    return f"a finite number{low}{' and ' if low and high else ' ' if high else ''}{high}"


def check_key(what: str, key: Any) -> None:
    """Refuse what is no single PRNG key of JAX, traced or not.

    Raises:
      TypeError: a seed, several keys, None.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = str(dtype).startswith("key<")  # without loading JAX
    is_old = dtype == np.uint32 and shape in ((2,), (4,))
    require((is_new and shape == ()) or is_old, what,
            got=f"{type(key).__name__} {'' if dtype is None else (dtype, shape)}".strip()
            if key is not None else "no key", expected="one PRNG key",
            remedy="pass jax.random.key(seed)", error=TypeError)  # fmt: skip


def check_type(what: str, value: Any, types: type | tuple[type, ...], *, remedy: str) -> None:
    """Refuse what is of none of some types.

    Raises:
      TypeError: says of which it is, and of which it should be.
    """
    names = [t.__name__ for t in (types if isinstance(types, tuple) else (types,))]
    require(isinstance(value, types), what, got=f"a {type(value).__name__}",
            expected=f"a {' or a '.join(names)}", remedy=remedy, error=TypeError)  # fmt: skip


def check_callable(what: str, fn: Any, signature: str) -> None:
    """Refuse what cannot be called.

    Raises:
      TypeError: says what was got.
    """
    require(callable(fn), what, got=repr(fn), expected=f"a function {signature}",
            remedy="pass the function itself, not its name or result", error=TypeError)  # fmt: skip


def check_names(what: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse names that are not known, and offer the nearest.

    Raises:
      ValueError: the first name that is not known.
    """
    known = list(known)
    for name in names:
        require(name in known, what, got=repr(name), expected=f"one of {len(known)} names",
                remedy=suggest(str(name), known))  # fmt: skip


def suggest(name: str, names: Sequence[str]) -> str:
    """Offer, in words, the names nearest to a wrong one."""
    near = difflib.get_close_matches(name.strip("*"), names, n=3, cutoff=0.3)
    parts = [p for p in name.strip("*/").split("/") if p]
    near += [n for n in names if any(p in n for p in parts) and n not in near][: 3 - len(near)]
    return f"perhaps {', '.join((near or list(names))[:5])}"


def checked(**checks: Callable[[str, Any], None]) -> Callable[[Fn], Fn]:
    """Return the decorator that looks at arguments before a function runs, each by its own check.

        @checked(num_steps=check_count, eta=SHARE)
        def ddim(schedule, num_steps, *, eta=0.0): ...

    Args:
      checks: (name, value) -> None or an error, by argument; defaults are looked at too.
    """

    def decorate(fn: Fn) -> Fn:
        signature = inspect.signature(fn)

        @functools.wraps(fn)
        def call(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for name, check in checks.items():
                check(name, bound.arguments[name])
            return fn(*args, **kwargs)

        return cast(Fn, call)

    return decorate


def optional(check: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    """Return the check of a value that may be None."""
    return lambda what, value: None if value is None else check(what, value)


def traceable(check: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    """Return the check of a value that may be traced, which is trusted then."""
    return lambda what, value: None if _is_traced(value) else check(what, value)


def check_numbers(
    what: str, x: Any, *, least_size: int = 1, least_rank: int = 0, finite: bool = True
) -> None:
    """Refuse what is no array of real numbers, has too few of them, or holds NaN or infinity.

    Raises:
      TypeError: no array, or numbers that are not real.
      ValueError: too few rows or axes; concrete numbers that are not finite.
    """
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or dtype is None:
        array = _array(x)
        shape, dtype = (None, None) if array is None else (array.shape, array.dtype)
    require(dtype is not None and _is_real(dtype), what,
            got=repr(x) if dtype is None else f"an array of {dtype}",
            expected="an array of real numbers", remedy="convert it first",
            error=TypeError)  # fmt: skip
    assert shape is not None
    rows = shape[0] if shape else 1
    require(len(shape) >= least_rank and rows >= least_size, what, got=f"shape {tuple(shape)}",
            expected=f"at least {least_size} along the first of {max(1, least_rank)} or more axes",
            remedy="draw more, or add the axis")  # fmt: skip
    values = concrete(x) if finite else None
    require(values is None or bool(np.isfinite(np.asarray(values, np.float64)).all()), what,
            got="NaN or infinity", expected="finite numbers",
            remedy="look for where they come from, or leave those out")  # fmt: skip


def _array(x: Any) -> np.ndarray | None:
    try:
        array = np.asarray(x)
        return None if array.dtype.kind in "OUSV" else array
    except (TypeError, ValueError):
        return None


def _is_real(dtype: Any) -> bool:
    """Say whether numbers are real; bfloat16 and what else JAX adds counts."""
    try:
        kind = np.dtype(dtype).kind
    except TypeError:  # PRNG keys
        return False
    return kind in "fiu" or (kind == "V" and np.can_cast(dtype, np.float32))


SAMPLES = functools.partial(check_numbers, least_rank=1)
OPEN_SHARE = functools.partial(check_number, above=0, below=1)
POSITIVE = functools.partial(check_number, above=0)
NOT_NEGATIVE = functools.partial(check_number, least=0)
SHARE = functools.partial(check_number, least=0, most=1)
FROM_2 = functools.partial(check_count, least=2)
FROM_0 = functools.partial(check_count, least=0)
FUNCTION = functools.partial(check_callable, signature="(see the docstring)")

"""Errors that say what was got, what was expected, and what to do."""

from typing import Any


def require(
    condition: Any,
    what: str = "",
    *,
    got: Any,
    expected: str,
    remedy: str = "",
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
        about, remedy = f"{what}: " if what else "", f"; {remedy}" if remedy else ""
        raise error(f"{about}got {got}, expected {expected}{remedy}.")

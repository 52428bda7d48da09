"""What all command lines do alike: flags in full, one line for what is wrong, exit codes."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

LONGEST = 600  # characters of an error
REFUSED = (ValueError, OSError, ImportError, TypeError, ArithmeticError, MemoryError)


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviation of a flag and says in one line what it refuses."""

    def __init__(self, **kwargs):
        layout = {"formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(allow_abbrev=False, **(layout | kwargs))

    def error(self, message: str) -> NoReturn:
        """Print the message and end with exit code 2."""
        self.exit(2, f"error: {one_line(message)}; see {self.prog} --help\n")


def one_line(text: str) -> str:
    """Return a text without line breaks, and without an end that nobody reads."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def outcome(work: Callable[[], None], *, after_interrupt: str = "") -> int:
    """Work; return the exit code: 2 for what cannot be done and 130 for Ctrl-C, each with a line.

    Args:
      work: what the command does.
      after_interrupt: what is to be known after Ctrl-C.
    """
    try:
        work()
    except KeyboardInterrupt:
        print(f"interrupted{after_interrupt}", file=sys.stderr)
        return 130
    except REFUSED as error:
        text = str(error) or type(error).__name__
        print(f"error: {one_line(text)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # JAX's word for memory
            raise
        print(f"error: not enough memory: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0

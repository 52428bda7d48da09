"""Tables on the screen, from the rows and arrays of a finished run."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

MIN_WIDTH = 100  # of output that is not a terminal, which has no width of its own


def number(value: float | None, digits: int = 3) -> str:
    """Write a number in at most `digits` significant digits; None and NaN are a dash."""
    if value is None or math.isnan(value):
        return "-"
    small = value != 0 and not 1e-3 <= abs(value) < 1e5
    return f"{value:.{digits - 1}e}" if small else f"{value:.{max(digits, _whole(value))}g}"


def _whole(value: float) -> int:
    return len(str(int(abs(value)))) if math.isfinite(value) else 1


def console(file=None):
    """Return a rich console on `file`, None for the screen; wide where it is no terminal."""
    from rich.console import Console

    screen = Console(file=file, highlight=False)
    return screen if screen.is_terminal else Console(file=file, highlight=False, width=MIN_WIDTH)


def blank():
    """Return an empty rich table in the style of the house."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def columns(rows: Iterable, spec: Sequence[tuple[str, Callable[[Any], Any]]], *, title=None,
            left: Collection[int] = (0,)):  # fmt: skip
    """Return a table with a line for each row, of (title, row -> cell) for each column.

    The columns `left` are texts, all others numbers on the right. A cell that is None is empty.
    """
    table = blank()
    table.title = title
    for i, (name, _) in enumerate(spec):
        table.add_column(name, justify="left" if i in left else "right", overflow="fold")
    for row in rows:
        cells = (cell(row) for _, cell in spec)
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    return table


def grouped(rows: Iterable[Mapping[str, Any]], key: str, spec) -> list:
    """Return a table of `columns` for each run of rows with the same value under this key."""
    groups = itertools.groupby(rows, lambda row: row[key])
    return [columns(list(members), spec, title=str(value)) for value, members in groups]


def numbers(key: str, digits: int = 3, unit: float = 1) -> Callable[[Mapping[str, Any]], str]:
    """Return a column of `columns`: the number under this key in this unit, a dash without one."""

    def cell(row):
        value = row.get(key)
        return number(None if value is None else value / unit, digits)

    return cell


def reasons(rows: Iterable[Mapping[str, Any]], key: str, *names: str) -> list[str]:
    """Return a line for each row that has a reason under this key, after what is under names."""
    return [f"{', '.join(r[name] for name in names)}: {r[key]}" for r in rows if key in r]


def lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each row: texts as they are, numbers after their names."""
    for row in rows:
        yield "  ".join(value if isinstance(value, str) else f"{name} {_short(value)}"
                        for name, value in row.items())  # fmt: skip


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show(parts: Iterable, file=None) -> None:
    """Print lines, as they are, and tables; file: None for the screen."""
    screen = console(file)
    for part in parts:
        screen.print(part, markup=False, soft_wrap=isinstance(part, str))

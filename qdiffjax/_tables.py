"""Tables: on the screen, in a notebook, as a data frame. Needs rich, not JAX.

A record that is to be read makes a `Table` or a `Page` of itself and prints that; an experiment
builds its tables of rows with `columns` and prints them with `show`.
"""

import dataclasses
import html
import importlib.util
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qdiffjax._checks import require

MIN_WIDTH = 100  # of output that is not a terminal, which has no width of its own
MAX_ROWS = 100  # of a table that is printed; its data frame has all


@dataclasses.dataclass(frozen=True, repr=False)
class Table:
    """Rows under named columns; prints as text, and as HTML in a notebook.

    Attributes:
      title: the line above.
      columns: their names.
      rows: their cells: texts, numbers, or None for an empty one.
      notes: lines below.
      formats: how the numbers of a column are written, such as "+.1f"; three digits without.
      width: most characters of a line.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple, ...]
    notes: tuple[str, ...] = ()
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    width: int = MIN_WIDTH

    def __str__(self):
        return self.text(MAX_ROWS)

    __repr__ = __str__

    def text(self, max_rows: int | None = None) -> str:
        """Return the table as lines, with the first `max_rows` rows; None for all of them."""
        from rich.console import Console
        from rich.text import Text

        table, is_text = blank(), self._are_texts()
        for name, left in zip(self.columns, is_text, strict=True):
            table.add_column(Text(name), justify="left" if left else "right",
                             overflow="fold", no_wrap=not left)  # fmt: skip
        for row in self._cells(max_rows):
            table.add_row(*map(Text, row))
        file = io.StringIO()
        Console(file=file, width=self.width, color_system=None).print(table)
        body = [line.rstrip() for line in file.getvalue().splitlines()] if self.rows else []
        notes = [line for note in self._notes(max_rows) for line in textwrap.wrap(note, self.width)]
        lines = [*textwrap.wrap(self.title, self.width), *body, *notes]
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        sides = ["left" if left else "right" for left in self._are_texts()]

        def line(tag, cells):
            tds = (f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                   for side, cell in zip(sides, cells, strict=True))  # fmt: skip
            return f"<tr>{''.join(tds)}</tr>"

        body = "".join(line("td", row) for row in self._cells(MAX_ROWS))
        head = f"<thead>{line('th', self.columns)}</thead><tbody>{body}</tbody>"
        below = "".join(f"<div>{html.escape(note)}</div>" for note in self._notes(MAX_ROWS))
        above = f"<div><b>{html.escape(self.title)}</b></div>"
        return f"{above}<table>{head if self.rows else ''}</table>{below}"

    def to_dataframe(self):
        """Return the rows as a pandas data frame.

        Raises:
          ImportError: pandas is not installed.
        """
        return data_frame({name: [row[i] for row in self.rows]
                           for i, name in enumerate(self.columns)})  # fmt: skip

    def _are_texts(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [all(cell is None or isinstance(cell, str) for cell in cells) for cells in columns]

    def _cells(self, max_rows: int | None) -> list[list[str]]:
        formats = [self.formats.get(name) for name in self.columns]
        return [[_written(cell, spec) for cell, spec in zip(row, formats, strict=True)]
                for row in self.rows[:max_rows]]  # fmt: skip

    def _notes(self, max_rows: int | None) -> tuple[str, ...]:
        hidden = 0 if max_rows is None else len(self.rows) - max_rows
        more = (f"... and {hidden} rows more; to_dataframe() has all.",) if hidden > 0 else ()
        return (*more, *self.notes)


@dataclasses.dataclass(frozen=True, repr=False)
class Page:
    """Tables and lines, one below the other; prints as a `Table` does."""

    parts: tuple[Table | str, ...]

    def __str__(self):
        return "\n\n".join(map(str, self.parts))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(
            f"<pre>{html.escape(part)}</pre>" if isinstance(part, str) else part._repr_html_()
            for part in self.parts
        )


def data_frame(columns: Mapping[str, Any]):
    """Return a pandas data frame of these columns.

    Raises:
      ImportError: pandas is not installed.
    """
    require(importlib.util.find_spec("pandas"), "to_dataframe", got="no pandas",
            expected="it installed", remedy="pip install 'qdiffjax[frames]'",
            error=ImportError)  # fmt: skip
    import pandas

    return pandas.DataFrame(dict(columns))


def numbers_of(array) -> np.ndarray | None:
    """Return the numbers of an array in float64; None if it has none, traced or only a shape."""
    try:
        return np.asarray(array, np.float64)
    except (TypeError, ValueError, RuntimeError):  # the last: its buffer was donated
        return None


def _written(cell, spec: str | None) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    is_number = isinstance(cell, (int, float, np.number)) and not isinstance(cell, bool)
    if not is_number:
        return str(cell)
    if spec is not None:
        return format(cell, spec)
    return f"{cell:,}" if isinstance(cell, (int, np.integer)) else number(float(cell))


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


def markdown(table) -> str:
    """Return a table of `columns` in Markdown, its title above."""
    title, names, rows = _texts(table)
    sides = ["---" if column.justify == "left" else "---:" for column in table.columns]
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (names, sides, *rows)]
    body = [f"| {' | '.join(cells)} |" for cells in escaped]
    return "\n".join([*([f"**{title}**", ""] if title else []), *body, ""])


def latex(table) -> str:
    """Return a table of `columns` as a LaTeX table of booktabs, its title as the caption."""
    title, names, rows = _texts(table)
    sides = "".join("l" if column.justify == "left" else "r" for column in table.columns)
    line = lambda cells: " & ".join(map(_for_latex, cells)) + r" \\"  # noqa: E731
    return "\n".join([
        r"\begin{table}", *([rf"\caption{{{_for_latex(title)}}}"] if title else []), r"\centering",
        rf"\begin{{tabular}}{{{sides}}}", r"\toprule", line(names), r"\midrule", *map(line, rows),
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _texts(table) -> tuple[str, list[str], list[list[str]]]:
    """Return title, names of columns and rows of a rich table, each cell on one line."""
    flat = lambda text: " ".join(str(text).split())  # noqa: E731
    cells = [[flat(cell) for cell in column.cells] for column in table.columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return flat(table.title or ""), [flat(column.header) for column in table.columns], rows


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         **{letter: f"\\{letter}" for letter in "&%$#_{}"}}  # fmt: skip


def _for_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


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

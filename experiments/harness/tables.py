"""Tables on the screen, from the rows and arrays of a finished run."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

MIN_WIDTH = 100  # of output that is not a terminal, which has no width of its own


class Cell(NamedTuple):
    """A site in a range of sampler steps, and its signed share of the total squared error.

    Steps are counted from the noise end; both ends of the range belong to it. `share` is in
    percent.
    """

    site: str
    first_step: int
    last_step: int
    share: float


def top_cells(ledger, sites, num: int = 5, num_ranges: int = 5) -> list[Cell]:
    """Return the cells that cost most, the most expensive first.

    The steps are cut into `num_ranges` ranges of equal length (one longer where they do not
    divide), fewer if there are fewer steps; a cell's share is the sum of its entries over the sum
    of all entries. Entries that lower the error are negative, so they come last.

    Args:
      ledger: contributions [N, S] of N steps and S sites to the squared error.
      sites: S names.
      num: how many cells.
      num_ranges: how many ranges of steps.

    Raises:
      ValueError: the shape of `ledger` does not fit the names.
    """
    ledger = np.asarray(ledger, np.float64)
    if ledger.ndim != 2 or ledger.shape[1] != len(sites):
        raise ValueError(f"got a ledger of shape {ledger.shape}, expected [steps, {len(sites)}].")
    ranges = np.array_split(np.arange(len(ledger)), min(num_ranges, len(ledger)))
    total = ledger.sum()
    cells = [
        Cell(str(site), int(steps[0]), int(steps[-1]), _percent(ledger[steps, i].sum(), total))
        for steps in ranges
        for i, site in enumerate(sites)
    ]
    return sorted(cells, key=lambda cell: -cell.share)[:num]


def error_bounds(rows: list[dict[str, Any]], bounds: Mapping[str, Any], *, file=None) -> None:
    """Print a row a pair of widths, what its bounds assume, and the cells that cost most.

    Args:
      rows: of `experiments.error_bounds.run`, which documents the columns.
      bounds: by their names in the table, their (name of the function, kind, assumption).
      file: where to print; None for the screen.
    """
    screen = console(file)
    screen.print(_summary(rows))
    for row in rows:
        if "predicted_over_measured" in row:  # results of before it was kept lack it
            ratio, low, high = (number(row[f"predicted_over_measured{end}"])
                                for end in ("", "_low", "_high"))  # fmt: skip
            screen.print(f"{width_name(row)}: predicted / measured RMSE {ratio}, 95 % {low} to "
                         f"{high}")  # fmt: skip
    for name, (_, kind, assumption) in bounds.items():
        screen.print(f"{name}: {kind}; {assumption}")
    for row in rows:
        cells = [Cell(**cell) for cell in row.get("top_cells", ())]
        if cells:
            screen.print(f"{width_name(row)}: the {len(cells)} (site, steps) cells that cost most, "
                          "in share of the squared error")  # fmt: skip
            screen.print(_costs(cells))


def width_name(row: dict[str, Any]) -> str:
    """Return the name of a row's widths, such as W4A8; its arrays carry the same one."""
    return f"W{row['weight_bits']}A{row['activation_bits']}"


COLUMNS = (
    ("width", width_name),
    ("RMSE\nmeasured", lambda r: number(r["measured_rmse"])),
    ("RMSE\npredicted", lambda r: number(r["predicted_rmse"])),
    ("1st order\nrel. error", lambda r: number(r["first_order_relative_error"], 2)),
    ("ledger\ndefect", lambda r: number(r["exact_relative_residual"], 2)),
    ("bound/err\nmin, median", lambda r: _two(r, "bound_over_measured_min",
                                              "bound_over_measured_median")),
    ("bounds\nhold", lambda r: "yes" if r["bounds_hold"] else "NO"),
    ("path KL\nnats", lambda r: number(r["path_kl"])),
    ("W2 of samples\nlower, upper", lambda r: _two(r, "w2_lower", "w2")),
)  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """Write a number in at most `digits` significant digits; None and NaN are a dash."""
    if value is None or math.isnan(value):
        return "-"
    small = value != 0 and not 1e-3 <= abs(value) < 1e5
    return f"{value:.{digits - 1}e}" if small else f"{value:.{max(digits, _whole(value))}g}"


def _whole(value: float) -> int:
    return len(str(int(abs(value)))) if math.isfinite(value) else 1


def _two(row, low: str, high: str) -> str:
    return f"{number(row[low])}, {number(row[high])}"


def _percent(part: float, total: float) -> float:
    return 100.0 * float(part) / float(total) if total else 0.0


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


def columns(rows: Iterable, spec: Iterable[tuple[str, Callable[[Any], Any]]], title=None):
    """Return a table of a line for each row, from (title, row -> cell) of every column.

    The first column is on the left, the others on the right. A cell that is None is empty.
    """
    spec = list(spec)
    table = blank()
    table.title = title
    for i, (name, _) in enumerate(spec):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        cells = (cell(row) for _, cell in spec)
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    return table


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


def _summary(rows):
    table = blank()
    for i, (title, _) in enumerate(COLUMNS):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in COLUMNS))
    return table


def _costs(cells: list[Cell]):
    table = blank()
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("site", overflow="fold")
    for cell in cells:
        steps = f"{cell.first_step}-{cell.last_step}"
        table.add_row(f"{cell.share:+.1f} %", steps, cell.site)
    return table

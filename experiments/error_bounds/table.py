"""The table of `experiments.error_bounds` on the screen; needs no JAX."""

from collections.abc import Iterator, Mapping
from typing import Any

from qdiffjax import _tables as tables
from qdiffjax._tables import number


def width_name(row: dict[str, Any]) -> str:
    """Return the name of a row's widths, such as W4A8; its arrays carry the same one."""
    return f"W{row['weight_bits']}A{row['activation_bits']}"


def _two(row: dict[str, Any], low: str, high: str) -> str:
    return f"{number(row[low])}, {number(row[high])}"


COLUMNS = (
    ("width", width_name),
    ("RMSE\nmeasured", lambda r: number(r["measured_rmse"])),
    ("RMSE\npredicted", lambda r: number(r["predicted_rmse"])),
    ("bound\n/ RMSE", lambda r: _tightest(r)),
    ("bounds\nhold", lambda r: "yes" if r["bounds_hold"] else "NO"),
    ("ledger\ndefect", lambda r: number(r["exact_relative_residual"], 2)),
    ("path KL\nnats", lambda r: number(r["path_kl"])),
    ("W2\nlower, upper", lambda r: _two(r, "w2_lower", "w2")),
)  # fmt: skip


def _tightest(row: dict[str, Any]) -> str:
    if "tightest_bound_rmse" not in row:  # results of before it was kept
        return number(row["remainder_over_measured_median"])
    return number(row["tightest_bound_rmse"] / row["bounded_rmse"])


CELL_COLUMNS = (
    ("share", lambda cell: f"{cell['share']:+.1f} %"),
    ("steps", lambda cell: f"{cell['first_step']}-{cell['last_step']}"),
    ("site", lambda cell: cell["site"]),
)


def main_table(rows: list[dict[str, Any]], bounds: Mapping[str, Any]) -> Iterator:
    """Yield a line for each pair of widths, what its bounds assume, and the cells that cost most.

    Args:
      rows: of `experiments.error_bounds.run`, which documents the columns.
      bounds: by their names in the table, their (name of the function, kind, assumption).
    """
    yield tables.columns(rows, COLUMNS)
    for row in rows:
        if "predicted_over_measured" in row:  # results of before it was kept lack it
            ratio, low, high = (number(row[f"predicted_over_measured{end}"])
                                for end in ("", "_low", "_high"))  # fmt: skip
            yield f"{width_name(row)}: predicted / measured RMSE {ratio}, 95 % {low} to {high}"
        ratios = [_two(row, f"{key}_over_measured_min", f"{key}_over_measured_median")
                  for key in ("remainder", "bound")]  # fmt: skip
        miss = tables.numbers("first_order_relative_error", 2, 0.01)(row)
        yield f"{width_name(row)}: first order misses {miss} %; bound / error of single samples,"
        yield (f"      least and median: first order + remainder {ratios[0]}, "
               f"Grönwall {ratios[1]}")  # fmt: skip
    names = {row["tightest_bound"] for row in rows if "tightest_bound" in row}
    if names:
        yield f"the bound of the table: {', '.join(sorted(names))}"
    for name, (_, kind, assumption) in bounds.items():
        yield f"{name}: {kind}; {assumption}"
    for row in rows:
        cells = row.get("top_cells", ())
        if cells:
            yield (f"{width_name(row)}: the {len(cells)} (site, steps) cells that cost most, in "
                   "share of the squared error")  # fmt: skip
            yield tables.columns(cells, CELL_COLUMNS, left=(2,))

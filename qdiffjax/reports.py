"""A study as a page of tables, 80 characters wide: what was measured, predicted and bounded.

Reads a `Study`, or whatever has its fields; needs no JAX.
"""

from qdiffjax._cells import top_cells
from qdiffjax._tables import Page, Table, number

WIDTH = 80
COLUMNS = ("quantity", "value", "95 % interval", "what it is")


def study_page(study) -> Page:
    """Return the page of a study: its numbers, its bounds, where the error is made, its cost."""
    return Page((numbers_table(study), bounds_table(study), cells_table(study)))


def numbers_table(study) -> Table:
    """Return what is known of the final samples, each with what kind of number it is."""
    relative = study.error_rms[-1] / study.signal_rms[-1]
    rows = [
        ("RMSE of the samples", *with_interval(study.measured), "measured"),
        ("RMSE over their RMS", number(relative), None, "measured"),
        ("RMSE without running it", number(study.predicted_rms[-1]), None, "predicted"),
        ("predicted / measured", *with_interval(study.predicted_over_measured), None),
        ("first order misses by", f"{number(100 * study.first_order_miss)} %", None,
         "measured, median"),
        *bound_rows(study.bounds),
        ("W2 of the samples", f"{number(study.w2[0])} .. {number(study.w2[1])}", None, "bracket"),
    ]  # fmt: skip
    if study.path_kl is not None:
        rows.append(("path KL at eta = 1, nats", *with_interval(study.path_kl), "measured"))
    told = ", ".join(f"{key.removeprefix('num_')} {value}" for key, value in study.settings.items())
    seconds = ", ".join(f"{part} {number(value)}" for part, value in study.cost.items())
    return Table(f"Study of {study.name}, {len(study.sites)} sites: {told}", COLUMNS, tuple(rows),
                 ("RMSE in units of the samples, per element; W2 of whole samples.",
                  f"Seconds: {seconds}."),
                 width=WIDTH)  # fmt: skip


def with_interval(estimate) -> tuple[str, str]:
    """Write an estimate and its interval."""
    value, low, high = (number(float(v)) for v in estimate)
    return value, f"{low} .. {high}"


def bound_rows(bounds) -> list[tuple[str | None, ...]]:
    """Return a line for the tightest bound that holds, or one that says that none does."""
    valid = [row for row in bounds if row.holds]
    if not valid:
        return [("bound / error", "-", None, "NO BOUND HOLDS")]
    tightest = min(valid, key=lambda row: row.median)
    return [("tightest bound / error", number(tightest.median),
             f"{number(tightest.smallest)} at least", tightest.name)]  # fmt: skip


def bounds_table(study) -> Table:
    """Return every bound of the final error over the error, and what it assumes."""
    rows = tuple(
        (row.name, number(row.smallest), number(row.median), "yes" if row.holds else "NO")
        for row in study.bounds
    )
    notes = tuple(f"{row.name}: {row.label.kind}; {row.label.assumption}." for row in study.bounds)
    return Table("Bounds of the final error, over the error", ("bound", "least", "median", "holds"),
                 rows, notes, width=WIDTH)  # fmt: skip


def cells_table(study, num: int = 8) -> Table:
    """Return the cells of the ledger that cost most, in ranges of steps."""
    cells = study.ledger.cells()
    top = top_cells(cells.contributions, cells.sites, num)
    rows = tuple((f"{cell.first_step}-{cell.last_step}", cell.site, cell.share) for cell in top)
    return Table(
        f"Where the error is made: share of the {cells.quantity.partition(',')[0]}",
        ("steps", "site", "share, %"), rows,
        (f"Mean of {cells.num_samples} samples; steps count from noise. {cells.defect_note()}",),
        {"share, %": "+.1f"}, WIDTH,
    )  # fmt: skip

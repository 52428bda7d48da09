"""A study as a page of tables, 80 characters wide: what was measured, predicted and bounded.

Reads a `Study`, or whatever has its fields; needs no JAX.
"""

from typing import Any

import numpy as np

from qdiffjax import _files
from qdiffjax._cells import Cell, top_cells
from qdiffjax._checks import require
from qdiffjax._tables import Page, Table, data_frame, number

WIDTH = 80
# Fields of a `Study` that are an array, numbers or names; an estimate is [value, low, high].
ARRAYS = (
    "t", "sites", "signal_rms", "error_rms", "predicted_rms", "first_order_rms", "measured",
    "predicted_over_measured", "first_order_miss", "w2", "samples", "samples_hat",
)  # fmt: skip
COLUMNS = ("quantity", "value", "95 % interval", "what it is")


def study_page(study) -> Page:
    """Return the page of a study: its numbers, its bounds, where the error is made, its cost."""
    return Page((numbers_table(study), bounds_table(study), cells_table(study)))


def report(study, folder=None) -> Page:
    """Return a study as a page of tables; with a folder, write it there with its figures.

    report.txt and report.html hold the page, errors.png and ledger.png its figures, the other
    files what `Study.load` reads.

    Args:
      study: what `study` returned.
      folder: where to write, made if it is missing; None writes nothing.

    Raises:
      OSError: the folder cannot be written.

    Example:
      >>> import jax, jax.numpy as jnp, qdiffjax as qd
      >>> params = {"in": jnp.eye(2), "out": 0.9 * jnp.eye(2)}
      >>> net_fn = lambda params, x, t: x @ params["in"] @ params["out"]
      >>> denoiser = qd.Denoiser(net_fn, params, qd.linear(), (2,))
      >>> steps = qd.ddim(denoiser.schedule, 3)
      >>> q = qd.quantize(qd.calibrate(denoiser, steps, jax.random.key(0), num_samples=4), "W6A6")
      >>> page = qd.report(qd.study(q, steps, jax.random.key(1), 4, progress=False))
      >>> "Study of W6A6" in str(page)
      True
    """
    check_study(study)
    page = study_page(study)
    if folder is not None:
        folder = _files.check_writable(folder)
        study.save(folder)
        _files.write({folder / "report.txt": f"{page}\n".encode(),
                      folder / "report.html": page._repr_html_().encode()})  # fmt: skip
        from qdiffjax import plots

        ledger = plots.plot_ledger(study.ledger, study.sites)
        _files.write_figure(folder / "errors.png", plots.plot_errors(study), dpi=150)
        _files.write_figure(folder / "ledger.png", ledger, dpi=150)
    return page


def check_study(study) -> None:
    """Refuse what has not the fields of a study."""
    require(hasattr(study, "error_rms"), "study", got=f"a {type(study).__name__}",
            expected="a Study", remedy="study(q, steps, key), or Study.load(folder)",
            error=TypeError)  # fmt: skip


def numbers_table(study) -> Table:
    """Return what is known of the final samples, each with what kind of number it is."""
    relative = study.error_rms[-1] / study.signal_rms[-1]
    rows = [
        ("RMSE of the samples", *with_interval(study.measured), "measured"),
        ("RMSE over their RMS", number(relative), None, "measured"),
        ("RMSE, predicted", number(study.predicted_rms[-1]), None, "predicted"),
        ("predicted / measured", *with_interval(study.predicted_over_measured), None),
        ("first order misses", f"{number(100 * study.first_order_miss)} %", None,
         "measured, median"),
        *bound_rows(study.bounds),
        *guaranteed_rows(study.next_sample),
        ("W2 of the samples", f"{number(study.w2[0])} .. {number(study.w2[1])}", None, "bracket"),
    ]  # fmt: skip
    if study.path_kl is not None:
        rows.append(("path KL, nats", *with_interval(study.path_kl), "measured"))
    told = ", ".join(f"{key.removeprefix('num_')} {value}" for key, value in study.settings.items())
    seconds = ", ".join(f"{part} {number(value)}" for part, value in study.cost.items())
    num_sites = f"{len(study.sites)} site" + "s" * (len(study.sites) != 1)
    return Table(f"Study of {study.name}, {num_sites}: {told}", COLUMNS, tuple(rows),
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
    return [("bound / error", number(tightest.median),
             f"{number(tightest.smallest)} at least", tightest.name)]  # fmt: skip


def guaranteed_rows(found) -> list[tuple[str | None, ...]]:
    """Return a line for what is guaranteed of the next random sample, none without."""
    if found is None:
        return []
    covered = f"of {100 * found.coverage:.0f} % at least"
    level = f"guaranteed ({1 - found.alpha:g}, {1 - found.delta:g})"
    return [("RMSE of the next", number(float(found.bound)), covered, level)]


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
    rows = tuple((steps_text(cell), cell.site, cell.share) for cell in top)
    return Table(
        f"Where the error is made: share of the {cells.quantity.partition(',')[0]}",
        ("steps", "site", "share, %"), rows,
        (f"Mean of {cells.num_samples} samples; steps count from noise. {cells.defect_note()}",),
        {"share, %": "+.1f"}, WIDTH,
    )  # fmt: skip


def steps_text(cell: Cell) -> str:
    """Write a range of steps: 3, or 4-7."""
    first, last = cell.first_step, cell.last_step
    return str(first) if first == last else f"{first}-{last}"


def steps_frame(study):
    """Return a row for each state of the run as a pandas data frame, noisiest first.

    Raises:
      ImportError: pandas is not installed.
    """
    curves = ("signal_rms", "error_rms", "predicted_rms", "first_order_rms")
    done = np.arange(len(study.error_rms))
    return data_frame({"steps_done": done} | {name: getattr(study, name) for name in curves})


def arrays_of(study) -> dict[str, Any]:
    """Return the numbers of a study as arrays by name, as `Study.save` writes them."""
    cells = study.ledger.cells()
    entries = np.stack([np.asarray(study.ledger.contributions[s]) for s in cells.sites], axis=-1)
    ledger = {"contributions": entries, "sites": np.array(cells.sites),
              "change": study.ledger.change, "x_0": study.ledger.x_0,
              "x_hat_0": study.ledger.x_hat_0}  # fmt: skip
    parts = {f"ledger/{key}": value for key, value in ledger.items()}
    parts |= {f"bounded/{key}": value for key, value in study.bounded._asdict().items()}
    parts |= {key: np.array(getattr(study, key)) for key in ARRAYS}
    known = {name: getattr(study, name) for name in ("path_kl", "next_sample")}
    return parts | {name: np.array(v, float) for name, v in known.items() if v is not None}


def summary_row(study) -> dict[str, Any]:
    """Return what a study found as one row, under the names that `experiments.error_bounds` has."""
    cells = study.ledger.cells()
    top = top_cells(cells.contributions, cells.sites)
    tightest = study.bounds[0]
    estimates = {"measured_rmse": study.measured, "path_kl": study.path_kl,
                 "predicted_over_measured": study.predicted_over_measured}  # fmt: skip
    row: dict[str, Any] = {
        "name": study.name, "predicted_rmse": float(study.predicted_rms[-1]),
        "first_order_relative_error": study.first_order_miss,
        "exact_relative_residual": cells.defect, "bound": tightest.name,
        "bound_over_measured_min": tightest.smallest,
        "bound_over_measured_median": tightest.median,
        "bounds_hold": all(bound.holds for bound in study.bounds),
        "w2_lower": study.w2[0], "w2": study.w2[1],
        "next_sample_rmse": None if study.next_sample is None else float(study.next_sample.bound),
        "top_cells": [cell._asdict() for cell in top],
    }  # fmt: skip
    for name, estimate in estimates.items():
        for end, value in zip(("", "_low", "_high"), estimate or (None,) * 3, strict=True):
            row[name + end] = None if value is None else float(value)
    return row

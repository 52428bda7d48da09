"""The committed results of this checkout, by the names of their experiments. Needs no JAX."""

from pathlib import Path

from qdiffjax import results

RESULTS = Path(__file__).parents[1] / "results"


def load(folder) -> results.Finished:
    """Read (config, arrays, rows) of a run; a name without a folder here is one of `RESULTS`.

    Raises:
      FileNotFoundError: no results there; names the command that makes them.
    """
    folder = Path(folder)
    if not folder.is_absolute() and not folder.exists():
        folder = RESULTS / folder
    return results.load(folder, remedy=f"make them with `python -m experiments.{folder.name}`")

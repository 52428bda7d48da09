"""Every notebook runs, in its miniature form, and is stored clean and short."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_short_and_stored_without_outputs(path):
    cells = read(path).cells
    assert len(cells) <= 15
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_its_bound_holds(path, monkeypatch):
    monkeypatch.setenv("QDIFFJAX_NOTEBOOK_QUICK", "1")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # it is compilation that takes time
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(ROOT)}}
    done = nbclient.NotebookClient(read(path), timeout=500, resources=resources).execute()
    outputs = [out for cell in done.cells for out in cell.get("outputs", [])]
    text = "".join(out.text for out in outputs if out.output_type == "stream")
    assert "never exceeded: True" in text

"""Results on disk, and the main table of numbers; needs no network."""

import io

import numpy as np
import pytest

from experiments.error_bounds.table import main_table
from experiments.harness import store
from qdiffjax import _tables as tables
from qdiffjax import results

ROW = {
    "weight_bits": 4, "activation_bits": 8, "measured_rmse": 0.25, "predicted_rmse": 0.125,
    "first_order_relative_error": None, "exact_relative_residual": 3e-7,
    "bound_over_measured_min": 1.5, "bound_over_measured_median": float("inf"),
    "remainder_over_measured_min": 1.25, "remainder_over_measured_median": 2.0,
    "tightest_bound": "remainder", "tightest_bound_rmse": 0.75, "bounded_rmse": 0.5,
    "bounds_hold": False, "path_kl": 12345.6, "w2": 2.0, "w2_lower": 0.5,
}  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "W4A8/sites": np.array(["input", "out"])}
    results.save(tmp_path / "x", {"seed": 3}, arrays, [ROW], seconds=1.5)
    config, loaded, rows = store.load(tmp_path / "x")
    assert config["seed"] == 3
    assert config["provenance"]["seconds"] == 1.5
    assert config["provenance"]["versions"]["numpy"] == np.__version__
    assert sorted(loaded) == sorted(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(loaded[name], value)
    assert rows == [ROW | {"bound_over_measured_median": None}]  # JSON knows no infinity


def test_missing_results_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.error_bounds"):
        store.load(tmp_path / "error_bounds")


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half a file")
        raise OSError("disk full")

    path = tmp_path / "arrays.npz"
    results.save_arrays(path, {"a": np.ones(3)})
    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        results.save_arrays(path, {"a": np.zeros(3)})
    np.testing.assert_array_equal(np.load(path)["a"], np.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_is_found_only_by_the_run_that_made_it(tmp_path):
    mark = results.fingerprint({"seed": 1}, np.ones(3))
    results.save_part(tmp_path, "W4A8", mark, {"a": np.ones(2)}, {"w2": 0.5})
    arrays, row = results.load_part(tmp_path, "W4A8", mark)
    np.testing.assert_array_equal(arrays["a"], np.ones(2))
    assert row == {"w2": 0.5}
    assert results.load_part(tmp_path, "W4A8", results.fingerprint({"seed": 2}, np.ones(3))) is None
    assert results.load_part(tmp_path, "W8A8", mark) is None


def test_a_damaged_part_is_as_good_as_none(tmp_path):
    results.save_part(tmp_path, "W4A8", "mark", {"a": np.ones(2)}, {})
    path = tmp_path / "parts" / "W4A8.npz"
    path.write_bytes(path.read_bytes()[:40])
    assert results.load_part(tmp_path, "W4A8", "mark") is None
    (tmp_path / "parts" / "W4A8.json").write_text("{")
    assert results.load_part(tmp_path, "W4A8", "mark") is None


def test_the_fingerprint_sees_every_value_but_not_the_order_of_keys():
    same = results.fingerprint({"a": 1, "b": (2, 3)}, np.arange(3.0))
    assert results.fingerprint({"b": [2, 3], "a": 1}, np.arange(3.0)) == same
    others = [({"a": 1, "b": (2, 4)}, np.arange(3.0)), ({"a": 1, "b": (2, 3)}, np.arange(3.0) + 1)]
    assert same not in [results.fingerprint(*other) for other in others]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (123.4, "123"), (12345.6, "12346"), (3e-7, "3.00e-07"),
     (1.2e6, "1.20e+06"), (None, "-"), (float("nan"), "-"), (float("inf"), "inf")],
)  # fmt: skip
def test_numbers_are_written_short(value, text):
    assert tables.number(value) == text


def test_violated_bounds_shout_and_missing_numbers_are_dashes():
    file = io.StringIO()
    cells = [{"site": "conv_in/kernel", "first_step": 0, "last_step": 1, "share": 12.34}]
    bounds = {"Grönwall": ("gronwall", "along the run", "gains are known")}
    tables.show(main_table([ROW | {"top_cells": cells}], bounds), file)
    text = " ".join(file.getvalue().split())
    line = next(s for s in file.getvalue().splitlines() if "W4A8" in s)
    expected = "W4A8 0.25 0.125 1.5 NO 3.0e-07 12346 0.5, 2"
    assert line.split() == expected.split()
    assert "first order misses - %" in text
    assert "first order + remainder 1.25, 2, Grönwall 1.5, inf" in text
    assert "the bound of the table: remainder" in text
    assert "Grönwall: along the run; gains are known" in file.getvalue()
    assert "+12.3 % 0-1 conv_in/kernel" in text
    assert "predicted /" not in file.getvalue()  # older results do not know it

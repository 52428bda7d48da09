"""Results on disk and the reading of a ledger; needs no network."""

import io

import numpy as np
import pytest

from experiments.error_bounds.table import main_table, top_cells
from experiments.harness import store, tables

ROW = {
    "weight_bits": 4, "activation_bits": 8, "measured_rmse": 0.25, "predicted_rmse": 0.125,
    "first_order_relative_error": None, "exact_relative_residual": 3e-7,
    "bound_over_measured_min": 1.5, "bound_over_measured_median": float("inf"),
    "bounds_hold": False, "path_kl": 12345.6, "w2": 2.0, "w2_lower": 0.5,
}  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "W4A8/sites": np.array(["input", "out"])}
    store.save(tmp_path / "x", {"seed": 3}, arrays, [ROW], seconds=1.5)
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
    store.save_arrays(path, {"a": np.ones(3)})
    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        store.save_arrays(path, {"a": np.zeros(3)})
    np.testing.assert_array_equal(np.load(path)["a"], np.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_is_found_only_by_the_run_that_made_it(tmp_path):
    mark = store.fingerprint({"seed": 1}, np.ones(3))
    store.save_part(tmp_path, "W4A8", mark, {"a": np.ones(2)}, {"w2": 0.5})
    arrays, row = store.load_part(tmp_path, "W4A8", mark)
    np.testing.assert_array_equal(arrays["a"], np.ones(2))
    assert row == {"w2": 0.5}
    assert store.load_part(tmp_path, "W4A8", store.fingerprint({"seed": 2}, np.ones(3))) is None
    assert store.load_part(tmp_path, "W8A8", mark) is None


def test_a_damaged_part_is_as_good_as_none(tmp_path):
    store.save_part(tmp_path, "W4A8", "mark", {"a": np.ones(2)}, {})
    path = tmp_path / "parts" / "W4A8.npz"
    path.write_bytes(path.read_bytes()[:40])
    assert store.load_part(tmp_path, "W4A8", "mark") is None
    (tmp_path / "parts" / "W4A8.json").write_text("{")
    assert store.load_part(tmp_path, "W4A8", "mark") is None


def test_the_fingerprint_sees_every_value_but_not_the_order_of_keys():
    same = store.fingerprint({"a": 1, "b": (2, 3)}, np.arange(3.0))
    assert store.fingerprint({"b": [2, 3], "a": 1}, np.arange(3.0)) == same
    others = [({"a": 1, "b": (2, 4)}, np.arange(3.0)), ({"a": 1, "b": (2, 3)}, np.arange(3.0) + 1)]
    assert same not in [store.fingerprint(*other) for other in others]


def test_top_cells_of_a_ledger_worked_by_hand():
    # Steps 0-1, 2-3 and 4 are the three ranges; the entries sum to 20.
    ledger = [[1, 2], [1, -3], [4, 0], [4, 0], [1, 10]]
    cells = top_cells(ledger, ["a", "b"], num=6, num_ranges=3)
    assert cells == [
        ("b", 4, 4, 50.0), ("a", 2, 3, 40.0), ("a", 0, 1, 10.0), ("a", 4, 4, 5.0),
        ("b", 2, 3, 0.0), ("b", 0, 1, -5.0),
    ]  # fmt: skip
    assert top_cells(ledger, ["a", "b"], num=2, num_ranges=3) == cells[:2]


def test_shares_of_all_cells_sum_to_100_percent():
    ledger = np.random.default_rng(0).normal(1.0, 1.0, (7, 4))
    cells = top_cells(ledger, "abcd", num=100)
    assert len(cells) == 5 * 4
    assert sum(c.share for c in cells) == pytest.approx(100.0)


def test_fewer_steps_than_ranges_make_fewer_ranges():
    assert top_cells([[3.0], [1.0]], ["a"]) == [("a", 0, 0, 75.0), ("a", 1, 1, 25.0)]


def test_a_ledger_that_does_not_fit_its_sites_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*expected \[steps, 2\]"):
        top_cells(np.ones((2, 3)), ["a", "b"])


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
    line = next(s for s in file.getvalue().splitlines() if "W4A8" in s)
    expected = "W4A8 0.25 0.125 - 3.0e-07 1.5, inf NO 12346 0.5, 2"
    assert line.split() == expected.split()
    assert "Grönwall: along the run; gains are known" in file.getvalue()
    assert "+12.3 % 0-1 conv_in/kernel" in " ".join(file.getvalue().split())
    assert "predicted /" not in file.getvalue()  # older results do not know it

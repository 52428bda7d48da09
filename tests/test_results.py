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


@pytest.mark.parametrize("name", ["arrays.npz", "summary.json"])
def test_files_of_two_runs_or_damaged_ones_are_refused_with_their_name(tmp_path, name):
    for seed in (1, 2):
        results.save(tmp_path / str(seed), {"seed": seed}, {"a": np.full(3, seed)}, [{"b": seed}])
    path = tmp_path / "1" / name
    good, other = path.read_bytes(), (tmp_path / "2" / name).read_bytes()
    for wrong in (other, good[:-9], b"", good[:9] + bytes([good[9] ^ 1]) + good[10:]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"{name}: got a file that is damaged, or of another"):
            results.load(tmp_path / "1")
    path.write_bytes(good)
    assert results.load(tmp_path / "1")[0]["seed"] == 1


def test_results_without_hashes_are_read_and_refused_where_they_are_damaged(tmp_path):
    np.savez_compressed(tmp_path / "arrays.npz", a=np.arange(100.0))
    (tmp_path / "config.json").write_text('{"seed": 1}')
    assert results.load(tmp_path)[2] == []
    whole = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "arrays.npz").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"arrays\.npz: got a damaged file"):
        results.load(tmp_path)
    (tmp_path / "arrays.npz").write_bytes(whole)
    (tmp_path / "config.json").write_text('{"seed": 1')
    with pytest.raises(ValueError, match=r"config\.json: got a damaged file"):
        results.load(tmp_path)


MARK = results.fingerprint({"seed": 1}, np.ones(3))
OTHER = results.fingerprint({"seed": 2}, np.ones(3))


def test_a_part_is_found_only_by_the_run_that_made_it_and_kept_beside_those_of_others(tmp_path):
    for mark, value in ((MARK, 1.0), (OTHER, 2.0)):
        results.save_part(tmp_path, "W4A8", mark, {"a": np.full(2, value)}, {"w2": value})
    for mark, value in ((MARK, 1.0), (OTHER, 2.0)):
        arrays, row = results.load_part(tmp_path, "W4A8", mark)
        assert list(arrays) == ["a"]
        np.testing.assert_array_equal(arrays["a"], [value, value])
        assert row == {"w2": value}
    assert results.load_part(tmp_path, "W4A8", "third") is None
    assert results.load_part(tmp_path, "W8A8", MARK) is None


@pytest.mark.parametrize("name", ["/net/compiled", "../net/1", "..", "a" * 400, "W8 (a)", "ø"])
def test_a_part_lies_in_the_folder_of_the_results_whatever_its_name(tmp_path, name):
    out = tmp_path / "out"
    results.save_part(out, name, MARK, {"a": np.ones(2)}, {})
    assert results.load_part(out, name, MARK) is not None
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert path.parent == out / "parts" / MARK


def test_a_part_under_the_name_of_another_or_in_the_folder_of_another_run_is_none(tmp_path, capsys):
    results.save_part(tmp_path, "W4A8", MARK, {"a": np.ones(2)}, {})
    for name, mark in (("W8A8", MARK), ("W4A8", OTHER)):
        path = results.part_path(tmp_path, name, mark)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(results.part_path(tmp_path, "W4A8", MARK).read_bytes())
        assert results.load_part(tmp_path, name, mark) is None
        assert "is of another run; measured again" in capsys.readouterr().err


def test_a_part_with_any_damage_is_as_good_as_none_but_for_a_word(tmp_path, capsys):
    results.save_part(tmp_path, "W4A8", MARK, {"a": np.ones(2)}, {"w2": 0.5})
    path = results.part_path(tmp_path, "W4A8", MARK)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    with np.load(path) as part:  # an archive like any other
        np.testing.assert_array_equal(part["a"], np.ones(2))
    flips = [whole[:i] + bytes([whole[i] ^ 1 << rng.integers(8)]) + whole[i + 1 :]
             for i in range(len(whole))]  # fmt: skip
    for damaged in flips + [whole[:i] for i in range(0, len(whole), 7)]:
        path.write_bytes(damaged)
        assert results.load_part(tmp_path, "W4A8", MARK) is None
        assert capsys.readouterr().err == f"note: {path} is damaged; measured again\n"


def test_the_fingerprint_sees_every_value_but_not_the_order_of_keys():
    same = results.fingerprint({"a": 1, "b": (2, 3)}, np.arange(3.0))
    assert results.fingerprint({"b": [2, 3], "a": 1}, np.arange(3.0)) == same
    settings = {"a": 1, "b": (2, 3)}
    others = [
        ({"a": 1, "b": (2, 4)}, np.arange(3.0)), (settings, np.arange(3.0) + 1),
        (settings, np.arange(3.0)[None]), (settings, np.arange(3.0).view(np.int64)),
    ]  # fmt: skip
    assert same not in [results.fingerprint(*other) for other in others]
    assert results.fingerprint(1, 23) != results.fingerprint(12, 3)


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


def test_tables_are_written_for_a_page_and_for_a_paper():
    rows = [{"way": "a|b_1", "share": "50 %"}, {"way": "x~y", "share": None}]
    spec = [("way", lambda row: row["way"]), ("share\nof all", lambda row: row["share"])]
    table = tables.columns(rows, spec, title="R & D")
    assert tables.markdown(table).splitlines() == [
        "**R & D**", "", "| way | share of all |", "| --- | ---: |", r"| a\|b_1 | 50 % |",
        "| x~y |  |",
    ]  # fmt: skip
    lines = tables.latex(table).splitlines()
    assert lines[1] == r"\caption{R \& D}"
    assert lines[3] == r"\begin{tabular}{lr}"
    assert lines[7:9] == [r"a|b\_1 & 50 \% \\", r"x\textasciitilde{}y &  \\"]

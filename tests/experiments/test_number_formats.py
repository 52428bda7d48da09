"""The experiment that compares number formats."""

import numpy as np
import pytest

from experiments.harness import command, store
from experiments.number_formats import experiment as number_formats
from experiments.number_formats.data import ROW, in_rows, pooled
from experiments.number_formats.formats import ENTRIES
from tests import worlds


def entry(name):
    return next(e for e in ENTRIES if e.name == name)


def test_rows_hold_every_number_of_a_channel_and_filler():
    x = np.arange(1.0, 2 * 70 + 1).reshape(2, 70)
    tensor = in_rows("weights", "w", x)
    assert tensor.rows.shape == (4, ROW)
    for i in range(2):
        found = tensor.rows[tensor.channel == i].ravel()
        np.testing.assert_array_equal(found[:70], x[i])
        assert np.isnan(found[70:]).all()


def test_filler_is_not_counted():
    x = np.random.default_rng(1).standard_normal((2, ROW + 6)).astype(np.float32)
    pool = pooled([in_rows("weights", "w", x)])
    np.testing.assert_allclose(pool.signal, [np.mean(x.astype(np.float64) ** 2)])
    measured, scale, _ = number_formats.measure(entry("lloyd2"), pool)  # a format without zero
    grid = scale[[0, 2]][..., None] * entry("lloyd2").format.levels()  # of the first rows
    near = np.min(np.abs(x[..., None] - grid), -1)
    np.testing.assert_allclose(measured, [np.mean(near**2)], rtol=1e-5)


def test_each_channel_gets_the_best_of_the_shrunken_ranges():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 2 * ROW)).astype(np.float32) * np.float32([[1], [5], [0.1]])
    pool = pooled([in_rows("weights", "w", w), in_rows("activations", "a", 2 * w[:1])])
    measured, *_ = number_formats.measure(entry("int4"), pool)

    def best(row):
        scales = np.abs(row).max() / 7 * number_formats.RATIOS
        return min(np.mean((s * np.clip(np.round(row / s), -7, 7) - row) ** 2) for s in scales)

    by_hand = [np.mean([best(row) for row in w]), best(2 * w[0])]
    np.testing.assert_allclose(measured, by_hand, rtol=1e-4)


@pytest.mark.slow
def test_a_miniature_run_has_a_row_for_every_format_and_source(tmp_path, capsys, monkeypatch):
    names = ["int4", "mxfp4"]
    monkeypatch.setattr(number_formats, "ENTRIES", tuple(entry(name) for name in names))
    checkpoint = worlds.save_tiny(tmp_path / "checkpoint")
    flags = ["--num-steps", "2", "--steps", "1", "--num-samples", "2", "--num-random", "16384"]
    argv = ["--checkpoint", str(checkpoint), *flags, "--num-elements", "512", "--output",
            str(tmp_path / "out")]  # fmt: skip
    assert command.main(number_formats.EXPERIMENT, argv) == 0
    _, arrays, rows = store.load(tmp_path / "out")
    sources = ["gaussian", "laplace", "weights", "activations"]
    assert [(r["format"], r["source"]) for r in rows] == [(n, s) for n in names for s in sources]
    assert arrays["measured"].shape == (len(names), len(arrays["tensors"]))
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row['sqnr_measured_db']:.2f}" in printed
        assert abs(row["predicted_over_measured"] - 1) < 0.05


@pytest.mark.parametrize(
    "flags",
    [["--steps", "7", "--num-steps", "4"], ["--num-elements", "8"], ["--families", "decimal"]],
)
def test_impossible_flags_are_refused_before_any_work(flags, tmp_path, capsys):
    idle = number_formats.EXPERIMENT._replace(measure=lambda *a, **k: pytest.fail("work began"))
    assert command.main(idle, [*flags, "--output", str(tmp_path)]) == 2
    assert "expected" in capsys.readouterr().err

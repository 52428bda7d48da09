"""The command line of the main experiment, its files and its table."""

import contextlib
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.error_bounds import experiment as error_bounds
from experiments.error_bounds import measure, plots
from experiments.error_bounds.table import width_name
from experiments.harness import command, store
from qdiffjax import _tables as tables
from qdiffjax import comparisons, results
from tests import worlds

NUM_PIXELS = 64
KEYS = {
    "weight_bits", "activation_bits", "measured_rmse", "predicted_rmse",
    "first_order_relative_error", "exact_relative_residual", "bound_over_measured_min",
    "bound_over_measured_median", "bounds_hold", "path_kl", "w2", "w2_lower", "seconds",
}  # fmt: skip


def flags(checkpoint, output, *more):
    # Few sites: what these tests cost is the compilation of the ledger.
    small = ["--num-steps", "4", "--num-samples", "4", "--weight-bits", "8", "4"]
    sites = ["--sites", "input", "conv_*", "*skip*", "output"]
    return ["--checkpoint", str(checkpoint), "--output", str(output), *small, *sites, *more]


COMPILED: list[str] = []  # every compilation of this process since this file was imported
AFTER_WIDTHS: list[int] = []  # how many there were when each width was done


def listen(event, *_, **__):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(event)


def keep(*part, save_part=results.save_part):
    AFTER_WIDTHS.append(len(COMPILED))
    save_part(*part)


jax.monitoring.register_event_duration_secs_listener(listen)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return worlds.save_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """A miniature run from the command line: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(results, "save_part", keep)
        assert command.main(error_bounds.EXPERIMENT, flags(checkpoint, folder)) == 0
    return folder, printed.getvalue()


@pytest.fixture
def refused(capsys, monkeypatch):
    """refused(argv) -> the one line on stderr of a run that ends with exit code 2."""

    def run(argv):
        monkeypatch.setattr(measure, "columns", lambda *a: pytest.fail("long work began"))
        assert command.main(error_bounds.EXPERIMENT, argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


def test_a_run_writes_results_rows_and_figures(finished):
    folder, _ = finished
    config, arrays, rows = store.load(folder)
    assert [row["weight_bits"] for row in rows] == [8, 4]
    assert all(set(row) >= KEYS for row in rows)
    assert config["num_steps"] == 4
    assert {"commit", "versions", "device", "seconds"} <= set(config["provenance"])
    assert arrays["W4A8/error_rms"].shape == (5,)
    for name in ("error_vs_step", "ledger", "samples"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["W8A8", "W4A8"])
def test_numbers_of_a_run_agree_with_each_other(finished, name):
    _, arrays, rows = store.load(finished[0])
    row = next(r for r in rows if width_name(r) == name)
    get = lambda key: arrays[f"{name}/{key}"]  # noqa: E731
    mean_square = np.mean(get("final_error_norms").astype(np.float64) ** 2) / NUM_PIXELS
    assert row["measured_rmse"] == pytest.approx(np.sqrt(mean_square), rel=1e-5)
    assert get("ledger").sum() == pytest.approx(mean_square, rel=2e-3)  # the ledger is complete
    assert row["w2"] == pytest.approx(np.sqrt(mean_square * NUM_PIXELS), rel=1e-4)  # the coupling
    assert row["w2_lower"] <= row["w2"] * 1.0001
    assert row["bounds_hold"]
    assert (get("gronwall") * 1.0001 >= get("measured_norms")).all()
    assert (get("remainder") * 1.0001 >= get("measured_norms")).all()


def test_a_second_width_compiles_nothing(finished):
    first, second = AFTER_WIDTHS[:2]
    assert second == first > 0


def test_fewer_bits_make_more_error(finished):
    wide, narrow = store.load(finished[0])[2]
    assert narrow["measured_rmse"] > 4 * wide["measured_rmse"]  # 16 times coarser weights


def test_sites_of_the_ledger_are_in_the_order_of_the_network(finished):
    sites = list(store.load(finished[0])[1]["W8A8/sites"])
    order = [sites.index(s) for s in ("input", "conv_in/kernel", "conv_out/kernel")]
    assert order == sorted(order)
    assert sites[-1] in ("output", "conv_out/kernel")


def test_the_same_command_again_computes_nothing(checkpoint, finished, monkeypatch):
    folder, _ = finished
    calls = []
    monkeypatch.setattr(comparisons, "measured", lambda *a, **k: calls.append(a))
    config, _ = command.parse(error_bounds.EXPERIMENT, flags(checkpoint, "elsewhere"))
    config = dataclasses.replace(config, weight_bits=(4,))
    arrays, rows = error_bounds.run(config, kept=lambda n, m: results.load_part(folder, n, m))
    assert calls == []
    _, saved, saved_rows = store.load(folder)
    assert rows == saved_rows[1:]
    np.testing.assert_array_equal(arrays["W4A8/ledger"], saved["W4A8/ledger"])


def test_the_printed_table_holds_the_rows_within_80_columns(finished):
    folder, printed = finished
    table = printed.partition("W8A8: ")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert max(len(line) for line in printed.replace(str(folder), "").splitlines()) <= 120
    for row in store.load(folder)[2]:
        line = next(s for s in printed.splitlines() if s.split()[:1] == [width_name(row)])
        cells = line.replace(",", " ").split()[1:]
        numbers = [float(c) for c in cells if c != "yes"]
        tightest = row["tightest_bound_rmse"] / row["bounded_rmse"]
        names = ["exact_relative_residual", "path_kl", "w2_lower", "w2"]
        assert numbers == pytest.approx(
            [row["measured_rmse"], row["predicted_rmse"], tightest, *(row[n] for n in names)],
            rel=0.051,
        )
    assert printed.count(" %  ") == 10  # five cells for each of two widths


@pytest.mark.parametrize("bits", [0, 17])
def test_a_width_outside_1_to_16_is_refused(checkpoint, tmp_path, refused, bits):
    assert str(bits) in refused([*flags(checkpoint, tmp_path), "--activation-bits", str(bits)])


def test_zero_samples_are_refused(checkpoint, tmp_path, refused):
    error = refused([*flags(checkpoint, tmp_path), "--num-samples", "0"])
    assert "num_samples = 0" in error


def test_unpairable_widths_are_refused(checkpoint, tmp_path, refused):
    error = refused([*flags(checkpoint, tmp_path), "--activation-bits", "8", "6", "4"])
    assert "2 weight widths and 3 activation widths" in error


def test_an_unknown_site_is_refused_with_names_like_it(checkpoint, tmp_path, refused):
    assert "conv_in/kernel" in refused(flags(checkpoint, tmp_path, "--sites", "conv_inn/kernel"))


def test_a_checkpoint_of_another_network_is_refused(tmp_path, refused):
    path = worlds.save_tiny(tmp_path / "wrong")
    config = json.loads((path / "config.json").read_text())
    config["arguments"]["channels"] = [16]
    (path / "config.json").write_text(json.dumps(config))
    (path / "SHA256SUMS").unlink()
    assert str(path) in refused(flags(path, tmp_path / "out"))


def test_a_checkpoint_with_nan_is_refused(tmp_path, refused):
    values = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), worlds.tiny_params())
    path = worlds.save_tiny(tmp_path / "nan", values=values)
    assert "NaN" in refused(flags(path, tmp_path / "out"))


def test_every_bound_is_printed_and_saved_with_its_kind_and_assumption(finished):
    folder, printed = finished
    saved = store.load(folder)[0]["provenance"]["bounds"]
    assert [bound["name"] for bound in saved.values()] == [
        "gronwall", "remainder_bound", "path_kl", "w2_coupling", "w2_lower"
    ]  # fmt: skip
    for name, bound in saved.items():
        assert f"{name}: {bound['kind']}; {bound['assumption']}" in printed


def test_the_interval_of_predicted_over_measured_is_printed_and_holds_the_ratio(finished):
    folder, printed = finished
    for row in store.load(folder)[2]:
        low, high = (row[f"predicted_over_measured_{end}"] for end in ("low", "high"))
        ratio = row["predicted_rmse"] / row["measured_rmse"]
        assert row["predicted_over_measured"] == pytest.approx(ratio, rel=1e-5)
        assert low <= ratio <= high
        text = f"{tables.number(low)} to {tables.number(high)}"
        assert any(line.startswith(width_name(row)) and text in line
                   for line in printed.splitlines())  # fmt: skip


@pytest.mark.slow
def test_a_network_of_vectors_is_an_argument_like_any_other(tmp_path):
    words = ["--checkpoint", "mixture_mlp", "--quick", "--output", str(tmp_path)]
    assert command.main(error_bounds.EXPERIMENT, words) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert all(row["bounds_hold"] for row in rows if "bounds_hold" in row)
    assert store.load(tmp_path)[1]["samples"].shape[1:] == (2,)
    assert (tmp_path / "samples.png").is_file()


@pytest.mark.parametrize(
    ("shape", "picture"), [((3,), (1, 3)), ((4, 3), (4, 3)), ((5, 2, 3, 1), (2, 15)),
                           ((2, 3, 1), (2, 3)), ((2, 3, 3), (2, 3, 3))],
)  # fmt: skip
def test_samples_of_any_rank_are_pictures_with_frames_side_by_side(shape, picture):
    x = np.random.default_rng(0).uniform(-1, 1, (2, *shape))
    pictures = plots._picture(x)
    assert pictures.shape == (2, *picture)
    if len(shape) == 4:
        np.testing.assert_array_equal(pictures[:, :, 3:6], (x[:, 1, ..., 0] + 1) / 2)

"""The laws of error growth: their fits on made-up rows, and a miniature run from end to end."""

import dataclasses
import io
import json
from contextlib import redirect_stdout

import jax
import numpy as np
import pytest

from experiments.harness import command, store
from experiments.propagation_laws import experiment as propagation_laws
from experiments.propagation_laws import measure, plots
from qdiffjax import precision
from qdiffjax.denoiser import Denoiser
from qdiffjax.quant import ActivationGrid, IntFormat
from tests import worlds

CONFIG = propagation_laws.Config()


def rows(medians):
    """Rows of cases: {Case: median error}."""
    return [{"kind": "case", **case._asdict(), "median": m} for case, m in medians.items()]


def test_exponents_and_the_crossover_are_those_of_the_rows():
    """Nearest rounding with MSE 1 + 40 / N and stochastic with 2 * 40 / N meet at N = 40."""
    found = {}
    for n in CONFIG.num_steps:
        found[measure.Case("ddim", n, "W", 8)] = 0.01
        found[measure.Case("ddim", n, "A", 8)] = np.sqrt(1 + 40 / n) / 100
        found[measure.Case("ddim", n, "SR", 8)] = np.sqrt(80 / n) / 100
    laws = {row.get("law", row["kind"]): row for row in measure.laws(rows(found), CONFIG)}
    assert laws["W8 against steps"]["exponent"] == pytest.approx(0.0, abs=1e-12)
    assert laws["SR8 against steps"]["exponent"] == pytest.approx(-0.5)
    assert laws["SR8 against steps"]["theory"] == -0.5
    crossing = laws["crossover"]
    assert crossing["model"] == pytest.approx(40.0)
    assert (crossing["worse_until"], crossing["better_from"]) == (20, 50)


def test_the_law_in_bits_leaves_out_errors_as_large_as_the_signal():
    found = {measure.Case("ddim", 50, "W", b): 2.0**-b for b in (8, 7, 6, 5, 4)}
    found[measure.Case("ddim", 50, "W", 4)] = 0.9
    (law,) = measure.laws(rows(found), CONFIG)
    assert law["law"] == "W against bits 5 to 8"
    assert law["exponent"] == pytest.approx(-1.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A miniature run from the command line: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("laws")
    checkpoint = worlds.save_tiny(tmp_path_factory.mktemp("checkpoint"))
    flags = [
        "--checkpoint", str(checkpoint), "--output", str(folder), "--num-steps", "2", "3", "4",
        "--middle", "4", "--bits", "8", "6", "4", "--samplers", "dpmpp-2m", "--num-samples", "3",
        "--num-checked", "2", "--num-draws", "2", "--sites", "conv_in*",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(measure, "PARTS", ("SR",))
        assert command.main(propagation_laws.EXPERIMENT, flags) == 0
    return folder, printed.getvalue()


@pytest.mark.slow
def test_a_run_writes_a_row_for_every_case_and_its_figure(finished):
    folder, printed = finished
    config, arrays, found = store.load(folder)
    cases = [r for r in found if r["kind"] == "case"]
    assert len(cases) == 3 + 2 + 1
    assert (folder / "laws.png").stat().st_size > 10_000
    for row in cases:
        errors = arrays[f"{measure.Case(*(row[k] for k in measure.Case._fields)).name}/errors"]
        assert row["rms"] == pytest.approx(np.sqrt(np.mean(errors**2)))
        assert row["rms"] > 0
        assert row["bound_over_measured_min"] >= 1 - 1e-4
        assert 0 < row["kappa"] <= row["num_calls"]
    assert "dpmpp-2m" in printed
    assert config["provenance"]["seconds"] > 0


@pytest.mark.slow
def test_fewer_bits_and_other_random_bits_change_the_error(finished):
    _, arrays, _ = store.load(finished[0])
    eight, four = (arrays[f"ddim_4_SR{bits}x2/errors"] for bits in (8, 4))
    assert np.all(four > 2 * eight)
    assert eight.size == 2 * 3  # draws times samples
    assert len(np.unique(eight)) == eight.size


def test_every_call_and_operand_rounds_with_bits_of_its_own():
    from qdiffjax.precision import Quantized

    how = ActivationGrid(IntFormat(np.asarray(4), narrow=False), 1.0)
    how = jax.tree.map(np.float32, how)
    inputs = {"a": precision.SiteQuant(None, (how,)), "b": precision.SiteQuant(None, (how, how))}
    q = Quantized(Denoiser(lambda params, x, t: x, {}), inputs)
    found = measure.rounding_keys(q, 5, jax.random.key(0))
    keys = [a.key for how in found.values() for a in how.activations]
    data = np.concatenate([np.asarray(jax.random.key_data(k)) for k in keys])
    assert len(np.unique(data, axis=0)) == len(data) == 15
    assert found["b"].activations[1].scale.shape == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": (8, 17, 4)}, "got 17 bits"),
        ({"samplers": ("dimm",)}, "got samplers = 'dimm', expected one of ddim"),
        ({"num_steps": (10, 20)}, "at least three"),
        ({"num_checked": 65}, "got 65 checked of 64"),
    ],
)
def test_what_cannot_be_run_is_refused_first(change, message):
    with pytest.raises(ValueError, match=message):
        command.check(dataclasses.replace(CONFIG, **change))


@pytest.mark.slow
def test_rows_are_json(finished):
    assert json.loads((finished[0] / "summary.json").read_text())


def test_a_row_without_a_number_prints_as_a_dash_when_it_is_read_again():
    """An error that is exactly zero has no kappa: NaN when measured, null in the files."""
    columns = dict(plots.COLUMNS)
    assert columns["kappa"]({"kappa": None}) == "-"
    assert columns["kappa"]({"kappa": 1.234}) == "1.23"

"""Figures come from saved results alone."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from experiments.error_bounds import plots
from experiments.harness import command, store
from experiments.number_formats import plots as number_formats
from experiments.random_trials import plots as trials
from paper_figures import __main__ as paper
from qdiffjax import _looks
from qdiffjax.results import save

ROOT = Path(__file__).parents[1]
NUM_STEPS, NUM_SAMPLES, SITES = 4, 8, ("input", "conv_in/kernel", "output")
NAMES = [
    "fig1_error_bounds", "fig2_ledger", "fig3_samples", "fig4_number_formats",
    "fig5_propagation_laws", "fig6_spectra", "fig7_first_order_failure", "fig8_divergence_vs_bits",
    "fig9_clipping", "fig9_clipping_dit", "fig10_certificates", "fig11_random_trials",
    "fig12_hardware_cost", "fig13_divergence_steps", "fig14_shaping", "fig15_feedback",
    "fig16_random_recipes", "fig17_cures", "fig18_coverage",
    "fig19_evaluate", "fig20_allocate", "fig21_faults", "fig22_table1",
    "fig23_dynamic", "fig24_shaping_forecast",
]  # fmt: skip
COMMITTED = ["propagation_laws", "spectra", "first_order_failure", "divergence_vs_bits",
             "clipping", "clipping_dit", "certificates", "random_trials",
             "hardware_cost", "shaping", "feedback", "random_recipes", "cures",
             "coverage", "evaluate", "allocate", "faults", "table1", "training_aware",
             "dynamic", "shaping_forecast"]  # fmt: skip


def write_results(folder, widths=((8, 8), (4, 8))):
    """Results in the form of `experiments.error_bounds`, with made-up numbers."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(NUM_SAMPLES, 8, 8, 1))
    growth = np.linspace(0, 1, NUM_STEPS + 1)
    arrays = {"samples": images, "signal_rms": np.ones(NUM_STEPS + 1)}
    for w, a in widths:
        bound = np.outer(growth, rng.uniform(8, 16, 5))
        bound[-1, 0] = np.inf  # a bound that overflowed
        parts = {
            "error_rms": growth / w, "predicted_rms": growth / w, "gronwall": bound,
            "remainder": bound / 2, "measured_norms": np.outer(growth, np.arange(1.0, 6.0)),
            "ledger": rng.normal(size=(NUM_STEPS, 3)) ** 2 - 0.1,
            "sites": np.array(SITES), "samples_hat": images + rng.normal(size=images.shape) / w,
        }  # fmt: skip
        arrays |= {f"W{w}A{a}/{key}": value for key, value in parts.items()}
    rows = [{"weight_bits": w, "activation_bits": a} for w, a in widths]
    config = {"checkpoint": "tiny", "sampler": "ddim", "num_steps": NUM_STEPS}
    save(folder, config, arrays, rows)
    return folder


def write_formats(folder):
    """Results in the form of `experiments.number_formats`, with made-up numbers."""
    formats = [("integer", "int4", 4.0), ("integer", "int8", 8.0), ("float", "bf16", 16.0)]
    sources = np.array(["gaussian", "weights", "activations"])
    measured = np.array([[1e-2, 2e-2, 4e-2], [1e-4, 2e-4, 4e-4], [1e-6, 2e-6, 4e-6]])
    arrays = {
        "measured": measured, "predicted": measured * np.array([1.0, 1.02, 0.9]),
        "signal": np.ones(3), "formats": np.array([name for _, name, _ in formats]),
        "sources": sources, "tensors": sources,
    }  # fmt: skip
    rows = [
        {"source": str(source), "family": family, "format": name, "bits": bits,
         "sqnr_measured_db": 6 * bits + i, "sqnr_predicted_db": 6 * bits + i + 0.1}
        for family, name, bits in formats for i, source in enumerate(sources)
    ]  # fmt: skip
    save(folder, {}, arrays, rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder / "error_bounds")
    write_formats(folder / "number_formats")
    for name in COMMITTED:
        (folder / name).symlink_to(store.RESULTS / name)
    return folder


@pytest.mark.slow
def test_every_figure_is_rebuilt_without_jax(results, tmp_path):
    code = (
        "import sys; from paper_figures.__main__ import main; "
        f"code = main(['--results', {str(results)!r}, '--output', {str(tmp_path)!r}]); "
        "assert not [m for m in sys.modules if m in ('jax', 'qdiffjax.analysis')]; "
        "sys.exit(code)"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    found = sorted(path.name for path in tmp_path.iterdir())
    figures = [f"{name}.{suffix}" for name in NAMES for suffix in ("pdf", "png")]
    assert found == sorted([*figures, *(f"{n}.{s}" for n in paper.TABLES for s in ("md", "tex"))])
    table = (tmp_path / "tab1_table1.tex").read_text()
    told = [row for row in store.load(results / "table1")[2] if row["kind"] == "form"]
    num = 1 + 2 * len({row["recipe"] for row in told})  # what forms are; quality and cost of each
    assert table.count(r"\begin{tabular}") == table.count(r"\bottomrule") == num
    for row in told:
        line = f"{row['technique']} & {row['form']} & {row['bits']:.2f} & {row['rmse']:.3g} ["
        assert line in table


@pytest.mark.slow
def test_every_committed_result_of_an_experiment_with_a_figure_is_drawn(tmp_path, capsys):
    assert paper.main(["--output", str(tmp_path)]) == 0
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert {"fig14_shaping_samplers", "fig17_cures_unet", "fig20_allocate_baselines"} <= drawn
    assert len(capsys.readouterr().out.split()) == len(list(tmp_path.iterdir()))


def test_missing_results_are_named_with_the_command_that_makes_them(tmp_path, capsys):
    assert paper.main(["--results", str(tmp_path), "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "error_bounds") in error
    assert "python -m paper_figures --recompute" in error


def test_recompute_runs_each_experiment_into_its_own_folder(tmp_path, monkeypatch):
    commands = []
    save(tmp_path / "clipping_dit", {"checkpoint": "fashion_dit"}, {}, [])
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command[2:]))
    paper.main(["--recompute", "--results", str(tmp_path), "--output", str(tmp_path)])
    runs = {Path(output).name: (name, more) for name, _, output, *more in commands}
    assert len(runs) == len(commands)
    assert runs.pop("clipping_dit") == ("experiments.clipping", ["--checkpoint", "fashion_dit"])
    names = {experiment for experiment, *_ in paper.FIGURES.values()}
    assert runs == {name: (f"experiments.{name}", []) for name in names}


SUFFIXED = [(name, suffix) for name in sorted({name for name, *_ in paper.FIGURES.values()})
            for suffix in paper.suffixes(name, store.RESULTS)[1:]]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix"), SUFFIXED, ids=map("".join, SUFFIXED))
def test_recompute_runs_other_results_as_they_were_run(name, suffix):
    stored = store.load(store.RESULTS / f"{name}{suffix}")[0]
    found = importlib.import_module(f"experiments.{name}.experiment").EXPERIMENT
    config, _ = command.parse(found, paper.flags(stored))
    told = json.loads(json.dumps(dataclasses.asdict(config)))
    several = lambda value: value if isinstance(value, list) else [value]  # noqa: E731
    for key in stored.keys() - {"provenance"}:  # one value of an option that takes several now
        assert several(told[key]) == several(stored[key])


def test_figures_are_in_the_order_of_their_numbers():
    assert list(paper.FIGURES) == [name for name in NAMES if not name.endswith("_dit")]


def test_results_of_another_network_are_a_figure_of_their_own(results):
    assert paper.suffixes("clipping", results) == ["", "_dit"]
    assert paper.suffixes("certificates", results) == [""]


def test_results_of_an_experiment_with_a_longer_name_are_no_figure_of_the_shorter():
    found = paper.suffixes("shaping", store.RESULTS)
    assert not {"_forecast", "_forecast_long"} & set(found)
    assert {"_dit", "_w4"} <= set(found)


def test_trials_show_the_saved_ratios_their_tail_and_the_finite_share():
    log_ratio = np.array([0.0, 0.5, 1.0, 2.0, 9.0, -1e-9, np.nan], np.float32)
    row = {"bound": "some bound", "kind": "certified", "guaranteed": False, "finite": 0.75,
           "violations": 3, "comparisons": 1234}  # fmt: skip
    config = dict.fromkeys(["num_network", "num_data", "num_multistep", "num_gaussian"], 2)
    fig = trials.draw(config, {"log10_ratio/some bound": log_ratio}, [row])
    ax, side = fig.axes
    median = next(line for line in ax.get_lines() if line.get_marker() == "o")
    np.testing.assert_allclose(median.get_xydata(), [[0.75, 0]], rtol=1e-6)
    (density,) = ax.patches
    heights, edges, _ = density.get_data()
    assert np.all(heights[edges[:-1] < 0] == 0)  # what is rounding is no violation
    assert [text.get_text() for text in ax.texts] == ["16.7% beyond"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["some bound *"]
    assert side.patches[0].get_width() == 75
    assert side.texts[0].get_text() == "3 of 1,234"


@pytest.mark.slow
def test_the_same_figure_gives_the_same_bytes(results, tmp_path):
    loaded = store.load(results / "error_bounds")
    first, again = (paper.save(plots.draw_errors(*loaded), name, tmp_path) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_curves_are_the_saved_numbers_per_pixel(results):
    config, arrays, rows = store.load(results / "error_bounds")
    axes = plots.draw_errors(config, arrays, rows).axes
    ax, below = axes[1], axes[3]
    assert ax.get_title() == "W4A8"
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(lines["error, measured"][1:], arrays["W4A8/error_rms"][1:])
    label = "measured, median of the bounded samples"
    np.testing.assert_allclose(lines[label][1:], arrays["W4A8/measured_norms"][1:, 2] / 8.0)
    # Five samples, the first infinite at the end: the median is the third of the sorted ones.
    median = np.sort(arrays["W4A8/gronwall"], axis=1)[:, 2] / 8.0  # 64 pixels
    np.testing.assert_allclose(lines["Grönwall bound, median"][1:], median[1:])
    ratios = [line.get_ydata() for line in below.get_lines() if len(line.get_ydata()) == NUM_STEPS]
    own = arrays["W4A8/gronwall"][1:] / arrays["W4A8/measured_norms"][1:]
    np.testing.assert_allclose(ratios[-4:], own.T[1:])  # every bounded sample's own


def test_ledger_panels_show_shares_that_sum_to_100_percent(results):
    config, arrays, rows = store.load(results / "error_bounds")
    axes = plots.draw_ledger(config, arrays, rows).axes
    image = axes[0].get_images()[0].get_array()
    num = len(SITES)  # a block each; then the sites themselves, by name
    assert image.shape == (2 * num, NUM_STEPS)
    assert image[:num].sum() == pytest.approx(100.0)
    assert image[num:].sum() == pytest.approx(100.0)
    assert sum(bar.get_width() for bar in axes[1].patches) == pytest.approx(200.0)
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == ["input", "conv_in", "output"] * 2
    (marks,) = (line.get_xydata() for line in axes[0].get_lines() if line.get_marker() == ".")
    negative = np.argwhere(image < -0.01 * np.abs(image).max())[:, ::-1]
    np.testing.assert_array_equal(np.sort(marks, 0), np.sort(negative, 0))


@pytest.mark.parametrize("num", [1, 4])
def test_any_number_of_widths_is_drawn(tmp_path, num):
    loaded = store.load(write_results(tmp_path, [(w, 8) for w in range(8, 8 - num, -1)]))
    assert [ax.get_title() for ax in plots.draw_errors(*loaded).axes[:num]] == [
        f"W{w}A8" for w in range(8, 8 - num, -1)
    ]
    assert len(plots.draw_samples(*loaded).axes) == (1 + 2 * num) * NUM_SAMPLES
    assert len(plots.draw_ledger(*loaded).axes) == 2 * num + 1  # the last is the colour bar


def test_points_of_the_formats_are_the_saved_numbers(results):
    axes = number_formats.draw(*store.load(results / "number_formats")).axes
    assert [ax.get_title() for ax in axes[:3]] == [
        "Gaussian", "weights, by output channel", "activations, by tensor"
    ]  # fmt: skip
    points = {line.get_label(): line.get_xydata() for line in axes[1].get_lines()}
    np.testing.assert_allclose(points["integer"], [[4, 25], [8, 49]])
    assert "float" not in points  # 16 bits are beyond the axis
    middles = {line.get_label().split(":")[0]: line.get_ydata() for line in axes[-1].get_lines()}
    np.testing.assert_allclose(middles["weights"], 2.0)
    np.testing.assert_allclose(middles["activations"], -10.0)


DRAWN = [
    pytest.param(folder.name, module, id=folder.name)
    for folder in sorted(store.RESULTS.iterdir())
    for module in [folder.name.removesuffix("_dit")]
    if (ROOT / "experiments" / module / "plots.py").exists()
]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "module"), DRAWN)
def test_figures_have_their_printed_size_letters_that_can_be_read_and_no_title(folder, module):
    plots = importlib.import_module(f"experiments.{module}.plots")
    finished = store.load(store.RESULTS / folder)
    figures = getattr(plots, "FIGURES", None) or {"all": plots.draw}
    figures = figures(*finished) if callable(figures) else figures
    for draw in figures.values():
        figure = draw(*finished)
        assert figure.get_figwidth() == _looks.WIDTH
        assert figure.get_figheight() <= 9
        assert figure.get_suptitle() == ""
        figure.draw_without_rendering()
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        assert min(t.get_fontsize() for t in texts) >= _looks.LEAST_LETTERS

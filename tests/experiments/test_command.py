"""The command line that experiments share."""

import dataclasses
import errno
import json
import os
import runpy
import sys
import typing

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.clipping import experiment as clipping
from experiments.harness import command, store
from experiments.harness.command import option
from qdiffjax import _files
from qdiffjax import _tables as tables


def even(bits):
    if bits % 2 and bits != 1:
        raise ValueError("got odd bits,\n expected even ones.")


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = option("net", "A network.", choices=["net", "small", "another"])
    bits: tuple[int, ...] = option((8, 4), "Widths.", least=1, most=16, each=even)
    tolerance: float = option(0.5, "Of what.", above=-1, below=2)
    loud: bool = option(False, "Shout.")

    def check(self):
        if self.tolerance < 0:
            raise ValueError("got a negative\n tolerance, expected a positive one.")


def run(config, **options):
    done = command.parts(map(str, config.bits), measure, config.checkpoint, **options)
    arrays = {name: part[0]["double"] for name, part in done.items()}
    return arrays, [row for _, row in done.values()]


def doubled(name):
    return {"double": np.array(2 * int(name))}, {"bits": int(name)}


measure = doubled


class Plots:
    FIGURES: typing.ClassVar = {
        "two": lambda config, arrays, rows: Figure(figsize=(len(arrays), len(rows)))
    }

    @staticmethod
    def table(rows):
        return [tables.columns(rows, [("width", lambda r: r["bits"]), ("none", lambda r: None)])]


EXPERIMENT = command.experiment(Config, run, plots=Plots)


def test_flags_are_the_fields_of_the_config():
    config, output = command.parse(EXPERIMENT, ["--bits", "2", "4", "6", "--tolerance", "1"])
    assert config == Config(bits=(2, 4, 6), tolerance=1.0)
    assert output == f"runs/{EXPERIMENT.name}"
    assert command.parse(EXPERIMENT, [])[0] == Config()


def test_a_switch_is_off_unless_it_is_named():
    assert not command.parse(EXPERIMENT, [])[0].loud
    assert command.parse(EXPERIMENT, ["--loud"])[0].loud


def test_quick_gives_way_to_what_is_said_even_where_that_is_the_default():
    quick = EXPERIMENT._replace(quick={"bits": (2,), "checkpoint": "small"})
    assert command.parse(quick, ["--quick"])[0] == Config("small", (2,))
    said = ["--quick", "--bits", "8", "4", "--tolerance", "1"]
    assert command.parse(quick, said)[0] == Config("small", (8, 4), 1.0)
    assert command.parse(quick, [])[0] == Config()


def test_an_experiment_without_quick_settings_has_no_such_flag():
    with pytest.raises(SystemExit) as done:
        command.parse(EXPERIMENT, ["--quick"])
    assert done.value.code == 2


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as done:
        command.parse(EXPERIMENT, ["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    words = ["A network. (net, small, another; default: net)", "Widths. (default: [8, 4])",
             "Shout.", "--output", EXPERIMENT.doc, f"usage: {EXPERIMENT.prog}"]  # fmt: skip
    assert all(word in text for word in words)


def test_results_are_written_drawn_and_printed(tmp_path, capsys):
    assert command.main(EXPERIMENT, ["--output", str(tmp_path)]) == 0
    config, arrays, rows = store.load(tmp_path)
    assert (config["tolerance"], int(arrays["8"]), rows) == (0.5, 16, [{"bits": 8}, {"bits": 4}])
    assert config["provenance"]["seconds"] > 0
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["width", "none"] in lines
    assert lines.index(["8"]) + 1 == lines.index(["4"])


def small(config, *, progress):
    return {"total": np.array(sum(config.bits))}, [{"name": "sum", "value": 1 / 3, "bits": 12}]


def test_a_small_experiment_keeps_no_parts_draws_nothing_and_prints_names_and_values(
    tmp_path, capsys
):
    experiment = command.experiment(Config, small, notes={"unit": "bits"})
    assert command.main(experiment, ["--output", str(tmp_path)]) == 0
    config, arrays, _ = store.load(tmp_path)
    assert int(arrays["total"]) == 12
    assert config["provenance"]["unit"] == "bits"
    assert capsys.readouterr().out.splitlines()[0] == "sum  value 0.333  bits 12"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "arrays.npz", "config.json", "summary.json"
    ]  # fmt: skip


def interrupted_at_once(*_, **__):
    raise KeyboardInterrupt


def test_only_an_experiment_that_resumes_promises_it(tmp_path, capsys):
    experiment = EXPERIMENT._replace(measure=interrupted_at_once)
    assert command.main(experiment, ["--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_cannot_be_run_is_one_line_and_code_2(tmp_path, capsys):
    argv = ["--tolerance", "-0.5", "--output", str(tmp_path / "out")]
    assert command.main(EXPERIMENT, argv) == 2
    err = capsys.readouterr().err
    assert err == "error: got a negative tolerance, expected a positive one.\n"
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_resumes_after_the_last_part_done(tmp_path, monkeypatch, capsys):
    done = []

    def interrupted(name):
        if name == "4":
            raise KeyboardInterrupt
        done.append(name)
        return doubled(name)

    def counted(name):
        done.append(name)
        return doubled(name)

    argv = ["--output", str(tmp_path)]
    monkeypatch.setattr(f"{__name__}.measure", interrupted)
    assert command.main(EXPERIMENT, argv) == 130
    assert "resumes" in capsys.readouterr().err
    monkeypatch.setattr(f"{__name__}.measure", counted)
    assert command.main(EXPERIMENT, argv) == 0
    assert done == ["8", "4"]
    assert command.main(EXPERIMENT, [*argv, "--checkpoint", "another"]) == 0
    assert done == ["8", "4", "8", "4"]


def test_rows_are_the_same_measured_and_read_again():
    kept = {}

    def measure(name):
        return {"a": np.arange(2.0)}, {"kappa": float("nan"), "list": (1, np.float32(2))}

    def run():
        return command.parts(["one"], measure, "mark", keep=lambda n, _, *part: kept.update(
            {n: (part[0], json.loads(json.dumps(part[1], allow_nan=False)))}
        ), kept=lambda n, _: kept.get(n))["one"][1]  # fmt: skip

    assert run() == run() == {"kappa": None, "list": [1, 2.0]}


@pytest.mark.parametrize("full", ["4.npz", "arrays.npz", "summary.json", "config.json", "two.png"])
def test_a_full_disk_is_one_line_and_what_was_finished_goes_on(full, tmp_path, monkeypatch, capsys):
    done, fsync = [], os.fsync
    monkeypatch.setattr(f"{__name__}.measure", lambda name: done.append(name) or doubled(name))
    writing = []

    def recorded(files):
        writing[:] = [path.name for path in files]
        return write(files)

    def no_space(descriptor):
        if full in writing:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    write = _files.write
    argv = ["--output", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(_files, "write", recorded)
        patch.setattr(os, "fsync", no_space)
        assert command.main(EXPERIMENT, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ")
    assert error.endswith("No space left on device\n")
    assert error.count("\n") == 1
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(_files.UNFINISHED)]
    assert command.main(EXPERIMENT, argv) == 0
    assert done == (["8", "4", "4"] if full == "4.npz" else ["8", "4"])
    assert store.load(tmp_path)[2] == [{"bits": 8}, {"bits": 4}]


def test_an_interrupt_while_results_are_written_is_said_and_goes_on(tmp_path, monkeypatch, capsys):
    argv = ["--output", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", interrupted_at_once)
        assert command.main(EXPERIMENT, argv) == 130
    assert capsys.readouterr().err.startswith("interrupted; the same command resumes")
    assert command.main(EXPERIMENT, argv) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bits": (8, 0)}, r"got bits = 0, expected at least 1;"),
        ({"bits": (17,)}, r"got bits = 17, expected at most 16;"),
        ({"bits": (3,)}, "got odd bits"),
        ({"tolerance": -1.0}, r"got tolerance = -1\.0, expected more than -1;"),
        ({"tolerance": float("nan")}, "got tolerance = nan"),
        ({"tolerance": 2.0}, r"got tolerance = 2\.0, expected less than 2;"),
        ({"tolerance": -0.5}, "got a negative"),
        ({"bits": (8, 8)}, r"got bits = \(8, 8\), expected each once;"),
        ({"bits": ()}, r"got no bits, expected at least one;"),
        ({"bits": (2**31,)}, r"expected at most 16|32 bits"),
        ({"tolerance": float("inf")}, r"got tolerance = inf, expected a finite number;"),
        ({"checkpoint": "big"}, r"got checkpoint = 'big', expected one of net, small, another;"),
    ],
)
def test_what_an_option_or_the_config_refuses_is_not_run(wrong, message):
    idle = EXPERIMENT._replace(measure=lambda *a, **k: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        idle.run(Config(**wrong))


def test_an_experiment_is_named_by_its_module():
    made = clipping.EXPERIMENT
    assert (made.name, made.prog) == ("clipping", "python -m experiments.clipping")
    assert made.doc == clipping.__doc__
    assert made.resumes


@pytest.mark.parametrize("name", ["bench_quant", "bench_kernels"])
def test_a_benchmark_under_its_old_name_says_the_new_one_and_runs(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    assert done.value.code == 0
    out, err = capsys.readouterr()
    new = f"experiments.{name.replace('bench_', 'bench.')}"
    assert err == f"experiments.{name} is now {new}: python -m {new}\n"
    assert f"usage: python -m {new} " in out

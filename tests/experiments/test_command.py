"""The command line that experiments share."""

import dataclasses

import numpy as np
import pytest

from experiments.harness import command, store


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = "net"
    bits: tuple[int, ...] = (8, 4)
    tolerance: float = 0.5
    loud: bool = False


def check(config):
    if config.tolerance < 0:
        raise ValueError("got a negative\n tolerance, expected a positive one.")


def run(config, **options):
    found = command.parts(map(str, config.bits), measure, config.checkpoint, **options)
    arrays = {name: part[0]["double"] for name, part in found.items()}
    return arrays, [row for _, row in found.values()]


def doubled(name):
    return {"double": np.array(2 * int(name))}, {"bits": int(name)}


measure = doubled


HELP = {"checkpoint": "a network", "bits": "widths", "tolerance": "of what", "loud": "shout"}
DRAWN = []
EXPERIMENT = command.Experiment(
    "doubles", "Doubles a number.", Config, HELP, check, run, DRAWN.append, print
)


def test_flags_are_the_fields_of_the_config():
    config, output = command.parse(EXPERIMENT, ["--bits", "3", "5", "7", "--tolerance", "1"])
    assert config == Config(bits=(3, 5, 7), tolerance=1.0)
    assert output == "runs/doubles"
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
    assert all(words in text for words in [*HELP.values(), "--output", "[8, 4]", EXPERIMENT.doc])


def test_results_are_written_drawn_and_printed(tmp_path, capsys):
    assert command.main(EXPERIMENT, ["--output", str(tmp_path)]) == 0
    config, arrays, rows = store.load(tmp_path)
    assert (config["tolerance"], int(arrays["8"]), rows) == (0.5, 16, [{"bits": 8}, {"bits": 4}])
    assert config["provenance"]["seconds"] > 0
    assert DRAWN[-1] == tmp_path
    assert "{'bits': 4}" in capsys.readouterr().out


def small(config, *, progress):
    return {"total": np.array(sum(config.bits))}, [{"name": "sum", "value": 1 / 3, "bits": 12}]


def test_a_small_experiment_keeps_no_parts_draws_nothing_and_prints_names_and_values(
    tmp_path, capsys
):
    experiment = command.Experiment("small", "Adds.", Config, HELP, check, small, resumes=False,
                                    notes={"unit": "bits"})  # fmt: skip
    assert command.main(experiment, ["--output", str(tmp_path)]) == 0
    config, arrays, _ = store.load(tmp_path)
    assert int(arrays["total"]) == 12
    assert config["provenance"]["unit"] == "bits"
    assert capsys.readouterr().out.splitlines()[0] == "sum  value 0.333  bits 12"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "arrays.npz", "config.json", "summary.json"
    ]  # fmt: skip


def interrupted_at_once(config, *, progress):
    raise KeyboardInterrupt


def test_only_an_experiment_that_resumes_promises_it(tmp_path, capsys):
    experiment = EXPERIMENT._replace(run=interrupted_at_once, resumes=False)
    assert command.main(experiment, ["--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_cannot_be_run_is_one_line_and_code_2(tmp_path, capsys):
    argv = ["--tolerance", "-1", "--output", str(tmp_path / "out")]
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

"""Command lines that cannot work: exit code 2 and one line on stderr, before any work.

The tables are made from the options themselves, so a new experiment or option is in them when it
is written.
"""

import dataclasses
import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.harness import command
from paper_figures import __main__ as paper_figures
from qdiffjax import __main__ as console
from qdiffjax import precision
from tests import worlds
from tests.experiments.test_conformance import (
    MODULES,
    NAMES,
    TRAIN,
    config_of,
    experiment,
    flag,
    main,
    outcome,
)

SECONDS = 5  # of processors, what a refusal may take: a wall clock sees other tests
NO_NUMBERS = ("x", "", "1e", "nan", "0x10", "1,5", "--")
NO_INTEGERS = (*NO_NUMBERS, "1.5", "1e3", "inf", "4294967296", "9" * 20, "-2147483649")
NO_FLOATS = (*NO_NUMBERS[:3], *NO_NUMBERS[4:], "nan", "inf", "-inf", "1e999")
CHECKPOINTS = ("checkpoint", "checkpoints", "networks", "latent")  # options that name networks


def refused_by(field):
    """Values that an option refuses by what it says of itself."""
    default, rules = field.default, field.metadata
    if default is False:
        return ["1", "no"]
    kind = type(default[0] if isinstance(default, tuple) and default else default)
    values = list({int: NO_INTEGERS, float: NO_FLOATS}.get(kind, ()))
    beyond = {"least": -1, "most": 1, "above": 0, "below": 0}
    values += [bound + beyond[limit] for limit, bound in rules["limits"].items()]
    values += ["no such choice", ""] if rules["choices"] else []
    values += ["W4B8", "W4 nearest sums"] if rules["each"] is precision.parse_recipe else []
    return values


def wrong_lines(name):
    """Lines (of words) that are wrong whatever the network and the machine are."""
    for field in dataclasses.fields(config_of(name)):
        option, default = flag(field), field.default
        yield from ((option, value) for value in refused_by(field))
        yield (f"{option}s",)
        if option != "--outputs":  # whose beginning is another option
            yield (option[:-1], "1")
        if default is not False:
            yield (option,)
        if isinstance(default, tuple) and default and not field.metadata["repeats"]:
            yield (option, default[0], default[0])
    yield from (("extra",), ("--no-such-flag",), ("--output",), ("--output", ""), ("-5",))


def wrong_output(folder):
    (folder / "file").write_text("precious")
    return [("--output", folder / "file"), ("--output", folder / "file" / "x"),
            ("--output", "/proc/no"), ("--output", "a" * 5000)]  # fmt: skip


COUNTED = []


def assert_refused(run, argv, capsys):
    start = time.process_time()
    code, lines = outcome(run, argv, capsys)
    assert code == 2, argv
    assert len(lines) == 1, (argv, lines)
    assert lines[0].startswith("error: "), (argv, lines)
    assert len(lines[0]) < 800, argv
    assert time.process_time() - start < SECONDS, argv
    COUNTED.append(argv)
    return lines[0]


def idle(name, monkeypatch):
    """The command, which fails where work begins."""

    def begins(*_, **__):
        pytest.fail("work began")

    if name == TRAIN:
        monkeypatch.setattr(f"{MODULES[TRAIN]}.train", begins)
        return main(TRAIN)
    return functools.partial(command.main, experiment(name)._replace(measure=begins))


@pytest.mark.parametrize("name", MODULES)
def test_a_wrong_line_is_one_line_and_exit_code_2_before_any_work(
    name, tmp_path, capsys, monkeypatch
):
    run, data = idle(name, monkeypatch), ("--data", "digits") if name == TRAIN else ()
    for argv in wrong_lines(name):
        assert_refused(run, (*data, *argv, *(() if "--output" in argv else
                                             ("--output", tmp_path / "out"))), capsys)  # fmt: skip
    for argv in wrong_output(tmp_path):
        words = assert_refused(run, (*data, *argv), capsys)
        # Where a compiler is missing, that is seen before.
        assert "cannot write results to" in words or "pip install" in words
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "out").exists()


def test_there_are_at_least_400_wrong_lines():
    assert sum(len(list(wrong_lines(name))) for name in MODULES) >= 400


# ------------------------------------------------ lines that are wrong for a network, or its files


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return worlds.save_tiny(tmp_path_factory.mktemp("net") / "net", worlds.TINY_DIT)


def named(name):
    """The options of an experiment that name networks."""
    return [f for f in dataclasses.fields(config_of(name)) if f.name in CHECKPOINTS]


def wrong_networks(folder):
    """Values of --checkpoint that name none."""
    (folder / "empty").mkdir()
    for stem, text in (("nonsense", "{"), ("other", '{"shape": [4, 4, 1], "network": "gpt"}')):
        (folder / stem / "params").mkdir(parents=True)
        (folder / stem / "config.json").write_text(text)
    return ["no_such_network", "", folder / "empty", folder / "nonsense", folder / "other",
            "/dev/null", "a" * 5000, "fashion_unet/params"]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if named(name)])
def test_what_is_no_network_is_one_line_and_exit_code_2(name, tmp_path, capsys):
    out = ("--output", tmp_path / "out")
    for field in named(name):
        for value in wrong_networks(tmp_path) if field.default else ():
            assert_refused(main(name), (flag(field), value, *out), capsys)
    assert not list((tmp_path / "out").glob("*.json"))


def of_network(net, name):
    """Lines that are wrong for a network of 50 times, whose sites have other names."""
    fields = {f.name: f for f in dataclasses.fields(config_of(name))}
    (which,) = ({"checkpoint", "checkpoints"} & set(fields)) or (None,)
    if which is None:
        return
    for steps in ("num_steps", "input_steps", "middle"):
        if steps in fields:
            more = ("50", "51", "49") if isinstance(fields[steps].default, tuple) else ("51",)
            yield (f"--{which}", net, flag(fields[steps]), *more)
    if "sites" in fields:
        for globs in (("nothing_like_it*",), ("!*",), ("*", "!*"), ("",)):
            yield (f"--{which}", net, "--sites", *globs)


TRAIN_WRONG = [
    ("--latent", "fashion_unet"), ("--latent", "/no"), ("--data", "/no"), ("--devices", "3"),
    ("--model", "dit", "--patch", "3"), ("--model", "dit", "--width", "7"),
    ("--channels", "7", "13"), ("--model", "autoencoder", "--classes"), ("--depth", "2"),
    ("--model", "dit", "--blocks", "2"), ("--latent-channels", "2"), ("--data", "/dev/null"),
    ("--model", "autoencoder", "--prediction", "v"), ("--data", __file__), ("--data", "/proc"),
]  # fmt: skip


@pytest.mark.parametrize("argv", TRAIN_WRONG, ids=" ".join)
def test_what_cannot_be_trained_is_one_line_and_exit_code_2(argv, tmp_path, capsys):
    data = () if "--data" in argv else ("--data", "digits")
    run = functools.partial(outcome_of_train, tmp_path)
    assert_refused(run, (*data, "--steps", "1", *argv), capsys)


def outcome_of_train(folder, argv):
    code = main(TRAIN)([*argv, "--output", str(folder / "out")])
    assert not (folder / "out" / "state").exists()
    return code


CONSOLE_WRONG = [
    (), ("nothing",), ("sites", "extra"), ("sites", "--model"), ("sites", "--modle", "x"),
    ("sites", "--model", "no_such"), ("sites", "--model", ""), ("sites", "--model", "no:such"),
    ("sites", "--model", "json:loads"), ("sites", "--model", "json:"), ("sites", "--model", ":x"),
    ("sites", "--model", "json:nothing"), ("sites", "--model", "/dev/null"),
    *(("report", "--num-steps", v) for v in (*NO_INTEGERS, "0", "-1", "1001")),
    *(("report", "--num-samples", v) for v in (*NO_INTEGERS, "0", "-1")),
    *(("report", "--seed", v) for v in (*NO_NUMBERS, "1.5", "-1", "4294967296")),
    *(("report", "--recipes", v) for v in ("", "W", "A", "W0", "W17A8", "8", "W8A8A8", "W-1", "X8",
                                           "W8.5", "W8A8 W4A8")),
    ("report", "--recipes"), ("report", "--recipes", "W8A8", "w8a8"),
    ("report", "--sampler", "x"), ("report", "--sampler"), ("report", "--sampler", "DDIM"),
    ("report", "--output", "/proc/no"), ("report", "--num", "3"), ("report", "--model", "no_such"),
]  # fmt: skip


@pytest.mark.parametrize("argv", CONSOLE_WRONG, ids=" ".join)
def test_a_wrong_line_of_the_console_is_one_line_and_exit_code_2(argv, capsys):
    assert_refused(console.main, argv, capsys)


def test_a_wrong_line_of_the_figures_is_one_line_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for argv in (("x",), ("--result", "x"), ("--results",), ("--results", tmp_path / "no"),
                 ("--results", tmp_path / "file"), ("--output", tmp_path / "file"),
                 ("--recompute", "x")):  # fmt: skip
        assert_refused(paper_figures.main, argv, capsys)


@pytest.mark.parametrize("words", ["nothing_like_it*: W4A8", "W4A8; steps 5: W8A8", "output: W4"])
def test_recipes_that_do_not_fit_a_network_or_its_sampler_are_refused_before_it_is_run(
    words, net, tmp_path, capsys, monkeypatch
):
    def begins(*_, **__):
        pytest.fail("work began")

    monkeypatch.setattr(precision, "calibrate", begins)
    argv = ("--checkpoint", net, "--num-steps", "5", "--recipe", words)
    assert_refused(main("experiments.evaluate"), (*argv, "--output", tmp_path / "out"), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_more_steps_than_a_network_has_and_sites_that_are_none_are_refused_in_time(
    name, net, tmp_path, capsys
):
    for argv in of_network(net, name):
        assert_refused(main(name), (*argv, "--output", tmp_path / "out"), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "argv"),
    [("experiments.error_bounds", ("--num-steps", "0")), ("experiments.train", ()),
     ("experiments.clipping", ("--widen", "nan")), ("qdiffjax", ("report", "--seed", "-1")),
     ("experiments.spectra", ("--checkpoint", "no_such")), ("paper_figures", ("--results", "no"))],
)  # fmt: skip
def test_a_process_says_the_same(module, argv, tmp_path):
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert time.monotonic() - start < 4 * SECONDS  # with JAX's import, beside other tests

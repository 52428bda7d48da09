"""The console command: what it prints, writes and refuses."""

import sys

import jax.numpy as jnp
import pytest

import qdiffjax as qd
from qdiffjax import __main__ as console

EYE = 0.5 * jnp.eye(3, dtype=jnp.float32)
DENOISER = qd.Denoiser(
    lambda params, x, t: jnp.tanh(x @ params["in"]) @ params["out"],
    {"in": EYE, "out": EYE}, qd.linear(), (3,),
)  # fmt: skip


def make():
    """Return the denoiser; a user's own function of this name is what --model asks for."""
    return DENOISER


OWN = f"{__name__}:make"


def test_sites_lists_where_a_network_of_ones_own_multiplies(capsys):
    assert console.main(["sites", "--model", OWN]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("input", "in", "out", "output"))


@pytest.mark.slow
def test_report_prints_a_page_and_writes_it_with_its_figures(tmp_path, capsys):
    flags = ["--num-steps", "2", "--num-samples", "3", "--recipes", "W6A6"]
    assert console.main(["report", "--model", OWN, *flags, "--output", str(tmp_path)]) == 0
    assert "Study of W6A6" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "W6A6").iterdir()}
    assert names >= {"report.txt", "report.html", "errors.png", "ledger.png", "arrays.npz"}
    again = qd.Study.load(tmp_path / "W6A6")
    assert str(qd.report(again)).strip() == (tmp_path / "W6A6" / "report.txt").read_text().strip()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["sites", "--model", "nosuch"], "no checkpoint 'nosuch'"),
        (["sites", "--model", "nosuch_module:make"], "No module named"),
        (["sites", "--model", f"{__name__}:nope"], "got no 'nope'"),
        (["sites", "--model", f"{__name__}:OWN"], "expected a qdiffjax.Denoiser"),
        (["report", "--recipes", "W99A8"], "got 99 bits"),
        (["report", "--recipes", "banana"], "expected a form like W4A8"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_two(flags, words, capsys):
    assert console.main(flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [[], ["report", "--num-steps", "0"], ["report", "--sampler", "x"], ["other"]]
)
def test_wrong_flags_are_refused_by_the_parser(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        console.main(flags)
    assert stopped.value.code == 2
    capsys.readouterr()


def test_the_users_own_folder_is_looked_into(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_network.py").write_text(f"from {__name__} import make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert console.main(["sites", "--model", "own_network:make"]) == 0
    capsys.readouterr()

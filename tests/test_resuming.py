"""What a run keeps: the last step done, of these settings, whole; or a word why not."""

import dataclasses
import os
import signal
import threading

import jax
import numpy as np
import pytest

from qdiffjax import _files, resuming, training
from tests.test_training import CONFIG, assert_same_bits, fit, loss_fn

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def interruptible():
    """Take SIGINT, which a process that a shell put into the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.mark.parametrize("when", ["before the step", "in the step", "after the step"])
def test_ctrl_c_at_any_moment_of_a_step_keeps_that_step_though_its_state_is_donated(
    tmp_path, monkeypatch, when
):
    whole, make = fit(), training.make_train_step

    def pressed(*args):
        train_step, num = make(*args), []

        def step(state, examples):
            num.append(None)
            press = len(num) == 3
            if press and when != "after the step":
                os.kill(os.getpid(), signal.SIGINT)
            result = train_step(state, examples)
            if press and when == "in the step":
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            if press and when == "after the step":
                os.kill(os.getpid(), signal.SIGINT)
            return result

        return step

    with monkeypatch.context() as patch:
        patch.setattr(training, "make_train_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            fit(directory=tmp_path)
    assert steps_in(tmp_path) == [3]
    assert_same_bits(fit(directory=tmp_path), whole)


def test_ctrl_c_pressed_twice_comes_through_at_once():
    with resuming.interrupts_later() as come_through:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            come_through()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_no_main_thread_or_ignores_ctrl_c_is_left_so():
    def work():
        with resuming.interrupts_later() as come_through:
            come_through()
            done.append(1)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [({"learning_rate": 0.2}, "got learning_rate = 0.2, expected learning_rate = 0.1"),
     ({"seed": 1}, "got seed = 1, expected seed = 0"),
     ({"num_steps": 12}, "got num_steps = 12, expected num_steps = 6")],
)  # fmt: skip
def test_a_run_goes_on_with_the_settings_it_began_with_alone(tmp_path, change, words):
    fit(directory=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=words):
        fit(dataclasses.replace(CONFIG, **change), directory=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    with pytest.raises(ValueError, match="got data = 'b', expected data = None"):
        fit(directory=tmp_path, about={"data": "b"})
    fit(dataclasses.replace(CONFIG, save_every=3), directory=tmp_path)


def test_a_damaged_state_gives_way_to_the_one_before_and_none_whole_is_said(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, save_every=2)
    whole = fit(config, directory=tmp_path)
    assert steps_in(tmp_path) == [4, 6]

    def damage(step):
        path = max((tmp_path / str(step)).rglob("d/*"), key=lambda p: p.stat().st_size)
        data = path.read_bytes()
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        return path

    path = damage(6)
    assert_same_bits(fit(config, directory=tmp_path), whole)
    assert f"note: {path}: got a file that was damaged" in capsys.readouterr().err
    assert steps_in(tmp_path) == [4, 6]
    damage(4), damage(6)
    with pytest.raises(ValueError, match=r"no state of the run .* is whole; choose an empty"):
        fit(config, directory=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: got a damaged file"):
        fit(config, directory=tmp_path)


def test_a_disk_that_is_full_is_said_and_what_was_kept_goes_on(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, save_every=2)
    whole, write = fit(config), _files.write

    def full(files):
        if "4" in {path.parent.name for path in files}:
            raise OSError("No space left on device")
        write(files)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "write", full)
        with pytest.raises(OSError, match="No space left on device"):
            fit(config, directory=tmp_path)
    assert_same_bits(fit(config, directory=tmp_path), whole)


@pytest.mark.parametrize("num_steps", [3, 53])
def test_a_loss_that_is_nan_after_the_last_point_of_the_curve_returns_no_parameters(num_steps):
    def undefined(params, key, batch):
        return loss_fn(params, key, batch) * np.float32("nan")

    config = dataclasses.replace(CONFIG, num_steps=num_steps, log_every=50)
    with pytest.raises(FloatingPointError, match=r"got nan, expected a finite number; lower the"):
        fit(config, undefined)


def test_parameters_that_the_last_step_breaks_are_not_returned():
    def breaks(params, key, batch):  # its value is 0, its derivative is not finite
        return 0 * loss_fn(params, key, batch) + jax.numpy.sqrt(jax.numpy.sum(0 * params["w"]))

    config = dataclasses.replace(CONFIG, num_steps=1, warmup_steps=0, log_every=1)
    with pytest.raises(FloatingPointError, match="parameters at step 1: got NaN or infinite"):
        fit(config, breaks)

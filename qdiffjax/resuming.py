"""What a training run keeps on disk, so that it goes on after Ctrl-C, a crash or a reboot.

<directory>/run.json           the settings that the run began with
<directory>/<step>/            the state after so many steps, by Orbax, and its SHA256SUMS
"""

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qdiffjax import _files

STATE = ("default", "_CHECKPOINT_METADATA")  # what Orbax writes for a step
NUM_KEPT = 2  # steps, so that one is left when the other is damaged


@contextlib.contextmanager
def interrupts_later() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back; yields a function that raises KeyboardInterrupt if it was pressed.

    A step that donates its state has none while it runs, so it must not be torn apart. Pressed
    again, Ctrl-C comes through at once.
    """
    pressed: list[int] = []

    def press(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    def come_through() -> None:
        if pressed:
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # which alone may set handlers
    before = signal.getsignal(signal.SIGINT) if is_main else None
    if before in (None, signal.SIG_IGN):
        yield come_through
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield come_through
    finally:
        signal.signal(signal.SIGINT, before)


def is_finite(tree) -> bool:
    """Return whether all numbers of a pytree are finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


@contextlib.contextmanager
def opened(directory: str | Path | None, settings: Mapping[str, Any]) -> Iterator[Any]:
    """Open the directory of a run, which its first opening ties to its settings; yields a manager.

    Args:
      directory: of the run; None keeps nothing and yields None.
      settings: what makes this run another than others, in JSON's terms.

    Raises:
      ValueError: the run there has other settings.
      OSError: the directory cannot be written to, or another run writes there.
    """
    if directory is None:
        yield None
        return
    import orbax.checkpoint as ocp

    directory = Path(directory).absolute()
    with _files.writer(directory):
        options = ocp.CheckpointManagerOptions(max_to_keep=NUM_KEPT, create=True)
        with ocp.CheckpointManager(directory, options=options) as manager:
            _tie(directory, json.loads(json.dumps(settings)), bool(manager.all_steps()))
            yield manager


def _tie(directory: Path, settings: dict[str, Any], began: bool) -> None:
    path, text = directory / "run.json", json.dumps(settings, indent=1) + "\n"
    if not path.is_file():
        if began:
            _files.say(f"the run in {directory} does not say its settings; taken to be these")
        _files.write({path: text.encode()})
        return
    remedy = "continue it with the settings it began with, or choose an empty folder"
    try:
        kept = json.loads(path.read_text())
        names = [n for n in {**kept, **settings} if kept.get(n) != settings.get(n)]
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: got a damaged file ({error}), expected the settings of a run; "
                         f"{remedy}.") from error  # fmt: skip
    if names:
        got, expected = (
            ", ".join(f"{n} = {of.get(n)!r}" for n in names) for of in (settings, kept)
        )
        raise ValueError(
            f"The run in {directory} does not fit this model or these settings: "
            f"got {got}, expected {expected}; {remedy}."
        )


def save(manager, step: int, state: Mapping[str, Any]) -> None:
    """Keep the state after `step`; a diverged one, which must not push a good one out, is not kept.

    Raises:
      OSError: it cannot be written; the state kept before is still there.
    """
    import orbax.checkpoint as ocp

    if not is_finite(state["params"]) or step == manager.latest_step():
        return
    folder = Path(manager.directory) / str(step)
    try:
        manager.save(step, args=ocp.args.StandardSave(dict(state)))
        manager.wait_until_finished()
    except (ValueError, RuntimeError, OSError) as error:  # TensorStore has its own for a full disk
        raise OSError(f"cannot write {folder}: {error}") from error
    _files.write({folder / _files.SUMS: _files.listed(_files.sums(folder, STATE))})


def restore(manager, like: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest state that is whole, None where none was kept.

    Damaged ones are removed, with a word.

    Args:
      manager: of `opened`.
      like: a state of the same shapes, on the devices that are to hold it.

    Raises:
      ValueError: the state is of another model, or all are damaged.
    """
    import orbax.checkpoint as ocp

    damage = None
    for step in sorted(manager.all_steps(), reverse=True):
        folder = Path(manager.directory) / str(step)
        try:
            if not _files.check_sums(folder, STATE, "an earlier one is taken"):
                _files.say(f"{folder} has no {_files.SUMS}: damage would not be seen")
        except ValueError as error:
            damage = error
            _files.say(str(error))
            continue
        if damage:
            manager.delete(manager.latest_step())
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(like))
        try:
            return manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # Orbax, TensorStore and zstd have many
            raise ValueError(
                f"The run in {manager.directory} (step {step}) does not fit this model or these "
                "settings; continue it with the settings it began with, or choose an empty folder."
            ) from error
    if damage:
        raise ValueError(f"no state of the run in {manager.directory} is whole; "
                         "choose an empty folder.") from damage  # fmt: skip
    return None

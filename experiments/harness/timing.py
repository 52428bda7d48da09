"""Time several functions fairly on a machine that does other things too."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from qdiffjax import diffusion

Errors = type[Exception] | tuple[type[Exception], ...]


class Timed(NamedTuple):
    """One of several functions that took turns: its seconds [num_rounds].

    wall, cpu: of a call, CPU time of all threads; base, base_cpu: of what it is compared with, in
    the same rounds.
    """

    name: str
    wall: np.ndarray
    cpu: np.ndarray
    base: np.ndarray
    base_cpu: np.ndarray

    @property
    def milliseconds(self) -> float:
        """Median wall time of a call."""
        return 1e3 * float(np.median(self.wall))

    @property
    def ratio(self) -> float:
        """Median over rounds of wall time over that of the base."""
        return float(np.median(self.wall / self.base))


def finish(fn: Callable, *args):
    """Call a function and wait for its results."""
    return jax.block_until_ready(fn(*args))


def scan(call_of: Callable, steps: diffusion.Steps) -> Callable:
    """Return the sampler (q, x_T) -> x_0, one scan over calls of call_of(q): what is compiled."""

    def sampler(q, x_T):
        return diffusion.sample(call_of(q), x_T, steps, keep_trajectory=False).x_0

    return sampler


def compare(
    turns: Mapping[str, Callable[[], Any]], num_rounds: int, *,
    base: Sequence[str] = (), num_calls: int = 1, seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, list[Timed]]:  # fmt: skip
    """Time functions in turns, each beside a base.

    Args:
      turns: functions that return when their work is done, by name.
      num_rounds: runs of each.
      base: names of what all are compared with, the fastest of them in each round; the first
        function if there are none.
      num_calls: calls in a turn; seconds are of one call.
      seed: of the order of turns, see `interleave`.

    Returns:
      Wall seconds and CPU seconds [num_rounds, functions], and a record of each function.
    """
    wall, cpu = (s / num_calls for s in interleave(turns, num_rounds, seed=seed))
    names = list(turns)
    columns = [names.index(name) for name in base or names[:1]]
    bases = [s[:, columns].min(axis=1) for s in (wall, cpu)]
    each = [Timed(*own, *bases) for own in zip(names, wall.T, cpu.T, strict=True)]
    return wall, cpu, each


def interleave(
    turns: Mapping[str, Callable[[], Any]], num_rounds: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Run every turn once a round, each round in another order, after two rounds to warm up.

    Threads of one library can spin for a while after its turn and steal from whoever comes next;
    a random order shares that out. CPU time holds on a busy machine, where wall time does not, but
    counts such spinning.

    Returns:
      Wall seconds and CPU seconds of all threads, each [num_rounds, num_turns].
    """
    rng = np.random.default_rng(seed)
    wall, cpu = np.zeros((2, num_rounds + 2, len(turns)))
    fns = list(turns.values())
    for n in range(num_rounds + 2):
        for i in rng.permutation(len(fns)):
            start, start_cpu = time.perf_counter(), time.process_time()
            fns[i]()
            wall[n, i] = time.perf_counter() - start
            cpu[n, i] = time.process_time() - start_cpu
    return wall[2:], cpu[2:]


def repeat(
    fn: Callable[[], Any], num_repeats: int, least: float, *, wait: Callable = jax.block_until_ready
) -> np.ndarray:
    """Return seconds of a call [num_repeats], means over calls that take `least` seconds.

    Args:
      fn: may return before its work is done.
      num_repeats: how often the mean is taken.
      least: seconds; at most 300 calls.
      wait: called on the last result, returns when all work is done.
    """

    def seconds(num_calls: int) -> float:
        start = time.perf_counter()
        for _ in range(num_calls):
            last = fn()
        wait(last)
        return (time.perf_counter() - start) / num_calls

    seconds(1)  # to warm up
    num_calls = int(np.clip(least / seconds(1), 1, 300))
    return np.array([seconds(num_calls) for _ in range(num_repeats)])


def attempt(job: Callable[[], Any], errors: Errors = Exception) -> Any:
    """Return what a job returns or, if it raises one of these errors, the error."""
    try:
        return job()
    except errors as error:
        return error


def available(
    makers: Mapping[str, Callable[[], Any]], errors: Errors = ImportError
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what makers make, and the first line of the error of those that fail."""
    made = {name: attempt(make, errors) for name, make in makers.items()}
    failed = {k: str(v).partition("\n")[0] for k, v in made.items() if isinstance(v, Exception)}
    return {name: value for name, value in made.items() if name not in failed}, failed


def words(error: Exception) -> str:
    """Return an error as a cell of a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def result(value: Any) -> Any:
    """Return what a job returned; raise it where it is the error that the job raised."""
    if isinstance(value, Exception):
        raise value
    return value


def with_limit(jobs: Iterable[Callable[[], Any]], seconds: float) -> list[Any]:
    """Return results of jobs that run side by side, or their exceptions; leave those that stall.

    A compiler that never returns cannot be stopped, but need not be waited for.
    """
    jobs = list(jobs)
    results: list[Any] = [TimeoutError(f"not compiled in {seconds:.0f} s") for _ in jobs]

    def work(i, job):
        results[i] = attempt(job)

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return list(results)

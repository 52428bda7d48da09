"""Time several functions fairly on a machine that does other things too."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


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

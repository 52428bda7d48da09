"""Intervals over seeds and noises."""

from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 1000


def of_seeds(stat_fn: Callable, *arrays, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of stat_fn(*arrays), seeds and noises resampled.

    Args:
      stat_fn: of arrays [seeds, noises] -> a number.
      arrays: of the same noises, which are resampled alike for all; seeds are of each array.
      seed: of the resampling.
    """
    rng, num = np.random.default_rng(seed), np.shape(arrays[0])[1]
    found = []
    for _ in range(NUM_RESAMPLES):
        noises = rng.integers(num, size=num)
        found.append(stat_fn(*(
            np.asarray(array)[rng.integers(len(array), size=len(array))][:, noises]
            for array in arrays
        )))  # fmt: skip
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))

"""Intervals over seeds and noises."""

from collections.abc import Callable

import numpy as np

NUM_RESAMPLES = 1000


def of_seeds(stat_fn: Callable, *arrays, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of stat_fn(*arrays), seeds and noises resampled.

    Args:
      stat_fn: of arrays [seeds, noises] -> a number.
      arrays: of the same noises, which are resampled alike for all; seeds are of each array. What
        has further axes keeps them together.
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


def of_shares(errors, seed: int) -> dict[str, float]:
    """Return the 95 % interval of an RMSE as {"low": ..., "high": ...}.

    Args:
      errors: [seeds, noises of a seed], each seed with noises of its own, so that a seed is what is
        resampled, and few of them show little; of one seed the noises are.
      seed: of the resampling.
    """
    units = np.asarray(errors) if len(errors) > 1 else np.asarray(errors).T
    low, high = of_seeds(lambda e: np.sqrt(np.mean(np.square(e))), units[None], seed=seed)
    return {"low": low, "high": high}

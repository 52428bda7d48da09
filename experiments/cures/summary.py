"""What the errors of all cases say together: medians, intervals, tests."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.cures.cases import NONE
from experiments.harness import intervals
from qdiffjax import metrics

PEAK = 2.0  # samples live in [-1, 1]


def rows(errors: Mapping[tuple[int, str, str], Mapping[str, Any]], runs, seed: int) -> list[dict]:
    """Return a row for each (recipe, case), over its seeds.

    Args:
      errors: by (seed, recipe, case): `errors` of the fresh noises, `chosen` of the other split.
      runs: the rows of the runs.
      seed: of the resampling.
    """
    pairs = list(dict.fromkeys((recipe, case) for _, recipe, case in errors))
    table = {pair: np.stack([each["errors"] for (_, *key), each in errors.items()
                             if tuple(key) == pair]) for pair in pairs}  # fmt: skip
    choice = {pair: np.median(np.stack([each["chosen"] for (_, *key), each in errors.items()
                                        if tuple(key) == pair])) for pair in pairs}  # fmt: skip
    told = []
    for recipe, case in pairs:
        values, base = table[recipe, case], table[recipe, NONE]
        own = [run for run in runs if (run["recipe"], run["case"]) == (recipe, case)]
        low, high = intervals.of_seeds(recovered, values, base, seed=seed)
        plain = [run for run in runs if (run["recipe"], run["case"]) == (recipe, NONE)]
        best = min((c for r, c in pairs if r == recipe), key=lambda c: choice[recipe, c])
        told.append({
            "kind": "cure", "recipe": recipe, "case": case, "median": float(np.median(values)),
            "mean": float(np.mean(values)), "most": float(np.quantile(values, 0.9)),
            "rms": float(np.sqrt(np.mean(values**2))),
            "psnr": float(20 * np.log10(PEAK / np.sqrt(np.mean(values**2)))),
            "recovered": recovered(values, base),
            "low": low, "high": high, "p": p_value(values, base), "is_best": best == case,
            **{name: mean_of(own, name)
               for name in ("bits", "evaluations", "learned", "seconds", "ceiling")},
            "overhead": overhead(own, plain),
        })  # fmt: skip
    for row, p in zip(told, metrics.holm([row["p"] for row in told]), strict=True):
        row["holm"] = p
    return told


def mean_of(runs, name: str) -> float | None:
    """Return the mean over runs; None where they do not say it."""
    values = [run.get(name) for run in runs]
    return None if None in values else float(np.mean(values))


def overhead(runs, plain) -> float | None:
    """Return the arithmetic of a call and its step over that without cures, less 1."""
    ours, base = mean_of(runs, "flops"), mean_of(plain, "flops")
    return None if ours is None or base is None else ours / base - 1


def recovered(values, base) -> float:
    """Return 1 - median(values) / median(base)."""
    return float(1 - np.median(values) / np.median(base))


def p_value(values, base) -> float:
    """Return Wilcoxon's p of the paired log ratios [seeds, noises], averaged over seeds."""
    return metrics.wilcoxon_p(np.mean(np.log(values) - np.log(base), 0))

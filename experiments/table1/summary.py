"""What the seeds of a form say together, and what becomes of the survey's adjectives."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.harness import intervals
from qdiffjax._checks import require
from qdiffjax.analysis import guarantees

PEAK = 2.0  # samples live in [-1, 1]
ALPHA, DELTA = 0.1, 0.05
MEANS = ("bits", "stored", "megabytes", "gigabops", "overhead", "evaluations", "learned", "seconds")


def widths_of(words: str) -> tuple[int, int]:
    """Return the widths of weights and activations, or refuse what is no pair such as W4A8."""
    found = re.fullmatch(r"W([2-8])A([2-8])", words)
    require(found, "recipes", got=repr(words), expected="widths of 2 to 8 bits",
            remedy="such as W4A8")  # fmt: skip
    assert found is not None
    return int(found[1]), int(found[2])


def rows(errors: Mapping[tuple, Any], runs, seed: int) -> list[dict]:
    """Return a row for each (recipe, technique, form) that ran, over its seeds.

    Args:
      errors: by (seed, recipe, technique, form), RMSE of samples [num].
      runs: the rows of the runs.
      seed: of the resampling.
    """
    told = []
    for key in dict.fromkeys(tuple(rest) for _, *rest in errors):
        values = np.stack([each for (_, *rest), each in errors.items() if tuple(rest) == key])
        own = [run for run in runs if (run["recipe"], run["technique"], run["form"]) == key
               and "failure" not in run]  # fmt: skip
        low, high = intervals.of_seeds(_rms, values, seed=seed)
        rmse = _rms(values)
        bound = guarantees.conformal_bound(values[0], ALPHA, DELTA)
        told.append({
            "kind": "form", **dict(zip(("recipe", "technique", "form"), key, strict=True)),
            "what": own[0]["what"], "features": own[0]["features"], "seeds": len(own),
            "rmse": rmse, "low": low, "high": high, "median": float(np.median(values)),
            "psnr": float(20 * np.log10(PEAK / rmse)), "guaranteed": float(bound.bound),
            **{name: float(np.mean([run[name] for run in own])) for name in MEANS},
            **{name: np.mean([run[name] for run in own], 0).tolist()
               for name in ("frechet", "floor", "frechet_data", "float_data", "seconds_of_chips")
               if name in own[0]},
        })  # fmt: skip
    return told


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))

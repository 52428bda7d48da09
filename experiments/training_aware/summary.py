"""What all seeds say together: means by way, and ratios of two ways with seeds as units."""

from collections.abc import Sequence

import numpy as np

from experiments.training_aware import ways
from qdiffjax import estimates

PAIRS = (  # (way, beside): claims of which is better, at equal optimizer steps but for the hybrid
    (ways.GAINS, ways.UNIFORM), (ways.PROPAGATED, ways.UNIFORM),
    (ways.WHOLE, ways.UNIFORM), (ways.WHOLE, ways.GAINS),
    (ways.GAINS, ways.CURED), (ways.LOW_RANK, ways.GAINS), (ways.HYBRID, ways.CURED),
    (ways.BOTH, ways.GAINS),
)  # fmt: skip
MEANS = ("rmse", "median", "frechet", "evaluations", "learned", "seconds")


def rows(runs: Sequence[dict]) -> list[dict]:
    """Return a row for each (recipe, way) over its seeds, and one for each ratio of two ways."""
    told = []
    recipes = list(dict.fromkeys(run["recipe"] for run in runs))
    for recipe in recipes:
        own = [run for run in runs if run["recipe"] == recipe]
        for way in dict.fromkeys(run["way"] for run in own):
            these = [run for run in own if run["way"] == way]
            low, high = _interval(np.log([run["rmse"] for run in these]))
            told.append({
                "kind": "way", "recipe": recipe, "way": way, "num_seeds": len(these),
                **{name: float(np.mean([run[name] for run in these])) for name in MEANS},
                "low": low, "high": high, "floor": these[0]["floor"],
                "frechet_low": float(np.mean([run["frechet_low"] for run in these])),
                "frechet_high": float(np.mean([run["frechet_high"] for run in these])),
            })  # fmt: skip
        told += [row for pair in PAIRS if (row := _ratio(own, recipe, *pair))]
    return told


def _ratio(runs, recipe: str, way: str, beside: str) -> dict | None:
    """Return the ratio of RMSEs and of Frechet distances, paired by seed; geometric means."""
    table = {(run["way"], run["seed"]): run for run in runs}
    seeds = sorted({seed for name, seed in table if name == way}
                   & {seed for name, seed in table if name == beside})  # fmt: skip
    if not seeds:
        return None
    row: dict = {"kind": "ratio", "recipe": recipe, "way": way, "beside": beside,
                 "num_seeds": len(seeds)}  # fmt: skip
    for name in ("rmse", "frechet"):
        logs = [np.log(table[way, s][name] / table[beside, s][name]) for s in seeds]
        low, high = _interval(logs)
        row |= {name: float(np.exp(np.mean(logs))), f"{name}_low": low, f"{name}_high": high}
    return row


def _interval(logs) -> tuple[float | None, float | None]:
    """Return the ends of Student's 95 % interval of the mean, exponentiated; none of one seed."""
    if len(logs) < 2:
        return None, None
    half = estimates.student_quantile(len(logs)) * np.std(logs, ddof=1) / len(logs) ** 0.5
    return float(np.exp(np.mean(logs) - half)), float(np.exp(np.mean(logs) + half))
